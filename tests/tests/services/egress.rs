//! The client's egress: the backend decides, at its own port, by every address of the Service.

use std::{collections::BTreeSet, net::IpAddr};

use lab::{
    Blocked, Family, Outcome, Transport,
    matrix::SETTLES_WITHIN,
    node::{WORLD_V4, WORLD_V6},
    probe::{Attempt, attempt_all},
    until,
};
use serde_json::json;

use crate::{
    flat,
    policed::{DOORS, MASQUERADED, block, both_bridges, pods, ports, set_egress, through},
    stage::{Door, SILENCE, Stage, WAYS},
};

pub fn means_the_backend_at_its_own_port(stage: &Stage) {
    set_egress(stage, &json!([{"to": [pods("copy", "a")], "ports": ports(&json!(8080), &json!(8080))}]));
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
    let nobody = outcomes(stage, "shop/nobody", &WAYS, &DOORS, 1);
    assert!(!nobody.contains(&Outcome::Reached), "{nobody:?}");
}

pub fn is_never_about_the_address_of_the_service(stage: &Stage) {
    let addresses = DOORS.iter().filter(|door| !matches!(door, Door::NodePort(_))).flat_map(|door| {
        Family::BOTH.map(|family| block(stage.at("shop/far-a", *door, family, Transport::Tcp).ip()))
    });
    set_egress(
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

pub fn by_named_port_and_by_address(stage: &Stage) {
    let far_a = Family::BOTH.map(|family| block(stage.pod("far-a").ip(family)));
    set_egress(
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

pub fn of_mixed_backends_meets_only_the_allowed_one(stage: &Stage) {
    set_egress(stage, &json!([{"to": [pods("copy", "a")]}]));
    // Under which the client comes: its own, and (masqueraded) that of its node in the overlay.
    let node = stage.lab.node(1);
    let sources = Family::BOTH.map(|family| [stage.pod("client").ip(family), node.overlay(family)]);
    let denied = [stage.pod("far-b"), stage.pod("local")];
    let heard = || {
        let sources = sources.as_flattened().iter();
        sources.map(|source| denied.each_ref().map(|pod| pod.heard_from(*source))).collect::<Vec<_>>()
    };
    let here_and_there =
        ["far-a", "local"].map(|pod| Family::BOTH.map(|family| (stage.pod(pod).ip(family), 8080)));
    stage.place("shop/moving", here_and_there.as_flattened());
    stage.refresh();
    let before = heard();
    for bridge_nf in [true, false] {
        stage.bridge_nf(bridge_nf);
        for service in ["shop/both", "shop/moving"] {
            let seen = outcomes(stage, service, &WAYS, &DOORS, 20);
            let mixed = BTreeSet::from([Outcome::Reached, Outcome::Silent]);
            assert_eq!(seen, mixed, "{service}, bridge-nf {bridge_nf}");
        }
    }
    // Who keeps a backend keeps its verdict.
    for way in WAYS {
        let first = outcomes(stage, "shop/sticky", &[way], &[Door::Cluster], 1);
        assert_eq!(outcomes(stage, "shop/sticky", &[way], &[Door::Cluster], 5), first, "{way:?}");
    }
    assert_eq!(heard(), before, "nobody else has heard from {sources:?}");
    let blocked = |transport| Blocked {
        node: "node-1".into(),
        source: "shop/client".into(),
        destination: "shop/far-b".into(),
        transport,
        port: 9090,
        direction: "EGRESS".into(),
        reason: "POLICY_DENIED".into(),
        policies: BTreeSet::from(["shop/egress".to_owned()]),
    };
    let want = BTreeSet::from([blocked(Transport::Tcp), blocked(Transport::Udp)]);
    let log = || Ok(stage.lab.agent(1).flow_log()?.iter().filter_map(Blocked::read).collect::<BTreeSet<_>>());
    let log = until(SETTLES_WITHIN, log, |log| log.is_superset(&want)).unwrap();
    assert!(log.is_superset(&want), "the backend is in the log: {log:#?}");
}

/// What comes of so many questions of the client in each of these ways through each of these doors.
fn outcomes(
    stage: &Stage,
    service: &str,
    ways: &[(Family, Transport)],
    doors: &[Door],
    times: usize,
) -> BTreeSet<Outcome> {
    let client = stage.pod("client");
    let attempt = |door, (family, transport)| Attempt {
        from: client.netns(),
        to: stage.at(service, door, family, transport),
        transport,
    };
    let once = doors.iter().flat_map(|door| ways.iter().map(|way| attempt(*door, *way)));
    let attempts: Vec<_> = (0..times).flat_map(|_| once.clone()).collect();
    attempt_all(&attempts, SILENCE).unwrap().into_iter().collect()
}

pub fn to_backends_that_are_no_pods_is_for_all_of_them_or_none(stage: &Stage) {
    let node = Family::BOTH.map(|family| (stage.lab.node(2).ip(family), 6443));
    let admitted = |port: u16| {
        let blocks = node.map(|(ip, _)| block(ip));
        set_egress(
            stage,
            &json!([{"to": blocks, "ports": ports(&json!(port), &json!(port))}, {"to": [pods("copy", "a")]}]),
        );
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
    let pod = Family::BOTH.map(|family| (stage.pod("far-a").ip(family), 6443));
    stage.place("shop/moving", &[pod, world].concat());
    stage.refresh();
    stage.expect("a pod beside the world", &through(&DOORS, "client", "shop/moving", Outcome::Silent));
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
