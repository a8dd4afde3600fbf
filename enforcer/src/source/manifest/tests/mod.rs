//! From bytes to objects and problems, and from edits to updates.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use super::{Loaded, parse_bytes};
use crate::cluster::object::Object;

mod files;
mod inventory;
mod policy;
mod service;
mod watch;

fn yaml(text: &str) -> Loaded {
    parse_bytes(Path::new("m.yaml"), text.as_bytes())
}

fn objects(loaded: &Loaded) -> Vec<Object> {
    loaded.objects.iter().map(|l| l.object.clone()).collect()
}

/// Every problem without its effect.
fn problems(loaded: &Loaded) -> Vec<String> {
    loaded.problems.iter().map(|p| p.to_string().rsplit_once(" (").unwrap().0.to_owned()).collect()
}
