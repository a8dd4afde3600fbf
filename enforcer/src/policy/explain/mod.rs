//! The simulator's answer, step by step: what both ends are, whom the tenant boundary keeps apart, which policies
//! isolate, and for each of their rules why it admits or does not.
//!
//! The verdict is [`Simulator::answer`]'s; the steps ask the same compiled rule sets, one rule at a time.

mod words;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    evaluate::{Endpoint, Flow, FlowEnd, Simulator},
    lookup::{Decision, decide},
    model::{
        Direction, DirectionRules, EndpointPolicy, Grant, Identity, PeerInfo, PolicyRules, RuleSet, Tenancy,
    },
    probe::{Answer, EndpointRef, Probe, ProbeError, ProbeProtocol, Side, Verdict},
};
use crate::cluster::{
    Owner,
    object::{Labels, Rule},
};

/// Backends that are told one by one, the denied ones first; the others are only counted.
pub const MAX_WAYS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    #[serde(flatten)]
    pub answer: Answer,
    pub protocol: ProbeProtocol,
    /// Of the destination as asked; 0 for ICMP.
    pub port: u16,
    pub source: End,
    pub destination: End,
    /// The destination is a Service's.
    pub service: Option<Passage>,
    /// Where the connection may end: one way, or one for each backend up to [`MAX_WAYS`].
    pub ways: Vec<Way>,
}

/// What one address is to policy, seen from the node that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    pub address: std::net::IpAddr,
    /// For people: `pod shop/cart on node-1`, `node node-2`, `outside the cluster` and so on.
    pub is: String,
    /// What selectors in force can tell it by; `None`: it is no pod.
    pub identity: Option<PodLabels>,
    /// ipBlocks in force that hold the address.
    pub blocks: Vec<String>,
    /// `shared`, `unknown`, or the tenant's name after `tenant `.
    pub tenant: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodLabels {
    pub namespace: String,
    pub labels: Labels,
    pub namespace_labels: Labels,
}

/// A Service on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Passage {
    /// Who claims the address and port: one, or several that are in conflict.
    pub services: Vec<String>,
    /// Pod at whose own hook the Service's address is seen, and what is said there; `None`: nobody judges there.
    pub pod: Option<String>,
    pub before: Option<Side>,
    pub backends: usize,
    pub allowed: usize,
}

/// One place where the connection may end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    pub to: End,
    pub port: u16,
    pub egress: Judgement,
    pub ingress: Judgement,
}

/// One end's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    #[serde(flatten)]
    pub side: Side,
    /// Pod whose policies decide; `None`: nothing is judged at this end.
    pub pod: Option<String>,
    /// Node that judges.
    pub node: Option<String>,
    pub boundary: Option<Boundary>,
    /// Policies that isolate the pod in this direction, each with what its rules say; empty: it is open.
    pub policies: Vec<PolicyFinding>,
}

/// The tenant boundary between the two ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Boundary {
    pub own: Option<String>,
    pub other: String,
    /// Passed: same tenant, a shared end, or a door.
    pub passed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyFinding {
    pub policy: String,
    pub rules: Vec<RuleFinding>,
    /// Why parts of it are not in force; such rules admit nothing.
    pub defects: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleFinding {
    /// Place in the manifest's list, from 0.
    pub rule: usize,
    /// Whom and what it admits.
    pub admits: String,
    pub finding: Finding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Finding {
    Admits,
    /// The other end is none of its peers.
    OtherPeer,
    /// It admits the other end, but not to this port or protocol.
    OtherPort,
}

impl Simulator {
    pub fn explain(&mut self, probe: &Probe) -> Result<Explanation, ProbeError> {
        let answer = self.answer(probe)?;
        let flow = self.flow(probe)?;
        let translated = self.translated(probe, &flow);
        let (service, ways) = match translated {
            None => {
                let sides = self.sides(&flow);
                (None, vec![self.way(&flow, sides)])
            }
            Some(translated) => {
                let mut flows: Vec<(Flow, [Side; 2])> = Vec::new();
                for flow in translated.flows {
                    let sides = self.translated_sides(&flow);
                    flows.push((flow, sides));
                }
                let verdict = |[egress, ingress]: &[Side; 2]| egress.verdict.max(ingress.verdict);
                let passage = Passage {
                    services: translated.services.iter().map(ToString::to_string).collect(),
                    pod: flow.src.endpoint.as_ref().map(|source| source.pod.to_string()),
                    before: self.before_translation(&flow),
                    backends: flows.len(),
                    allowed: flows.iter().filter(|(_, sides)| verdict(sides) == Verdict::Allow).count(),
                };
                flows.sort_by_key(|(_, sides)| std::cmp::Reverse(verdict(sides)));
                let ways = flows.into_iter().take(MAX_WAYS).map(|(flow, sides)| self.way(&flow, sides));
                (Some(passage), ways.collect())
            }
        };
        Ok(Explanation {
            answer,
            protocol: probe.protocol,
            port: flow.port,
            source: self.end(&flow.src, Some(&probe.src)),
            destination: self.end(&flow.dst, Some(&probe.dst)),
            service,
            ways,
        })
    }

    fn way(&mut self, flow: &Flow, [egress, ingress]: [Side; 2]) -> Way {
        Way {
            to: self.end(&flow.dst, None),
            port: flow.port,
            egress: self.judgement(flow, Direction::Egress, egress),
            ingress: self.judgement(flow, Direction::Ingress, ingress),
        }
    }

    fn judgement(&mut self, flow: &Flow, direction: Direction, side: Side) -> Judgement {
        let (own, other) = match direction {
            Direction::Egress => (&flow.src, &flow.dst),
            Direction::Ingress => (&flow.dst, &flow.src),
        };
        let mut judgement = Judgement { side, pod: None, node: None, boundary: None, policies: Vec::new() };
        let Some(Endpoint { node, pod }) = &own.endpoint else { return judgement };
        judgement.pod = Some(pod.to_string());
        judgement.node.clone_from(node);
        let compiled = self.compiled(node.as_deref());
        let (Some(policy), Some(peer)) = (compiled.endpoints.get(pod), compiled.peer(other.address)) else {
            return judgement;
        };
        judgement.boundary = Some(Boundary {
            own: policy.tenant.clone(),
            other: words::tenancy(&peer.tenant),
            passed: policy.decide(peer, direction, flow.protocol, flow.port) != Decision::TenantBoundary
                && !judgement.side.by.starts_with("tenant boundary"),
        });
        let rules = match direction {
            Direction::Ingress => &policy.rules.ingress,
            Direction::Egress => &policy.rules.egress,
        };
        let asked = Asked { policy, peer, direction, protocol: flow.protocol, port: flow.port };
        judgement.policies = rules.policies.iter().map(|part| self.finding(part, &asked)).collect();
        judgement
    }

    fn finding(&self, part: &PolicyRules, asked: &Asked<'_>) -> PolicyFinding {
        let rules = part.rules.iter().map(|rule| RuleFinding {
            rule: rule.index,
            admits: words::rule(rule),
            finding: asked.of_rule(part, rule),
        });
        let known = self.index().policy(&part.policy);
        PolicyFinding {
            policy: part.policy.to_string(),
            rules: rules.collect(),
            defects: known.map(|policy| policy.defects.clone()).unwrap_or_default(),
        }
    }

    /// `asked`: what it was called in the question.
    fn end(&mut self, end: &FlowEnd, asked: Option<&EndpointRef>) -> End {
        let node = self.index().node_name().map(str::to_owned);
        let compiled = self.compiled(node.as_deref());
        let peer = compiled.peer(end.address);
        let is = match (self.index().owner(end.address), asked) {
            (_, Some(EndpointRef::Pod(key))) if self.index().pod(key).is_some_and(|pod| pod.host_network) => {
                format!("host-network pod {key}: to policy it is its node")
            }
            (Some(Owner::Pod(pod)), _) => {
                let node = pod.node.as_deref().unwrap_or("no node");
                format!("pod {} on {node}", pod.key)
            }
            (Some(Owner::ThisNode), _) => format!("node {}", node.as_deref().unwrap_or("this one")),
            (Some(Owner::OtherNode(name)), _) => format!("node {}", name.unwrap_or("of unknown name")),
            (Some(Owner::Contested), _) => "claimed by several pods, so nobody's".to_owned(),
            (None, _) if compiled.services.keys().any(|at| at.address == end.address) => {
                "address of a Service".to_owned()
            }
            (None, _) if peer.is_some_and(|peer| *peer.identity == Identity::UnknownPod) => {
                "an address of the pod network that no known pod has".to_owned()
            }
            (None, _) => "outside the cluster".to_owned(),
        };
        let identity = peer.and_then(|peer| match &*peer.identity {
            Identity::Pod(pod) => Some(PodLabels {
                namespace: pod.namespace.to_string(),
                labels: pod.labels.clone(),
                namespace_labels: pod.namespace_labels.clone(),
            }),
            _ => None,
        });
        let blocks = peer.into_iter().flat_map(|peer| &peer.blocks.blocks).map(words::block).collect();
        End {
            address: end.address,
            is,
            identity,
            blocks,
            tenant: peer.map_or_else(|| "unknown".to_owned(), |peer| words::tenancy(&peer.tenant)),
        }
    }
}

impl Way {
    pub fn verdict(&self) -> Verdict {
        self.egress.side.verdict.max(self.ingress.side.verdict)
    }
}

/// One question to one end.
struct Asked<'a> {
    policy: &'a EndpointPolicy,
    peer: &'a PeerInfo,
    direction: Direction,
    protocol: u8,
    port: u16,
}

impl Asked<'_> {
    fn of_rule(&self, part: &PolicyRules, rule: &Rule) -> Finding {
        if self.admits(part, rule.clone()) {
            Finding::Admits
        } else if self.admits(part, Rule { ports: Vec::new(), ..rule.clone() }) {
            Finding::OtherPort
        } else {
            Finding::OtherPeer
        }
    }

    /// Were this the only rule, and no tenants.
    fn admits(&self, part: &PolicyRules, rule: Rule) -> bool {
        let alone = PolicyRules { rules: vec![rule], ..part.clone() };
        let alone = DirectionRules { policies: vec![Arc::new(alone)] };
        let nothing = DirectionRules::default();
        let (ingress, egress) = match self.direction {
            Direction::Ingress => (alone, nothing),
            Direction::Egress => (nothing, alone),
        };
        let ports = self.policy.rules.ports.clone();
        let rules = RuleSet { ingress, egress, ports, ..RuleSet::default() };
        let entries = rules.entries([&self.peer.identity].into_iter(), [&self.peer.blocks].into_iter());
        let shared = PeerInfo { tenant: Tenancy::Shared, ..self.peer.clone() };
        match decide(&entries, None, &shared, self.direction, self.protocol, self.port) {
            // A pod's own node is admitted without any rule.
            Decision::Allow(grants) => grants.iter().any(|grant| matches!(grant, Grant::Rules(_))),
            Decision::NoRule | Decision::TenantBoundary => false,
        }
    }
}
