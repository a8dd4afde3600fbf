//! The network configuration on standard input.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    error::CniError, previous::PrevResult, protocol::AttachmentId, request::is_identifier,
    version::SpecVersion,
};

pub const DEFAULT_SOCKET: &str = "/run/bulkhead/agent.sock";
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest path of a Unix socket, in bytes (`sun_path` without its terminating zero).
const MAX_SOCKET_PATH: usize = 107;

/// Keys the specification and libcni put into any plugin's configuration, and that do not concern us. Keys with a `/`
/// belong to whoever owns the domain before it (`cni.dev/…`).
const FOREIGN_KEYS: [&str; 9] = [
    "args",
    "capabilities",
    "cniVersions",
    "disableCheck",
    "disableGC",
    "dns",
    "ipMasq",
    "ipam",
    "runtimeConfig",
];

/// What a pod start may do while the agent cannot take it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailurePolicy {
    /// No pod starts unenforced: "try again later".
    #[default]
    Closed,
    /// The pod starts; the agent adopts it when it is back.
    Open,
}

/// A configuration we can work with. Which parts a verb needs is the verb's business.
#[derive(Debug)]
pub struct NetConf {
    pub version: SpecVersion,
    /// Name of the network.
    pub name: String,
    /// Absolute path of the agent's socket.
    pub socket: PathBuf,
    pub failure_policy: FailurePolicy,
    /// How long one conversation with the agent may take: 1 to 120 seconds.
    pub timeout: Duration,
    pub previous: Option<PrevResult>,
    /// GC: the attachments of this network that still exist. Absent is not the same as empty.
    pub valid_attachments: Option<BTreeSet<AttachmentId>>,
}

impl NetConf {
    /// Reads a configuration, naming the field that is wrong.
    ///
    /// A key nobody knows is an error: a misspelt `failurePolicy` must not quietly mean the default.
    pub fn parse(bytes: &[u8]) -> Result<Self, CniError> {
        let mut fields = Fields::parse(bytes)?;
        // First, because a configuration of another version may look different in everything else.
        let version = match fields.take::<String>("cniVersion")? {
            Some(text) => SpecVersion::parse(&text)?,
            None => return Err(CniError::config("cniVersion", "missing")),
        };
        let conf = Self {
            version,
            name: name(&mut fields)?,
            socket: socket(&mut fields)?,
            failure_policy: fields.take("failurePolicy")?.unwrap_or_default(),
            timeout: timeout(&mut fields)?,
            previous: fields.take("prevResult")?.map(PrevResult::new).transpose()?,
            valid_attachments: valid_attachments(&mut fields)?,
        };
        fields.finish()?;
        Ok(conf)
    }
}

fn name(fields: &mut Fields) -> Result<String, CniError> {
    if fields.take::<String>("type")?.is_none_or(|plugin| plugin.is_empty()) {
        return Err(CniError::config("type", "missing"));
    }
    let name: String = fields.take("name")?.ok_or_else(|| CniError::config("name", "missing"))?;
    if !is_identifier(&name) {
        let why = "must start with a letter or digit, followed by letters, digits, '_', '.' or '-'";
        return Err(CniError::config("name", why));
    }
    Ok(name)
}

fn socket(fields: &mut Fields) -> Result<PathBuf, CniError> {
    let text: String = fields.take("socket")?.unwrap_or_else(|| DEFAULT_SOCKET.to_owned());
    if !text.starts_with('/') || text.contains('\0') {
        return Err(CniError::config("socket", "must be an absolute path"));
    }
    if text.len() > MAX_SOCKET_PATH {
        return Err(CniError::config("socket", format!("must not be longer than {MAX_SOCKET_PATH} bytes")));
    }
    Ok(PathBuf::from(text))
}

fn timeout(fields: &mut Fields) -> Result<Duration, CniError> {
    match fields.take::<u64>("timeoutSeconds")? {
        None => Ok(DEFAULT_TIMEOUT),
        Some(seconds @ 1..=120) => Ok(Duration::from_secs(seconds)),
        Some(other) => Err(CniError::config("timeoutSeconds", format!("must be 1 to 120, not {other}"))),
    }
}

fn valid_attachments(fields: &mut Fields) -> Result<Option<BTreeSet<AttachmentId>>, CniError> {
    #[derive(Deserialize)]
    struct Valid {
        #[serde(rename = "containerID")]
        container: String,
        ifname: String,
    }
    // libcni passes the list under both keys, because the specification once named the second one by mistake.
    let current: Option<Vec<Valid>> = fields.take("cni.dev/valid-attachments")?;
    let former = fields.take("cni.dev/attachments")?;
    let id = |valid: Valid| AttachmentId { container: valid.container, ifname: valid.ifname };
    Ok(current.or(former).map(|list| list.into_iter().map(id).collect()))
}

/// The top level of the configuration; taken apart key by key, so that what is left over is unknown.
struct Fields(BTreeMap<String, Box<RawValue>>);

impl Fields {
    fn parse(bytes: &[u8]) -> Result<Self, CniError> {
        serde_json::from_slice(bytes).map(Self).map_err(|source| CniError::Decode { source })
    }

    /// The value of `key`; `null` counts as absent, as it does in Go.
    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, CniError> {
        let Some(raw) = self.0.remove(key) else { return Ok(None) };
        read(key, &raw)
    }

    fn finish(self) -> Result<(), CniError> {
        let foreign = |key: &str| key.contains('/') || FOREIGN_KEYS.contains(&key);
        match self.0.into_keys().find(|key| !foreign(key)) {
            None => Ok(()),
            Some(key) => {
                let why = "unknown key; bulkhead's own are socket, failurePolicy and timeoutSeconds";
                Err(CniError::config(key, why))
            }
        }
    }
}

/// Reads a part of the configuration; an error names the path from `field` on.
pub(crate) fn read<T: DeserializeOwned>(field: &str, raw: &RawValue) -> Result<T, CniError> {
    let mut json = serde_json::Deserializer::from_str(raw.get());
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let inner = error.path().to_string();
        let separator = if inner.starts_with('[') { "" } else { "." };
        let path = if inner == "." { field.to_owned() } else { format!("{field}{separator}{inner}") };
        let why = error.into_inner().to_string();
        // "at line 1 column 7" would count from the start of the field, not of the file.
        CniError::config(path, why.rsplit_once(" at line ").map_or(why.as_str(), |(why, _)| why))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn conf(extra: &Value) -> Result<NetConf, String> {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "bulkhead-cni"});
        for (key, value) in extra.as_object().expect("object") {
            conf[key] = value.clone();
        }
        NetConf::parse(conf.to_string().as_bytes()).map_err(|error| format!("{} {error}", error.code()))
    }

    #[test]
    fn the_smallest_configuration_has_the_documented_defaults() {
        let conf = conf(&json!({})).expect("valid");
        assert_eq!(
            (
                conf.version,
                conf.name.as_str(),
                conf.socket.to_str(),
                conf.failure_policy,
                conf.timeout.as_secs()
            ),
            (SpecVersion::V1_1_0, "cbr0", Some("/run/bulkhead/agent.sock"), FailurePolicy::Closed, 10)
        );
        assert!(conf.previous.is_none() && conf.valid_attachments.is_none());
    }

    #[test]
    fn every_own_key_is_read_and_standard_keys_are_tolerated() {
        let conf = conf(&json!({
            "socket": "/tmp/a.sock", "failurePolicy": "open", "timeoutSeconds": 120,
            "prevResult": {"ips": []}, "runtimeConfig": {"mac": "x"}, "capabilities": {"mac": true}, "args": {},
            "dns": {}, "ipam": {}, "ipMasq": true, "cniVersions": ["1.1.0"], "disableGC": false, "example.com/x": 1,
        }))
        .expect("valid");
        assert_eq!(
            (conf.socket.to_str(), conf.failure_policy, conf.timeout.as_secs()),
            (Some("/tmp/a.sock"), FailurePolicy::Open, 120)
        );
        assert_eq!(conf.previous.expect("present").raw(), r#"{"ips":[]}"#);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (extra, want) in [
            (json!({"cniVersion": "0.2.0"}), "1 cniVersion: \"0.2.0\" is not supported"),
            (json!({"cniVersion": null}), "7 cniVersion: missing"),
            (json!({"cniVersion": 1}), "7 cniVersion: invalid type: integer `1`, expected a string"),
            (json!({"name": null}), "7 name: missing"),
            (json!({"name": "a/b"}), "7 name: must start with"),
            (json!({"type": ""}), "7 type: missing"),
            (json!({"socket": "agent.sock"}), "7 socket: must be an absolute path"),
            (
                json!({"socket": format!("/{}", "x".repeat(107))}),
                "7 socket: must not be longer than 107 bytes",
            ),
            (json!({"failurePolicy": "ajar"}), "7 failurePolicy: unknown variant `ajar`"),
            (json!({"timeoutSeconds": 0}), "7 timeoutSeconds: must be 1 to 120, not 0"),
            (json!({"timeoutSeconds": 121}), "7 timeoutSeconds: must be 1 to 120, not 121"),
            (json!({"timeoutSeconds": -1}), "7 timeoutSeconds: invalid value: integer `-1`, expected u64"),
            (json!({"timeoutSeconds": "10"}), "7 timeoutSeconds: invalid type: string \"10\", expected u64"),
            (json!({"prevResult": []}), "7 prevResult: must be an object"),
            (json!({"failurepolicy": "open"}), "7 failurepolicy: unknown key"),
            (json!({"plugins": []}), "7 plugins: unknown key"),
            (
                json!({"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b"}]}),
                "7 cni.dev/valid-attachments[1]: missing field `ifname`",
            ),
        ] {
            let error = conf(&extra).expect_err(want);
            assert!(error.starts_with(want), "{error:?} should start with {want:?}");
        }
    }

    #[test]
    fn valid_attachments_are_read_under_both_names_and_absent_is_not_empty() {
        let list = json!([{"containerID": "a", "ifname": "eth0"}]);
        let one = BTreeSet::from([AttachmentId { container: "a".into(), ifname: "eth0".into() }]);
        for (extra, want) in [
            (json!({"cni.dev/valid-attachments": list, "cni.dev/attachments": list}), Some(one.clone())),
            (json!({"cni.dev/attachments": list}), Some(one)),
            (json!({"cni.dev/valid-attachments": []}), Some(BTreeSet::new())),
            (json!({}), None),
        ] {
            assert_eq!(conf(&extra).expect("valid").valid_attachments, want, "{extra}");
        }
    }

    #[test]
    fn input_that_is_no_json_object_is_a_decoding_error() {
        for input in ["", "garbage", "[]", "7", "{\"name\":", "{} trailing", "\u{feff}{}"] {
            assert_eq!(NetConf::parse(input.as_bytes()).expect_err(input).code(), 6, "{input:?}");
        }
        assert_eq!(NetConf::parse(b"\xff\xfe").expect_err("not UTF-8").code(), 6);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            prop_oneof!["1.1.0", "0.3.1", "eth0", "10.0.0.5/24", "fd00::5/64", "/var/run/netns/x", ".{0,12}"]
                .prop_map(Value::from),
        ];
        let key = prop_oneof![
            "cniVersion|name|type|socket|failurePolicy|timeoutSeconds|prevResult|interfaces|ips|interface|address",
            "mac|sandbox|ifname|containerID|cni\\.dev/valid-attachments|.{0,8}",
        ];
        leaf.prop_recursive(4, 48, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(key.clone(), inner, 0..6)
                    .prop_map(|map| Value::from(serde_json::Map::from_iter(map))),
            ]
        })
    }

    fn never_panics(bytes: &[u8]) {
        if let Ok(conf) = NetConf::parse(bytes)
            && let Some(previous) = conf.previous
        {
            let _ = previous.attached("eth0");
        }
    }

    proptest! {
        #[test]
        fn parsing_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            never_panics(&bytes);
        }

        #[test]
        fn parsing_any_json_never_panics(previous in any_json(), other in any_json(), key in "socket|ipam|name|x/y") {
            let conf = json!({
                "cniVersion": "1.0.0", "name": "n", "type": "t", "prevResult": previous, key: other
            });
            never_panics(conf.to_string().as_bytes());
            never_panics(other.to_string().as_bytes());
        }
    }
}
