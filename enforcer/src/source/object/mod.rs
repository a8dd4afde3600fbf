//! From a Kubernetes object's value to ours: one conversion for every source.
//!
//! What the API server would refuse, and what a newer one may send that we do not understand, never opens
//! anything; each source says what stands in for an object that is left out.

use serde_json::{Map, Value};

use crate::cluster::object::{Key, Kind, Object, ObjectRef};

pub(super) mod fields;
mod inventory;
pub(super) mod path;
mod policy;
mod service;
mod syntax;

use fields::{Fault, Fields, or_note};

const PARTLY_READ: &str = "the rest of the object is used";
const SERVICE_CLOSED: &str = "egress policies admit nothing to its Service";
const LEFT_OUT: &str = "the object is left out";

/// What could be read of one object, and what could not.
#[derive(Debug)]
pub(super) struct Read {
    /// `None`: it cannot be told which object it is.
    pub reference: Option<ObjectRef>,
    /// `None`: the object is left out, because of the faults.
    pub object: Option<Object>,
    pub faults: Vec<Fault>,
    /// What is in force instead of the faulty parts.
    pub effect: String,
}

/// Reads an object of a kind that is known. `faults`: what was already found wrong with it; `unnamed` names a
/// policy that has no name.
pub(super) fn read(
    kind: Kind,
    root: &Fields,
    mut faults: Vec<Fault>,
    unnamed: impl FnOnce() -> String,
) -> Read {
    let nothing = &Map::new();
    let metadata = root.get("metadata").and_then(|at| or_note(at.object(), &mut faults));
    let metadata = metadata.unwrap_or_else(|| Fields { map: nothing, path: root.path.key("metadata") });
    match kind {
        Kind::NetworkPolicy => network_policy(root, &metadata, faults, unnamed),
        kind => inventory(kind, root, &metadata, faults),
    }
}

fn inventory(kind: Kind, root: &Fields, metadata: &Fields, mut faults: Vec<Fault>) -> Read {
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
        (Err(fault), _) | (_, Err(fault)) => {
            return Read { reference: None, object: None, faults: vec![fault], effect: LEFT_OUT.to_owned() };
        }
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
    if object.is_none() {
        effect = LEFT_OUT;
    }
    Read { reference: Some(reference), object, faults, effect: effect.to_owned() }
}

/// A policy is never left out: what it isolates stays isolated, under whatever name it has.
fn network_policy(
    root: &Fields,
    metadata: &Fields,
    mut faults: Vec<Fault>,
    unnamed: impl FnOnce() -> String,
) -> Read {
    let namespace = policy_namespace(metadata, &mut faults);
    let key = Key::new(namespace, policy_name(metadata, &mut faults).unwrap_or_else(unnamed));
    let labels = or_note(metadata.labels("labels"), &mut faults).map(|(labels, faulty)| {
        faults.extend(faulty.into_iter().map(|(_, fault)| fault));
        labels
    });
    let policy = policy::read(root, key, labels.unwrap_or_default(), &mut faults);
    let directions = match (&policy.ingress, &policy.egress) {
        (Some(_), Some(_)) => "ingress and egress",
        (_, None) => "ingress",
        (None, _) => "egress",
    };
    let effect = format!("its pods stay isolated for {directions}; the unreadable part admits nothing");
    let reference = ObjectRef { kind: Kind::NetworkPolicy, key: policy.key.clone() };
    Read { reference: Some(reference), object: Some(Object::NetworkPolicy(policy)), faults, effect }
}

fn policy_name(metadata: &Fields, faults: &mut Vec<Fault>) -> Option<String> {
    let read = match metadata.string("name") {
        Ok(Some(name)) if !name.is_empty() => match syntax::subdomain(name) {
            Ok(()) => return Some(name.to_owned()),
            Err(message) => Err(Fault::new(&metadata.path.key("name"), message)),
        },
        Ok(_) => Err(Fault::new(&metadata.path.key("name"), "the object has no name")),
        Err(fault) => Err::<(), Fault>(fault),
    };
    faults.extend(read.err());
    metadata.get("name").and_then(|at| scalar(at.value))
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
