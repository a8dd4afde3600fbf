//! Who takes part: namespaces, pods that stay, and what is always allowed among them.

use std::sync::Arc;

use anyhow::Result;
use bulkhead::{cluster::object::Key, policy::DEFAULT_TENANT_LABEL};

use super::judge::End;
use crate::{
    pod::{Pod, PodSpec},
    probe::{Family, Transport},
    topology::Lab,
};

pub const NAMESPACES: [&str; 4] = ["red", "crimson", "blue", "common"];
pub const APPS: [&str; 3] = ["web", "db", "job"];
pub const TIERS: [&str; 3] = ["front", "back", ""];
/// What every pod serves.
pub const DOORS: [(Transport, u16); 3] = [(Transport::Tcp, 80), (Transport::Tcp, 81), (Transport::Udp, 53)];
/// Talkers of a namespace: on node 1, on node 2, on node 1.
pub const TALKERS: [u8; 3] = [1, 2, 1];
/// The label by which a policy that nobody touches opens talkers to each other and everybody else.
const TALKS: &str = "talks";

/// The tenant at first.
fn tenant(namespace: &str) -> Option<&'static str> {
    match namespace {
        "red" | "crimson" => Some("red"),
        "blue" => Some("blue"),
        _ => None,
    }
}

/// Namespaces, their standing policy, talkers, and `actors` pods of each namespace whose policies change.
pub fn set(lab: &Lab, actors: usize) -> Result<()> {
    for namespace in NAMESPACES {
        let tenant = tenant(namespace).map(|tenant| (DEFAULT_TENANT_LABEL, tenant));
        let labels: Vec<_> = tenant.into_iter().chain([("team", "x")]).collect();
        lab.namespace(namespace, &labels)?;
        lab.apply(&format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
              metadata: {{name: talkers, namespace: {namespace}}}, \
              spec: {{podSelector: {{matchLabels: {{{TALKS}: 'yes'}}}}, policyTypes: [Ingress, Egress], \
              ingress: [{{}}], egress: [{{}}]}}}}"
        ))?;
    }
    let mut specs = Vec::new();
    for namespace in NAMESPACES {
        for (number, node) in TALKERS.into_iter().enumerate() {
            let spec = PodSpec::new(&format!("{namespace}/talker-{number}")).on(node).label(TALKS, "yes");
            specs.push(served(spec, number));
        }
        for number in 0..actors {
            let node = if number % 2 == 0 { 1 } else { 2 };
            let spec = PodSpec::new(&format!("{namespace}/actor-{number}")).on(node);
            let spec =
                spec.label("app", APPS[number % APPS.len()]).label("tier", TIERS[number % TIERS.len()]);
            specs.push(served(spec, number));
        }
    }
    for some in specs.chunks(6) {
        lab.start_pods(some.iter().cloned())?;
    }
    lab.settle()
}

/// Names of ports differ from pod to pod.
pub fn served(spec: PodSpec, number: usize) -> PodSpec {
    let [first, second] = if number.is_multiple_of(2) { ["web", "alt"] } else { ["alt", "web"] };
    spec.serve_as(first, Transport::Tcp, 80).serve_as(second, Transport::Tcp, 81).serve_as(
        "dns",
        Transport::Udp,
        53,
    )
}

pub fn end(pod: &Pod) -> End {
    End {
        key: Key::new(pod.spec().namespace(), pod.spec().name()),
        node: usize::from(pod.spec().node() != "node-1"),
        addresses: Family::BOTH.map(|family| pod.ip(family)).into(),
    }
}

pub fn talker(lab: &Lab, namespace: &str, number: usize) -> Arc<Pod> {
    lab.pod(&format!("{namespace}/talker-{number}"))
}

/// The pods that stay, while others come and go.
pub fn standing(lab: &Lab) -> Vec<Arc<Pod>> {
    lab.pods().into_iter().filter(|pod| !pod.spec().name().starts_with("guest")).collect()
}
