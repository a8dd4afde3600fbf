//! One document: an object, or a list of them.

use std::path::Path as FilePath;

use serde_json::{Map, Value};

use super::{
    Loaded, Located, Origin,
    fields::{At, Fault, Fields, kind_of, or_note},
    inventory, policy, service, syntax,
    text::{Document, Path, Unreadable},
};
use crate::{
    cluster::object::{Key, Kind, Object, ObjectRef},
    source::Problem,
};

/// Finding a line costs a pass over the document: faults beyond this number are told with the document's line.
const MAX_LINES_FOUND: usize = 100;

/// How deep lists may hold lists.
const MAX_LISTS: usize = 4;

const PARTLY_READ: &str = "the rest of the object is used";
const SERVICE_CLOSED: &str = "egress policies admit nothing to its Service";
const LEFT_OUT: &str = "the object is left out";

pub(super) fn read(file: &FilePath, document: &Document, loaded: &mut Loaded) {
    let mut reader = Reader { file, document, lines_found: 0, loaded };
    match document.value() {
        Ok(value) => reader.item(&At { value: &value, path: Path::default() }, None, 0),
        Err(Unreadable { line, message }) => {
            let effect = "the document is left out".to_owned();
            let file = file.to_owned();
            reader.loaded.problems.push(Problem { file, line, object: None, field: None, message, effect });
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
        let nothing = &Map::new();
        let metadata = match root.get("metadata").map(|at| at.object()).transpose() {
            Ok(Some(metadata)) => metadata,
            Ok(None) => Fields { map: nothing, path: root.path.key("metadata") },
            Err(fault) => {
                faults.push(fault);
                Fields { map: nothing, path: root.path.key("metadata") }
            }
        };
        match ours {
            Kind::NetworkPolicy => self.policy(root, &metadata, faults),
            ours => self.inventory(ours, root, &metadata, faults),
        }
    }

    fn inventory(&mut self, kind: Kind, root: &Fields, metadata: &Fields, mut faults: Vec<Fault>) {
        let namespace = match kind {
            Kind::Namespace | Kind::Node => Ok(String::new()),
            _ => namespace(metadata).map(str::to_owned),
        };
        let name = metadata.string("name").and_then(|name| {
            let missing = || Fault::new(&metadata.path.key("name"), "the object has no name");
            let name = name.filter(|n| !n.is_empty()).ok_or_else(missing)?;
            syntax::subdomain(name).map_err(|e| Fault::new(&metadata.path.key("name"), e))?;
            Ok(name.to_owned())
        });
        let key = match (namespace, name) {
            (Ok(namespace), Ok(name)) => Key::new(namespace, name),
            (Err(fault), _) | (_, Err(fault)) => return self.lose(None, &fault),
        };
        let reference = ObjectRef { kind, key: key.clone() };
        let mut effect = PARTLY_READ;
        let object = match kind {
            Kind::Namespace => {
                inventory::namespace(metadata, key.name.to_string(), &mut faults).map(Object::Namespace)
            }
            Kind::Pod => inventory::pod(root, metadata, key, &mut faults).map(Object::Pod),
            Kind::Service => service::service(root, key, &mut faults).map(Object::Service),
            Kind::EndpointSlice => {
                effect = SERVICE_CLOSED;
                service::slice(root, metadata, key, &mut faults).map(Object::EndpointSlice)
            }
            _ => Some(Object::Node(inventory::node(root, metadata, key.name.to_string(), &mut faults))),
        };
        match object {
            Some(object) => {
                for fault in &faults {
                    self.problem(Some(&reference), fault, effect);
                }
                self.keep(object);
            }
            None => faults.iter().for_each(|fault| self.lose(Some(&reference), fault)),
        }
    }

    /// A policy is never left out: what it isolates stays isolated, under whatever name it has.
    fn policy(&mut self, root: &Fields, metadata: &Fields, mut faults: Vec<Fault>) {
        let namespace = policy_namespace(metadata, &mut faults);
        let key = Key::new(namespace, self.policy_name(metadata, &mut faults));
        let labels = or_note(metadata.labels("labels"), &mut faults).map(|(labels, faulty)| {
            faults.extend(faulty.into_iter().map(|(_, fault)| fault));
            labels
        });
        let policy = policy::read(root, key, labels.unwrap_or_default(), &mut faults);
        let reference = ObjectRef { kind: Kind::NetworkPolicy, key: policy.key.clone() };
        let directions = match (&policy.ingress, &policy.egress) {
            (Some(_), Some(_)) => "ingress and egress",
            (_, None) => "ingress",
            (None, _) => "egress",
        };
        let effect = format!("its pods stay isolated for {directions}; the unreadable part admits nothing");
        for fault in &faults {
            self.problem(Some(&reference), fault, &effect);
        }
        self.keep(Object::NetworkPolicy(policy));
    }

    fn policy_name(&self, metadata: &Fields, faults: &mut Vec<Fault>) -> String {
        let read = match metadata.string("name") {
            Ok(Some(name)) if !name.is_empty() => match syntax::subdomain(name) {
                Ok(()) => return name.to_owned(),
                Err(message) => Err(Fault::new(&metadata.path.key("name"), message)),
            },
            Ok(_) => Err(Fault::new(&metadata.path.key("name"), "the object has no name")),
            Err(fault) => Err::<(), Fault>(fault),
        };
        faults.extend(read.err());
        let read = metadata.get("name").and_then(|at| scalar(at.value));
        read.unwrap_or_else(|| format!("unnamed ({})", self.origin()))
    }

    fn origin(&self) -> Origin {
        Origin { file: self.file.to_owned(), line: self.document.first_line() }
    }

    fn keep(&mut self, object: Object) {
        let origin = self.origin();
        self.loaded.objects.push(Located { object, origin });
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
            file: self.file.to_owned(),
            line,
            object: object.cloned(),
            field: (!fault.path.is_empty()).then(|| fault.path.to_string()),
            message: fault.message.clone(),
            effect: effect.to_owned(),
        });
    }
}

/// Namespaced objects without a namespace are those of `default`, as for kubectl.
fn namespace<'v>(metadata: &Fields<'v>) -> Result<&'v str, Fault> {
    let namespace = metadata.string("namespace")?.filter(|n| !n.is_empty()).unwrap_or("default");
    syntax::subdomain(namespace).map_err(|e| Fault::new(&metadata.path.key("namespace"), e))?;
    Ok(namespace)
}

/// What was probably meant by a name that is not a valid string.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

fn policy_namespace(metadata: &Fields, faults: &mut Vec<Fault>) -> String {
    match namespace(metadata) {
        Ok(namespace) => namespace.to_owned(),
        Err(fault) => {
            let read = metadata.get("namespace").and_then(|at| scalar(at.value));
            faults.push(fault);
            read.unwrap_or_else(|| "default".to_owned())
        }
    }
}
