//! Who is not covered, over the shop.

use super::shop::{INTO, OUT_OF, all, index_of, labels, objects, pod, policy};
use crate::{
    cluster::object::Object,
    policy::{
        Settings,
        coverage::{Coverage, Gap, NodeState, Totals},
    },
};

fn covered(more: impl IntoIterator<Item = Object>) -> Coverage {
    Coverage::of(&index_of(objects().into_iter().chain(more)), &Settings::default())
}

fn open(coverage: &Coverage) -> Vec<String> {
    let pods = coverage.namespaces.iter().flat_map(|n| n.open.iter().map(move |pod| (n, pod)));
    let direction = |yes: bool, name: &'static str| if yes { name } else { "" };
    pods.map(|(n, pod)| {
        format!("{}/{}{}{}", n.name, pod.pod, direction(pod.ingress, " in"), direction(pod.egress, " out"))
    })
    .collect()
}

#[test]
fn without_policies_everything_is_a_gap() {
    let coverage = covered([]);
    let want = Totals {
        namespaces: 2,
        namespaces_without_policy: 2,
        policies: 0,
        pods: 7,
        open_ingress: 7,
        open_egress: 7,
        host_network: 1,
        nodes: 2,
        nodes_without_agent: 0,
    };
    assert_eq!(coverage.totals, want);
    let gaps = [Gap::Namespaces, Gap::Ingress, Gap::Egress, Gap::Nodes].map(|gap| coverage.has(gap));
    assert_eq!(gaps, [true, true, true, false], "nothing is known about nodes");
    assert!(!coverage.agents_known);
    assert!(coverage.nodes.iter().all(|node| node.state == NodeState::Unknown), "{:?}", coverage.nodes);
}

#[test]
fn pods_are_open_in_the_directions_in_which_no_policy_isolates_them() {
    let policies = [
        policy("shop/in", all(), INTO, vec![]),
        policy("shop/out", labels(&["app=web"]), OUT_OF, vec![]),
        policy("ops/other", labels(&["app=none"]), INTO, vec![]),
    ];
    let coverage = covered(policies.map(Object::NetworkPolicy));
    let want = ["ops/web in out", "shop/bare out", "shop/db out", "shop/job1 out", "shop/job2 out"];
    assert_eq!(open(&coverage), want);
    assert_eq!(coverage.totals.namespaces_without_policy, 0);
    let shop = &coverage.namespaces[1];
    assert_eq!((shop.policies, shop.pods, &shop.host_network[..]), (2, 6, &["host".to_owned()][..]));

    let mut less = coverage.clone();
    less.without(&["ops".to_owned()]);
    assert_eq!(less.totals.open_ingress, 0);
    assert!(!less.has(Gap::Ingress) && less.has(Gap::Egress));
}

#[test]
fn nodes_without_a_pod_of_the_agent_are_told_once_any_is_known() {
    let agent =
        |name, node| Object::Pod(pod(name, node, &[], &[("app.kubernetes.io/name", "bulkhead")], &[]));
    let mut coverage = covered([agent("kube-system/bulkhead-a", "n1")]);
    let states = |coverage: &Coverage| coverage.nodes.iter().map(|node| node.state).collect::<Vec<_>>();
    assert_eq!(states(&coverage), [NodeState::HasAgent, NodeState::NoAgent]);
    assert!(coverage.has(Gap::Nodes));
    coverage.know_own_node("n2", &[]);
    assert_eq!(states(&coverage), [NodeState::HasAgent, NodeState::Enforcing]);
    assert!(!coverage.has(Gap::Nodes));
    coverage.know_own_node("n2", &["a map is full".to_owned()]);
    assert_eq!(coverage.nodes[1].because, "a map is full");
    assert!(coverage.has(Gap::Nodes));
}

#[test]
fn a_policy_of_an_undeclared_namespace_counts() {
    let coverage = covered([Object::NetworkPolicy(policy("new/deny", all(), INTO, vec![]))]);
    let new = coverage.namespaces.iter().find(|namespace| namespace.name == "new");
    assert_eq!(new.map(|namespace| (namespace.policies, namespace.pods)), Some((1, 0)));
}
