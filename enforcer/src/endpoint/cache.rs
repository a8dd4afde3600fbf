//! libcni's cache of results: which attachments the runtime has made on this node, and what each of them got.
//!
//! `<dir>/results/<network>-<container>-<ifname>`, JSON of kind `cniCacheV1`; written when ADD has gone through the
//! whole list, removed after DEL (`libcni/api.go`).

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use bulkhead_cni::{
    kubernetes::pod_of,
    previous::PrevResult,
    protocol::{AttachmentId, PodName},
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// One ADD for a Kubernetes pod, as the runtime remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub attachment: AttachmentId,
    pub network: String,
    /// Where the pod's network namespace was; the file may be gone.
    pub netns: Option<PathBuf>,
    pub pod: PodName,
    /// Of the container's interface; `None`: the result does not say.
    pub mac: Option<[u8; 6]>,
    pub addresses: BTreeSet<IpAddr>,
    /// Names of interfaces on the host: the bridge, the host end of the veth pair; may be incomplete.
    pub host_interfaces: BTreeSet<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    #[error("it is no cached result")]
    Decode(#[from] serde_json::Error),
    #[error("kind is {0:?}, not \"cniCacheV1\"")]
    Kind(String),
    #[error("cniArgs: {0}")]
    Arguments(String),
    #[error("result: {0}")]
    Result(String),
    #[error("result.interfaces: {0:?} is no MAC address")]
    Mac(String),
}

/// The parts that we read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    kind: String,
    container_id: String,
    if_name: String,
    network_name: String,
    /// Since libcni 1.2; before that only the result says it.
    #[serde(default)]
    netns: Option<PathBuf>,
    #[serde(default)]
    cni_args: Option<Vec<(String, String)>>,
    result: Box<RawValue>,
}

#[derive(Deserialize)]
struct Interfaces {
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    sandbox: Option<PathBuf>,
}

/// Name of the file for an attachment.
pub fn file_name(network: &str, attachment: &AttachmentId) -> String {
    format!("{network}-{}-{}", attachment.container, attachment.ifname)
}

/// One cache file; `None`: no pod of Kubernetes.
pub fn parse(text: &[u8]) -> Result<Option<Remembered>, CacheError> {
    let entry: Entry = serde_json::from_slice(text)?;
    if entry.kind != "cniCacheV1" {
        return Err(CacheError::Kind(entry.kind));
    }
    let arguments: Vec<String> =
        entry.cni_args.unwrap_or_default().iter().map(|(key, value)| format!("{key}={value}")).collect();
    // Whether unknown keys may be ignored was the plugins' question, not ours.
    let arguments = format!("{};IgnoreUnknown=1", arguments.join(";"));
    let Some(pod) = pod_of(&arguments).map_err(CacheError::Arguments)? else { return Ok(None) };
    let of_result = |error: &dyn std::error::Error| CacheError::Result(error.to_string());
    let interfaces: Interfaces = serde_json::from_str(entry.result.get())?;
    let sandbox = interfaces.interfaces.into_iter().flatten().find_map(|interface| {
        interface.sandbox.filter(|path| interface.name == entry.if_name && !path.as_os_str().is_empty())
    });
    let previous = PrevResult::new(entry.result).map_err(|error| of_result(&error))?;
    let attached = previous.attached(&entry.if_name).map_err(|error| of_result(&error))?;
    Ok(Some(Remembered {
        netns: entry.netns.filter(|path| !path.as_os_str().is_empty()).or(sandbox),
        attachment: AttachmentId { container: entry.container_id, ifname: entry.if_name },
        network: entry.network_name,
        pod,
        mac: attached.mac.map(|text| mac(&text).ok_or(CacheError::Mac(text))).transpose()?,
        addresses: attached.addresses,
        host_interfaces: attached.host_interfaces,
    }))
}

/// Six pairs of hexadecimal digits.
fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> =
        text.split(':').map(|part| u8::from_str_radix(part, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

/// What the cache holds: the attachments of pods, and the files that cannot be read with the reason.
#[derive(Debug, Default)]
pub struct Cache {
    pub remembered: Vec<Remembered>,
    pub unreadable: Vec<(PathBuf, CacheError)>,
}

impl Cache {
    /// No error if the directory is missing: no runtime has made an attachment here yet. Files that are `known` by name
    /// are not looked at, and not in the result.
    pub fn read(directory: &Path, known: impl Fn(&str) -> bool) -> Result<Self, io::Error> {
        let mut cache = Self::default();
        let entries = match fs::read_dir(directory.join("results")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(cache),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            if path.file_name().and_then(OsStr::to_str).is_some_and(&known) {
                continue;
            }
            let text = match fs::read(&path) {
                // Removed since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text,
            };
            match text.map_err(CacheError::from).and_then(|text| parse(&text)) {
                Ok(Some(remembered)) => cache.remembered.push(remembered),
                Ok(None) => {}
                Err(error) => cache.unreadable.push((path, error)),
            }
        }
        cache.remembered.sort_by(|a, b| a.attachment.cmp(&b.attachment));
        cache.unreadable.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(cache)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn entry() -> Value {
        json!({
            "kind": "cniCacheV1", "containerId": "c1", "ifName": "eth0", "networkName": "cbr0",
            "config": "e30=", "netns": "/run/netns/a",
            "cniArgs": [
                ["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "cart"],
                ["K8S_POD_INFRA_CONTAINER_ID", "c1"], ["K8S_POD_UID", "u-1"],
            ],
            "result": {
                "cniVersion": "1.0.0",
                "interfaces": [
                    {"name": "cni0", "mac": "02:00:00:00:00:01"},
                    {"name": "veth1", "mac": "02:00:00:00:00:02"},
                    {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/b"},
                ],
                "ips": [{"interface": 2, "address": "10.244.1.5/24"}, {"interface": 2, "address": "fd00::5/64"}],
            },
        })
    }

    fn want() -> Remembered {
        Remembered {
            attachment: AttachmentId { container: "c1".into(), ifname: "eth0".into() },
            network: "cbr0".into(),
            netns: Some("/run/netns/a".into()),
            pod: PodName { namespace: "shop".into(), name: "cart".into(), uid: Some("u-1".into()) },
            mac: Some([2, 0, 0, 0, 0, 3]),
            addresses: ["10.244.1.5", "fd00::5"].map(|text| text.parse().expect("an address")).into(),
            host_interfaces: ["cni0", "veth1"].map(String::from).into(),
        }
    }

    fn with(edit: impl FnOnce(&mut Value)) -> Result<Option<Remembered>, String> {
        let mut entry = entry();
        edit(&mut entry);
        parse(entry.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_entry_says_which_pod_got_what() {
        assert_eq!(with(|_| {}), Ok(Some(want())));
        let no_netns = Remembered { netns: Some("/run/netns/b".into()), ..want() };
        assert_eq!(with(|entry| entry["netns"] = Value::Null), Ok(Some(no_netns)), "libcni before 1.2");
        let nowhere = Remembered { netns: None, mac: None, host_interfaces: [].into(), ..want() };
        let no_interfaces = |entry: &mut Value| {
            entry["netns"] = "".into();
            entry["result"] = json!({"ips": [{"address": "10.244.1.5/24"}, {"address": "fd00::5/64"}]});
        };
        assert_eq!(with(no_interfaces), Ok(Some(nowhere)));
        assert_eq!(with(|entry| entry["cniArgs"] = Value::Null), Ok(None), "no pod's");
        assert_eq!(with(|entry| entry["cniArgs"] = json!([["A", "b"]])), Ok(None), "no pod's");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let set = |field: &'static str, value: Value| move |entry: &mut Value| entry[field] = value;
        for (case, want) in [
            (with(set("kind", "other".into())), "kind is \"other\", not \"cniCacheV1\""),
            (with(set("result", json!({}))), "result: prevResult.ips: no address of eth0"),
            (with(set("result", json!([]))), "result: prevResult: must be an object"),
            (
                with(set("cniArgs", json!([["K8S_POD_NAME", "cart"]]))),
                "cniArgs: K8S_POD_NAME without K8S_POD_NAMESPACE",
            ),
            (
                with(|entry| entry["result"]["interfaces"][2]["mac"] = "x".into()),
                "result.interfaces: \"x\" is no MAC address",
            ),
        ] {
            let error = case.expect_err(want);
            assert!(error.starts_with(want), "{error:?} should start with {want:?}");
        }
        assert!(parse(b"{").is_err());
    }

    #[test]
    fn one_broken_file_hides_no_other() {
        let directory = tempfile::tempdir().expect("tempdir");
        assert!(Cache::read(directory.path(), |_| false).expect("nothing there yet").remembered.is_empty());
        let results = directory.path().join("results");
        fs::create_dir(&results).expect("made");
        fs::write(results.join("cbr0-c0-eth0"), "{").expect("written");
        fs::write(results.join("cbr0-c1-eth0"), entry().to_string()).expect("written");
        let cache = Cache::read(directory.path(), |_| false).expect("read");
        assert_eq!(cache.remembered, [want()]);
        let unreadable: Vec<_> = cache.unreadable.iter().map(|(path, _)| path.as_path()).collect();
        assert_eq!(unreadable, [results.join("cbr0-c0-eth0")]);

        let known = file_name("cbr0", &want().attachment);
        let cache = Cache::read(directory.path(), |name| name == known).expect("read");
        assert_eq!((cache.remembered, cache.unreadable.len()), (vec![], 1));
    }
}
