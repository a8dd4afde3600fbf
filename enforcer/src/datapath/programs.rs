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

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, MapInfo},
    programs::{
        ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, LinkOrder, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
    },
};
use bulkhead_ebpf::abi::names;

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
    /// The way to other nodes: flannel's overlay device, or an uplink.
    Overlay,
}

impl Role {
    const fn hooks(self) -> std::ops::Range<usize> {
        match self {
            Self::Pod => 0..2,
            Self::Sender => 0..1,
            Self::Overlay => 2..3,
        }
    }
}

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

fn loader<'a>(capacity: Capacity) -> EbpfLoader<'a> {
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
        let mut programs = Self { directory, hooks, links: BTreeMap::new(), predecessors, adoption };
        if programs.adoption.programs_replaced > 0 {
            programs.update_links()?;
        }
        Ok((programs, ebpf))
    }

    /// Puts the role's programs on the interface and pins their links; what is in place already stays. A predecessor's
    /// link gets our program instead of its own, in one step.
    pub fn attach(&mut self, role: Role, ifname: &str, ifindex: u32) -> Result<(), DatapathError> {
        for hook in role.hooks() {
            let (name, side) = HOOKS[hook];
            let path = self.link_pin(ifindex, hook);
            let (_, running) = SchedClassifier::query_tcx(ifname, side)?;
            let wanted = self.hooks[hook].info()?.id();
            let link = if path.exists() && running.iter().any(|info| info.id() == wanted) {
                self.adoption.links_adopted += 1;
                PinnedLink::from_pin(&path)?.into()
            } else if let Some(old) = self.inherited(&format!("{ifindex}-{name}")) {
                let link = self.update_link(&old, hook)?;
                remove_pin(&path)?; // of an interface that had this index before
                fs::rename(&old, &path)
                    .map_err(|source| DatapathError::Pin { path: path.clone(), source })?;
                self.adoption.links_updated += 1;
                link
            } else {
                remove_pin(&path)?; // as above
                // First in line: a program of somebody else must not pass packets on unseen.
                let options = TcAttachOptions::TcxOrder(LinkOrder::first());
                let program = &mut self.hooks[hook];
                let id = program.attach_with_options(ifname, side, options)?;
                let link: FdLink = program.take_link(id)?.try_into()?;
                pin(link, &path)?
            };
            self.links.insert((ifindex, hook), link);
        }
        Ok(())
    }

    /// Both of a pod's programs have been put on the interface, by us or by a predecessor.
    pub fn holds(&self, ifindex: u32) -> bool {
        Role::Pod.hooks().all(|hook| {
            let inherited = self.inherited(&format!("{ifindex}-{}", HOOKS[hook].0));
            inherited.is_some() || self.link_pin(ifindex, hook).exists()
        })
    }

    /// The role's links are ours: who removes their pins takes off nothing.
    pub fn keeps(&self, role: Role, ifindex: u32) -> bool {
        role.hooks().all(|hook| self.links.contains_key(&(ifindex, hook)))
    }

    /// The pin of a predecessor's link that still holds its interface.
    fn inherited(&self, name: &str) -> Option<PathBuf> {
        self.predecessors.iter().map(|predecessor| predecessor.link(name)).find(|path| path.exists())
    }

    /// Whose programs enforce until ours are attached.
    pub fn predecessors(&self) -> &[Predecessor] {
        &self.predecessors
    }

    fn link_pin(&self, ifindex: u32, hook: usize) -> PathBuf {
        self.directory.join("links").join(format!("{ifindex}-{}", HOOKS[hook].0))
    }

    /// Are the role's programs running on the interface?
    pub fn attached(&self, role: Role, ifname: &str) -> Result<bool, DatapathError> {
        for (program, (_, side)) in self.hooks[role.hooks()].iter().zip(&HOOKS[role.hooks()]) {
            let wanted = program.info()?.id();
            let (_, running) = SchedClassifier::query_tcx(ifname, *side)?;
            if !running.iter().any(|info| info.id() == wanted) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes the pins of links whose interface is gone, and predecessors that hold nothing any more; returns how many
    /// links went.
    pub fn sweep_links(&mut self, exists: impl Fn(u32) -> bool) -> Result<usize, DatapathError> {
        let mut gone: Vec<PathBuf> = self
            .links()?
            .into_iter()
            .filter(|(_, ifindex, _)| !exists(*ifindex))
            .map(|(path, ..)| path)
            .collect();
        self.links.retain(|(ifindex, _), _| exists(*ifindex));
        let mut left = Vec::new();
        for predecessor in std::mem::take(&mut self.predecessors) {
            let (alive, dead): (Vec<_>, Vec<_>) = predecessor.links().into_iter().partition(|name| {
                let ifindex = name.split_once('-').and_then(|(ifindex, _)| ifindex.parse().ok());
                ifindex.is_some_and(&exists)
            });
            gone.extend(dead.iter().map(|name| predecessor.link(name)));
            if alive.is_empty() {
                predecessor.remove()?;
            } else {
                left.push(predecessor);
            }
        }
        self.predecessors = left;
        gone.iter().try_for_each(|path| remove_pin(path))?;
        Ok(gone.len())
    }

    /// Puts back pins that somebody has removed; returns how many. What they held has been held by us meanwhile.
    pub fn restore_pins(&mut self) -> Result<usize, DatapathError> {
        make_directories(&self.directory)?;
        let mut restored = 0;
        for (program, (name, _)) in self.hooks.iter_mut().zip(HOOKS) {
            let path = self.directory.join("programs").join(name);
            if !path.exists() {
                program.pin(&path).map_err(|source| DatapathError::PinLink { path, source })?;
                restored += 1;
            }
        }
        restored += self.restore_maps()?;
        let missing: Vec<_> = self
            .links
            .keys()
            .copied()
            .filter(|(ifindex, hook)| !self.link_pin(*ifindex, *hook).exists())
            .collect();
        for (ifindex, hook) in missing {
            let path = self.link_pin(ifindex, hook);
            if let Some(link) = self.links.remove(&(ifindex, hook)) {
                self.links.insert((ifindex, hook), pin(link, &path)?);
                restored += 1;
            }
        }
        Ok(restored)
    }

    /// The programs know their maps.
    fn restore_maps(&self) -> Result<usize, DatapathError> {
        let pin_of = |name: &str| self.directory.join("maps").join(name);
        if MAP_NAMES.iter().all(|name| pin_of(name).exists()) {
            return Ok(0);
        }
        let mut restored = 0;
        for program in &self.hooks {
            for id in program.info()?.map_ids()?.unwrap_or_default() {
                let info = MapInfo::from_id(id)?;
                let Some(name) = info.name_as_str().filter(|name| MAP_NAMES.contains(name)) else { continue };
                let path = pin_of(name);
                if !path.exists() {
                    let pinned = MapData::from_id(id)?.pin(&path);
                    pinned.map_err(|source| DatapathError::PinLink { path, source })?;
                    restored += 1;
                }
            }
        }
        Ok(restored)
    }

    /// Swaps the code of every link in one step each: no packet meets neither or both.
    fn update_links(&mut self) -> Result<(), DatapathError> {
        for (path, ifindex, hook) in self.links()? {
            match self.update_link(&path, hook) {
                Ok(link) => _ = self.links.insert((ifindex, hook), link),
                // A link whose interface is gone cannot be updated; the sweep removes its pin.
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "link not updated");
                    continue;
                }
            }
            self.adoption.links_updated += 1;
        }
        Ok(())
    }

    /// The pin goes on holding the link, under its new program.
    fn update_link(&mut self, path: &Path, hook: usize) -> Result<FdLink, DatapathError> {
        let link = SchedClassifierLink::try_from(FdLink::from(PinnedLink::from_pin(path)?))?;
        let program = &mut self.hooks[hook];
        let id = program.attach_to_link(link)?;
        Ok(program.take_link(id)?.try_into()?)
    }

    /// Path, interface index and hook of every link pin.
    fn links(&self) -> Result<Vec<(PathBuf, u32, usize)>, DatapathError> {
        let directory = self.directory.join("links");
        let pin_error = |source| DatapathError::Pin { path: directory.clone(), source };
        let mut links = Vec::new();
        for entry in fs::read_dir(&directory).map_err(pin_error)? {
            let path = entry.map_err(pin_error)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some((ifindex, hook)) = name.split_once('-') else { continue };
            let Some(hook) = HOOKS.iter().position(|(name, _)| *name == hook) else { continue };
            if let Ok(ifindex) = ifindex.parse() {
                links.push((path, ifindex, hook));
            }
        }
        Ok(links)
    }
}

fn make_directories(directory: &Path) -> Result<(), DatapathError> {
    ["maps", "programs", "links"].into_iter().try_for_each(|part| {
        let path = directory.join(part);
        let mut private = fs::DirBuilder::new();
        let made = private.recursive(true).mode(0o700).create(&path);
        made.map_err(|source| DatapathError::Pin { path, source })
    })
}

fn pin(link: FdLink, path: &Path) -> Result<FdLink, DatapathError> {
    let pinned = link.pin(path).map_err(|source| DatapathError::PinLink { path: path.into(), source })?;
    Ok(pinned.into())
}

/// Pins under another name first and renames over the old pin, so that there is always one.
fn replace_pin(program: &mut SchedClassifier, path: &Path) -> Result<SchedClassifier, DatapathError> {
    // bpffs reserves names with dots.
    let next =
        path.with_file_name(format!("next-{}", path.file_name().unwrap_or_default().to_string_lossy()));
    remove_pin(&next)?;
    program.pin(&next).map_err(|source| DatapathError::PinLink { path: next.clone(), source })?;
    fs::rename(&next, path).map_err(|source| DatapathError::Pin { path: path.into(), source })?;
    Ok(SchedClassifier::from_pin(path)?)
}

fn remove_pin(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::Pin { path: path.into(), source })
        }
        _ => Ok(()),
    }
}

impl From<LinkError> for DatapathError {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}
