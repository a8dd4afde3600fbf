//! Who is not covered: namespaces without a policy, pods that no policy isolates, pods on the host's network, nodes
//! that nobody enforces on. The evidence that CIS Kubernetes Benchmark 5.3.2 asks for.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Settings, tenant};
use crate::cluster::{
    Index,
    object::{Key, NetworkPolicy, Pod},
};

/// Label and value of the agent's own pods, by which nodes with one are known.
pub const AGENT_LABEL: (&str, &str) = ("app.kubernetes.io/name", "bulkhead");

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Coverage {
    pub totals: Totals,
    /// Every namespace that is declared or has a pod, by name.
    pub namespaces: Vec<NamespaceCoverage>,
    pub nodes: Vec<NodeCoverage>,
    /// Pods of the agent are among the objects; otherwise nothing is known about nodes.
    pub agents_known: bool,
}

/// Pods here are those that run or will run: finished ones need no policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Totals {
    pub namespaces: usize,
    pub namespaces_without_policy: usize,
    pub policies: usize,
    /// Of the pod network.
    pub pods: usize,
    pub open_ingress: usize,
    pub open_egress: usize,
    /// No policy can be about them.
    pub host_network: usize,
    pub nodes: usize,
    pub nodes_without_agent: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespaceCoverage {
    pub name: String,
    /// Apart from other tenants whatever policies say; `None`: shared.
    pub tenant: Option<String>,
    pub policies: usize,
    pub pods: usize,
    /// Pods that no policy isolates, in one direction or both.
    pub open: Vec<OpenPod>,
    pub host_network: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OpenPod {
    pub pod: String,
    pub node: Option<String>,
    /// Anyone may connect to it.
    pub ingress: bool,
    /// It may connect to anyone.
    pub egress: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCoverage {
    pub name: String,
    pub state: NodeState,
    /// For people.
    pub because: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeState {
    /// The agent that answers runs here, and is ready.
    Enforcing,
    /// The agent that answers runs here, and is not.
    NotReady,
    /// It has a pod of the agent; whether that is ready, its own `bulkhead status` knows.
    HasAgent,
    /// It has none, while other nodes do.
    NoAgent,
    Unknown,
}

/// What an operator may take for a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Gap {
    /// A namespace without any policy.
    Namespaces,
    /// A pod that anyone may connect to.
    Ingress,
    /// A pod that may connect to anyone.
    Egress,
    /// A node without an agent, or with one that is not ready.
    Nodes,
}

impl Coverage {
    /// From what the index knows; nodes as far as pods of the agent tell.
    pub fn of(index: &Index, settings: &Settings) -> Self {
        let names = index.namespaces().map(|namespace| namespace.name.as_str());
        let in_use = index.policies().map(|policy| policy.key.namespace.as_ref());
        let names: BTreeSet<&str> = names.chain(index.inhabited_namespaces()).chain(in_use).collect();
        let namespaces = names.into_iter().map(|name| NamespaceCoverage::of(index, settings, name));
        let mut coverage = Self { namespaces: namespaces.collect(), ..Self::default() };
        coverage.look_at_nodes(index);
        coverage.count();
        coverage
    }

    /// The node whose agent answers is known better than by its pod.
    pub fn know_own_node(&mut self, name: &str, not_ready: &[String]) {
        let (state, because) = match not_ready {
            [] => (NodeState::Enforcing, "its agent gives this answer and is ready".to_owned()),
            reasons => (NodeState::NotReady, reasons.join("; ")),
        };
        let own = NodeCoverage { name: name.to_owned(), state, because };
        match self.nodes.iter_mut().find(|node| node.name == name) {
            Some(node) => *node = own,
            None => self.nodes.push(own),
        }
        self.count();
    }

    /// Leaves namespaces out: those of the system often have policies of another kind.
    pub fn without(&mut self, namespaces: &[String]) {
        self.namespaces.retain(|namespace| !namespaces.contains(&namespace.name));
        self.count();
    }

    pub fn has(&self, gap: Gap) -> bool {
        0 < match gap {
            Gap::Namespaces => self.totals.namespaces_without_policy,
            Gap::Ingress => self.totals.open_ingress,
            Gap::Egress => self.totals.open_egress,
            Gap::Nodes => self.totals.nodes_without_agent,
        }
    }

    fn look_at_nodes(&mut self, index: &Index) {
        let (label, value) = AGENT_LABEL;
        let is_agent = |pod: &&Pod| !pod.finished && pod.labels.get(label).is_some_and(|v| **v == *value);
        let agents: BTreeMap<&str, &Key> =
            index.pods().filter(is_agent).filter_map(|pod| Some((pod.node.as_deref()?, &pod.key))).collect();
        self.agents_known = !agents.is_empty();
        self.nodes = index
            .nodes()
            .map(|node| {
                let (state, because) = match agents.get(node.name.as_str()) {
                    Some(pod) => (
                        NodeState::HasAgent,
                        format!("pod {pod}; whether it is ready, `bulkhead status` there tells"),
                    ),
                    None if agents.is_empty() => (
                        NodeState::Unknown,
                        format!("no pod with the label {label}={value} is known on any node"),
                    ),
                    None => (NodeState::NoAgent, format!("no pod with the label {label}={value} runs there")),
                };
                NodeCoverage { name: node.name.clone(), state, because }
            })
            .collect();
    }

    fn count(&mut self) {
        let of = |count: fn(&NamespaceCoverage) -> usize| self.namespaces.iter().map(count).sum();
        let open = |is_open: fn(&OpenPod) -> bool| {
            self.namespaces.iter().flat_map(|n| &n.open).filter(|pod| is_open(pod)).count()
        };
        let unguarded = |node: &&NodeCoverage| matches!(node.state, NodeState::NoAgent | NodeState::NotReady);
        self.totals = Totals {
            namespaces: self.namespaces.len(),
            namespaces_without_policy: self.namespaces.iter().filter(|n| n.policies == 0).count(),
            policies: of(|n| n.policies),
            pods: of(|n| n.pods),
            open_ingress: open(|pod| pod.ingress),
            open_egress: open(|pod| pod.egress),
            host_network: of(|n| n.host_network.len()),
            nodes: self.nodes.len(),
            nodes_without_agent: self.nodes.iter().filter(unguarded).count(),
        };
    }
}

impl NamespaceCoverage {
    fn of(index: &Index, settings: &Settings, name: &str) -> Self {
        let policies: Vec<&NetworkPolicy> = index.policies_in(name).collect();
        let living = || index.pods_in(name).filter(|pod| !pod.finished);
        let open = living().filter(|pod| !pod.host_network).filter_map(|pod| {
            let selecting = || policies.iter().filter(|policy| policy.subjects.matches(&pod.labels));
            let (ingress, egress) =
                (selecting().all(|p| p.ingress.is_none()), selecting().all(|p| p.egress.is_none()));
            let node = pod.node.as_deref().map(str::to_owned);
            (ingress || egress).then(|| OpenPod { pod: pod.key.name.to_string(), node, ingress, egress })
        });
        Self {
            name: name.to_owned(),
            tenant: tenant::tenant(&index.namespace(name), settings),
            policies: policies.len(),
            pods: living().filter(|pod| !pod.host_network).count(),
            open: open.collect(),
            host_network: living().filter(|p| p.host_network).map(|p| p.key.name.to_string()).collect(),
        }
    }
}
