//! `bulkhead explain`: what policy says about one connection, and what this node's maps hold about it.
//!
//! ```text
//! owner task:  Question ─ examine ─▶ Examination   a narrow index, and what the kernel says; no compile
//! elsewhere:   Examination ─ explain ─▶ Explanation
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_ebpf::abi::BLOCKS_TAG;
use serde::{Deserialize, Serialize};

use super::node::{Node, error_chain};
use crate::{
    cluster::{
        Frontend,
        object::{Key, Protocol},
    },
    datapath::{
        programs::Role,
        ruling::{self, Attempt, Lookup},
    },
    endpoint::Endpoint,
    policy::{
        Probe, Simulator,
        evaluate::{self, Flow},
        explain::{self, Way},
        model::{Direction, Grant},
        probe::{EndpointRef, Family, Verdict},
        question::{DestinationEnd, Question},
    },
};

/// Backends that are looked up in the kernel one by one.
const MAX_LOOKUPS: usize = explain::MAX_WAYS;

/// The live agent's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who answers.
    pub node: String,
    pub question: Question,
    #[serde(flatten)]
    pub policy: explain::Explanation,
    /// At the ends that are pods of this node.
    pub kernel: Vec<KernelFinding>,
    /// What a reader should know before believing this.
    pub notes: Vec<String>,
}

/// What the maps say about the connection at one end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelFinding {
    pub pod: String,
    #[serde(with = "lower_case")]
    pub direction: Direction,
    /// The other end; for egress to a Service, the Service or one of its backends.
    pub remote: IpAddr,
    pub port: u16,
    pub interface: String,
    pub endpoint: u32,
    pub rule_set: u32,
    pub generation: u32,
    /// Numbers of the other end; of block set and tenant, 0: none.
    pub identity: u32,
    pub blocks: u32,
    /// 4294967295: an unknown pod's.
    pub tenant: u32,
    pub verdict: Verdict,
    /// What the rule that was found stands for, or the reason of the drop.
    pub by: String,
    /// How this is not what the policies say; empty: it is.
    pub differs: Vec<String>,
}

/// What the owner task knows about a question.
pub struct Examination {
    node: String,
    question: Question,
    probe: Probe,
    simulator: Simulator,
    kernel: Vec<KernelFinding>,
    notes: Vec<String>,
}

impl Node {
    /// Costs what the question is about, not what the cluster holds. The error is for whoever asks.
    pub(super) fn examine(&self, question: Question) -> Result<Examination, String> {
        let protocol = question.protocol;
        let port = question.to.port;
        let mut pods = BTreeSet::new();
        let mut addresses = self.addresses_of(&question.from, &mut pods)?;
        let mut destinations = match &question.to.end {
            DestinationEnd::Endpoint(end) => self.addresses_of(end, &mut pods)?,
            DestinationEnd::Service(key) => self.service_addresses(key, &question, &addresses)?,
        };
        destinations.retain(|address| question.family.is_none_or(|family| Family::of(*address) == family));
        let backends = self.backends(&destinations, Protocol::of_number(protocol.number(Family::V4)), port);
        addresses.extend(&destinations);
        addresses.extend(backends.iter().map(|(address, _)| *address));
        let index = self.index.narrowed(&pods, &addresses);
        let scope = self.compiler.scope().clone();
        let simulator = Simulator::with_scope(index, self.compiler.settings().clone(), scope);
        let dst = match &question.to.end {
            DestinationEnd::Endpoint(end) => end.clone(),
            DestinationEnd::Service(_) => {
                let first = destinations.iter().next().expect("a Service without addresses was refused");
                EndpointRef::Ip(*first)
            }
        };
        let probe = Probe { src: question.from.clone(), dst, protocol, port, family: question.family };
        let flow = simulator.flow(&probe).map_err(|error| error.to_string())?;
        let mut notes = self.doubts();
        if backends.len() > MAX_LOOKUPS {
            let all = backends.len();
            notes.push(format!("of {all} backends, the first {MAX_LOOKUPS} were looked up in the kernel"));
        }
        let kernel = self.findings(&flow, &backends, &mut notes)?;
        Ok(Examination {
            node: self.index.node_name().unwrap_or_default().to_owned(),
            question,
            probe,
            simulator,
            kernel,
            notes,
        })
    }

    fn addresses_of(&self, end: &EndpointRef, pods: &mut BTreeSet<Key>) -> Result<BTreeSet<IpAddr>, String> {
        match end {
            EndpointRef::Ip(address) => Ok([*address].into()),
            // A node is asked about by name, and the narrow index has all nodes.
            EndpointRef::Node(name) => match self.index.node(name) {
                Some(node) => Ok(crate::cluster::index::node_addresses(node)),
                None => Err(format!("unknown node {name}")),
            },
            EndpointRef::Pod(key) => {
                let pod = self.index.pod(key).ok_or_else(|| format!("unknown pod {key}"))?;
                pods.insert(key.clone());
                Ok(self.index.addresses(pod))
            }
        }
    }

    /// One address of the Service: of the family that is asked for, or that the source has, IPv4 first.
    fn service_addresses(
        &self,
        key: &Key,
        question: &Question,
        source: &BTreeSet<IpAddr>,
    ) -> Result<BTreeSet<IpAddr>, String> {
        let service = self.index.services().service(key).ok_or_else(|| format!("unknown Service {key}"))?;
        if service.addresses.is_empty() {
            return Err(format!(
                "Service {key} has no address of its own (headless or ExternalName): ask about its pods"
            ));
        }
        let families = [Family::V4, Family::V6];
        let wanted = |family: &Family| {
            question.family.map_or_else(|| source.iter().any(|a| Family::of(*a) == *family), |f| f == *family)
        };
        let of = |family: Family| service.addresses.iter().find(move |a| Family::of(**a) == family);
        let address = families.into_iter().filter(wanted).find_map(of);
        let address = address
            .ok_or_else(|| format!("Service {key} and {} have no address family in common", question.from))?;
        let is_port = |port: &crate::cluster::object::ServicePort| {
            Some(port.port) == question.to.port && port.protocol.to_string() == question.protocol.to_string()
        };
        if !service.ports.iter().any(is_port) {
            let ports: Vec<_> = service.ports.iter().map(|p| format!("{}/{}", p.protocol, p.port)).collect();
            return Err(format!("Service {key} serves {}, nothing else", ports.join(", ")));
        }
        Ok([*address].into())
    }

    /// Where kube-proxy may lead a connection to any of these addresses, whichever node's it is.
    fn backends(
        &self,
        destinations: &BTreeSet<IpAddr>,
        protocol: Option<Protocol>,
        port: Option<u16>,
    ) -> Vec<(IpAddr, u16)> {
        let (Some(protocol), Some(port)) = (protocol, port) else { return Vec::new() };
        let services = self.index.services();
        let mut backends = BTreeSet::new();
        for address in destinations {
            for port in services.at(Frontend { address: *address, protocol, port }, true) {
                backends.extend(services.backends(port, address.is_ipv4()));
                backends.extend(services.draining(port, address.is_ipv4()));
            }
        }
        backends.into_iter().map(|backend| (backend.address, backend.port)).collect()
    }

    fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if !self.source.synced {
            doubts.push(
                "the cluster's objects are still being read: the kernel holds what an earlier agent left"
                    .to_owned(),
            );
        }
        if let Some(error) = &self.health.error {
            doubts.push(format!("the kernel is not up to date: {error}"));
        }
        doubts
    }

    /// What the maps say at each end that is here, about the connection as asked and to each backend.
    fn findings(
        &self,
        flow: &Flow,
        backends: &[(IpAddr, u16)],
        notes: &mut Vec<String>,
    ) -> Result<Vec<KernelFinding>, String> {
        let asked = (flow.dst.address, flow.port);
        let destinations = || [asked].into_iter().chain(backends.iter().copied().take(MAX_LOOKUPS));
        let mut findings = Vec::new();
        if let Some(source) = self.judging(&flow.src, notes) {
            for (remote, port) in destinations().filter(|(remote, _)| *remote != flow.src.address) {
                let attempt = Attempt { direction: Direction::Egress, remote, protocol: flow.protocol, port };
                findings.push(self.look_up(source, attempt)?);
            }
        }
        let remote = flow.src.address;
        for (address, port) in destinations().filter(|(address, _)| *address != remote) {
            let here = self.endpoints.iter().find(|e| e.sandbox.addresses.contains(&address));
            if let Some(destination) = here {
                let attempt =
                    Attempt { direction: Direction::Ingress, remote, protocol: flow.protocol, port };
                findings.push(self.look_up(destination, attempt)?);
            }
        }
        if backends.is_empty() {
            self.judging(&flow.dst, notes);
        }
        Ok(findings)
    }

    /// The endpoint of a pod of this node; `notes` tells why there is none though the pod is judged.
    fn judging(&self, end: &evaluate::FlowEnd, notes: &mut Vec<String>) -> Option<&Endpoint> {
        let evaluate::Endpoint { node, pod } = end.endpoint.as_ref()?;
        let here = self.endpoints.iter().find(|endpoint| {
            endpoint.pod().as_ref() == Some(pod) && endpoint.sandbox.addresses.contains(&end.address)
        });
        if here.is_none() {
            notes.push(if node.as_deref() == self.index.node_name() {
                format!(
                    "pod {pod} is on this node, but bulkhead does not enforce it here: CNI ADD never came"
                )
            } else {
                let node = node.as_deref().unwrap_or("no node");
                format!("pod {pod} is judged on {node}: what its kernel holds, the agent there can tell")
            });
        }
        here
    }

    fn look_up(&self, endpoint: &Endpoint, attempt: Attempt) -> Result<KernelFinding, String> {
        let failed = |error| format!("the kernel's maps cannot be read: {}", error_chain(&error));
        let maps = self.tables.kernel_ref();
        let (interface, ifindex) = (&endpoint.sandbox.host_ifname, endpoint.sandbox.host_ifindex);
        let pod = endpoint.pod().map(|pod| pod.to_string()).unwrap_or_default();
        let mut differs = Vec::new();
        let record = maps.endpoint(ifindex).map_err(failed)?;
        if record.as_ref() != self.tables.actual().endpoints.get(&ifindex) {
            differs.push("the kernel's record of the pod is not the one that was last written".to_owned());
        }
        let record = record.unwrap_or_default();
        let compiled = endpoint.pod().and_then(|pod| self.compiler.compiled().endpoints.get(&pod));
        let wanted = compiled.and_then(|policy| self.tables.numbers().rule_sets.get(&policy.rules));
        if wanted != Some(record.policy.rule_set()) {
            let wanted =
                wanted.map_or("one without a number yet".to_owned(), |number| format!("rule set {number}"));
            differs.push(format!("the policies want {wanted}, the kernel has {}", record.policy.rule_set()));
        }
        if !matches!(self.programs.attached(Role::Pod, interface), Ok(true)) {
            differs.push(format!("a program is missing on {interface}: nothing is judged there"));
        }
        let ruling = ruling::rule(maps, &record, &attempt).map_err(failed)?;
        let (verdict, by) = match ruling.outcome {
            _ if record.ifindex == 0 => (Verdict::Deny, "no record: everything is dropped".to_owned()),
            Ok(number) => {
                let grant = self.tables.numbers().grants.value(number);
                let by = grant.map(|grant| evaluate::allowed_by(&[Grant::clone(grant)], attempt.direction));
                (Verdict::Allow, by.unwrap_or_else(|| format!("rule number {number}, of an earlier agent")))
            }
            Err(reason) => (Verdict::Deny, reason.name().to_owned()),
        };
        Ok(KernelFinding {
            pod,
            direction: attempt.direction,
            remote: attempt.remote,
            port: attempt.port,
            interface: interface.clone(),
            endpoint: endpoint.id,
            rule_set: record.policy.rule_set(),
            generation: record.policy.generation(),
            identity: ruling.peer.identity,
            blocks: ruling.peer.blocks & !BLOCKS_TAG,
            tenant: record.tenant.of(&ruling.peer),
            verdict,
            by,
            differs,
        })
    }
}

impl Examination {
    /// Compiles what the question is about: milliseconds, however large the cluster; not for the owner task all the same.
    pub fn explain(mut self) -> Result<Explanation, String> {
        let policy = self.simulator.explain(&self.probe).map_err(|error| error.to_string())?;
        let said = said(&policy);
        // Lookups for backends that a Service does not have are nobody's.
        self.kernel.retain_mut(|finding| {
            let key = (finding.direction, finding.pod.clone(), finding.remote, finding.port);
            let Some(want) = said.get(&key) else { return false };
            if finding.verdict != *want {
                let have = finding.verdict;
                finding.differs.push(format!("the policies say {want}, the maps {have}"));
            }
            true
        });
        let Self { node, question, kernel, notes, .. } = self;
        Ok(Explanation { node, question, policy, kernel, notes })
    }
}

/// What policy says at each end, by direction, pod, other end and port.
fn said(policy: &explain::Explanation) -> BTreeMap<(Direction, String, IpAddr, u16), Verdict> {
    let source = policy.source.address;
    let mut said = BTreeMap::new();
    for Way { to, port, egress, ingress } in &policy.ways {
        if let Some(pod) = &egress.pod {
            said.insert((Direction::Egress, pod.clone(), to.address, *port), egress.side.verdict);
        }
        if let Some(pod) = &ingress.pod {
            said.insert((Direction::Ingress, pod.clone(), source, *port), ingress.side.verdict);
        }
    }
    if let Some(service) = &policy.service
        && let (Some(pod), Some(before)) = (&service.pod, &service.before)
    {
        let key = (Direction::Egress, pod.clone(), policy.destination.address, policy.port);
        said.insert(key, before.verdict);
    }
    said
}

/// Directions as everywhere else in answers; on disk they are written otherwise.
mod lower_case {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::policy::model::Direction;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
    pub fn serialize<S: Serializer>(direction: &Direction, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(direction)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Direction, D::Error> {
        let text = String::deserialize(from)?;
        let mut known = [Direction::Ingress, Direction::Egress].into_iter();
        known.find(|direction| direction.to_string() == text).ok_or_else(|| D::Error::custom("no direction"))
    }
}
