//! Namespaces, pods and nodes. What cannot be read is left out where that opens nothing; otherwise the
//! whole object is.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use super::{
    fields::{At, Fault, Fields, or_note},
    policy, syntax,
};
use crate::cluster::compact::Text;
use crate::cluster::object::{
    ContainerPort, Key, Labels, NAMESPACE_NAME_LABEL, Namespace, Node, Pod, Workload,
};

/// `None`: left out, because of the last of `faults`.
pub(super) fn namespace(meta: &Fields, name: String, faults: &mut Vec<Fault>) -> Option<Namespace> {
    let (mut labels, unreadable) = or_note(meta.labels("labels"), faults)?;
    for (key, fault) in unreadable {
        // A label that is dropped could drop the tenant and open a boundary. Kept under a value that no
        // selector can name and no other namespace has, it opens nothing.
        labels.insert(key, format!("<unreadable, {name}>"));
        faults.push(fault);
    }
    labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.clone());
    // Without an annotation a door stays closed.
    let annotations = annotations(meta, faults);
    Some(Namespace { name, labels, annotations })
}

fn annotations(meta: &Fields, faults: &mut Vec<Fault>) -> Labels {
    let fields = meta.get("annotations").and_then(|at| or_note(at.object(), faults));
    let entries = fields.iter().flat_map(|f| f.map.keys().filter_map(|key| f.get(key).map(|at| (key, at))));
    entries.filter_map(|(key, at)| Some((key.clone(), or_note(at.string(), faults)?.to_owned()))).collect()
}

#[derive(Deserialize)]
struct RawOwner {
    kind: String,
    name: String,
    controller: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawContainerPort {
    name: Option<String>,
    protocol: Option<String>,
    container_port: u16,
}

/// `None`: left out, because of the last of `faults`. Without its labels, node or network kind a pod could
/// escape the policies that select it; without an address it is merely nobody.
pub(super) fn pod(root: &Fields, meta: &Fields, key: Key, faults: &mut Vec<Fault>) -> Option<Pod> {
    let (labels, unreadable) = or_note(meta.labels("labels"), faults)?;
    if !unreadable.is_empty() {
        faults.extend(unreadable.into_iter().map(|(_, fault)| fault));
        return None;
    }
    let (node, host_network, ports) = match root.get("spec") {
        None => (None, false, BTreeSet::new()),
        Some(at) => {
            let spec = or_note(at.object(), faults)?;
            let node = or_note(spec.string("nodeName"), faults)?.filter(|n| !n.is_empty()).map(str::to_owned);
            let host_network: Option<bool> = or_note(spec.decode("hostNetwork"), faults)?;
            (node, host_network.unwrap_or(false), ports(&spec, faults))
        }
    };
    let (finished, ips) = match root.get("status") {
        None => (false, BTreeSet::new()),
        Some(at) => {
            let status = or_note(at.object(), faults)?;
            let phase = or_note(status.string("phase"), faults)?;
            (matches!(phase, Some("Succeeded" | "Failed")), pod_ips(&status, faults))
        }
    };
    let workload = workload(meta, &labels, faults);
    let uid = uid(meta, faults);
    let (node, ips, ports) = (node.map(Text::from), ips.into(), ports.into());
    Some(Pod { key, uid, labels, node, host_network, finished, ips, ports, workload })
}

/// The UID that the kubelet tells CNI. The API server shows a static pod as a mirror pod with a UID of its own.
fn uid(meta: &Fields, faults: &mut Vec<Fault>) -> Option<Text> {
    let mirrored = meta.map.get("annotations").and_then(|all| all.get("kubernetes.io/config.mirror"));
    let uid = mirrored.and_then(Value::as_str).map_or_else(|| meta.string("uid"), |uid| Ok(Some(uid)));
    or_note(uid, faults).flatten().filter(|uid| !uid.is_empty()).map(Text::from)
}

fn ports(spec: &Fields, faults: &mut Vec<Fault>) -> BTreeSet<ContainerPort> {
    let mut ports = BTreeSet::new();
    for (key, restartable) in [("containers", false), ("initContainers", true)] {
        for container in or_note(spec.list(key), faults).unwrap_or_default() {
            let Some(container) = or_note(container.object(), faults) else { continue };
            if restartable && container.map.get("restartPolicy").and_then(Value::as_str) != Some("Always") {
                continue;
            }
            let items = or_note(container.list("ports"), faults).unwrap_or_default();
            ports.extend(items.iter().filter_map(|at| or_note(container_port(at), faults).flatten()));
        }
    }
    ports
}

/// `None`: without a name nothing can refer to it.
fn container_port(at: &At) -> Result<Option<ContainerPort>, Fault> {
    let raw: RawContainerPort = at.decode()?;
    let protocol = policy::protocol(raw.protocol.as_deref().unwrap_or("TCP"))
        .map_err(|e| Fault::new(&at.path.key("protocol"), e))?;
    if raw.container_port == 0 {
        return Err(Fault::new(&at.path.key("containerPort"), "0 is not a port from 1 to 65535"));
    }
    let Some(name) = raw.name.filter(|n| !n.is_empty()) else { return Ok(None) };
    syntax::port_name(&name).map_err(|e| Fault::new(&at.path.key("name"), e))?;
    Ok(Some(ContainerPort { name, protocol, port: raw.container_port }))
}

fn pod_ips(status: &Fields, faults: &mut Vec<Fault>) -> BTreeSet<IpAddr> {
    let listed = or_note(status.list("podIPs"), faults).unwrap_or_default();
    if listed.is_empty() {
        return status.get("podIP").iter().filter_map(|at| or_note(address(at), faults).flatten()).collect();
    }
    let entries = listed.iter().filter_map(|at| or_note(at.object(), faults)).collect::<Vec<_>>();
    let ips = entries.iter().filter_map(|entry| entry.get("ip"));
    ips.filter_map(|at| or_note(address(&at), faults).flatten()).collect()
}

/// `None`: empty, which Go writes for "none yet".
pub(super) fn address(at: &At) -> Result<Option<IpAddr>, Fault> {
    match at.string()? {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| at.fault(format!("{text:?} is not an IP address"))),
    }
}

fn workload(meta: &Fields, labels: &Labels, faults: &mut Vec<Fault>) -> Option<Arc<Workload>> {
    let owners = or_note(meta.list("ownerReferences"), faults).unwrap_or_default();
    let mut owners = owners.iter().filter_map(|at| or_note(at.decode::<RawOwner>(), faults));
    let RawOwner { kind, name, .. } = owners.find(|owner| owner.controller == Some(true))?;
    let deployment = labels
        .get("pod-template-hash")
        .filter(|_| kind == "ReplicaSet")
        .and_then(|hash| name.strip_suffix(hash.as_ref())?.strip_suffix('-'));
    Some(match deployment {
        Some(deployment) => Arc::new(Workload { kind: "Deployment".into(), name: deployment.into() }),
        None => Arc::new(Workload { kind: kind.into(), name: name.into() }),
    })
}

pub(super) fn node(root: &Fields, meta: &Fields, name: String, faults: &mut Vec<Fault>) -> Node {
    let mut node = Node { name, ..Node::default() };
    for (key, text) in annotations(meta, faults) {
        if matches!(
            key.as_ref(),
            "flannel.alpha.coreos.com/public-ip" | "flannel.alpha.coreos.com/public-ipv6"
        ) {
            let value = Value::String(text.to_string());
            let at = At { value: &value, path: meta.path.key("annotations").key(&key) };
            node.addresses.extend(or_note(address(&at), faults).flatten());
        }
    }
    if let Some(status) = root.get("status").and_then(|at| or_note(at.object(), faults)) {
        for at in or_note(status.list("addresses"), faults).unwrap_or_default() {
            let Some(entry) = or_note(at.object(), faults) else { continue };
            if matches!(entry.map.get("type").and_then(Value::as_str), Some("InternalIP" | "ExternalIP")) {
                let at = entry.get("address");
                node.addresses.extend(at.and_then(|at| or_note(address(&at), faults).flatten()));
            }
        }
    }
    if let Some(spec) = root.get("spec").and_then(|at| or_note(at.object(), faults)) {
        node.pod_cidrs = pod_cidrs(&spec, faults);
    }
    node
}

fn pod_cidrs(spec: &Fields, faults: &mut Vec<Fault>) -> BTreeSet<IpNetwork> {
    let mut listed = or_note(spec.list("podCIDRs"), faults).unwrap_or_default();
    if listed.is_empty() {
        listed.extend(spec.get("podCIDR"));
    }
    let read = |at: &At| match at.string()? {
        "" => Ok(None),
        text => policy::cidr(text).map(Some).map_err(|e| at.fault(e)),
    };
    listed.iter().filter_map(|at| or_note(read(at), faults).flatten()).collect()
}
