//! The API server's state as far as it was told: events of six watches in, changes out. Pure.
//!
//! * What a list does not have is gone at its end, never before; of a list that does not get to its end nothing
//!   is taken over (once its kind was completely listed).
//! * The six watches are not in step with one another. A pod is kept back until its namespace is known, and a
//!   namespace is kept until its last pod is gone: a pod whose tenant is not known would have none.
//! * An object that was fetched by name may be ahead of its watch; what the watch then tells of earlier states is
//!   passed over.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, RandomState},
};

use super::{item::Item, version::Version};
use crate::{
    cluster::{
        PackedMap,
        compact::Text,
        object::{Key, Kind, Object, ObjectRef},
    },
    source::{Change, Problem},
};

/// The kinds that are watched.
pub(super) const KINDS: [Kind; 6] =
    [Kind::Namespace, Kind::Node, Kind::NetworkPolicy, Kind::Service, Kind::EndpointSlice, Kind::Pod];

/// What a watch tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A list begins.
    Begin,
    Page(Vec<Item>),
    /// The list is complete; it shows the state at this version.
    End(Version),
    Upsert(Item),
    Delete(Item),
    /// There is nothing else up to here.
    Mark(Version),
    /// Not by the watch, but by name.
    Fetched(Item),
}

/// Everything that is known, and what of it was not told yet.
#[derive(Debug)]
pub(super) struct Mirror {
    /// Name of this node.
    node: String,
    kinds: BTreeMap<Kind, Watched>,
    changes: BTreeMap<ObjectRef, Change>,
    problems: BTreeMap<ObjectRef, Vec<Problem>>,
    /// Pods whose namespace is not known yet.
    early: BTreeMap<Key, Object>,
    /// Namespaces that are gone but for pods that are not.
    leaving: BTreeSet<Text>,
    hasher: RandomState,
}

/// One kind's objects.
#[derive(Debug, Default)]
struct Watched {
    known: BTreeMap<Text, PackedMap<Text, Entry>>,
    count: usize,
    /// Number of the last list that began.
    round: u32,
    /// Changes that wait for the end of the list that runs, if one does.
    held: Option<BTreeMap<Key, Item>>,
    /// It was completely listed once.
    synced: bool,
    /// Up to here the watch has told everything.
    progress: Version,
    /// Objects that are known in a later state than the watch has told.
    ahead: BTreeMap<Key, Version>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    version: Version,
    /// Of what we read of it: most writes, such as heartbeats, change nothing there.
    content: u64,
    /// The last list that had it.
    round: u32,
}

impl Watched {
    fn entry(&mut self, key: &Key) -> Option<&mut Entry> {
        self.known.get_mut(&key.namespace)?.get_mut(&key.name)
    }

    /// Whether there is anything new in it.
    fn insert(&mut self, key: &Key, version: Version, content: u64) -> bool {
        let entry = Entry { version, content, round: self.round };
        let namespace = match self.known.get_key_value(&key.namespace) {
            Some((shared, _)) => Text::clone(shared),
            None => Text::clone(&key.namespace),
        };
        let before = self.known.entry(namespace).or_default().insert(Text::clone(&key.name), entry);
        self.count += usize::from(before.is_none());
        before.is_none_or(|before| before.content != content)
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(names) = self.known.get_mut(&key.namespace) else { return false };
        let was_known = names.remove(&key.name).is_some();
        if names.is_empty() {
            self.known.remove(&key.namespace);
        }
        self.count -= usize::from(was_known);
        was_known
    }

    /// Keys that the last list did not have.
    fn unseen(&self) -> Vec<Key> {
        let all = self.known.iter().flat_map(|(namespace, names)| {
            names.iter().map(move |(name, entry)| (namespace, name, entry.round))
        });
        all.filter(|(.., round)| *round != self.round)
            .map(|(namespace, name, _)| Key { namespace: Text::clone(namespace), name: Text::clone(name) })
            .collect()
    }

    /// Whether a state of this version is older than the one that was fetched.
    fn is_behind(&self, key: &Key, version: Version) -> bool {
        self.ahead.get(key).is_some_and(|ahead| ahead.is_after(version))
    }

    fn advance(&mut self, version: Version) {
        self.progress = version;
        self.ahead.retain(|_, ahead| ahead.is_after(version));
    }
}

impl Mirror {
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            kinds: KINDS.map(|kind| (kind, Watched::default())).into(),
            changes: BTreeMap::new(),
            problems: BTreeMap::new(),
            early: BTreeMap::new(),
            leaving: BTreeSet::new(),
            hasher: RandomState::new(),
        }
    }

    /// Every kind was completely listed.
    pub fn synced(&self) -> bool {
        self.kinds.values().all(|watched| watched.synced)
    }

    pub fn is_synced(&self, kind: Kind) -> bool {
        self.kinds[&kind].synced
    }

    /// Objects of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.kinds[&kind].count
    }

    /// Up to where a kind's watch has told everything.
    pub fn progress(&self, kind: Kind) -> Version {
        self.kinds[&kind].progress
    }

    /// Changes that were not taken yet.
    pub fn pending(&self) -> usize {
        self.changes.len()
    }

    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes).into_values().collect()
    }

    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flatten()
    }

    pub fn apply(&mut self, kind: Kind, event: Event) {
        match event {
            Event::Begin => {
                let watched = self.watched(kind);
                watched.round = watched.round.wrapping_add(1);
                watched.held = watched.synced.then(BTreeMap::new);
            }
            Event::Page(items) => items.into_iter().for_each(|item| self.listed(kind, item)),
            Event::End(version) => self.end(kind, version),
            Event::Upsert(item) => {
                let is_behind = self.watched(kind).is_behind(item.key(), item.version);
                self.watched(kind).advance(item.version);
                if !is_behind {
                    self.upsert(item);
                }
            }
            Event::Delete(item) => {
                let is_behind = self.watched(kind).is_behind(item.key(), item.version);
                self.watched(kind).advance(item.version);
                if !is_behind {
                    self.remove(&item.reference);
                }
            }
            Event::Mark(version) => self.watched(kind).advance(version),
            Event::Fetched(item) => self.fetched(kind, item),
        }
    }

    fn watched(&mut self, kind: Kind) -> &mut Watched {
        self.kinds.get_mut(&kind).expect("every kind is there from the start")
    }

    fn listed(&mut self, kind: Kind, item: Item) {
        let watched = self.watched(kind);
        let round = watched.round;
        if let Some(entry) = watched.entry(item.key()) {
            entry.round = round;
            if entry.version.is(item.version) {
                return;
            }
        }
        if watched.is_behind(item.key(), item.version) {
            return;
        }
        match &mut watched.held {
            Some(held) => _ = held.insert(item.key().clone(), item),
            None => self.upsert(item),
        }
    }

    fn end(&mut self, kind: Kind, version: Version) {
        let watched = self.watched(kind);
        for (_, item) in watched.held.take().into_iter().flatten() {
            if !self.watched(kind).is_behind(item.key(), item.version) {
                self.upsert(item);
            }
        }
        let watched = self.watched(kind);
        for key in watched.unseen() {
            if !self.watched(kind).is_behind(&key, version) {
                self.remove(&ObjectRef { kind, key });
            }
        }
        let watched = self.watched(kind);
        watched.synced = true;
        watched.advance(version);
    }

    /// The watch knows it as well, or better, if it has come as far as this version.
    fn fetched(&mut self, kind: Kind, item: Item) {
        let watched = self.watched(kind);
        let seen_in = watched.entry(item.key()).map(|entry| entry.round);
        let is_known = seen_in.is_some();
        if !watched.synced || (is_known && !item.version.is_after(watched.progress)) {
            return;
        }
        if !is_known && watched.progress.is_after(item.version) {
            return; // it was deleted since
        }
        let (key, last_list) = (item.key().clone(), watched.round.wrapping_sub(1));
        watched.ahead.insert(key.clone(), item.version);
        self.upsert(item);
        // A list that runs has not had it for that.
        if let Some(entry) = self.watched(kind).entry(&key) {
            entry.round = seen_in.unwrap_or(last_list);
        }
    }

    fn upsert(&mut self, item: Item) {
        let Item { reference, mut object, version, problems } = item;
        if let Some(Object::Pod(pod)) = &mut object
            && pod.node.as_deref() != Some(&self.node)
        {
            pod.uid = None; // nobody asks
        }
        let content = self.hasher.hash_one((&object, &problems));
        if !self.watched(reference.kind).insert(&reference.key, version, content) {
            return;
        }
        if problems.is_empty() {
            self.problems.remove(&reference);
        } else {
            self.problems.insert(reference.clone(), problems);
        }
        match object {
            Some(Object::Pod(pod)) => {
                if self.watched(Kind::Namespace).entry(&namespace_of(&reference.key)).is_some()
                    || self.leaving.contains(&reference.key.namespace)
                {
                    self.tell(Change::Upsert(Object::Pod(pod)));
                } else {
                    self.early.insert(reference.key, Object::Pod(pod));
                }
            }
            Some(object) => {
                self.tell(Change::Upsert(object));
                if reference.kind == Kind::Namespace {
                    self.leaving.remove(&reference.key.name);
                    self.admit_pods(&reference.key.name);
                }
            }
            None => self.stays(&reference),
        }
    }

    /// Fail static: of an object that cannot be used any more the last state is in force.
    fn stays(&mut self, reference: &ObjectRef) {
        for problem in self.problems.get_mut(reference).into_iter().flatten() {
            problem.effect = "its last readable state stays in force, if there was one".into();
        }
    }

    fn admit_pods(&mut self, namespace: &Text) {
        let first = Key { namespace: Text::clone(namespace), name: Text::from("") };
        let of_namespace = self.early.range(first..).take_while(|(key, _)| key.namespace == *namespace);
        let keys: Vec<Key> = of_namespace.map(|(key, _)| key.clone()).collect();
        for key in keys {
            if let Some(pod) = self.early.remove(&key) {
                self.tell(Change::Upsert(pod));
            }
        }
    }

    fn remove(&mut self, reference: &ObjectRef) {
        let ObjectRef { kind, key } = reference;
        self.problems.remove(reference);
        if !self.watched(*kind).remove(key) {
            return;
        }
        match kind {
            Kind::Namespace if self.watched(Kind::Pod).known.contains_key(&key.name) => {
                self.leaving.insert(Text::clone(&key.name));
            }
            Kind::Pod => {
                if self.early.remove(key).is_none() {
                    self.tell(Change::Delete(reference.clone()));
                }
                if !self.watched(Kind::Pod).known.contains_key(&key.namespace)
                    && self.leaving.remove(&key.namespace)
                {
                    let key = namespace_of(key);
                    self.tell(Change::Delete(ObjectRef { kind: Kind::Namespace, key }));
                }
            }
            _ => self.tell(Change::Delete(reference.clone())),
        }
    }

    fn tell(&mut self, change: Change) {
        let reference = match &change {
            Change::Upsert(object) => object.reference(),
            Change::Delete(reference) => reference.clone(),
        };
        self.changes.insert(reference, change);
    }
}

fn namespace_of(key: &Key) -> Key {
    Key { namespace: Text::from(""), name: Text::clone(&key.namespace) }
}
