//! All files together: which description of an object is in force, and what an edit changes. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{Loaded, Located, Origin};
use crate::{
    cluster::object::{Key, NetworkPolicy, Object, ObjectRef},
    source::{Change, Place, Problem, Update},
};

#[derive(Debug, Default)]
pub(super) struct Store {
    files: BTreeMap<PathBuf, Loaded>,
    /// Where each object is described: file, and place in its list of objects.
    described: BTreeMap<ObjectRef, BTreeSet<(PathBuf, usize)>>,
}

impl Store {
    /// Takes in the new content of a file, or its removal, and tells which descriptions may have changed.
    ///
    /// What was readable before and is broken now stays as it was.
    pub fn replace(&mut self, file: &Path, content: Option<Loaded>) -> BTreeSet<ObjectRef> {
        let before = self.files.remove(file);
        let content = content.map(|mut content| {
            if let Some(before) = &before {
                content.retain_lost(before);
            }
            content
        });
        let mut touched = BTreeSet::new();
        for (place, located) in before.iter().flat_map(|b| &b.objects).enumerate() {
            let reference = located.object.reference();
            if let Some(places) = self.described.get_mut(&reference) {
                places.remove(&(file.to_owned(), place));
                if places.is_empty() {
                    self.described.remove(&reference);
                }
            }
            touched.insert(reference);
        }
        for (place, located) in content.iter().flat_map(|c| &c.objects).enumerate() {
            let reference = located.object.reference();
            self.described.entry(reference.clone()).or_default().insert((file.to_owned(), place));
            touched.insert(reference);
        }
        self.files.extend(content.map(|content| (file.to_owned(), content)));
        touched
    }

    /// The objects in force that come of the descriptions of `reference`: none, one, or for a policy that is
    /// described more than once, several.
    pub fn in_force(&self, reference: &ObjectRef) -> Vec<Located<Object>> {
        let places = self.described.get(reference).into_iter().flatten();
        let mut described = places.map(|(file, place)| &self.files[file].objects[*place]);
        let Some(first) = described.next() else { return Vec::new() };
        let others = described.filter(|other| other.object != first.object);
        let isolating = others.filter_map(|other| match &other.object {
            Object::NetworkPolicy(policy) => {
                let object = Object::NetworkPolicy(isolation_of(policy, &other.origin));
                Some(Located { object, origin: other.origin.clone() })
            }
            _ => None,
        });
        [first.clone()].into_iter().chain(isolating).collect()
    }

    pub fn origin(&self, reference: &ObjectRef) -> Option<Origin> {
        let (file, place) = self.described.get(reference)?.first()?;
        Some(self.files[file].objects[*place].origin.clone())
    }

    pub fn problems(&self) -> Vec<Problem> {
        let read = self.files.values().flat_map(|content| content.problems.iter().cloned());
        let mut problems: Vec<_> = read.chain(self.duplicates()).collect();
        problems.sort();
        problems
    }

    fn duplicates(&self) -> impl Iterator<Item = Problem> {
        self.described.iter().filter(|(_, places)| places.len() > 1).flat_map(|(reference, places)| {
            let mut described = places.iter().map(|(file, place)| &self.files[file].objects[*place]);
            let first = described.next().map(|first| &first.origin);
            described.map(move |other| Problem {
                place: Place::File { path: other.origin.file.clone(), line: other.origin.line },
                object: Some(reference.clone()),
                field: None,
                message: match first {
                    Some(first) => format!("already described at {first}"),
                    None => "already described".to_owned(),
                },
                effect: match other.object {
                    Object::NetworkPolicy(_) => "it isolates its pods too, and its rules admit nothing",
                    _ => "the first description is in force",
                }
                .to_owned(),
            })
        })
    }

    pub fn ignored(&self) -> BTreeMap<String, usize> {
        let mut ignored = BTreeMap::new();
        for (kind, count) in self.files.values().flat_map(|content| &content.ignored) {
            *ignored.entry(kind.clone()).or_default() += count;
        }
        ignored
    }

    pub fn loaded(&self) -> Loaded {
        Loaded {
            objects: self.described.keys().flat_map(|reference| self.in_force(reference)).collect(),
            problems: self.problems(),
            ignored: self.ignored(),
            lost: self.files.values().flat_map(|content| content.lost.iter().cloned()).collect(),
        }
    }

    /// Several files at once: what was in force before against what is now.
    pub fn update(&mut self, files: impl IntoIterator<Item = (PathBuf, Option<Loaded>)>) -> Update {
        let files: Vec<_> = files.into_iter().collect();
        let mut before = BTreeMap::new();
        for (file, content) in &files {
            let old = self.files.get(file).into_iter().flat_map(|content| &content.objects);
            for located in old.chain(content.iter().flat_map(|content| &content.objects)) {
                let reference = located.object.reference();
                let objects = || by_reference(self.in_force(&reference));
                before.entry(reference.clone()).or_insert_with(objects);
            }
        }
        for (file, content) in files {
            self.replace(&file, content);
        }
        let mut changes = Vec::new();
        for (reference, before) in before {
            let now = by_reference(self.in_force(&reference));
            let gone = before.keys().filter(|old| !now.contains_key(old)).cloned();
            changes.extend(gone.map(Change::Delete));
            let new = now.into_iter().filter(|(reference, object)| before.get(reference) != Some(object));
            changes.extend(new.map(|(_, object)| Change::Upsert(object)));
        }
        Update { changes, problems: self.problems(), ignored: self.ignored(), synced: true }
    }
}

fn by_reference(located: Vec<Located<Object>>) -> BTreeMap<ObjectRef, Object> {
    located.into_iter().map(|l| (l.object.reference(), l.object)).collect()
}

/// A second description of a policy, under a name of its own: nothing that either isolates is open, and only
/// what the first admits passes.
fn isolation_of(policy: &NetworkPolicy, origin: &Origin) -> NetworkPolicy {
    let Key { namespace, name } = &policy.key;
    let file = origin.file.file_name().unwrap_or_default().to_string_lossy();
    NetworkPolicy {
        key: Key::new(namespace, format!("{name} (again at {file}:{})", origin.line)),
        ingress: policy.ingress.as_ref().map(|_| Vec::new()),
        egress: policy.egress.as_ref().map(|_| Vec::new()),
        defects: [format!("the policy {name} is described more than once")]
            .into_iter()
            .chain(policy.defects.iter().cloned())
            .collect(),
        ..policy.clone()
    }
}

impl Loaded {
    /// Fail static: takes from the file's content before what this content describes but cannot tell.
    fn retain_lost(&mut self, before: &Self) {
        if self.lost.is_empty() {
            return;
        }
        let told: BTreeSet<ObjectRef> = self.objects.iter().map(|l| l.object.reference()).collect();
        let anything = self.lost.contains(&None);
        let mut retained = BTreeSet::new();
        for located in &before.objects {
            let reference = located.object.reference();
            if !told.contains(&reference) && (anything || self.lost.contains(&Some(reference.clone()))) {
                self.objects.push(located.clone());
                retained.insert(reference);
            }
        }
        for problem in &mut self.problems {
            match &problem.object {
                Some(object) if retained.contains(object) => {
                    problem.effect = "its last readable version stays in force".into();
                }
                None if anything && !retained.is_empty() => {
                    let objects = retained.len();
                    problem.effect = format!(
                        "what the file said before stays in force where it now says nothing ({objects} objects)"
                    );
                }
                _ => {}
            }
        }
    }
}
