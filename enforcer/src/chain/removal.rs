//! The chain as it was before us.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::{
    Directory, PLUGIN, Place,
    directory::{PASSING, original_of},
    list::{List, Single},
    swap::{self, Swapped},
};

const TRIES: u32 = 16;

/// What was done, or could not be.
#[derive(Debug, Default)]
pub struct Removed {
    pub done: Vec<String>,
    pub failed: Vec<String>,
}

impl Removed {
    /// Notes what became of a step.
    pub fn note<T>(&mut self, what: String, result: Result<T, impl std::fmt::Display>) -> Option<T> {
        match result {
            Ok(value) => {
                self.done.push(what);
                Some(value)
            }
            Err(error) => {
                self.failed.push(format!("{what}: {error}"));
                None
            }
        }
    }

    /// Removes a file; one that is not there is not worth a word.
    pub fn file(&mut self, path: &Path) {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => _ = self.note(format!("removed {}", path.display()), result),
        }
    }

    /// Removes a directory if nothing is in it.
    pub fn empty_directory(&mut self, path: &Path) {
        match fs::remove_dir(path) {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {}
            // A mount point, as a container sees its volumes: whoever mounted it removes it.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            result => _ = self.note(format!("removed {}", path.display()), result),
        }
    }
}

/// Takes our entries out and puts single configurations back; what others added meanwhile stays. Only what is ours is
/// touched, and nothing that cannot be read. True: no configuration names the plugin any more.
pub fn remove(place: &Place, removed: &mut Removed) -> bool {
    let directory = &place.configurations;
    let found = match Directory::read(directory) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
        Err(error) => {
            removed.failed.push(format!("{}: {error}", directory.display()));
            return false;
        }
    };
    for original in &found.originals {
        restore(directory, &original.name, removed);
    }
    for file in found.files.iter().filter(|file| file.name.ends_with(".conflist")) {
        let path = directory.join(&file.name);
        if let Some(result) = take_out(&path) {
            removed.note(format!("took the entry out of {}", path.display()), result);
        }
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(PASSING) {
            removed.file(&entry.path());
        }
    }
    let left = Directory::read(directory).unwrap_or_default();
    let naming = left.files.iter().filter(|file| file.text.as_ref().is_ok_and(|text| text.contains(PLUGIN)));
    let naming: Vec<_> = naming.map(|file| directory.join(&file.name)).collect();
    for path in &naming {
        let why = "cannot be read as a list of plugins (another plugin's copy?), and names bulkhead-cni: take it out by hand";
        removed.failed.push(format!("{}: {why}", path.display()));
    }
    naming.is_empty()
}

/// Removes the plugin. Only when no configuration names it any more: a runtime would fail every pod start.
pub fn remove_plugin(place: &Place, removed: &mut Removed) {
    removed.file(&place.plugins.join(PLUGIN));
    for entry in fs::read_dir(&place.plugins).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(PASSING) {
            removed.file(&entry.path());
        }
    }
}

/// The single configuration comes back first: by its name it is the one that counts, and the list can go then.
fn restore(directory: &Path, name: &str, removed: &mut Removed) {
    let (original, single) = (original_of(directory, name), directory.join(name));
    let list = directory.join(list_name(name));
    let text = fs::read_to_string(&original);
    let Some(text) = text.map_err(|e| removed.failed.push(format!("{}: {e}", original.display()))).ok()
    else {
        return;
    };
    if is_only_ours(&list, &text) {
        let back = if single.exists() { fs::remove_file(&original) } else { fs::rename(&original, &single) };
        if removed.note(format!("put {} back", single.display()), back).is_some() {
            removed.file(&list);
        }
    } else {
        // Others have added themselves to the list, or it is gone: it is what counts now.
        let back = if single.exists() || list.exists() {
            fs::remove_file(&original)
        } else {
            fs::rename(&original, &single)
        };
        removed.note(format!("kept what others made of {}", single.display()), back);
    }
}

fn list_name(single: &str) -> PathBuf {
    Path::new(single).with_extension("conflist")
}

/// Is the list what we made of this single configuration, and nothing else?
fn is_only_ours(list: &Path, single: &str) -> bool {
    let Ok(text) = fs::read_to_string(list) else { return false };
    let (Ok(list), Ok(single)) = (List::parse(&text), Single::parse(single)) else { return false };
    list.others().count() == 1 && list.first() == single.text()
}

/// `None`: there is nothing of ours in it.
fn take_out(path: &Path) -> Option<io::Result<()>> {
    for _ in 0..TRIES {
        let text = fs::read_to_string(path).ok()?;
        let new = List::parse(&text).ok()?.without()?;
        match swap::swap(path, &text, &new) {
            Ok(Swapped::Done) => return Some(Ok(())),
            Ok(Swapped::Changed) => thread::sleep(Duration::from_millis(20)),
            Err(error) => return Some(Err(error)),
        }
    }
    Some(Err(io::Error::other("somebody else writes it all the time")))
}
