//! Services and endpoint slices.

use std::{collections::BTreeSet, net::IpAddr};

use serde::Deserialize;

use super::{
    fields::{At, Fault, Fields, or_note},
    inventory::address,
    policy,
};
use crate::cluster::object::{EndpointSlice, Key, Protocol, Service, ServicePort, SlicePort};

/// The label that ties a slice to its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawServicePort {
    name: Option<String>,
    protocol: Option<String>,
    port: u16,
    node_port: Option<u16>,
}

#[derive(Deserialize)]
struct RawSlicePort {
    name: Option<String>,
    protocol: Option<String>,
    /// Null: kube-proxy serves no such port.
    port: Option<u16>,
}

#[derive(Default, Deserialize)]
struct RawConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

/// `None`: left out, because of the last of `faults`. An address or a port that cannot be read is not known as
/// the Service's: traffic there is judged as traffic to that address.
pub(super) fn service(root: &Fields, key: Key, faults: &mut Vec<Fault>) -> Option<Service> {
    let mut service = Service { key, addresses: [].into(), ports: [].into() };
    let Some(spec) = root.get("spec") else { return Some(service) };
    let spec = or_note(spec.object(), faults)?;
    let kind = or_note(spec.string("type"), faults)?;
    let mut addresses = cluster_addresses(&spec, faults);
    if addresses.is_empty() || kind == Some("ExternalName") {
        return Some(service); // kube-proxy leaves headless Services alone, whatever else they have
    }
    let external = or_note(spec.list("externalIPs"), faults).unwrap_or_default();
    addresses.extend(external.iter().filter_map(|at| or_note(address(at), faults).flatten()));
    addresses.extend(balanced_addresses(root, faults));
    service.addresses = addresses.into();
    let ports = or_note(spec.list("ports"), faults).unwrap_or_default();
    service.ports = ports.iter().filter_map(|at| or_note(service_port(at), faults)).collect();
    Some(service)
}

/// None for a headless Service, and for one that was never given an address.
fn cluster_addresses(spec: &Fields, faults: &mut Vec<Fault>) -> BTreeSet<IpAddr> {
    let mut listed = or_note(spec.list("clusterIPs"), faults).unwrap_or_default();
    if listed.is_empty() {
        listed.extend(spec.get("clusterIP"));
    }
    let is_address = |at: &&At| at.value.as_str() != Some("None");
    listed.iter().filter(is_address).filter_map(|at| or_note(address(at), faults).flatten()).collect()
}

/// Addresses of load balancers for which the nodes stand in. `ipMode: Proxy` says that they do not: packets then
/// go to the load balancer itself.
fn balanced_addresses(root: &Fields, faults: &mut Vec<Fault>) -> BTreeSet<IpAddr> {
    let mut addresses = BTreeSet::new();
    let Some(status) = root.get("status").and_then(|at| or_note(at.object(), faults)) else {
        return addresses;
    };
    let Some(balancer) = status.get("loadBalancer").and_then(|at| or_note(at.object(), faults)) else {
        return addresses;
    };
    for at in or_note(balancer.list("ingress"), faults).unwrap_or_default() {
        let Some(ingress) = or_note(at.object(), faults) else { continue };
        if or_note(ingress.string("ipMode"), faults).flatten() != Some("Proxy") {
            addresses.extend(ingress.get("ip").and_then(|at| or_note(address(&at), faults).flatten()));
        }
    }
    addresses
}

fn service_port(at: &At) -> Result<ServicePort, Fault> {
    let raw: RawServicePort = at.decode()?;
    Ok(ServicePort {
        name: raw.name.unwrap_or_default(),
        protocol: protocol(at, raw.protocol.as_deref())?,
        port: positive(at, raw.port)?,
        node_port: raw.node_port.filter(|port| *port != 0),
    })
}

/// `None`: left out, because of the last of `faults`. A slice without a Service is nobody's, as for kube-proxy.
pub(super) fn slice(
    root: &Fields,
    metadata: &Fields,
    key: Key,
    faults: &mut Vec<Fault>,
) -> Option<EndpointSlice> {
    let labels = metadata.get("labels").map(|at| at.object()).transpose();
    let service = or_note(labels, faults)?.map(|labels| labels.string(SERVICE_LABEL)).transpose();
    let service = or_note(service, faults)?.flatten().unwrap_or_default().to_owned();
    let noted = faults.len();
    let (addresses, draining) = match or_note(root.string("addressType"), faults).flatten() {
        Some("FQDN") => Default::default(), // kube-proxy serves addresses only
        Some(family @ ("IPv4" | "IPv6")) => backends(root, family == "IPv4", faults),
        other => {
            let message = format!("{:?} is none of IPv4, IPv6, FQDN", other.unwrap_or_default());
            faults.push(Fault::new(&root.path.key("addressType"), message));
            Default::default()
        }
    };
    let ports = or_note(root.list("ports"), faults).unwrap_or_default();
    let ports = ports.iter().filter_map(|at| or_note(slice_port(at), faults).flatten()).collect();
    let (addresses, draining) = (addresses.into(), draining.into());
    Some(EndpointSlice { key, service, addresses, draining, ports, defective: faults.len() > noted })
}

/// Those that get traffic, and the others.
fn backends(root: &Fields, ipv4: bool, faults: &mut Vec<Fault>) -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
    let (mut serving, mut draining) = (BTreeSet::new(), BTreeSet::new());
    for at in or_note(root.list("endpoints"), faults).unwrap_or_default() {
        let Some(endpoint) = or_note(at.object(), faults) else { continue };
        let Some(conditions) = or_note(endpoint.decode("conditions"), faults) else { continue };
        let addresses =
            if gets_traffic(&conditions.unwrap_or_default()) { &mut serving } else { &mut draining };
        for at in or_note(endpoint.list("addresses"), faults).unwrap_or_default() {
            let Some(address) = or_note(address(&at), faults).flatten() else { continue };
            if address.is_ipv4() == ipv4 {
                addresses.insert(address);
            } else {
                faults.push(at.fault(format!("{address} is not of the slice's addressType")));
            }
        }
    }
    (serving, draining)
}

/// Ready, or, to which kube-proxy turns when no endpoint is ready, terminating and still serving.
fn gets_traffic(conditions: &RawConditions) -> bool {
    let RawConditions { ready, serving, terminating } = conditions;
    ready.unwrap_or(true) || (serving.unwrap_or(true) && terminating.unwrap_or(false))
}

fn slice_port(at: &At) -> Result<Option<SlicePort>, Fault> {
    let raw: RawSlicePort = at.decode()?;
    let Some(port) = raw.port else { return Ok(None) };
    let (name, protocol) = (raw.name.unwrap_or_default(), protocol(at, raw.protocol.as_deref())?);
    Ok(Some(SlicePort { name, protocol, port: positive(at, port)? }))
}

fn protocol(at: &At, name: Option<&str>) -> Result<Protocol, Fault> {
    policy::protocol(name.unwrap_or("TCP")).map_err(|e| Fault::new(&at.path.key("protocol"), e))
}

fn positive(at: &At, port: u16) -> Result<u16, Fault> {
    if port == 0 {
        Err(Fault::new(&at.path.key("port"), "0 is not a port from 1 to 65535"))
    } else {
        Ok(port)
    }
}
