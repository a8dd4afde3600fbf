//! The socket: where it lies, who may open it, and how it replaces a dead agent's.

use std::{
    ffi::OsString,
    fs::{self, Permissions},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process,
};

use tokio::net::{UnixListener, UnixStream};

use crate::private::make_private_directory;

/// Why the agent cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("socket {}: must be an absolute path to a file", .0.display())]
    NotAPath(PathBuf),
    #[error("directory of the socket: {0}")]
    Directory(io::Error),
    #[error("socket {}: there is something that is not a socket; it is left alone", .0.display())]
    Occupied(PathBuf),
    #[error("socket {}: another agent answers on it", .0.display())]
    InUse(PathBuf),
    #[error("socket {}: {doing}", .path.display())]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
}

/// A socket only root can open; removed when dropped, unless a successor has taken its place.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: UnixListener,
    path: PathBuf,
    inode: Inode,
}

/// Identity of a file whatever it is called.
type Inode = (u64, u64);

impl Listener {
    /// Listens on `path`. Its directory is made (0700) if it is missing, and must otherwise belong to us alone.
    ///
    /// The socket gets its mode under another name and is then renamed into place: nobody ever finds it open to all,
    /// and a plugin that connects meanwhile finds the old one or the new one, never none.
    pub async fn bind(path: &Path) -> Result<Self, BindError> {
        let (Some(directory), Some(name), true) = (path.parent(), path.file_name(), path.is_absolute())
        else {
            return Err(BindError::NotAPath(path.to_owned()));
        };
        let failed = |doing| move |source| BindError::Io { path: path.to_owned(), doing, source };
        // In a directory that others can write to they could put their own socket in place of ours.
        make_private_directory(directory).map_err(BindError::Directory)?;
        not_in_use(path).await?;

        let mut passing = OsString::from(".");
        passing.push(name);
        passing.push(format!(".{}", process::id()));
        let passing = directory.join(passing);
        remove(&passing).map_err(failed("removing an earlier attempt"))?;
        let socket = UnixListener::bind(&passing).map_err(failed("listening"))?;
        fs::set_permissions(&passing, Permissions::from_mode(0o600)).map_err(failed("setting mode 0600"))?;
        let inode = inode_of(&passing).map_err(failed("looking at the new socket"))?;
        fs::rename(&passing, path).map_err(failed("putting the new socket in place"))?;
        Ok(Self { socket, path: path.to_owned(), inode })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if inode_of(&self.path).is_ok_and(|inode| inode == self.inode) {
            // At worst a stale socket stays, which the next agent replaces.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Nothing there, or a socket whose agent is gone.
async fn not_in_use(path: &Path) -> Result<(), BindError> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(BindError::Io { path: path.to_owned(), doing: "looking at the path", source });
        }
        Ok(found) => found,
    };
    if !found.file_type().is_socket() {
        return Err(BindError::Occupied(path.to_owned()));
    }
    match UnixStream::connect(path).await {
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
            Ok(())
        }
        // Also a full queue of connections: somebody holds the other end.
        _ => Err(BindError::InUse(path.to_owned())),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn inode_of(path: &Path) -> io::Result<Inode> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}
