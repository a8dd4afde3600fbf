//! The same Services with an agent on each node: nothing changes until a policy says so, and then the backend
//! decides, wherever and however the packet was translated.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use lab::{
    Family, Outcome, Plan, ProxyMode, Stream, Transport,
    matrix::PATIENCE,
    node::{WORLD_V4, WORLD_V6},
    probe::{Attempt, attempt_all},
};
use serde_json::{Value, json};

use crate::{
    flat,
    stage::{Door, Row, Stage, WAYS},
};

/// The doors that a pod of node 1 finds on its own node.
const DOORS: [Door; 4] = [Door::Cluster, Door::External, Door::Balancer, Door::NodePort(1)];
const MASQUERADED: [Door; 3] = [Door::External, Door::Balancer, Door::NodePort(1)];

#[test]
fn policies_mean_the_backend_with_iptables() {
    policed(ProxyMode::Iptables);
}

#[test]
fn policies_mean_the_backend_with_nftables() {
    policed(ProxyMode::Nftables);
}

fn policed(mode: ProxyMode) {
    let stage = Stage::raise(Plan::bulkhead().proxy(mode));
    both_bridges(&stage, "without a policy, as the flat network", flat::rows);
    flat::own_node(&stage, Outcome::Reached);
    egress_means_the_backend_at_its_own_port(&stage);
    egress_is_never_about_the_address_of_the_service(&stage);
    egress_by_named_port_and_by_address(&stage);
    of_mixed_backends_only_the_allowed_one_is_met(&stage);
    a_pod_that_meets_itself_through_a_service_is_policed(&stage);
    backends_that_are_no_pods_pass_together_or_not_at_all(&stage);
    stage.lab.delete("NetworkPolicy", "shop/client-egress").unwrap();
    ingress_means_the_client_behind_the_masquerading(&stage);
    stage.bridge_nf(true);
    endpoints_may_change_behind_a_policy(&stage);
    tightening_cuts_what_goes_through_a_service(&stage);
}

fn both_bridges(stage: &Stage, when: &str, rows: impl Fn(bool) -> Vec<Row>) {
    for bridge_nf in [true, false] {
        stage.bridge_nf(bridge_nf);
        stage.expect(&format!("{when} (bridge-nf {bridge_nf})"), &rows(bridge_nf));
    }
}

/// One row for each of these doors.
fn through(doors: &[Door], from: &'static str, service: &'static str, outcome: Outcome) -> Vec<Row> {
    doors.iter().map(|door| (from, service, *door, outcome)).collect()
}

fn egress(stage: &Stage, rules: &Value) {
    policy(stage, "client-egress", "client", &json!({"policyTypes": ["Egress"], "egress": rules}));
}

fn ingress(stage: &Stage, to: &str, rules: &Value) {
    policy(stage, &format!("{to}-ingress"), to, &json!({"policyTypes": ["Ingress"], "ingress": rules}));
}

fn policy(stage: &Stage, name: &str, app: &str, spec: &Value) {
    let mut policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": name}, "spec": spec,
    });
    policy["spec"]["podSelector"] = json!({"matchLabels": {"app": app}});
    stage.lab.manifests().write(&policy).unwrap();
}

fn pods(label: &str, value: &str) -> Value {
    json!({"podSelector": {"matchLabels": {label: value}}})
}

fn ports(tcp: &Value, udp: &Value) -> Value {
    json!([{"port": tcp}, {"port": udp, "protocol": "UDP"}])
}

fn block(address: IpAddr) -> Value {
    let length = if address.is_ipv4() { 32 } else { 128 };
    json!({"ipBlock": {"cidr": format!("{address}/{length}")}})
}

fn egress_means_the_backend_at_its_own_port(stage: &Stage) {
    egress(stage, &json!([{"to": [pods("copy", "a")], "ports": ports(&json!(8080), &json!(8080))}]));
    both_bridges(stage, "egress to far-a alone", |bridge_nf| {
        let mut rows = through(&DOORS, "client", "shop/far-a", Outcome::Reached);
        for service in ["shop/far-b", "shop/local", "shop/self", "shop/outside", "default/kubernetes"] {
            rows.extend(through(&DOORS, "client", service, Outcome::Silent));
        }
        // What another node's port leads to is decided there; here it is an address that no rule admits.
        rows.push(("client", "shop/far-a", Door::NodePort(2), Outcome::Silent));
        // Nobody else notices.
        rows.extend(through(&DOORS, "stranger", "shop/far-a", Outcome::Reached));
        rows.extend(through(&DOORS, "stranger", "shop/far-b", Outcome::Reached));
        let local = if bridge_nf { Outcome::Reached } else { Outcome::Silent };
        rows.push(("stranger", "shop/local", Door::Cluster, local));
        rows.extend(through(&MASQUERADED, "stranger", "shop/local", Outcome::Reached));
        rows
    });
    flat::own_node(stage, Outcome::Reached);
    let nobody = outcomes(stage, "shop/nobody", &DOORS, 1);
    assert!(!nobody.contains(&Outcome::Reached), "{nobody:?}");
}

fn egress_is_never_about_the_address_of_the_service(stage: &Stage) {
    let addresses = DOORS.iter().filter(|door| !matches!(door, Door::NodePort(_))).flat_map(|door| {
        Family::BOTH.map(|family| block(stage.at("shop/far-a", *door, family, Transport::Tcp).ip()))
    });
    egress(
        stage,
        &json!([
            {"to": [pods("copy", "a")], "ports": ports(&json!(80), &json!(53))},
            {"to": addresses.collect::<Vec<_>>()},
        ]),
    );
    both_bridges(stage, "egress to the Service's ports and addresses", |_| {
        let mut rows = through(&DOORS, "client", "shop/far-a", Outcome::Silent);
        rows.extend(through(&DOORS, "client", "shop/local", Outcome::Silent));
        rows
    });
}

fn egress_by_named_port_and_by_address(stage: &Stage) {
    let far_a = Family::BOTH.map(|family| block(stage.pod("far-a").ip(family)));
    egress(
        stage,
        &json!([
            {"to": [pods("copy", "b")], "ports": ports(&json!("web"), &json!("dns"))},
            {"to": far_a},
        ]),
    );
    both_bridges(stage, "egress to far-b by names of ports, to far-a by address", |_| {
        let mut rows = through(&DOORS, "client", "shop/far-b", Outcome::Reached);
        rows.extend(through(&DOORS, "client", "shop/far-a", Outcome::Reached));
        rows.extend(through(&DOORS, "client", "shop/both", Outcome::Reached));
        rows.extend(through(&DOORS, "client", "shop/local", Outcome::Silent));
        rows
    });
    flat::each_backend_gets_its_share(stage);
}

fn of_mixed_backends_only_the_allowed_one_is_met(stage: &Stage) {
    egress(stage, &json!([{"to": [pods("copy", "a")]}]));
    stage.expect(
        "egress to far-a alone again",
        &[
            ("client", "shop/far-b", Door::Cluster, Outcome::Silent),
            ("client", "shop/far-a", Door::Cluster, Outcome::Reached),
        ],
    );
    // Under which the client comes: its own, and (masqueraded) that of its node in the overlay.
    let node = [stage.lab.node(1).pods(Family::V4).network(), stage.lab.node(1).pods(Family::V6).network()];
    let sources: Vec<_> =
        Family::BOTH.map(|family| stage.pod("client").ip(family)).into_iter().chain(node).collect();
    let heard = || sources.iter().map(|source| stage.pod("far-b").heard_from(*source)).collect::<Vec<_>>();
    for bridge_nf in [true, false] {
        stage.bridge_nf(bridge_nf);
        let before = heard();
        for door in DOORS {
            let seen = outcomes(stage, "shop/both", &[door], 20);
            assert_eq!(seen, BTreeSet::from([Outcome::Reached, Outcome::Silent]), "{door:?}, {bridge_nf}");
        }
        assert_eq!(heard(), before, "far-b has heard nothing from {sources:?}");
    }
}

/// What comes of so many questions of the client, in every way through each of these doors.
fn outcomes(stage: &Stage, service: &str, doors: &[Door], times: usize) -> BTreeSet<Outcome> {
    let client = stage.pod("client");
    let attempts: Vec<_> = (0..times)
        .flat_map(|_| doors.iter().flat_map(|door| WAYS.map(|way| (*door, way))))
        .map(|(door, (family, transport))| Attempt {
            from: client.netns(),
            to: stage.at(service, door, family, transport),
            transport,
        })
        .collect();
    attempt_all(&attempts, PATIENCE).unwrap().into_iter().collect()
}

fn a_pod_that_meets_itself_through_a_service_is_policed(stage: &Stage) {
    egress(stage, &json!([{"to": [pods("app", "client")]}]));
    ingress(stage, "client", &json!([{"from": [pods("app", "stranger")]}]));
    both_bridges(stage, "the client may leave to itself, and not come in", |_| {
        through(&DOORS, "client", "shop/self", Outcome::Silent)
    });
    ingress(stage, "client", &json!([{"from": [pods("app", "client")]}]));
    both_bridges(stage, "the client may leave to itself, and come in", |_| {
        let mut rows = through(&DOORS, "client", "shop/self", Outcome::Reached);
        rows.extend(through(&DOORS, "stranger", "shop/self", Outcome::Silent));
        rows
    });
    stage.lab.delete("NetworkPolicy", "shop/client-ingress").unwrap();
}

fn backends_that_are_no_pods_pass_together_or_not_at_all(stage: &Stage) {
    let node = Family::BOTH.map(|family| (stage.lab.node(2).ip(family), 6443));
    let admitted = |port: u16| {
        let blocks = node.map(|(ip, _)| block(ip));
        egress(stage, &json!([{"to": blocks, "ports": ports(&json!(port), &json!(port))}]));
    };
    let world = [IpAddr::from(WORLD_V4), IpAddr::from(WORLD_V6)].map(|ip| (ip, 6443));
    admitted(6443);
    stage.place("shop/moving", &[node, world].concat());
    stage.refresh();
    both_bridges(stage, "egress to the port of node 2", |_| {
        let mut rows = through(&DOORS, "client", "default/kubernetes", Outcome::Reached);
        rows.extend(through(&DOORS, "client", "shop/outside", Outcome::Silent));
        rows.extend(through(&DOORS, "client", "shop/moving", Outcome::Silent));
        rows
    });
    stage.place("shop/moving", &node);
    stage.refresh();
    stage.expect(
        "without the backend that is not allowed",
        &through(&DOORS, "client", "shop/moving", Outcome::Reached),
    );
    admitted(80);
    stage.expect(
        "egress to the Service's port",
        &through(&DOORS, "client", "default/kubernetes", Outcome::Silent),
    );
}

fn ingress_means_the_client_behind_the_masquerading(stage: &Stage) {
    ingress(
        stage,
        "local",
        &json!([{"from": [pods("app", "client")], "ports": ports(&json!(8080), &json!(8080))}]),
    );
    ingress(
        stage,
        "far",
        &json!([{"from": [pods("app", "client")], "ports": ports(&json!("web"), &json!("dns"))}]),
    );
    both_bridges(stage, "ingress from the client alone", |bridge_nf| {
        let local = if bridge_nf { Outcome::Reached } else { Outcome::Silent };
        let mut rows = vec![
            ("client", "shop/local", Door::Cluster, local),
            ("client", "shop/far-a", Door::Cluster, Outcome::Reached),
            ("client", "shop/far-b", Door::Cluster, Outcome::Reached),
            // A pod's own node probes it; other nodes, and who comes through a node from outside, are strangers.
            ("node-1", "shop/local", Door::Cluster, Outcome::Reached),
            ("node-2", "shop/local", Door::Cluster, Outcome::Silent),
            ("world", "shop/local", Door::NodePort(1), Outcome::Silent),
            ("world", "shop/local", Door::NodePort(2), Outcome::Silent),
            ("world", "shop/far-a", Door::NodePort(2), Outcome::Silent),
            ("world", "shop/far-a", Door::NodePort(1), Outcome::Silent),
        ];
        rows.extend(through(&MASQUERADED, "client", "shop/local", Outcome::Reached));
        rows.extend(through(&DOORS, "stranger", "shop/local", Outcome::Silent));
        rows.extend(through(&DOORS, "stranger", "shop/far-a", Outcome::Silent));
        rows
    });
    let anybody = json!([{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]}]);
    ingress(stage, "local", &anybody);
    both_bridges(stage, "ingress from every address", |_| {
        let mut rows = through(&MASQUERADED, "stranger", "shop/local", Outcome::Reached);
        rows.push(("world", "shop/local", Door::NodePort(1), Outcome::Reached));
        rows.push(("world", "shop/local", Door::NodePort(2), Outcome::Reached));
        rows
    });
    stage.lab.delete("NetworkPolicy", "shop/local-ingress").unwrap();
    stage.lab.delete("NetworkPolicy", "shop/far-ingress").unwrap();
}

fn endpoints_may_change_behind_a_policy(stage: &Stage) {
    egress(stage, &json!([{"to": [pods("app", "far")]}]));
    stage.expect(
        "egress to both far pods",
        &[
            ("client", "shop/local", Door::Cluster, Outcome::Silent),
            ("client", "shop/both", Door::Cluster, Outcome::Reached),
        ],
    );
    flat::endpoints_change_under_traffic(stage);
}

fn tightening_cuts_what_goes_through_a_service(stage: &Stage) {
    egress(stage, &json!([{"to": [pods("app", "far"), pods("app", "local")]}]));
    let ways =
        [("shop/far-a", Door::Cluster), ("shop/far-b", Door::Cluster), ("shop/far-b", Door::NodePort(1))]
            .into_iter()
            .chain(DOORS.map(|door| ("shop/local", door)));
    let rows: Vec<_> = ways.map(|(service, door)| ("client", service, door, Outcome::Reached)).collect();
    stage.expect("egress to all backends", &rows);
    let client = stage.pod("client");
    let stream = |row: &Row, family| {
        let to = stage.at(row.1, row.2, family, Transport::Tcp);
        ((row.1, row.2, family), Stream::start(client.netns(), to, Duration::from_millis(1)).unwrap())
    };
    let streams: Vec<_> =
        rows.iter().flat_map(|row| Family::BOTH.map(|family| stream(row, family))).collect();
    egress(stage, &json!([{"to": [pods("copy", "b")]}]));
    stage.expect(
        "egress to far-b alone",
        &[
            ("client", "shop/far-a", Door::Cluster, Outcome::Silent),
            ("client", "shop/local", Door::NodePort(1), Outcome::Silent),
            ("client", "shop/far-b", Door::Cluster, Outcome::Reached),
        ],
    );
    for (way, stream) in streams {
        let report = stream.stop();
        if way.0 == "shop/far-b" {
            assert_eq!((report.broken.clone(), report.retransmitted), (None, 0), "{way:?} stays: {report:?}");
        } else {
            assert!(report.broken.is_some() && report.echoed > 0, "{way:?} is cut: {report:?}");
        }
    }
}
