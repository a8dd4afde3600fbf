//! The programs: loaded once, pinned, shared by all pods, attached to each pod's host interface.
//!
//! ```text
//! <bpffs>/v<ABI>/maps/<NAME>             the maps
//! <bpffs>/v<ABI>/programs/<name>         from_pod, to_pod, to_overlay
//! <bpffs>/v<ABI>/links/<ifindex>-<name>  TCX links (kernel 6.6+): they hold a program on its interface
//! ```
//! While a link's pin exists, its program runs, agent or no agent (fail static). While the agent lives it holds the
//! links besides, so that who removes the pins takes off nothing. A link dies with its interface, so on pod removal its
//! pin is left until the interface is gone: unpinning earlier would let a dying pod talk unguarded.

mod attach;
mod load;
mod pins;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError},
    },
};
use bulkhead_ebpf::abi::names;

pub use self::{
    attach::{Fitted, Fitting, Running},
    load::{Capacity, classifier, load_private},
};
use self::{
    load::loader,
    pins::{make_directories, replace_pin},
};
use super::{DatapathError, bpffs, kernel::MAP_NAMES, predecessor::Predecessor};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bulkhead-programs"));

/// Program name and side of the interface as seen from the host.
type HookSide = (&'static str, TcAttachType);
/// All programs: those of a pod's host interface, then that of an overlay device.
const HOOKS: [HookSide; 3] = [
    (names::FROM_POD, TcAttachType::Ingress),
    (names::TO_POD, TcAttachType::Egress),
    (names::TO_OVERLAY, TcAttachType::Egress),
];

/// What an interface is for, by the programs that run on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Host end of a pod's veth pair.
    Pod,
    /// As `Pod`, but only what the pod sends so far.
    Sender,
    /// What is missing to `Pod` then.
    Receiver,
    /// The way to other nodes: flannel's overlay device, or an uplink.
    Overlay,
}

impl Role {
    const fn hooks(self) -> std::ops::Range<usize> {
        match self {
            Self::Pod => 0..2,
            Self::Sender => 0..1,
            Self::Receiver => 1..2,
            Self::Overlay => 2..3,
        }
    }
}

/// What a start found and did; shown in status, so that an operator (and a test) sees that a restart
/// changed nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Adoption {
    pub maps_adopted: usize,
    pub maps_created: usize,
    pub programs_adopted: usize,
    pub programs_replaced: usize,
    pub links_adopted: usize,
    pub links_updated: usize,
    /// From a predecessor's tables.
    pub connections_carried: u64,
}

pub struct Programs {
    directory: PathBuf,
    hooks: [SchedClassifier; 3],
    /// By interface index and hook.
    links: BTreeMap<(u32, usize), FdLink>,
    /// Interfaces on which something is being put.
    being_fitted: BTreeSet<u32>,
    predecessors: Vec<Predecessor>,
    pub adoption: Adoption,
}

impl Programs {
    /// Takes over the pins of this version of the layout under `bpffs`, or makes them. Programs are replaced only if
    /// their code differs.
    pub fn open(
        bpffs_directory: &Path,
        version: u32,
        capacity: Capacity,
    ) -> Result<(Self, Ebpf), DatapathError> {
        let directory = bpffs_directory.join(format!("v{version}"));
        make_directories(&directory)?;
        bpffs::require(bpffs_directory)?; // that it is ours, now that it is there
        let mut adoption = Adoption::default();
        let mut loader = loader(capacity);
        for name in MAP_NAMES {
            let path = directory.join("maps").join(name);
            *if path.exists() { &mut adoption.maps_adopted } else { &mut adoption.maps_created } += 1;
            loader.map_pin_path(name, path);
        }
        let mut ebpf = loader.load(OBJECT)?;
        let mut hook = |name| {
            let path = directory.join("programs").join(name);
            let fresh = classifier(&mut ebpf, name)?;
            fresh.load()?;
            let pinned = SchedClassifier::from_pin(&path).ok();
            let same_code =
                |pinned: &SchedClassifier| Ok::<_, ProgramError>(pinned.info()?.tag() == fresh.info()?.tag());
            match pinned {
                Some(pinned) if same_code(&pinned)? => {
                    adoption.programs_adopted += 1;
                    Ok::<_, DatapathError>(pinned)
                }
                _ => {
                    adoption.programs_replaced += 1;
                    replace_pin(fresh, &path)
                }
            }
        };
        let hooks = [hook(HOOKS[0].0)?, hook(HOOKS[1].0)?, hook(HOOKS[2].0)?];
        let predecessors = Predecessor::find(bpffs_directory, version)?;
        let mut programs = Self {
            directory,
            hooks,
            links: BTreeMap::new(),
            being_fitted: BTreeSet::new(),
            predecessors,
            adoption,
        };
        if programs.adoption.programs_replaced > 0 {
            programs.update_links()?;
        }
        Ok((programs, ebpf))
    }

    /// Whose programs enforce until ours are attached.
    pub fn predecessors(&self) -> &[Predecessor] {
        &self.predecessors
    }
}

impl From<LinkError> for DatapathError {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}
