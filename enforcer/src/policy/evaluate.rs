//! Answers from the compiled policy alone, as the kernel would decide: each end at its own node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Settings, compile,
    lookup::Decision,
    model::{Compiled, Direction, DirectionRules, EndpointPolicy, Grant, Identity, PeerInfo, Scope, Tenancy},
    probe::{Answer, EndpointRef, Family, Probe, ProbeError, ProbeProtocol, Side, Verdict},
    scope, translated,
};
use crate::cluster::{
    Index, Owner,
    index::node_addresses,
    object::{Key, Pod},
};

/// One cluster, compiled for each node when first asked about.
pub struct Simulator {
    index: Index,
    settings: Settings,
    scope: Scope,
    nodes: BTreeMap<Option<String>, Arc<Compiled>>,
}

/// A probe with its names resolved: what a packet of it carries, and who judges it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub src: FlowEnd,
    pub dst: FlowEnd,
    /// IANA number.
    pub protocol: u8,
    /// Of the destination; 0 for ICMP.
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowEnd {
    pub address: IpAddr,
    /// `None`: no pod of the pod network, nothing is judged at this end.
    pub endpoint: Option<Endpoint>,
}

/// A pod of the pod network and its node; pods that no node has share one without a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    pub node: Option<String>,
    pub pod: Key,
}

impl Simulator {
    pub fn new(index: Index, settings: Settings) -> Self {
        let scope = scope(&index, &settings);
        Self::with_scope(index, settings, scope)
    }

    /// With a scope of at least the index's own: as while policies change.
    pub fn with_scope(index: Index, settings: Settings, scope: Scope) -> Self {
        Self { index, settings, scope, nodes: BTreeMap::new() }
    }

    pub fn index(&self) -> &Index {
        &self.index
    }

    /// What this node's kernel would hold.
    pub fn compiled(&mut self, node: Option<&str>) -> Arc<Compiled> {
        let Self { index, settings, scope, nodes } = self;
        let compiled = nodes
            .entry(node.map(str::to_owned))
            .or_insert_with(|| Arc::new(compile(&index.seen_from(node), settings, scope)));
        Arc::clone(compiled)
    }

    pub fn answer(&mut self, probe: &Probe) -> Result<Answer, ProbeError> {
        let flow = self.flow(probe)?;
        let Some(translated) = self.translated(probe, &flow) else {
            let [egress, ingress] = self.sides(&flow);
            return Ok(Answer { verdict: egress.verdict.max(ingress.verdict), egress, ingress });
        };
        let sides: Vec<_> = translated.flows.iter().map(|flow| self.translated_sides(flow)).collect();
        Ok(translated.answer(&sides, self.before_translation(&flow)))
    }

    /// What both ends say to a connection that a Service has led here.
    pub(super) fn translated_sides(&mut self, flow: &Flow) -> [Side; 2] {
        let is_hairpin = flow.src.address == flow.dst.address;
        if is_hairpin { self.hairpin(flow) } else { self.sides(flow) }
    }

    /// What egress and ingress say.
    pub(super) fn sides(&mut self, flow: &Flow) -> [Side; 2] {
        [self.side(flow, Direction::Egress), self.side(flow, Direction::Ingress)]
    }

    /// Resolves names to addresses and judging ends.
    pub fn flow(&self, probe: &Probe) -> Result<Flow, ProbeError> {
        let (src, dst) = (self.addresses(&probe.src)?, self.addresses(&probe.dst)?);
        let family = family(probe, &src, &dst)?;
        let port = match probe.protocol {
            ProbeProtocol::Icmp => 0,
            protocol => probe.port.ok_or(ProbeError::PortMissing(protocol))?,
        };
        let end = |end: &EndpointRef, addresses: &BTreeSet<IpAddr>| {
            let address = addresses.iter().copied().find(|a| Family::of(*a) == family);
            let address = address.ok_or(ProbeError::NoAddressOfFamily { end: end.clone(), family })?;
            Ok(FlowEnd { address, endpoint: self.endpoint(end, address) })
        };
        Ok(Flow {
            src: end(&probe.src, &src)?,
            dst: end(&probe.dst, &dst)?,
            protocol: probe.protocol.number(family),
            port,
        })
    }

    fn addresses(&self, end: &EndpointRef) -> Result<BTreeSet<IpAddr>, ProbeError> {
        let addresses = match end {
            EndpointRef::Ip(address) => BTreeSet::from([*address]),
            EndpointRef::Node(name) => self.node_addresses(name)?,
            EndpointRef::Pod(key) => {
                let pod = self.index.pod(key).ok_or_else(|| ProbeError::UnknownPod(key.clone()))?;
                if pod.finished {
                    return Err(ProbeError::Finished(key.clone()));
                }
                self.pod_addresses(pod)
            }
        };
        if addresses.is_empty() { Err(ProbeError::NoAddress(end.clone())) } else { Ok(addresses) }
    }

    /// Those that its status tells; only if it tells none, those that flannel gives it.
    fn node_addresses(&self, name: &str) -> Result<BTreeSet<IpAddr>, ProbeError> {
        let node = self.index.node(name).ok_or_else(|| ProbeError::UnknownNode(name.to_owned()))?;
        Ok(if node.addresses.is_empty() { node_addresses(node) } else { node.addresses.clone() })
    }

    /// A host-network pod has its node's.
    fn pod_addresses(&self, pod: &Pod) -> BTreeSet<IpAddr> {
        let own = self.index.addresses(pod);
        match &pod.node {
            Some(node) if pod.host_network && own.is_empty() => self.node_addresses(node).unwrap_or_default(),
            _ => own,
        }
    }

    pub(super) fn endpoint(&self, end: &EndpointRef, address: IpAddr) -> Option<Endpoint> {
        let pod = match end {
            EndpointRef::Pod(key) => self.index.pod(key).filter(|pod| !pod.host_network)?,
            EndpointRef::Ip(_) | EndpointRef::Node(_) => match self.index.owner(address)? {
                Owner::Pod(pod) => pod,
                Owner::ThisNode | Owner::OtherNode(_) | Owner::Contested => return None,
            },
        };
        Some(Endpoint { node: pod.node.as_deref().map(str::to_owned), pod: pod.key.clone() })
    }

    /// Judges one end by its own node's rules, seeing of the other end only the address.
    pub(crate) fn side(&mut self, flow: &Flow, direction: Direction) -> Side {
        let (own, other) = match direction {
            Direction::Egress => (&flow.src, &flow.dst),
            Direction::Ingress => (&flow.dst, &flow.src),
        };
        let Some(endpoint) = &own.endpoint else { return allow("not a pod") };
        if other.address == own.address {
            return allow("own address"); // also where another pod claims it: the packet never leaves this one
        }
        let compiled = self.compiled(endpoint.node.as_deref());
        let (Some(policy), Some(peer)) =
            (compiled.endpoints.get(&endpoint.pod), compiled.peer(other.address))
        else {
            return deny("no policy was compiled for the pod");
        };
        if direction == Direction::Egress
            && *peer.identity == Identity::RemoteNode
            && let Some(class) = translated::elsewhere(flow).and_then(|at| compiled.services.get(&at))
            && !policy.reaches(class)
        {
            return deny("tenant boundary: a node port");
        }
        match policy.decide(peer, direction, flow.protocol, flow.port) {
            Decision::Allow(grants) => allow(allowed_by(&grants, direction)),
            Decision::NoRule => deny(isolated_by(policy, direction)),
            Decision::TenantBoundary => deny(boundary(policy, peer, direction)),
        }
    }
}

/// The asked-for family, else IPv4 if both ends have it, else IPv6.
fn family(probe: &Probe, src: &BTreeSet<IpAddr>, dst: &BTreeSet<IpAddr>) -> Result<Family, ProbeError> {
    let has = |addresses: &BTreeSet<IpAddr>, family| addresses.iter().any(|a| Family::of(*a) == family);
    let common = || [Family::V4, Family::V6].into_iter().find(|f| has(src, *f) && has(dst, *f));
    let none = || ProbeError::NoCommonFamily { src: probe.src.clone(), dst: probe.dst.clone() };
    probe.family.or_else(common).ok_or_else(none)
}

pub(crate) fn allow(by: impl Into<String>) -> Side {
    Side { verdict: Verdict::Allow, by: by.into() }
}

pub(crate) fn deny(by: impl Into<String>) -> Side {
    Side { verdict: Verdict::Deny, by: by.into() }
}

pub(crate) fn allowed_by(grants: &[Grant], direction: Direction) -> String {
    if grants.contains(&Grant::LocalNode) {
        return "own node".to_owned();
    }
    let rules: BTreeSet<_> = grants
        .iter()
        .flat_map(|grant| match grant {
            Grant::Rules(rules) => rules.iter().collect(),
            Grant::NotIsolated | Grant::LocalNode | Grant::Door => Vec::new(),
        })
        .collect();
    if rules.is_empty() {
        return "not isolated".to_owned();
    }
    let names: Vec<_> = rules.iter().map(|r| format!("{} {direction} rule {}", r.policy, r.rule)).collect();
    names.join(", ")
}

pub(crate) fn isolated_by(policy: &EndpointPolicy, direction: Direction) -> String {
    let DirectionRules { policies } = match direction {
        Direction::Ingress => &policy.rules.ingress,
        Direction::Egress => &policy.rules.egress,
    };
    let names: Vec<_> = policies.iter().map(|part| part.policy.to_string()).collect();
    format!("isolated by {}, no rule allows", names.join(", "))
}

/// From the source's tenant to the destination's.
pub(crate) fn boundary(policy: &EndpointPolicy, peer: &PeerInfo, direction: Direction) -> String {
    let own = policy.tenant.as_deref().unwrap_or_default();
    let theirs = match &peer.tenant {
        Tenancy::Tenant(tenant) => tenant,
        Tenancy::Unknown => "unknown pod address",
        Tenancy::Shared => "shared",
    };
    let (from, to) = match direction {
        Direction::Egress => (own, theirs),
        Direction::Ingress => (theirs, own),
    };
    format!("tenant boundary: {from} -> {to}")
}
