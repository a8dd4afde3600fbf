//! One object as the API server sends it, turned into ours at once.

use serde_json::Value;

use super::{keep::Keep, version::Version};
use crate::{
    cluster::object::{Key, Kind, Object, ObjectRef},
    source::{
        Place, Problem,
        object::{
            self,
            fields::{At, Fault, Fields},
            path::Path,
        },
    },
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub reference: ObjectRef,
    /// `None`: it is described, but a part is unreadable without which it would not be safe to use.
    pub object: Option<Object>,
    pub version: Version,
    pub problems: Vec<Problem>,
}

/// Not an object of the kind that was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoItem {
    #[error("the API server sent no JSON")]
    Json(#[from] serde_json::Error),
    #[error("the API server sent an object that cannot be used: {0}")]
    Object(String),
}

impl Item {
    pub fn read(kind: Kind, json: &str) -> Result<Self, NoItem> {
        let value = Keep::of(kind).decode(json)?;
        let root = At { value: &value, path: Path::default() };
        let root = root.object().map_err(|fault| NoItem::Object(fault.message))?;
        let version = value.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        let Some(version) = version.filter(|version| !version.is_empty()) else {
            return Err(NoItem::Object("it has no resourceVersion".to_owned()));
        };
        let read = read(kind, &root);
        let Some(reference) = read.reference else {
            let faults: Vec<_> = read.faults.iter().map(|fault| fault.message.as_str()).collect();
            return Err(NoItem::Object(faults.join("; ")));
        };
        let problem = |fault: &Fault| Problem {
            place: Place::ApiServer,
            object: Some(reference.clone()),
            field: (!fault.path.is_empty()).then(|| fault.path.to_string()),
            message: fault.message.clone(),
            effect: read.effect.clone(),
        };
        let problems = read.faults.iter().map(problem).collect();
        Ok(Self { reference, object: read.object, version: Version::new(version), problems })
    }

    pub fn key(&self) -> &Key {
        &self.reference.key
    }
}

fn read(kind: Kind, root: &Fields) -> object::Read {
    // The API server lets nothing in without a name; two policies of that name would be one.
    object::read(kind, root, Vec::new(), || "unnamed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_of_a_list_needs_no_kind_of_its_own() {
        let json = r#"{"metadata":{"name":"db","namespace":"shop","resourceVersion":"12"},
                       "spec":{"podSelector":{},"ingress":[{"ports":[{"port":0}]}]}}"#;
        let item = Item::read(Kind::NetworkPolicy, json).expect("an object");
        let Some(Object::NetworkPolicy(policy)) = &item.object else { panic!("{item:?}") };
        assert_eq!((policy.ingress.as_deref(), item.version), (Some(&[][..]), Version::new("12")));
        let problems: Vec<_> = item.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "API server: NetworkPolicy shop/db: spec.ingress[0].ports[0].port: 0 is not a port from 1 to 65535 \
                 (its pods stay isolated for ingress; the unreadable part admits nothing)"
            ]
        );
    }

    #[test]
    fn what_is_no_object_is_an_error_and_not_an_empty_one() {
        for json in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"metadata":{"name":"a"}}"#,
            r#"{"metadata":{"name":"","resourceVersion":"1"}}"#,
            r#"{"metadata":{"name":"a","resourceVersion":""}}"#,
        ] {
            assert!(Item::read(Kind::Pod, json).is_err(), "{json}");
        }
    }
}
