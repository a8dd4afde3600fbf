//! The compiled programs into the kernel.

use aya::{Ebpf, EbpfLoader, programs::SchedClassifier};
use bulkhead_ebpf::abi::names;

use super::{HOOKS, OBJECT};
use crate::datapath::DatapathError;

/// Map sizes that are settings, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Per family.
    pub connections: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { connections: 1 << 18 }
    }
}

pub(super) fn loader<'a>(capacity: Capacity) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    loader.map_max_entries(names::CONNS_V4, capacity.connections);
    loader.map_max_entries(names::CONNS_V6, capacity.connections);
    loader
}

/// Programs and maps of their own, pinned nowhere and attached to nothing: for `simulate` and benches.
pub fn load_private(capacity: Capacity) -> Result<Ebpf, DatapathError> {
    let mut ebpf = loader(capacity).load(OBJECT)?;
    for (name, _) in HOOKS {
        classifier(&mut ebpf, name)?.load()?;
    }
    Ok(ebpf)
}

/// A program of `load_private`'s object.
pub fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, DatapathError> {
    let program = ebpf.program_mut(name).ok_or(DatapathError::NoSuchProgram(name))?;
    Ok(program.try_into()?)
}
