//! The file system that pins need.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{FsType, statfs};

use crate::private::must_be_ours;

/// `BPF_FS_MAGIC` of linux/magic.h.
const MAGIC: FsType = FsType(0xcafe_4a11);

#[derive(Debug, thiserror::Error)]
pub enum BpffsError {
    #[error(
        "{} is not on a bpf file system, without which nothing would outlive the agent: \
         run `mount -t bpf bpf /sys/fs/bpf` on the node",
        .0.display()
    )]
    NotThere(PathBuf),
    #[error("cannot look at {path}")]
    Look { path: PathBuf, source: nix::Error },
    /// On a bpffs that was mounted by hand, everybody may make directories.
    #[error("pins are not safe where they would be")]
    NotOurs(#[source] io::Error),
}

/// Is `path`, or what there is of it, on a bpffs? One of our own mounting would not do: in a container it would go
/// with the container, and with it the enforcement.
pub fn require(path: &Path) -> Result<(), BpffsError> {
    let there = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    let found = statfs(there).map_err(|source| BpffsError::Look { path: there.to_owned(), source })?;
    if found.filesystem_type() != MAGIC {
        return Err(BpffsError::NotThere(path.to_owned()));
    }
    if there == path {
        ours(path)?;
    }
    Ok(())
}

/// What is pinned in a directory of ours, or in those below it, is ours: others could put their own maps there, or take
/// ours away.
fn ours(path: &Path) -> Result<(), BpffsError> {
    must_be_ours(path).map_err(BpffsError::NotOurs)?;
    for entry in fs::read_dir(path).map_err(BpffsError::NotOurs)? {
        let entry = entry.map_err(BpffsError::NotOurs)?;
        if is_version(&entry.file_name()) {
            must_be_ours(&entry.path()).map_err(BpffsError::NotOurs)?;
        }
    }
    Ok(())
}

/// `v1`, `v2`, ...: nothing else there is ours, whatever directory was named.
pub(super) fn is_version(name: &OsStr) -> bool {
    name.to_str().and_then(|name| name.strip_prefix('v')).is_some_and(|digits| digits.parse::<u32>().is_ok())
}
