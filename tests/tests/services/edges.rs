//! Backends that drain, and tenants at another node's port.

use std::{
    thread,
    time::{Duration, Instant},
};

use lab::{Family, Outcome, Plan, Pod, ProxyMode, Stream, Transport};
use serde_json::json;

use crate::{
    policed::{DOORS, both_bridges, pods, set_egress},
    stage::{Door, Stage},
};

/// kube-proxy leaves established connections alone: a backend that drains, or fails its readiness probe, keeps its
/// conversations, and a policy that allows this backend has no reason to cut them.
#[test]
fn a_backend_that_drains_keeps_its_conversations() {
    let stage = Stage::raise(Plan::bulkhead(), ProxyMode::Iptables);
    let (client, allowed, denied) = (stage.pod("client"), stage.pod("far-a"), stage.pod("far-b"));
    let at = |pod: &Pod, port| Family::BOTH.map(|family| (pod.ip(family), port));
    set_egress(&stage, &json!([{"to": [pods("copy", "a")]}]));
    let left =
        [("only a denied backend is left", at(&denied, 9090).to_vec()), ("no backend is left", Vec::new())];
    for (when, backends) in left {
        stage.drain("shop/moving", &[]);
        stage.place("shop/moving", &at(&allowed, 8080));
        stage.refresh();
        let start = |door, family| {
            let to = stage.at("shop/moving", door, family, Transport::Tcp);
            Stream::start(client.netns(), to, Duration::from_millis(2)).unwrap()
        };
        let streams = DOORS.map(|door| (door, Family::BOTH.map(|family| start(door, family))));
        stage.drain("shop/moving", &at(&allowed, 8080));
        stage.place("shop/moving", &backends);
        stage.refresh();
        let changed = Instant::now();
        thread::sleep(Duration::from_millis(500));
        for (door, both) in streams {
            for stream in both {
                let last = stream.last_echo();
                let report = stream.abandon();
                assert!(last > changed + Duration::from_millis(300), "{when}, {door:?}: {report:?}");
            }
        }
    }
}

/// The port of a Service is the same on every node, and any of them leads to the other tenant.
#[test]
fn another_nodes_port_is_no_door_between_tenants() {
    let stage = Stage::raise(Plan::bulkhead(), ProxyMode::Iptables);
    stage.lab.namespace("shop", &[("bulkhead.io/tenant", "blue")]).unwrap();
    stage.lab.namespace("rival", &[("bulkhead.io/tenant", "red")]).unwrap();
    stage.lab.settle().unwrap();
    both_bridges(&stage, "two tenants", |_| {
        ["shop/far-a", "shop/local"]
            .map(|service| ("intruder", service, Door::NodePort(2), Outcome::Silent))
            .to_vec()
    });
}
