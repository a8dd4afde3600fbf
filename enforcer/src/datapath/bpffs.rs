//! The file system that pins need.

use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, statfs};

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
}

/// Is `path`, or what there is of it, on a bpffs? One of our own mounting would not do: in a container it would go
/// with the container, and with it the enforcement.
pub fn require(path: &Path) -> Result<(), BpffsError> {
    let there = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    let found = statfs(there).map_err(|source| BpffsError::Look { path: there.to_owned(), source })?;
    if found.filesystem_type() == MAGIC { Ok(()) } else { Err(BpffsError::NotThere(path.to_owned())) }
}
