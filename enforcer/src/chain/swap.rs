//! A file's content replaced as a whole, while others may write it too.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    process,
    time::{Duration, SystemTime},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
};

use super::directory::PASSING;

/// A file in the making that is older than this was left by a process that was killed.
const LEFT_BEHIND: Duration = Duration::from_mins(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swapped {
    Done,
    /// Somebody else wrote meanwhile; theirs is in place.
    Changed,
}

/// Replaces `old` by `new`. Readers see one or the other; what anybody else wrote in between stays.
///
/// The two files change places in one step, and only then is it known what was replaced: if that is not `old`, it goes
/// back (it may be half written, and its writer goes on writing).
pub fn swap(path: &Path, old: &str, new: &str) -> io::Result<Swapped> {
    match try_swap(path, old, new) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Swapped::Changed),
        result => result,
    }
}

fn try_swap(path: &Path, old: &str, new: &str) -> io::Result<Swapped> {
    let path = fs::canonicalize(path)?; // through a symbolic link, which stays
    let passing = Passing::write(&path, new.as_bytes(), fs::metadata(&path).ok().as_ref())?;
    if fs::read(&path)? != old.as_bytes() {
        return Ok(Swapped::Changed);
    }
    match exchange(&passing.path, &path) {
        // A file system that cannot do it: what is written in this instant is lost.
        Err(Errno::EINVAL | Errno::ENOSYS) => fs::rename(&passing.path, &path)?,
        result => result?,
    }
    if passing.path.exists() && fs::read(&passing.path)? != old.as_bytes() {
        exchange(&passing.path, &path)?;
        if fs::read(&passing.path)? != new.as_bytes() {
            // A third one, which is newer.
            fs::rename(&passing.path, &path)?;
        }
        return Ok(Swapped::Changed);
    }
    sync_directory(&path)?;
    Ok(Swapped::Done)
}

/// Makes a file that is not there yet.
pub fn create(path: &Path, content: &[u8], like: Option<&fs::Metadata>) -> io::Result<Swapped> {
    let passing = Passing::write(path, content, like)?;
    match fs::hard_link(&passing.path, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(Swapped::Changed),
        result => result?,
    }
    sync_directory(path)?;
    Ok(Swapped::Done)
}

/// Puts a file in place, whatever is there.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let passing = Passing::write(path, content, None)?;
    fs::set_permissions(&passing.path, fs::Permissions::from_mode(mode))?;
    fs::rename(&passing.path, path)?;
    sync_directory(path)
}

/// Removes what killed processes left in a directory.
pub fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().ends_with(PASSING);
        let age = entry.metadata().and_then(|m| m.modified()).map(|at| SystemTime::now().duration_since(at));
        if ours && matches!(age, Ok(Ok(age)) if age > LEFT_BEHIND) {
            let _ = fs::remove_file(entry.path()); // another one may be at it
        }
    }
}

/// Whole on disk, beside its destination, and gone when dropped.
struct Passing {
    path: PathBuf,
}

impl Passing {
    fn write(destination: &Path, content: &[u8], like: Option<&fs::Metadata>) -> io::Result<Self> {
        // In containers, two writers may have the same process id.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let path = destination.with_file_name(format!(".{}-{now}{PASSING}", process::id()));
        let mode = like.map_or(0o644, |like| like.mode() & 0o7777);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        let passing = Self { path };
        file.set_permissions(fs::Permissions::from_mode(mode))?; // whatever the umask says
        if let Some(like) = like {
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
                // Not with every set of capabilities; whoever reads it as root does not mind.
                let _ = fchown(&file, Some(like.uid()), Some(like.gid()));
            }
        }
        file.write_all(content)?;
        file.sync_all()?;
        Ok(passing)
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // renamed, or swept later
    }
}

fn exchange(one: &Path, other: &Path) -> Result<(), Errno> {
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
