//! The mirror against a model of the API server: watches that lag behind one another, lists that are cut off,
//! objects that are fetched between, in any order.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::{
    item::Item,
    mirror::{Event, Mirror},
    version::Version,
};
use crate::{
    cluster::object::{Kind, Labels, Object, ObjectRef},
    source::Change,
};

const NODE: &str = "n1";
const WATCHED: [Kind; 2] = [Kind::Namespace, Kind::Pod];

/// `("", namespace)` or `(namespace, pod)`.
type Name = (&'static str, &'static str);
/// An object's label and the version of its last write.
type State = BTreeMap<Name, u64>;

const NAMESPACES: [&str; 2] = ["blue", "red"];
const PODS: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Act {
    Write(Name),
    Remove(Name),
    /// The kind's watch, or list, tells a bit more.
    Tell(usize),
    Bookmark(usize),
    /// The kind's watch is lost, and a list begins.
    Relist(usize),
    /// The API server answers a fetch; the answer is slow.
    Fetch(Name),
    Arrive,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let namespace = prop::sample::select(&NAMESPACES[..]);
    let pod = (namespace.clone(), prop::sample::select(&PODS[..]));
    let name = prop_oneof![1 => namespace.prop_map(|name| ("", name)), 3 => pod.clone()];
    let act = prop_oneof![
        4 => name.clone().prop_map(Act::Write),
        2 => name.prop_map(Act::Remove),
        8 => (0..2_usize).prop_map(Act::Tell),
        1 => (0..2_usize).prop_map(Act::Bookmark),
        2 => (0..2_usize).prop_map(Act::Relist),
        2 => pod.prop_map(Act::Fetch),
        2 => Just(Act::Arrive),
    ];
    prop::collection::vec(act, 1..80)
}

fn kind_of(name: Name) -> Kind {
    if name.0.is_empty() { Kind::Namespace } else { Kind::Pod }
}

/// An object whose label tells which write made it.
fn item(name: Name, written: u64, version: u64) -> Item {
    let (namespace, name_) = name;
    let json = format!(
        r#"{{"metadata":{{"namespace":"{namespace}","name":"{name_}","resourceVersion":"{version}",
            "labels":{{"written":"{written}"}}}}}}"#
    );
    Item::read(kind_of(name), &json).expect("an object")
}

fn written(labels: &Labels) -> u64 {
    labels.get("written").expect("every object has it").parse().expect("a number")
}

/// Where a kind's watch is.
enum Cursor {
    Watching(u64),
    /// A list of this version; what it has not told yet.
    Listing(u64, VecDeque<Item>),
}

struct Model {
    version: u64,
    now: State,
    /// Every write: version, name, and whether it was a removal.
    history: Vec<(u64, Name, bool)>,
    cursors: Vec<Cursor>,
    fetches: VecDeque<Vec<Item>>,
    mirror: Mirror,
    told: BTreeMap<ObjectRef, u64>,
}

impl Model {
    fn new() -> Self {
        let mut mirror = Mirror::new(NODE);
        for kind in super::mirror::KINDS {
            mirror.apply(kind, Event::Begin);
            mirror.apply(kind, Event::End(Version::new("1")));
        }
        Self {
            version: 1,
            now: State::new(),
            history: Vec::new(),
            cursors: vec![Cursor::Watching(1), Cursor::Watching(1)],
            fetches: VecDeque::new(),
            mirror,
            told: BTreeMap::new(),
        }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Write(name) => {
                let namespace = ("", name.0);
                if name.0.is_empty() || self.now.contains_key(&namespace) {
                    self.version += 1;
                    self.now.insert(name, self.version);
                    self.history.push((self.version, name, false));
                }
            }
            Act::Remove(name) => {
                let inhabited = self.now.keys().any(|other| name.0.is_empty() && other.0 == name.1);
                if !inhabited && self.now.remove(&name).is_some() {
                    self.version += 1;
                    self.history.push((self.version, name, true));
                }
            }
            Act::Tell(kind) => self.tell(kind),
            Act::Bookmark(kind) => {
                // Only a watch that has told everything may say so.
                let kind_ = WATCHED[kind];
                if let Cursor::Watching(at) = self.cursors[kind]
                    && !self.history.iter().any(|(version, name, _)| *version > at && kind_of(*name) == kind_)
                {
                    let mark = Version::new(&self.version.to_string());
                    self.cursors[kind] = Cursor::Watching(self.version);
                    self.mirror.apply(kind_, Event::Mark(mark));
                }
            }
            Act::Relist(kind) => {
                self.mirror.apply(WATCHED[kind], Event::Begin);
                let items = self.now.iter().filter(|(name, _)| kind_of(**name) == WATCHED[kind]);
                let items = items.map(|(name, version)| item(*name, *version, *version)).collect();
                self.cursors[kind] = Cursor::Listing(self.version, items);
            }
            Act::Fetch(name) => {
                let names = [("", name.0), name];
                let found =
                    names.map(|name| self.now.get(&name).map(|version| item(name, *version, *version)));
                if let [Some(namespace), Some(pod)] = found {
                    self.fetches.push_back(vec![namespace, pod]);
                }
            }
            Act::Arrive => {
                for item in self.fetches.pop_front().into_iter().flatten() {
                    self.mirror.apply(item.reference.kind, Event::Fetched(item));
                }
            }
        }
        self.take();
    }

    fn tell(&mut self, kind: usize) {
        let watched = WATCHED[kind];
        match &mut self.cursors[kind] {
            Cursor::Watching(at) => {
                let next = self.history.iter().find(|(v, name, _)| *v > *at && kind_of(*name) == watched);
                let Some((version, name, removed)) = next else { return };
                *at = *version;
                let item = item(*name, *version, *version);
                self.mirror.apply(watched, if *removed { Event::Delete(item) } else { Event::Upsert(item) });
            }
            Cursor::Listing(version, items) => {
                if let Some(item) = items.pop_front() {
                    self.mirror.apply(watched, Event::Page(vec![item]));
                } else {
                    let version = *version;
                    self.cursors[kind] = Cursor::Watching(version);
                    self.mirror.apply(watched, Event::End(Version::new(&version.to_string())));
                }
            }
        }
    }

    /// Takes over what is told, and looks whether it may be.
    fn take(&mut self) {
        for change in self.mirror.take_changes() {
            match change {
                Change::Upsert(object) => {
                    let labels = match &object {
                        Object::Namespace(namespace) => &namespace.labels,
                        Object::Pod(pod) => &pod.labels,
                        other => panic!("{other:?}"),
                    };
                    let now = written(labels);
                    let before = self.told.insert(object.reference(), now);
                    assert!(
                        before.is_none_or(|before| before <= now),
                        "back to an earlier state: {object:?}"
                    );
                }
                Change::Delete(reference) => _ = self.told.remove(&reference),
            }
        }
        for reference in self.told.keys().filter(|reference| reference.kind == Kind::Pod) {
            let namespace = ObjectRef {
                kind: Kind::Namespace,
                key: crate::cluster::object::Key::new("", &reference.key.namespace),
            };
            assert!(self.told.contains_key(&namespace), "{reference} without its namespace");
        }
    }

    fn catch_up(&mut self) {
        for kind in [0, 1] {
            for _ in 0..200 {
                self.tell(kind);
            }
        }
        self.take();
    }

    fn is_told(&self) -> bool {
        let now =
            self.now.iter().map(|(name, written)| (item(*name, *written, *written).reference, *written));
        now.collect::<BTreeMap<_, _>>() == self.told
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn however_it_is_told_in_the_end_it_is_known_as_it_is(acts in acts()) {
        let mut model = Model::new();
        for act in &acts {
            model.act(act);
        }
        model.catch_up();
        prop_assert!(model.is_told(), "{:?}\n{:?}", model.now, model.told);
        // Answers that come when the watch has told it all change nothing.
        while !model.fetches.is_empty() {
            model.act(&Act::Arrive);
        }
        model.catch_up();
        prop_assert!(model.is_told(), "{:?}\n{:?}", model.now, model.told);
    }
}

#[test]
fn an_object_that_cannot_be_used_any_more_stays_as_it_was() {
    let mut model = Model::new();
    model.act(&Act::Write(("", "blue")));
    model.act(&Act::Write(("blue", "a")));
    model.catch_up();
    let told = model.told.clone();
    let broken =
        r#"{"metadata":{"namespace":"blue","name":"a","resourceVersion":"9","labels":{"not a key":"x"}}}"#;
    let broken = Item::read(Kind::Pod, broken).expect("an object");
    model.mirror.apply(Kind::Pod, Event::Upsert(broken));
    model.take();
    assert_eq!(model.told, told);
    let problems: Vec<_> = model.mirror.problems().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        ["API server: Pod blue/a: metadata.labels.not a key: \"not a key\" is not a label key \
             (its last readable state stays in force, if there was one)"]
    );
}
