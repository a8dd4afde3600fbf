//! What the API server would tell, without one: for whoever measures what it costs to know it.

use super::{
    item::Item,
    mirror::{Event, Mirror},
    version::Version,
};
use crate::{cluster::object::Kind, source::Change};

/// Takes in lists as the source does, and tells what changed as it tells the agent.
#[derive(Debug)]
pub struct Offline(Mirror);

impl Offline {
    /// `node`: the agent's.
    pub fn new(node: &str) -> Self {
        Self(Mirror::new(node))
    }

    /// A kind's whole list, its objects as JSON. An error names what cannot be read.
    pub fn list(&mut self, kind: Kind, objects: impl Iterator<Item = String>) -> Result<Vec<Change>, String> {
        let read = |json: String| Item::read(kind, &json).map_err(|error| error.to_string());
        self.0.apply(kind, Event::Begin);
        for object in objects {
            self.0.apply(kind, Event::Page(vec![read(object)?]));
        }
        self.0.apply(kind, Event::End(Version::default()));
        Ok(self.0.take_changes())
    }
}
