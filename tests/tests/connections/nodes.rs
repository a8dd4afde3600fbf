//! A pod's own node reaches it and is reached, by whichever of its addresses; other nodes are policed.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lab::{
    Family, Outcome, Transport,
    node::Node,
    probe::{Attempt, attempt_all},
    raw::{Packet, SYN},
    server::Server,
    sniffer::Sniffer,
};

use crate::stage::{FAMILIES, arrive, at, lab_with, policy, vanish};

/// Answers come within a millisecond or not at all.
const PATIENCE: Duration = Duration::from_secs(1);

fn addresses(node: &Node, family: Family) -> [IpAddr; 3] {
    [node.ip(family), node.gateway(family), node.overlay(family)]
}

#[test]
fn the_own_node_reaches_an_isolated_pod_from_each_of_its_addresses_and_another_only_by_policy() {
    let lab = lab_with(&["shop/db-1"]);
    let (own, other) = (lab.node(1), lab.node(2));
    let blocks: Vec<_> = FAMILIES
        .iter()
        .flat_map(|family| {
            addresses(other, *family)
                .map(|ip| format!("{{ipBlock: {{cidr: '{ip}/{}'}}}}", if ip.is_ipv4() { 32 } else { 128 }))
        })
        .collect();
    let rules = format!(
        "policyTypes: [Ingress, Egress], ingress: [{{from: [{}], ports: [{{port: 53, protocol: UDP}}]}}]",
        blocks.join(", ")
    );
    policy(&lab, "db", "db", &rules);
    lab.settle().unwrap();
    let db = lab.pod("shop/db-1");
    let mut at_db = Sniffer::start(db.netns()).unwrap();
    for family in FAMILIES {
        let knock = |from: IpAddr| Packet::tcp(SocketAddr::new(from, 44_000), at(&db, family, 80), SYN, &[]);
        let ask =
            |from: IpAddr| Packet::udp(SocketAddr::new(from, 44_000), at(&db, family, 53), b"by policy");
        arrive(own.netns(), &mut at_db, &addresses(own, family).map(knock));
        for from in addresses(other, family) {
            vanish(other.netns(), &mut at_db, &[knock(from)], &ask(from));
        }
    }
}

#[test]
fn an_isolated_pod_reaches_each_address_of_its_own_node_and_none_of_another() {
    let lab = lab_with(&["shop/db-1", "other/open-1", "other/filler-2"]);
    policy(&lab, "db", "db", "policyTypes: [Ingress, Egress]");
    lab.settle().unwrap();
    let reached = |pod: &str, node: u8| {
        let pod = lab.pod(pod);
        let doors = FAMILIES.into_iter().flat_map(|family| addresses(lab.node(node), family));
        // On the pods' own link that one is the routers' anycast address (RFC 4291, 2.6.1): Linux does not take
        // connections to it, with or without us.
        let doors = doors.filter(|ip| *ip != lab.node(node).overlay(Family::V6));
        let attempts: Vec<_> = doors
            .map(|ip| Attempt { from: pod.netns(), to: SocketAddr::new(ip, 80), transport: Transport::Tcp })
            .collect();
        attempt_all(&attempts, PATIENCE).unwrap()
    };
    let _servers = [1, 2].map(|node| Server::start(lab.node(node).netns(), &[(Transport::Tcp, 80)]).unwrap());
    assert_eq!(reached("shop/db-1", 1), [Outcome::Reached; 5]);
    assert_eq!(reached("shop/db-1", 2), [Outcome::Silent; 5]);
    assert_eq!(reached("other/open-1", 2), [Outcome::Reached; 5], "the way is open");
}
