//! Other enforcers on this node. Two that judge the same packet both have to allow it, and each shows only its own
//! reasons: an operator should know before looking for one.
//!
//! ```text
//! look: interfaces, packet filter, plugins, pins, processes ┐
//!                               pods of this node (index) ──┴▶ Signs ─▶ judge (pure, by a table) ─▶ Other
//! ```
mod look;
mod packet_filter;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use self::look::Lookout;
use crate::{chain::Warning, cluster::object::Pod};

/// What was seen on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    pub interfaces: BTreeSet<String>,
    /// Chains and tables of nftables; those of iptables too, unless it is iptables-legacy.
    pub chains: BTreeSet<String>,
    /// Types of plugins in CNI configurations.
    pub plugins: BTreeSet<String>,
    /// Pins on the bpffs beside ours.
    pub pins: BTreeSet<String>,
    /// Names of processes; only the agent's own in a container that does not share the node's.
    pub processes: BTreeSet<String>,
    /// `label=value` of the node's pods, and their names.
    pub labels: BTreeSet<String>,
    pub pods: BTreeSet<String>,
}

/// An enforcer that is not us, and what shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Other {
    pub name: String,
    pub evidence: Vec<String>,
}

/// By which an enforcer is known. Names match from their beginning, labels as a whole.
struct Known {
    name: &'static str,
    interfaces: &'static [&'static str],
    chains: &'static [&'static str],
    plugins: &'static [&'static str],
    pins: &'static [&'static str],
    processes: &'static [&'static str],
    labels: &'static [&'static str],
    pods: &'static [&'static str],
}

const KNOWN: [Known; 6] = [
    Known {
        name: "kube-network-policies",
        interfaces: &[],
        chains: &["kube-network-policies"],
        plugins: &[],
        pins: &[],
        processes: &["kube-network-po"], // as the kernel cuts it, at fifteen bytes
        labels: &["app=kube-network-policies", "k8s-app=kube-network-policies"],
        pods: &["kube-network-policies-"],
    },
    Known {
        name: "kube-router (k3s's network policies are its as well)",
        interfaces: &["kube-bridge"],
        chains: &["KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-"],
        plugins: &["kube-router"],
        pins: &[],
        processes: &["kube-router"],
        labels: &["k8s-app=kube-router"],
        pods: &["kube-router-"],
    },
    Known {
        name: "Calico",
        interfaces: &["cali", "vxlan.calico"],
        chains: &["cali-"],
        plugins: &["calico"],
        pins: &["cali_"],
        processes: &["calico-node", "calico-felix"],
        labels: &["k8s-app=calico-node", "k8s-app=canal"],
        pods: &["calico-node-", "canal-"],
    },
    Known {
        name: "Cilium",
        interfaces: &["cilium_"],
        chains: &["CILIUM_"],
        plugins: &["cilium-cni"],
        pins: &["cilium"],
        processes: &["cilium-agent"],
        labels: &["k8s-app=cilium"],
        pods: &[],
    },
    Known {
        name: "Antrea",
        interfaces: &["antrea-"],
        chains: &["ANTREA-"],
        plugins: &["antrea"],
        pins: &[],
        processes: &["antrea-agent"],
        labels: &["component=antrea-agent"],
        pods: &["antrea-agent-"],
    },
    Known {
        name: "Weave Net",
        interfaces: &["weave"],
        chains: &["WEAVE-NPC"],
        plugins: &["weave-net"],
        pins: &[],
        processes: &["weave-npc"],
        labels: &["name=weave-net"],
        pods: &["weave-net-"],
    },
];

/// Evidence of one kind that is worth showing.
const SHOWN: usize = 2;

impl Signs {
    /// What the pods of this node add.
    #[must_use]
    pub fn of_pods<'a>(mut self, pods: impl Iterator<Item = &'a Pod>) -> Self {
        for pod in pods.filter(|pod| !pod.finished) {
            self.pods.insert(pod.key.name.to_string());
            self.labels.extend(pod.labels.iter().map(|(key, value)| format!("{key}={value}")));
        }
        self
    }
}

/// Who else enforces here.
pub fn judge(signs: &Signs) -> Vec<Other> {
    let known =
        KNOWN.iter().map(|known| Other { name: known.name.to_owned(), evidence: known.evidence(signs) });
    known.filter(|other| !other.evidence.is_empty()).collect()
}

impl Known {
    fn evidence(&self, signs: &Signs) -> Vec<String> {
        let begins = |kind: &'static str, seen: &BTreeSet<String>, prefixes: &'static [&'static str]| {
            let hits = seen.iter().filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
            hits.take(SHOWN).map(|name| format!("{kind} {name}")).collect::<Vec<_>>()
        };
        let labels = self.labels.iter().filter(|label| signs.labels.contains(**label));
        [
            begins("interface", &signs.interfaces, self.interfaces),
            begins("packet filter", &signs.chains, self.chains),
            begins("CNI plugin", &signs.plugins, self.plugins),
            begins("pin", &signs.pins, self.pins),
            begins("process", &signs.processes, self.processes),
            labels.map(|label| format!("a pod with {label}")).collect(),
            begins("pod", &signs.pods, self.pods),
        ]
        .concat()
    }
}

impl Other {
    pub fn warning(&self) -> Warning {
        let (name, evidence) = (&self.name, self.evidence.join(", "));
        let message = format!(
            "{name} enforces on this node as well ({evidence}): both have to allow a connection, and only what \
             bulkhead decides is in its flow log"
        );
        Warning { reason: "OtherEnforcer", message }
    }
}
