//! Plain Kubernetes YAML and JSON as a source.
//!
//! `-f DIR` and the agent's `--manifests DIR` read the same files: `*.yaml`, `*.yml` and `*.json` directly in
//! the directory (not in subdirectories, as kubectl) whose names do not begin with a dot. A file holds any
//! number of documents, a document one object or a `List`. Kinds in use: Namespace, Pod, Node,
//! `NetworkPolicy`, Service and `EndpointSlice`; others are counted.
//!
//! What the API server would refuse is reported as a [`Problem`] and never opens anything:
//!
//! * A `NetworkPolicy` keeps isolating its pods; its unreadable parts admit nothing.
//! * An `EndpointSlice` that is not readable to the end closes its Service to pods whose egress is isolated.
//! * Of other objects the unreadable part is left out, or the whole object where a part would not be safe.
//! * While the agent runs, what was readable before stays in force (fail static): objects of a document that
//!   is broken now, and of a file or directory that cannot be read now.
//! * When two documents describe the same object, the first by file name and place is in force. Of a second
//!   `NetworkPolicy` the isolation holds too, without its rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use super::{Place, Problem};
use crate::cluster::object::{Object, ObjectRef};
use text::Syntax;

mod document;
mod store;
mod text;
mod watch;

pub use text::MAX_FILE_BYTES;
pub use watch::{WatchError, Watcher};

/// What manifests say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    pub objects: Vec<Located<Object>>,
    pub problems: Vec<Problem>,
    /// Objects of kinds we do not use, by kind.
    pub ignored: BTreeMap<String, usize>,
    /// What is described but left out; `None` stands for objects that cannot be told.
    lost: BTreeSet<Option<ObjectRef>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    pub object: T,
    pub origin: Origin,
}

/// Where an object is described: the document's first line (of a list: the list's).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Reads one file's content as it stands, duplicates included. Names that end in `.json` hold JSON, all
/// others YAML. Any input is fine.
pub fn parse_bytes(name: &Path, bytes: &[u8]) -> Loaded {
    let mut loaded = Loaded::default();
    if bytes.len() as u64 > MAX_FILE_BYTES {
        loaded.lose_file(name, format!("larger than {MAX_FILE_BYTES} bytes"));
        return loaded;
    }
    let is_json = name.extension().is_some_and(|e| e == "json");
    for document in text::documents(bytes, if is_json { Syntax::Json } else { Syntax::Yaml }) {
        document::read(name, &document, &mut loaded);
    }
    loaded
}

/// Reads files and directories at once. A path that cannot be read is a problem like any other: see
/// [`Place::File`].
pub fn load(paths: &[PathBuf]) -> Loaded {
    let mut store = store::Store::default();
    let mut unlisted = Vec::new();
    for path in paths {
        match if path.is_dir() { manifests_in(path) } else { Ok(vec![path.clone()]) } {
            Ok(files) => files.into_iter().for_each(|file| {
                let loaded = read_file(&file);
                store.replace(&file, Some(loaded));
            }),
            Err(error) => {
                unlisted.push(Problem::of_file(path, format!("cannot list the directory: {error}")));
            }
        }
    }
    let mut loaded = store.loaded();
    loaded.problems.extend(unlisted);
    loaded
}

/// The manifests of a directory, sorted by name.
fn manifests_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        // Only links cost a look at the file.
        let is_directory =
            entry.file_type().is_ok_and(|kind| kind.is_dir() || (kind.is_symlink() && path.is_dir()));
        if is_manifest(&path) && !is_directory {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

fn read_file(path: &Path) -> Loaded {
    let read = || -> io::Result<Vec<u8>> {
        if !fs::metadata(path)?.is_file() {
            // Opening a pipe would wait for its other end.
            return Err(io::Error::other("not a regular file"));
        }
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => parse_bytes(path, &bytes),
        Err(error) => {
            let mut loaded = Loaded::default();
            loaded.lose_file(path, format!("cannot read the file: {error}"));
            loaded
        }
    }
}

impl Loaded {
    fn lose_file(&mut self, path: &Path, message: String) {
        self.problems.push(Problem::of_file(path, message));
        self.lost.insert(None);
    }
}

impl Problem {
    fn of_file(path: &Path, message: String) -> Self {
        let effect = "nothing of it is read".to_owned();
        Self {
            place: Place::File { path: path.to_owned(), line: 0 },
            object: None,
            field: None,
            message,
            effect,
        }
    }
}

#[cfg(test)]
mod tests;
