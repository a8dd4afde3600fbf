//! The plugin's binary in the runtime's directory.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::swap;

/// Name of the binary, and the entry's `type`.
pub const PLUGIN: &str = "bulkhead-cni";

const MODE: u32 = 0o755;

/// The binary that is put in place, and what is known of the one that is there.
#[derive(Debug)]
pub struct Plugin {
    source: PathBuf,
    /// As it was when it was last found to be right; a look at it is then enough.
    seen: Option<(PathBuf, Fingerprint)>,
}

type Fingerprint = (u64, u64, u64, u32, Option<SystemTime>);

impl Plugin {
    /// `given`, or the one beside this executable.
    pub fn new(given: Option<&Path>) -> io::Result<Self> {
        let beside = || Ok::<_, io::Error>(std::env::current_exe()?.with_file_name(PLUGIN));
        let source = given.map_or_else(beside, |path| Ok(path.to_owned()))?;
        Ok(Self { source, seen: None })
    }

    pub fn source(&self) -> &Path {
        &self.source
    }

    /// Puts it into `directory` unless the same is there; tells whether it had to. Plugins that run keep the file that
    /// they were started from.
    pub fn install(&mut self, directory: &Path) -> io::Result<bool> {
        let path = directory.join(PLUGIN);
        let present = fingerprint(&path);
        if present.is_some_and(|now| self.seen.as_ref().is_some_and(|seen| *seen == (path.clone(), now))) {
            return Ok(false);
        }
        let wanted = fs::read(&self.source)?;
        let right =
            present.is_some_and(|now| now.3 == MODE) && fs::read(&path).is_ok_and(|have| have == wanted);
        if !right {
            swap::replace(&path, &wanted, MODE)?;
        }
        self.seen = fingerprint(&path).map(|now| (path, now));
        Ok(!right)
    }
}

fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.permissions().mode() & 0o7777, found.modified().ok()))
}
