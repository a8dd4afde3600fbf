//! Which fields of an object are read at all: everything else is skipped while it is decoded.

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::cluster::object::Kind;

/// A tree of field names; lists are looked through.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keep {
    All,
    Only(&'static [(&'static str, Keep)]),
}

use Keep::{All, Only};

const NAME: (&str, Keep) = ("name", All);
const NAMESPACE: (&str, Keep) = ("namespace", All);
const VERSION: (&str, Keep) = ("resourceVersion", All);

const METADATA: Keep = Only(&[NAME, NAMESPACE, VERSION, ("labels", All), ("annotations", All)]);
const POD_METADATA: Keep = Only(&[
    NAME,
    NAMESPACE,
    ("uid", All),
    VERSION,
    ("labels", All),
    ("annotations", Only(&[("kubernetes.io/config.mirror", All)])),
    ("ownerReferences", All),
]);
const SLICE_METADATA: Keep =
    Only(&[NAME, NAMESPACE, VERSION, ("labels", Only(&[("kubernetes.io/service-name", All)]))]);
const CONTAINER: Keep = Only(&[("restartPolicy", All), ("ports", All)]);

const POD: Keep = Only(&[
    ("metadata", POD_METADATA),
    (
        "spec",
        Only(&[
            ("nodeName", All),
            ("hostNetwork", All),
            ("containers", CONTAINER),
            ("initContainers", CONTAINER),
        ]),
    ),
    ("status", Only(&[("phase", All), ("podIP", All), ("podIPs", All)])),
]);
const NODE: Keep = Only(&[
    ("metadata", METADATA),
    ("spec", Only(&[("podCIDR", All), ("podCIDRs", All)])),
    ("status", Only(&[("addresses", All)])),
]);
const SERVICE: Keep = Only(&[
    ("metadata", SLICE_METADATA),
    (
        "spec",
        Only(&[("type", All), ("clusterIP", All), ("clusterIPs", All), ("externalIPs", All), ("ports", All)]),
    ),
    ("status", All),
]);
const SLICE: Keep = Only(&[
    ("metadata", SLICE_METADATA),
    ("addressType", All),
    ("endpoints", Only(&[("addresses", All), ("conditions", All)])),
    ("ports", All),
]);

/// A field of a policy that we do not know may be one that restricts it: they are all looked at.
const POLICY: Keep = All;

impl Keep {
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Namespace => Only(&[("metadata", METADATA)]),
            Kind::Pod => POD,
            Kind::Node => NODE,
            Kind::NetworkPolicy => POLICY,
            Kind::Service => SERVICE,
            Kind::EndpointSlice => SLICE,
        }
    }

    /// Decodes what is kept of a JSON text.
    pub fn decode(self, json: &str) -> Result<Value, serde_json::Error> {
        let mut decoder = serde_json::Deserializer::from_str(json);
        let value = self.deserialize(&mut decoder)?;
        decoder.end()?;
        Ok(value)
    }

    fn field(self, name: &str) -> Option<Self> {
        match self {
            All => Some(All),
            Only(fields) => fields.iter().find(|(field, _)| *field == name).map(|(_, keep)| *keep),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Keep {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        match self {
            All => Value::deserialize(from),
            Only(_) => from.deserialize_any(self),
        }
    }
}

/// What is no map is kept as it is: the reader of the object says what is wrong with it.
impl<'de> Visitor<'de> for Keep {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = entries.next_key::<std::borrow::Cow<'de, str>>()? {
            match self.field(&name) {
                Some(keep) => _ = map.insert(name.into_owned(), entries.next_value_seed(keep)?),
                None => _ = entries.next_value::<IgnoredAny>()?,
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_a_pod_only_the_fields_that_are_read_are_kept() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "1", "resourceVersion": "7",
                "labels": {"app": "web"}, "annotations": {"big": "x", "kubernetes.io/config.mirror": "2"},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
            },
            "spec": {
                "nodeName": "n", "volumes": [{"name": "v"}],
                "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}], "env": [1]}],
            },
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{}]},
        });
        let kept = json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "1", "resourceVersion": "7",
                "labels": {"app": "web"}, "annotations": {"kubernetes.io/config.mirror": "2"},
            },
            "spec": {"nodeName": "n", "containers": [{"ports": [{"containerPort": 80}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        });
        assert_eq!(Keep::of(Kind::Pod).decode(&pod.to_string()).expect("JSON"), kept);
    }

    #[test]
    fn what_has_another_shape_than_expected_is_left_for_the_reader_to_judge() {
        for text in [r#"{"spec":[{"nodeName":7}],"status":"x"}"#, r#"{"metadata":null}"#, "5", "[]"] {
            let value = Keep::of(Kind::Pod).decode(text).expect("JSON");
            assert_eq!(value.to_string(), text);
        }
        for text in ["{", "", "{} {}", r#"{"spec": {"containers": [}}"#] {
            assert!(Keep::of(Kind::Pod).decode(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn of_a_policy_everything_is_read() {
        let text = r#"{"metadata":{"name":"a"},"spec":{"podSelector":{},"unheardOf":[1.5,true]}}"#;
        assert_eq!(Keep::of(Kind::NetworkPolicy).decode(text).expect("JSON").to_string(), text);
    }
}
