//! What the cluster says, as typed changes.
//!
//! A source sends one [`Update`] per consistent step; the first one is the complete state. Whoever receives
//! them needs no knowledge of files or watches.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::cluster::object::{Kind, Object, ObjectRef};

pub mod kubernetes;
pub mod manifest;
mod object;
pub mod running;

/// One settled step of the cluster's state: all its changes are to be applied together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// At most one per object.
    pub changes: Vec<Change>,
    /// Everything that is wrong now, not only what this step added.
    pub problems: Vec<Problem>,
    /// Objects of kinds we do not use, by kind; all that there are now.
    pub ignored: BTreeMap<String, usize>,
    /// The changes up to here make up a complete state: before that, nothing may be opened or closed.
    pub synced: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Upsert(Object),
    Delete(ObjectRef),
}

impl Change {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Upsert(object) => object.reference().kind,
            Self::Delete(object) => object.kind,
        }
    }
}

/// Where an object is described.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Place {
    File {
        path: PathBuf,
        /// From 1; 0 when the file as a whole is meant.
        line: usize,
    },
    ApiServer,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::ApiServer => f.write_str("API server"),
        }
    }
}

/// Something that could not be read or honoured, where it is, and what that does to enforcement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Problem {
    pub place: Place,
    /// The object, when its kind and name can be read.
    pub object: Option<ObjectRef>,
    /// Path inside the object, such as `spec.ingress[0].ports[1].endPort`.
    pub field: Option<String>,
    pub message: String,
    /// What is in force instead.
    pub effect: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        write!(f, ": {} ({})", self.message.replace('\n', " "), self.effect)
    }
}
