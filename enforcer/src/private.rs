//! Directories and files of which nobody but us may choose the content: state, pins, the socket.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use nix::unistd::geteuid;

/// Makes a directory that only we can enter, and its parents. One that is there must be ours: what is read from it is
/// believed, and in a directory that others can write to they choose what that is.
pub fn make_private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    must_be_ours(path)
}

/// A directory, not a link to one, that no other user owns or can write to.
pub fn must_be_ours(directory: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(directory)?;
    let refused = |why: &str| Err(io::Error::other(format!("{} {why}", directory.display())));
    if !found.is_dir() {
        return refused("is not a directory (symbolic links are not followed)");
    }
    if found.uid() != geteuid().as_raw() {
        return refused("belongs to another user");
    }
    if found.mode() & 0o022 != 0 {
        return refused("can be written to by other users");
    }
    Ok(())
}

/// A reader sees the old content or the new, never a part; nobody else can read it.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let next = path.with_extension("next");
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Made new: neither through a link nor with somebody else's mode.
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
    file.write_all(content)?;
    fs::rename(&next, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_write_follows_no_link_and_nobody_else_can_read_it() {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("precious"), "precious").expect("written");
        symlink(at("precious"), at("numbers.next")).expect("made");
        symlink(at("precious"), at("numbers.json")).expect("made");
        write_atomically(&at("numbers.json"), b"new").expect("written");
        assert_eq!(fs::read(at("precious")).expect("there"), b"precious");
        let written = fs::symlink_metadata(at("numbers.json")).expect("there");
        assert!(written.is_file());
        assert_eq!(written.mode() & 0o777, 0o600);
        assert_eq!(fs::read(at("numbers.json")).expect("there"), b"new");
    }
}
