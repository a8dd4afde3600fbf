//! Endpoints over a restart: one JSON file each, so that a broken one takes no other with it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bulkhead_cni::protocol::AttachmentId;
use sha2::{Digest, Sha256};

use super::Endpoint;
use crate::private::{make_private_directory, write_atomically};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot use {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is not an endpoint")]
    Decode { path: PathBuf, source: serde_json::Error },
}

/// A directory of endpoints.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Makes the directory (mode 0700) if it is missing.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        make_private_directory(directory)
            .map_err(|source| StoreError::Io { path: directory.into(), source })?;
        Ok(Self { directory: directory.into() })
    }

    /// What can be read, and what cannot.
    pub fn load(&self) -> Result<(Vec<Endpoint>, Vec<StoreError>), StoreError> {
        let io_error = |source| StoreError::Io { path: self.directory.clone(), source };
        let (mut endpoints, mut errors) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.directory).map_err(io_error)? {
            let path = entry.map_err(io_error)?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match read(&path) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(error) => errors.push(error),
            }
        }
        Ok((endpoints, errors))
    }

    pub fn save(&self, endpoint: &Endpoint) -> Result<(), StoreError> {
        let path = self.path(&endpoint.attachment);
        let text = serde_json::to_vec(endpoint).expect("an endpoint is plain data");
        write_atomically(&path, &text).map_err(|source| StoreError::Io { path, source })
    }

    /// No error if it is not there.
    pub fn remove(&self, attachment: &AttachmentId) -> Result<(), StoreError> {
        let path = self.path(attachment);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::Io { path, source }),
            _ => Ok(()),
        }
    }

    /// Removes every endpoint, readable or not.
    pub fn clear(&self) -> Result<(), StoreError> {
        let io_error = |source| StoreError::Io { path: self.directory.clone(), source };
        for entry in fs::read_dir(&self.directory).map_err(io_error)? {
            let path = entry.map_err(io_error)?.path();
            if path.extension().is_some_and(|e| e == "json") {
                fs::remove_file(&path).map_err(|source| StoreError::Io { path, source })?;
            }
        }
        Ok(())
    }

    /// Names come from outside; a digest cannot leave the directory.
    fn path(&self, attachment: &AttachmentId) -> PathBuf {
        let digest = Sha256::digest(format!("{}\0{}", attachment.container, attachment.ifname));
        let (half, _) = digest.split_first_chunk::<16>().expect("a digest has 32 bytes");
        self.directory.join(format!("{:032x}.json", u128::from_be_bytes(*half)))
    }
}

fn read(path: &Path) -> Result<Endpoint, StoreError> {
    let text = fs::read(path).map_err(|source| StoreError::Io { path: path.into(), source })?;
    serde_json::from_slice(&text).map_err(|source| StoreError::Decode { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use nix::unistd::geteuid;

    use super::*;
    use crate::endpoint::tests::endpoint;

    #[test]
    fn only_a_directory_of_our_own_is_believed() {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| directory.path().join(name);
        let refused = |name: &str| Store::open(&at(name)).map_err(|e| io::Error::other(e).to_string());
        let cause = |name: &str| match Store::open(&at(name)) {
            Err(StoreError::Io { source, .. }) => source.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(refused("new/endpoints").is_ok());
        for made in ["new", "new/endpoints"] {
            assert_eq!(fs::metadata(at(made)).expect("made").mode() & 0o7777, 0o700);
        }
        symlink(at("new"), at("link")).expect("made");
        assert!(cause("link").contains("symbolic links are not followed"));
        for mode in [0o770, 0o707, 0o777] {
            let name = format!("open-{mode:o}");
            fs::create_dir(at(&name)).expect("made");
            fs::set_permissions(at(&name), fs::Permissions::from_mode(mode)).expect("set");
            assert!(cause(&name).contains("can be written to by other users"), "{name}");
        }
        fs::create_dir(at("read")).expect("made");
        fs::set_permissions(at("read"), fs::Permissions::from_mode(0o755)).expect("set");
        assert!(refused("read").is_ok(), "as the kubelet makes it for a hostPath");
        if geteuid().is_root() {
            fs::create_dir(at("theirs")).expect("made");
            std::os::unix::fs::chown(at("theirs"), Some(65534), None).expect("root may");
            assert!(cause("theirs").contains("belongs to another user"));
        }
    }

    #[test]
    fn endpoints_come_back_and_a_broken_file_takes_no_other_with_it() {
        let directory = tempfile::tempdir().expect("tempdir");
        let store = Store::open(directory.path()).expect("opened");
        let (first, second) = (endpoint("a", 4), endpoint("../../b", 5));
        store.save(&first).expect("saved");
        store.save(&second).expect("saved");
        fs::write(directory.path().join("broken.json"), "{").expect("written");

        let (mut endpoints, errors) = store.load().expect("loaded");
        endpoints.sort_by_key(|e| e.id);
        assert_eq!(endpoints, [first.clone(), second]);
        assert!(errors[0].to_string().contains("broken.json"), "{errors:?}");

        store.remove(&first.attachment).expect("removed");
        store.remove(&first.attachment).expect("removing twice is no error");
        assert_eq!(store.load().expect("loaded").0.len(), 1);

        store.clear().expect("cleared");
        assert!(store.load().is_ok_and(|(endpoints, errors)| endpoints.is_empty() && errors.is_empty()));
    }
}
