//! Room for neighbours. The kernel keeps those of all network namespaces in one table per family, of 1,024 entries by
//! default; pods that come and go fast fill it, and then a sender gets EINVAL (`ip6_finish_output2`) for what nobody has
//! judged.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

/// Entries of either family's table.
const ROOM: &str = "65536";

/// The machine's limits are what they were when this goes.
pub struct Room(Vec<(PathBuf, String)>);

impl Room {
    pub fn make() -> Result<Self> {
        let mut made = Self(Vec::new());
        // The hard limit first: the soft one must not be above it.
        for limit in ["gc_thresh3", "gc_thresh2"] {
            for family in ["ipv4", "ipv6"] {
                let path = PathBuf::from(format!("/proc/sys/net/{family}/neigh/default/{limit}"));
                let before =
                    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                fs::write(&path, ROOM)
                    .with_context(|| format!("cannot write {ROOM} to {}", path.display()))?;
                made.0.push((path, before));
            }
        }
        Ok(made)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for (path, before) in self.0.iter().rev() {
            if let Err(error) = fs::write(path, before.trim()) {
                eprintln!("{} is not {} again: {error}", path.display(), before.trim());
            }
        }
    }
}
