//! One document: an object, or a list of them.

use std::path::Path as FilePath;

use serde_json::Value;

use super::{
    Loaded, Located, Origin,
    text::{Document, Unreadable},
};
use crate::{
    cluster::object::{Kind, ObjectRef},
    source::{
        Place, Problem,
        object::{
            self,
            fields::{At, Fault, Fields, kind_of},
            path::Path,
        },
    },
};

/// Finding a line costs a pass over the document: faults beyond this number are told with the document's line.
const MAX_LINES_FOUND: usize = 100;

/// How deep lists may hold lists.
const MAX_LISTS: usize = 4;

const LEFT_OUT: &str = "the object is left out";

pub(super) fn read(file: &FilePath, document: &Document, loaded: &mut Loaded) {
    let mut reader = Reader { file, document, lines_found: 0, loaded };
    match document.value() {
        Ok(value) => reader.item(&At { value: &value, path: Path::default() }, None, 0),
        Err(Unreadable { line, message }) => {
            let effect = "the document is left out".to_owned();
            let place = Place::File { path: file.to_owned(), line };
            reader.loaded.problems.push(Problem { place, object: None, field: None, message, effect });
            reader.loaded.lost.insert(None);
        }
    }
}

struct Reader<'d, 't> {
    file: &'d FilePath,
    document: &'d Document<'t>,
    lines_found: usize,
    loaded: &'d mut Loaded,
}

/// What an item of a typed list is, unless it says so itself.
#[derive(Clone, Copy)]
struct Inherited<'v> {
    api_version: &'v str,
    kind: &'v str,
}

impl Reader<'_, '_> {
    fn item(&mut self, at: &At, inherited: Option<Inherited>, depth: usize) {
        if at.value.is_null() {
            return;
        }
        let at = &At { value: at.value, path: at.path.object() };
        let Ok(root) = at.object() else {
            let message = format!("expected a Kubernetes object, found {}", kind_of(at.value));
            return self.lose(None, &at.fault(message));
        };
        let kind = root.map.get("kind").and_then(Value::as_str).or(inherited.map(|i| i.kind));
        let version = root.map.get("apiVersion").and_then(Value::as_str).or(inherited.map(|i| i.api_version));
        let Some(kind) = kind.filter(|k| !k.is_empty()) else {
            let effect = "left out";
            return self.lose_with(
                None,
                &Fault::new(&root.path.key("kind"), "the object has no kind"),
                effect,
            );
        };
        let version = version.unwrap_or_default();
        let items = root.get("items").filter(|_| kind.ends_with("List"));
        match items.map(|items| items.list()) {
            Some(Ok(items)) if depth < MAX_LISTS => {
                let kind = kind.strip_suffix("List").unwrap_or_default();
                let inherited = (!kind.is_empty()).then_some(Inherited { api_version: version, kind });
                for item in &items {
                    self.item(item, inherited, depth + 1);
                }
            }
            Some(Ok(_)) => self.lose(None, &Fault::new(&root.path, "lists inside lists inside lists")),
            Some(Err(fault)) => self.lose(None, &fault),
            None if kind == "List" => {}
            None => self.object(&root, kind, version),
        }
    }

    fn object(&mut self, root: &Fields, kind: &str, version: &str) {
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let (ours, expected) = match (kind, group) {
            ("Namespace", "") => (Kind::Namespace, "v1"),
            ("Pod", "") => (Kind::Pod, "v1"),
            ("Node", "") => (Kind::Node, "v1"),
            ("Service", "") => (Kind::Service, "v1"),
            ("EndpointSlice", "discovery.k8s.io") => (Kind::EndpointSlice, "discovery.k8s.io/v1"),
            ("NetworkPolicy", "" | "extensions" | "networking.k8s.io") => {
                (Kind::NetworkPolicy, "networking.k8s.io/v1")
            }
            _ => return *self.loaded.ignored.entry(kind.to_owned()).or_default() += 1,
        };
        let mut faults = Vec::new();
        if version != expected {
            let message = format!("{version:?} is not {expected}, the version of a {kind}");
            faults.push(Fault::new(&root.path.key("apiVersion"), message));
        }
        let origin = self.origin();
        let read = object::read(ours, root, faults, || format!("unnamed ({origin})"));
        for fault in &read.faults {
            self.problem(read.reference.as_ref(), fault, &read.effect);
        }
        match read.object {
            Some(object) => self.loaded.objects.push(Located { object, origin }),
            None => _ = self.loaded.lost.insert(read.reference),
        }
    }

    fn origin(&self) -> Origin {
        Origin { file: self.file.to_owned(), line: self.document.first_line() }
    }

    fn lose(&mut self, object: Option<&ObjectRef>, fault: &Fault) {
        self.lose_with(object, fault, LEFT_OUT);
    }

    fn lose_with(&mut self, object: Option<&ObjectRef>, fault: &Fault, effect: &str) {
        self.problem(object, fault, effect);
        self.loaded.lost.insert(object.cloned());
    }

    fn problem(&mut self, object: Option<&ObjectRef>, fault: &Fault, effect: &str) {
        self.lines_found += 1;
        let line = if self.lines_found <= MAX_LINES_FOUND {
            self.document.line_of(&fault.path)
        } else {
            self.document.first_line()
        };
        self.loaded.problems.push(Problem {
            place: Place::File { path: self.file.to_owned(), line },
            object: object.cloned(),
            field: (!fault.path.is_empty()).then(|| fault.path.to_string()),
            message: fault.message.clone(),
            effect: effect.to_owned(),
        });
    }
}
