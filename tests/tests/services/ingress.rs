//! The backend's ingress: the client decides, under whatever address it comes.

use std::net::SocketAddr;

use lab::{Family, Outcome, Transport, matrix::PATIENCE, probe::attempt};
use serde_json::json;

use crate::{
    policed::{
        DOORS, MASQUERADED, both_bridges, drop_policies, pods, policy, ports, set_egress, set_ingress,
        through,
    },
    stage::{Door, Stage},
};

pub fn of_a_pod_from_itself_is_policed(stage: &Stage) {
    set_egress(stage, &json!([{"to": [pods("app", "client")]}]));
    set_ingress(stage, "client", &json!([{"from": [pods("app", "stranger")]}]));
    both_bridges(stage, "the client may leave to itself, and not come in", |_| {
        through(&DOORS, "client", "shop/self", Outcome::Silent)
    });
    set_ingress(stage, "client", &json!([{"from": [pods("app", "client")]}]));
    both_bridges(stage, "the client may leave to itself, and come in", |_| {
        let mut rows = through(&DOORS, "client", "shop/self", Outcome::Reached);
        rows.extend(through(&DOORS, "stranger", "shop/self", Outcome::Silent));
        rows
    });
    drop_policies(stage, &["egress", "client-ingress"]);
}

/// Nobody may be asked but by way of the one rule that lets the client ask; answers come back, also those that
/// still, or again, have the Service's address.
pub fn and_egress_let_answers_through(stage: &Stage) {
    set_egress(stage, &json!([{"to": [pods("app", "far"), pods("app", "local")]}]));
    set_ingress(stage, "client", &json!([]));
    for app in ["far", "local"] {
        policy(stage, &format!("{app}-egress"), app, &json!({"policyTypes": ["Egress"]}));
    }
    both_bridges(stage, "the client only asks, the backends only answer", |bridge_nf| {
        let local = if bridge_nf { Outcome::Reached } else { Outcome::Silent };
        let mut rows = through(&DOORS, "client", "shop/both", Outcome::Reached);
        rows.push(("client", "shop/local", Door::Cluster, local));
        rows.extend(through(&MASQUERADED, "client", "shop/local", Outcome::Reached));
        rows.extend(through(&DOORS, "stranger", "shop/self", Outcome::Silent));
        rows
    });
    drop_policies(stage, &["egress", "client-ingress", "far-egress", "local-egress"]);
}

pub fn means_the_client_behind_the_masquerading(stage: &Stage) {
    set_ingress(
        stage,
        "local",
        &json!([{"from": [pods("app", "client")], "ports": ports(&json!(8080), &json!(8080))}]),
    );
    set_ingress(
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
    for family in Family::BOTH {
        let to = SocketAddr::new(stage.pod("local").ip(family), 8080);
        let probe = attempt(stage.lab.node(1).netns(), to, Transport::Tcp, PATIENCE).unwrap();
        assert_eq!(probe, Outcome::Reached, "the kubelet probes by the pod's own address, {family}");
    }
    let anybody = json!([{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]}]);
    set_ingress(stage, "local", &anybody);
    both_bridges(stage, "ingress from every address", |_| {
        let mut rows = through(&MASQUERADED, "stranger", "shop/local", Outcome::Reached);
        rows.push(("world", "shop/local", Door::NodePort(1), Outcome::Reached));
        rows.push(("world", "shop/local", Door::NodePort(2), Outcome::Reached));
        rows
    });
    drop_policies(stage, &["local-ingress", "far-ingress"]);
}
