//! The directory of CNI configurations as the runtimes read it.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::list::{List, Single};

/// Of a `.conf` or `.json` that a list of ours replaces: the original, under a name that no runtime reads.
const ORIGINAL: &str = ".bulkhead-original";
/// Files in the making; no runtime reads such a name either.
pub(super) const PASSING: &str = ".bulkhead-passing";

/// One file that runtimes read, or its set-aside original.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub name: String,
    /// Or why it cannot be read.
    pub text: Result<String, String>,
}

/// What is there, in the order in which containerd and CRI-O go through it: by name, byte by byte. They use the first
/// that they can read (containerd stops at one that it cannot).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    pub files: Vec<File>,
    /// Originals by the name that they had.
    pub originals: Vec<File>,
}

impl Directory {
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut directory = Self::default();
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let original = name.strip_suffix(ORIGINAL);
            if original.is_none() && !is_configuration(&path) {
                continue;
            }
            let text = match fs::read_to_string(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => continue,
                read => read.map_err(|error| error.to_string()),
            };
            let file = File { name: original.unwrap_or(name).to_owned(), text };
            if original.is_some() { &mut directory.originals } else { &mut directory.files }.push(file);
        }
        directory.files.sort_by(|a, b| a.name.cmp(&b.name));
        directory.originals.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(directory)
    }

    pub fn file(&self, name: &str) -> Option<&File> {
        self.files.iter().find(|file| file.name == name)
    }

    pub fn original(&self, name: &str) -> Option<&File> {
        self.originals.iter().find(|file| file.name == name)
    }
}

/// By its name, as libcni has it (`ConfFiles`); a hidden file is one too.
pub fn is_configuration(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json") && !path.is_dir()
}

/// Types of the plugins in all configurations there that can be read.
pub fn plugin_types(path: &Path) -> BTreeSet<String> {
    let files = Directory::read(path).unwrap_or_default().files;
    let types = files.iter().filter_map(|file| file.text.as_ref().ok()).flat_map(|text| {
        let list = List::parse(text).map(|list| list.others().map(str::to_owned).collect::<Vec<_>>());
        list.or_else(|_| Single::parse(text).map(|single| vec![single.kind.into_owned()])).unwrap_or_default()
    });
    types.collect()
}

/// Where the original of a single configuration waits for `uninstall`.
pub(super) fn original_of(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}{ORIGINAL}"))
}
