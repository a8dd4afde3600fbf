//! Every pin of ours, gone.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{SchedClassifier, TcAttachType};
use bulkhead_ebpf::abi::names;
use nix::net::if_::{if_nameindex, if_nametoindex};

use super::bpffs;

/// What became of the pins.
#[derive(Debug, Default)]
pub struct Unpinned {
    pub links: usize,
    /// Programs and maps.
    pub others: usize,
    pub failed: Vec<(PathBuf, io::Error)>,
}

/// Removes the pins of every ABI version under `bpffs`, and the directory itself if nothing else is in it.
///
/// Links first: each takes its program off its interface, so that no packet meets a program without its maps.
pub fn remove_all(bpffs: &Path) -> Unpinned {
    let mut unpinned = Unpinned::default();
    if !bpffs.exists() {
        return unpinned;
    }
    if let Err(error) = bpffs::require(bpffs) {
        unpinned.failed.push((bpffs.to_owned(), io::Error::other(error)));
        return unpinned;
    }
    let versions = match versions(bpffs) {
        Ok(versions) => versions,
        Err(error) => {
            unpinned.failed.push((bpffs.to_owned(), error));
            return unpinned;
        }
    };
    for version in &versions {
        unpinned.links += unpinned_below(&version.join("links"), &mut unpinned.failed);
    }
    for version in &versions {
        unpinned.others += unpinned_below(version, &mut unpinned.failed);
    }
    match fs::remove_dir(bpffs) {
        // Somebody else's pins, or a mount point as a container sees its volumes.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy) => {}
        Err(error) => unpinned.failed.push((bpffs.to_owned(), error)),
        Ok(()) => {}
    }
    unpinned
}

fn versions(bpffs: &Path) -> io::Result<Vec<PathBuf>> {
    let ours = |path: &PathBuf| path.file_name().is_some_and(bpffs::is_version);
    let entries = fs::read_dir(bpffs)?.map(|entry| Ok(entry?.path()));
    Ok(entries.collect::<io::Result<Vec<_>>>()?.into_iter().filter(ours).collect())
}

/// Removes a directory and all in it; returns the number of files.
fn unpinned_below(directory: &Path, failed: &mut Vec<(PathBuf, io::Error)>) -> usize {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                failed.push((directory.to_owned(), error));
            }
            return 0;
        }
    };
    let mut files = 0;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && !path.is_symlink() {
            files += unpinned_below(&path, failed);
            continue;
        }
        match fs::remove_file(&path) {
            Ok(()) => files += 1,
            Err(error) => failed.push((path, error)),
        }
    }
    if let Err(error) = fs::remove_dir(directory) {
        failed.push((directory.to_owned(), error));
    }
    files
}

/// Interfaces of this network namespace that programs of ours still run on, with the program. After [`remove_all`] that
/// means that a process holds a link. The kernel lets go of a link a moment after its last holder did.
pub fn still_attached() -> io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for interface in &if_nameindex()? {
        let name = interface.name().to_string_lossy();
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            let running = match SchedClassifier::query_tcx(&name, side) {
                Ok((_, running)) => running,
                // It has gone meanwhile, and everything on it.
                Err(_) if if_nametoindex(&*name).is_err() => continue,
                Err(error) => return Err(io::Error::other(format!("{name}: {error}"))),
            };
            let ours =
                running.iter().filter_map(|program| program.name_as_str()).filter(|name| is_ours(name));
            found.extend(ours.map(|program| (name.clone().into_owned(), program.to_owned())));
        }
    }
    Ok(found)
}

fn is_ours(program: &str) -> bool {
    [names::FROM_POD, names::TO_POD, names::TO_OVERLAY].contains(&program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_pins_can_be_nothing_is_removed() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (links, there) =
            (directory.path().join("v1/links"), directory.path().join("v1/links/7-from_pod"));
        fs::create_dir_all(&links).expect("made");
        fs::write(&there, "").expect("written");
        let unpinned = remove_all(directory.path());
        assert_eq!((unpinned.links, unpinned.others, unpinned.failed.len()), (0, 0, 1));
        assert!(unpinned.failed[0].1.to_string().contains("not on a bpf file system"), "{unpinned:?}");
        assert!(there.exists());
        assert!(
            remove_all(&directory.path().join("none")).failed.is_empty(),
            "nothing there is nothing to do"
        );
    }
}
