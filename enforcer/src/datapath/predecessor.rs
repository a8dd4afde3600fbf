//! Pins of an agent with another layout of the maps. Its programs enforce until ours can: then each of its links gets our
//! program in one step, and its connections come along.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::maps::{Array, HashMap, IterableMap, Map, MapData};
use bulkhead_ebpf::abi::{Conn, ConnKey, ConnKey4, ConnKey6, Endpoint, names};

use super::{DatapathError, batch, connections::ConnTable, kernel::Maps};

/// Versions whose `ENDPOINTS` and `CONNS` maps are laid out as ours are; to be thought of with every change of
/// `abi.rs`. Connections of others are learnt from the pods' sockets.
const SAME_LAYOUT: [u32; 3] = [2, 3, 4];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predecessor {
    pub version: u32,
    directory: PathBuf,
}

impl Predecessor {
    /// All versions but our own, the newest first.
    pub(super) fn find(bpffs: &Path, own: u32) -> Result<Vec<Self>, DatapathError> {
        let pin_error = |source| DatapathError::Pin { path: bpffs.into(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(bpffs).map_err(pin_error)? {
            let directory = entry.map_err(pin_error)?.path();
            let Some(version) = version_of(&directory).filter(|version| *version != own) else { continue };
            found.push(Self { version, directory });
        }
        found.sort_by_key(|predecessor| std::cmp::Reverse(predecessor.version));
        Ok(found)
    }

    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.directory.join("links").join(name)
    }

    /// Names of the pins of its links: `<ifindex>-<program>`.
    pub(super) fn links(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.join("links")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Nothing of it runs any more.
    pub(super) fn remove(&self) -> Result<(), DatapathError> {
        match fs::remove_dir_all(&self.directory) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DatapathError::Pin { path: self.directory.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// Its maps can be read.
    pub fn is_understood(&self) -> bool {
        SAME_LAYOUT.contains(&self.version)
    }

    /// Records of its endpoints, of which the marks are to be kept: for a moment its programs and ours see the same
    /// packets. (Records in `ENDPOINTS_SPILL` are too rare to be looked for.)
    pub fn endpoints(&self) -> Result<Vec<Endpoint>, DatapathError> {
        if !self.is_understood() {
            return Ok(Vec::new());
        }
        let map: Array<_, Endpoint> = Map::Array(self.map(names::ENDPOINTS)?).try_into()?;
        let records: Result<Vec<_>, _> = map.iter().collect();
        Ok(records?.into_iter().filter(|endpoint| endpoint.ifindex != 0).collect())
    }

    /// Enters its connections into our tables; see [`ConnTable::learn`]. Returns how many were news.
    pub fn carry_connections(&self, maps: &mut Maps, replace: Option<u64>) -> Result<u64, DatapathError> {
        if !self.is_understood() {
            return Ok(0);
        }
        let v4: HashMap<_, ConnKey4, Conn> = Map::LruHashMap(self.map(names::CONNS_V4)?).try_into()?;
        let v6: HashMap<_, ConnKey6, Conn> = Map::LruHashMap(self.map(names::CONNS_V6)?).try_into()?;
        Ok(carry(&v4, maps.conns_v4(), replace)? + carry(&v6, maps.conns_v6(), replace)?)
    }

    fn map(&self, name: &str) -> Result<MapData, DatapathError> {
        Ok(MapData::from_pin(self.directory.join("maps").join(name))?)
    }
}

/// Verdicts do not come along: their numbers are another agent's. Each end is judged again at its next packet.
fn carry<A>(
    from: &HashMap<MapData, ConnKey<A>, Conn>,
    mut to: ConnTable<'_, A>,
    replace: Option<u64>,
) -> Result<u64, DatapathError>
where
    ConnKey<A>: aya::Pod,
{
    let mut carried = 0;
    for entry in batch::entries(from.map()) {
        let (key, conn): (_, Conn) = entry?;
        let conn = Conn { ends: Default::default(), ..conn };
        carried += u64::from(to.learn(&key, &conn, replace)?);
    }
    Ok(carried)
}

/// The layout's version that a directory of pins is named after.
pub(super) fn version_of(directory: &Path) -> Option<u32> {
    directory.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use bulkhead_ebpf::abi::ABI_VERSION;

    use super::*;

    #[test]
    fn our_own_layout_is_one_that_we_understand() {
        assert!(
            SAME_LAYOUT.contains(&ABI_VERSION),
            "say which older layouts are the same, and which are not"
        );
    }

    #[test]
    fn only_directories_of_other_versions_are_predecessors() {
        let bpffs = tempfile::tempdir().expect("tempdir");
        for name in ["v1", "v2", "v10", "v", "vx", "other", "v3x"] {
            fs::create_dir(bpffs.path().join(name)).expect("made");
        }
        let found = Predecessor::find(bpffs.path(), 2).expect("read");
        assert_eq!(found.iter().map(|p| p.version).collect::<Vec<_>>(), [10, 1]);
    }
}
