//! What keeps programs, maps and links in the kernel when no agent runs.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use aya::{
    maps::{MapData, MapInfo},
    programs::{SchedClassifier, links::FdLink},
};

use super::{HOOKS, Programs};
use crate::datapath::{DatapathError, kernel::MAP_NAMES};

impl Programs {
    pub(super) fn link_pin(&self, ifindex: u32, hook: usize) -> PathBuf {
        self.directory.join("links").join(format!("{ifindex}-{}", HOOKS[hook].0))
    }

    /// Removes the pins of links whose interface is gone, and predecessors that hold nothing any more; returns how many
    /// links went.
    pub fn sweep_links(&mut self, exists: impl Fn(u32) -> bool) -> Result<usize, DatapathError> {
        let mut known = BTreeMap::new(); // an interface has several links
        let mut exists = |ifindex| *known.entry(ifindex).or_insert_with(|| exists(ifindex));
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
                ifindex.is_some_and(&mut exists)
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
            .filter(|(ifindex, hook)| {
                !self.is_being_fitted(*ifindex) && !self.link_pin(*ifindex, *hook).exists()
            })
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

    /// Path, interface index and hook of every link pin.
    pub(super) fn links(&self) -> Result<Vec<(PathBuf, u32, usize)>, DatapathError> {
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

pub(super) fn make_directories(directory: &Path) -> Result<(), DatapathError> {
    ["maps", "programs", "links"].into_iter().try_for_each(|part| {
        let path = directory.join(part);
        let mut private = fs::DirBuilder::new();
        let made = private.recursive(true).mode(0o700).create(&path);
        made.map_err(|source| DatapathError::Pin { path, source })
    })
}

pub(super) fn pin(link: FdLink, path: &Path) -> Result<FdLink, DatapathError> {
    let pinned = link.pin(path).map_err(|source| DatapathError::PinLink { path: path.into(), source })?;
    Ok(pinned.into())
}

/// Pins under another name first and renames over the old pin, so that there is always one.
pub(super) fn replace_pin(
    program: &mut SchedClassifier,
    path: &Path,
) -> Result<SchedClassifier, DatapathError> {
    // bpffs reserves names with dots.
    let next =
        path.with_file_name(format!("next-{}", path.file_name().unwrap_or_default().to_string_lossy()));
    remove_pin(&next)?;
    program.pin(&next).map_err(|source| DatapathError::PinLink { path: next.clone(), source })?;
    fs::rename(&next, path).map_err(|source| DatapathError::Pin { path: path.into(), source })?;
    Ok(SchedClassifier::from_pin(path)?)
}

pub(super) fn remove_pin(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::Pin { path: path.into(), source })
        }
        _ => Ok(()),
    }
}
