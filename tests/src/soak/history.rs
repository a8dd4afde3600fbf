//! What the API server has said, version by version: the states that an agent may be in.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use anyhow::{Context, Result, anyhow};
use bulkhead::{
    cluster::object::{Kind, Object, ObjectRef},
    source::manifest,
};

use crate::apiserver::{Resource, Store};

/// Versions by kind: how far somebody has come.
pub type Versions = BTreeMap<Kind, u64>;

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Event {
    pub version: u64,
    pub reference: ObjectRef,
    /// `None`: deleted.
    pub object: Option<Arc<Object>>,
}

#[derive(Debug)]
pub struct History {
    store: Arc<Store>,
    kinds: Mutex<BTreeMap<Kind, Told>>,
}

#[derive(Debug, Default)]
struct Told {
    /// As of version `read_from`.
    base: BTreeMap<ObjectRef, Arc<Object>>,
    events: Vec<Event>,
    read_to: u64,
}

impl History {
    /// From the beginning of the store.
    pub fn of(store: Arc<Store>) -> Self {
        Self { store, kinds: Mutex::new(Kind::ALL.map(|kind| (kind, Told::default())).into()) }
    }

    /// Reads what has been written until now; gives the last version of each kind.
    pub fn catch_up(&self) -> Result<Versions> {
        let mut kinds = self.lock();
        for (kind, told) in kinds.iter_mut() {
            let resource = Resource::of_kind(&kind.to_string()).context("a kind that is served")?;
            let (changes, _) =
                self.store.since(resource, told.read_to).map_err(|refusal| anyhow!("{}", refusal.message))?;
            for change in changes {
                let object = read(&change.object)?;
                told.read_to = change.version;
                told.events.push(Event {
                    version: change.version,
                    reference: object.reference(),
                    object: (change.what != "DELETED").then(|| Arc::new(object)),
                });
            }
        }
        Ok(kinds.iter().map(|(kind, told)| (*kind, told.read_to)).collect())
    }

    /// The states of what is asked about, from one version to another, both included: each differs from the one before.
    pub fn states(
        &self,
        kind: Kind,
        (from, to): (u64, u64),
        asked: impl Fn(&Object) -> bool,
    ) -> Vec<Vec<Arc<Object>>> {
        let kinds = self.lock();
        let told = &kinds[&kind];
        let mut now: BTreeMap<_, _> = told.base.iter().filter(|(_, object)| asked(object)).collect();
        let mut states = Vec::new();
        let mut events = told.events.iter().take_while(|event| event.version <= to).peekable();
        while let Some(event) = events.next_if(|event| event.version <= from) {
            step(&mut now, event, &asked);
        }
        states.push(now.values().map(|object| Arc::clone(object)).collect());
        for event in events {
            if step(&mut now, event, &asked) {
                states.push(now.values().map(|object| Arc::clone(object)).collect());
            }
        }
        states
    }

    /// Forgets how the present state came about. Nobody may still ask about an earlier one.
    pub fn forget(&self) {
        for told in self.lock().values_mut() {
            for event in told.events.drain(..) {
                match event.object {
                    Some(object) => told.base.insert(event.reference, object),
                    None => told.base.remove(&event.reference),
                };
            }
        }
    }

    /// Everything there is at the end of what was read.
    pub fn present(&self) -> Vec<Object> {
        let last = (u64::MAX, u64::MAX);
        let states = Kind::ALL.into_iter().filter_map(|kind| self.states(kind, last, |_| true).pop());
        states.flatten().map(|object| Object::clone(&object)).collect()
    }

    /// Whether there is one; `key` is `namespace/name`.
    pub fn has_policy(&self, key: &str) -> bool {
        let kinds = self.lock();
        let told = &kinds[&Kind::NetworkPolicy];
        let is_it = |reference: &ObjectRef| reference.key.to_string() == key;
        match told.events.iter().rev().find(|event| is_it(&event.reference)) {
            Some(event) => event.object.is_some(),
            None => told.base.keys().any(is_it),
        }
    }

    /// The last events, oldest first.
    pub fn last(&self, count: usize) -> Vec<Event> {
        let kinds = self.lock();
        let mut events: Vec<_> = kinds.values().flat_map(|told| told.events.iter().cloned()).collect();
        events.sort_by_key(|event| event.version);
        events.split_off(events.len().saturating_sub(count))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Kind, Told>> {
        self.kinds.lock().expect("no holder panics")
    }
}

/// Whether anything that is asked about has changed.
fn step<'t>(
    now: &mut BTreeMap<&'t ObjectRef, &'t Arc<Object>>,
    event: &'t Event,
    asked: &impl Fn(&Object) -> bool,
) -> bool {
    match event.object.as_ref().filter(|object| asked(object)) {
        Some(object) => now.insert(&event.reference, object) != Some(object),
        None => now.remove(&event.reference).is_some(),
    }
}

/// As the agents read it.
fn read(json: &str) -> Result<Object> {
    let loaded = manifest::parse_bytes(Path::new("object.json"), json.as_bytes());
    let object = loaded.objects.into_iter().next().map(|located| located.object);
    match (object, loaded.problems.as_slice()) {
        (Some(object), []) => Ok(object),
        (_, problems) => Err(anyhow!("the soak has written what cannot be read: {problems:?}\n{json}")),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    fn namespace(store: &Store, name: &str, team: &str) -> u64 {
        let resource = Resource::of_kind("Namespace").unwrap();
        let object = json!({"kind": "Namespace", "metadata": {"name": name, "labels": {"team": team}}});
        store.put(resource, object, false).unwrap();
        store.version()
    }

    fn teams(history: &History, from: u64, to: u64) -> Vec<Vec<String>> {
        let asked = |object: &Object| matches!(object, Object::Namespace(n) if n.name != "other");
        let team = |object: &Arc<Object>| match &**object {
            Object::Namespace(namespace) => namespace.labels.get("team").unwrap().to_string(),
            _ => unreachable!(),
        };
        let states = history.states(Kind::Namespace, (from, to), asked);
        states.iter().map(|state| state.iter().map(team).collect()).collect()
    }

    #[test]
    fn the_states_of_a_span_are_those_in_force_at_its_beginning_and_after_each_change_that_matters() {
        let store = Arc::new(Store::default());
        let history = History::of(Arc::clone(&store));
        let first = namespace(&store, "a", "x");
        namespace(&store, "other", "x");
        let second = namespace(&store, "a", "y");
        let other = namespace(&store, "other", "y");
        let same = namespace(&store, "a", "y");
        store.delete(Resource::of_kind("Namespace").unwrap(), "", "a").unwrap();
        assert_eq!(history.catch_up().unwrap()[&Kind::Namespace], store.version());
        assert_eq!(teams(&history, 0, u64::MAX), [vec![], vec!["x"], vec!["y"], vec![]]);
        assert_eq!(teams(&history, first, second), [["x"], ["y"]]);
        assert_eq!(teams(&history, second, same), [["y"]]);
        assert_eq!(teams(&history, other, u64::MAX), [vec!["y"], vec![]]);
        history.forget();
        let third = namespace(&store, "a", "z");
        history.catch_up().unwrap();
        assert_eq!(teams(&history, same + 1, third), [vec![], vec!["z"]]);
        assert_eq!(history.present().len(), 2);
        assert_eq!(history.last(1)[0].version, third);
    }
}
