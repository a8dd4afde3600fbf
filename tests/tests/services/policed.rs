//! The same Services with an agent on each node: nothing changes until a policy says so, and then the backend
//! decides, wherever and however the packet was translated.

use std::net::IpAddr;

use lab::{Outcome, Plan, ProxyMode};
use serde_json::{Value, json};

use crate::{
    egress, flat, ingress, live,
    stage::{Door, Row, Stage},
};

/// The doors that a pod of node 1 finds on its own node.
pub const DOORS: [Door; 4] = [Door::Cluster, Door::External, Door::Balancer, Door::NodePort(1)];
/// Those of them behind which the client has an address of its node.
pub const MASQUERADED: [Door; 3] = [Door::External, Door::Balancer, Door::NodePort(1)];

#[test]
fn policies_mean_the_backend_with_iptables() {
    policed(ProxyMode::Iptables);
}

#[test]
fn policies_mean_the_backend_with_nftables() {
    policed(ProxyMode::Nftables);
}

fn policed(mode: ProxyMode) {
    let stage = Stage::raise(Plan::bulkhead(), mode);
    both_bridges(&stage, "without a policy, as the flat network", flat::rows);
    flat::own_node(&stage, Outcome::Reached);
    tenants_stay_apart(&stage);
    egress::means_the_backend_at_its_own_port(&stage);
    if mode == ProxyMode::Iptables {
        let far_b = ("client", "shop/far-b", Door::Gateway, Outcome::Silent);
        stage.expect("by the gateway", &[far_b, ("client", "shop/far-a", Door::Gateway, Outcome::Reached)]);
    }
    egress::is_never_about_the_address_of_the_service(&stage);
    egress::by_named_port_and_by_address(&stage);
    egress::of_mixed_backends_meets_only_the_allowed_one(&stage);
    egress::to_backends_that_are_no_pods_is_for_all_of_them_or_none(&stage);
    ingress::of_a_pod_from_itself_is_policed(&stage);
    ingress::and_egress_let_answers_through(&stage);
    ingress::means_the_client_behind_the_masquerading(&stage);
    // A live conversation would notice a change of these settings by itself.
    stage.bridge_nf(true);
    live::fragments_follow_the_verdict(&stage);
    live::endpoints_may_change(&stage);
    live::an_old_conversation_is_no_way_to_a_new_backend(&stage);
    live::nothing_notices_a_new_agent(&stage);
    live::tightening_cuts(&stage);
}

fn tenants_stay_apart(stage: &Stage) {
    let label = |tenants: [&[(&str, &str)]; 2]| {
        stage.lab.namespace("shop", tenants[0]).unwrap();
        stage.lab.namespace("rival", tenants[1]).unwrap();
        stage.lab.settle().unwrap();
    };
    label([&[("bulkhead.io/tenant", "blue")], &[("bulkhead.io/tenant", "red")]]);
    both_bridges(stage, "two tenants", |_| {
        let mut rows = through(&DOORS, "intruder", "shop/local", Outcome::Silent);
        rows.extend(through(&DOORS, "intruder", "shop/far-a", Outcome::Silent));
        rows.extend(through(&DOORS, "client", "shop/far-a", Outcome::Reached));
        rows.extend(through(&MASQUERADED, "client", "shop/local", Outcome::Reached));
        rows
    });
    label([&[], &[]]);
}

pub fn both_bridges(stage: &Stage, when: &str, rows: impl Fn(bool) -> Vec<Row>) {
    for bridge_nf in [true, false] {
        stage.bridge_nf(bridge_nf);
        stage.expect(&format!("{when} (bridge-nf {bridge_nf})"), &rows(bridge_nf));
    }
}

/// One row for each of these doors.
pub fn through(doors: &[Door], from: &'static str, service: &'static str, outcome: Outcome) -> Vec<Row> {
    doors.iter().map(|door| (from, service, *door, outcome)).collect()
}

/// The only egress policy: the client's.
pub fn set_egress(stage: &Stage, rules: &Value) {
    policy(stage, "egress", "client", &json!({"policyTypes": ["Egress"], "egress": rules}));
}

/// The ingress policy of pods with this `app`.
pub fn set_ingress(stage: &Stage, app: &str, rules: &Value) {
    policy(stage, &format!("{app}-ingress"), app, &json!({"policyTypes": ["Ingress"], "ingress": rules}));
}

/// In force when this returns.
pub fn policy(stage: &Stage, name: &str, app: &str, spec: &Value) {
    let mut policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": name}, "spec": spec,
    });
    policy["spec"]["podSelector"] = json!({"matchLabels": {"app": app}});
    stage.lab.manifests().write(&policy).unwrap();
    stage.lab.settle().unwrap();
}

pub fn drop_policies(stage: &Stage, names: &[&str]) {
    for name in names {
        stage.lab.delete("NetworkPolicy", &format!("shop/{name}")).unwrap();
    }
    stage.lab.settle().unwrap();
}

pub fn pods(label: &str, value: &str) -> Value {
    json!({"podSelector": {"matchLabels": {label: value}}})
}

pub fn ports(tcp: &Value, udp: &Value) -> Value {
    json!([{"port": tcp}, {"port": udp, "protocol": "UDP"}])
}

pub fn block(address: IpAddr) -> Value {
    let length = if address.is_ipv4() { 32 } else { 128 };
    json!({"ipBlock": {"cidr": format!("{address}/{length}")}})
}
