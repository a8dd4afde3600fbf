//! What the API server keeps: objects, their versions, and the changes that watches are told.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::resource::{RESOURCES, Resource};

/// Changes kept per kind; a watch that begins before them is told that they are gone.
const HISTORY: usize = 100_000;
/// Lists that are read page by page at the same time.
const SNAPSHOTS: usize = 64;

/// An object's JSON, shared by lists, history and watches.
pub type Json = Arc<str>;
type Name = (String, String);

#[derive(Debug)]
pub struct Store {
    inner: Mutex<Inner>,
    /// The version of the last change.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    version: u64,
    collections: BTreeMap<&'static str, Collection>,
    /// Lists whose rest somebody may still ask for.
    snapshots: VecDeque<Snapshot>,
    next_snapshot: u64,
}

#[derive(Debug, Default)]
struct Collection {
    objects: BTreeMap<Name, Json>,
    history: VecDeque<Changed>,
    /// Changes up to this version are gone.
    compacted: u64,
}

#[derive(Debug)]
struct Snapshot {
    number: u64,
    version: u64,
    items: Arc<[Json]>,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Changed {
    pub version: u64,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub what: &'static str,
    pub namespace: String,
    pub object: Json,
}

/// Part of a list.
#[derive(Debug)]
pub struct Page {
    pub items: Vec<Json>,
    pub version: u64,
    pub next: Option<String>,
    pub left: usize,
}

/// As an HTTP status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    fn expired() -> Self {
        Self::new(410, "Expired", "too old resource version")
    }

    /// The `Status` object that the API server answers with.
    pub fn body(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        })
    }
}

impl Default for Store {
    fn default() -> Self {
        let collections = RESOURCES.map(|resource| (resource.plural, Collection::default())).into();
        // Versions do not begin at 1 in a cluster either.
        let inner = Inner { version: 1000, collections, snapshots: VecDeque::new(), next_snapshot: 1 };
        Self { inner: Mutex::new(inner), changed: watch::Sender::new(1000) }
    }
}

impl Store {
    /// Tells whenever something has changed.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn version(&self) -> u64 {
        self.lock().version
    }

    pub fn get(&self, resource: Resource, namespace: &str, name: &str) -> Result<Json, Refusal> {
        let inner = self.lock();
        let found = inner.collections[resource.plural].objects.get(&(namespace.to_owned(), name.to_owned()));
        found
            .cloned()
            .ok_or_else(|| Refusal::new(404, "NotFound", format!("{} {name:?} not found", resource.plural)))
    }

    /// Creates an object, or replaces it if it is there.
    pub fn put(&self, resource: Resource, mut object: Value, create: bool) -> Result<Json, Refusal> {
        let text = |object: &Value, field: &str| object["metadata"][field].as_str().map(str::to_owned);
        let namespace = text(&object, "namespace").filter(|_| resource.namespaced).unwrap_or_default();
        let Some(name) = text(&object, "name") else {
            return Err(Refusal::new(422, "Invalid", "metadata.name: Required value"));
        };
        let mut inner = self.lock();
        let inner = &mut *inner;
        let collection = inner.collections.get_mut(resource.plural).expect("every kind is there");
        let key = (namespace, name);
        let known = collection.objects.get(&key);
        if create && known.is_some() {
            return Err(Refusal::new(
                409,
                "AlreadyExists",
                format!("{} {:?} already exists", resource.plural, key.1),
            ));
        }
        let known: Option<Value> = known.map(|json| serde_json::from_str(json).expect("it was written here"));
        let before = known.as_ref().map_or(Value::Null, |known| known["metadata"]["resourceVersion"].clone());
        let expected = &object["metadata"]["resourceVersion"];
        if known.is_some() && !expected.is_null() && *expected != before {
            return Err(Refusal::new(409, "Conflict", "the object has been modified"));
        }
        inner.version += 1;
        object["apiVersion"] = resource.api_version.into();
        object["kind"] = resource.kind.into();
        object["metadata"]["resourceVersion"] = inner.version.to_string().into();
        let uid = known.as_ref().map(|known| known["metadata"]["uid"].clone());
        object["metadata"]["uid"] =
            uid.unwrap_or_else(|| format!("00000000-0000-4000-8000-{:012x}", inner.version).into());
        let json = Json::from(object.to_string());
        let what = if known.is_some() { "MODIFIED" } else { "ADDED" };
        let changed =
            Changed { version: inner.version, what, namespace: key.0.clone(), object: Arc::clone(&json) };
        collection.objects.insert(key, Arc::clone(&json));
        collection.note(changed);
        self.changed.send_replace(inner.version);
        Ok(json)
    }

    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<Json, Refusal> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let collection = inner.collections.get_mut(resource.plural).expect("every kind is there");
        let Some(json) = collection.objects.remove(&(namespace.to_owned(), name.to_owned())) else {
            return Err(Refusal::new(404, "NotFound", format!("{} {name:?} not found", resource.plural)));
        };
        inner.version += 1;
        // As the API server does: the last state, with the version of the deletion.
        let mut object: Value = serde_json::from_str(&json).expect("it was written here");
        object["metadata"]["resourceVersion"] = inner.version.to_string().into();
        let object = Json::from(object.to_string());
        let changed = Changed {
            version: inner.version,
            what: "DELETED",
            namespace: namespace.to_owned(),
            object: Arc::clone(&object),
        };
        collection.note(changed);
        self.changed.send_replace(inner.version);
        Ok(object)
    }

    /// Fills an empty store, without a history.
    pub fn load(&self, objects: impl Iterator<Item = Value>) {
        for object in objects {
            let kind = object["kind"].as_str().unwrap_or_default();
            let resource = Resource::of_kind(kind).expect("a kind that is served");
            let _ = self.put(resource, object, true);
        }
        self.compact();
    }

    /// Forgets all that has changed so far, and lists that are being read: watches and lists that refer to it have
    /// to begin anew.
    pub fn compact(&self) {
        let mut inner = self.lock();
        let version = inner.version;
        inner.snapshots.clear();
        for collection in inner.collections.values_mut() {
            collection.history.clear();
            collection.compacted = version;
        }
    }

    /// `limit` 0: everything.
    pub fn list(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        limit: usize,
        next: Option<&str>,
    ) -> Result<Page, Refusal> {
        let mut inner = self.lock();
        let (number, offset) = match next {
            Some(token) => {
                let parsed =
                    token.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                parsed.ok_or_else(|| Refusal::new(400, "BadRequest", "continue key is not valid"))?
            }
            None => (inner.snapshot(resource, namespace), 0_usize),
        };
        let Some(snapshot) = inner.snapshots.iter().find(|snapshot| snapshot.number == number) else {
            return Err(Refusal::new(410, "Expired", "The provided continue parameter is too old"));
        };
        let rest = snapshot.items.get(offset..).unwrap_or_default();
        let count = if limit == 0 { rest.len() } else { limit.min(rest.len()) };
        let page = Page {
            items: rest[..count].to_vec(),
            version: snapshot.version,
            next: (count < rest.len()).then(|| format!("{number}-{}", offset + count)),
            left: rest.len() - count,
        };
        if page.next.is_none() {
            inner.snapshots.retain(|snapshot| snapshot.number != number);
        }
        Ok(page)
    }

    /// What has changed after a version, and the version up to which that is all.
    pub fn since(&self, resource: Resource, version: u64) -> Result<(Vec<Changed>, u64), Refusal> {
        let inner = self.lock();
        let collection = &inner.collections[resource.plural];
        if version < collection.compacted && version != 0 {
            return Err(Refusal::expired());
        }
        let from = collection.history.partition_point(|changed| changed.version <= version);
        Ok((collection.history.range(from..).cloned().collect(), inner.version))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }
}

impl Inner {
    fn snapshot(&mut self, resource: Resource, namespace: Option<&str>) -> u64 {
        let objects = &self.collections[resource.plural].objects;
        let fits = |(key, _): &(&Name, &Json)| namespace.is_none_or(|namespace| key.0 == namespace);
        let items = objects.iter().filter(fits).map(|(_, json)| Arc::clone(json)).collect();
        let number = self.next_snapshot;
        self.next_snapshot += 1;
        self.snapshots.push_back(Snapshot { number, version: self.version, items });
        if self.snapshots.len() > SNAPSHOTS {
            self.snapshots.pop_front();
        }
        number
    }
}

impl Collection {
    fn note(&mut self, changed: Changed) {
        self.history.push_back(changed);
        if self.history.len() > HISTORY
            && let Some(oldest) = self.history.pop_front()
        {
            self.compacted = oldest.version;
        }
    }
}
