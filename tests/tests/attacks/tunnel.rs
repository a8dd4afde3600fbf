//! No address is a way into the tunnel: what a node takes for its own is more than anybody lists.

use std::{net::IpAddr, thread, time::Duration};

use lab::{Family, Plan, raw::Packet};

use crate::{frame::*, stage::Stage};

const TUNNEL: u16 = 8472;

/// The victims admit the neighbour alone; nothing holds root back: its frames would arrive in the neighbour's name.
#[test]
fn a_broadcast_is_no_way_into_the_tunnel() {
    let mut stage = Stage::raise(Plan::bulkhead());
    stage.lab.delete("NetworkPolicy", "shop/allow-all").unwrap();
    for (pod, app) in [("near-1", "victim"), ("far-2", "victim"), ("neighbour-1", "friend")] {
        stage.lab.label("Pod", &format!("shop/{pod}"), ("app", app)).unwrap();
    }
    let friends = "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]";
    stage.lab.policy("shop/guard", "victim", friends).unwrap();
    stage.lab.settle().unwrap();
    let ways: Vec<_> = stage.ways.iter().filter(|way| way.family == Family::V4).cloned().collect();
    assert!(!ways.is_empty());
    for way in ways {
        // Broadcast addresses of both nodes' pods and of the underlay, and the device of whichever unwraps it.
        let doors =
            [("10.244.1.255", 1_u8), ("10.244.2.255", 2), ("192.168.77.255", 1), ("192.168.77.255", 2)];
        for (n, (door, device)) in (1..).zip(doors) {
            let port = 46_000 + n + if way.near { 100 } else { 0 };
            let forged = Packet::udp(way.neighbour.at(port), way.to.at(53), b"out of the tunnel").bytes();
            let inner = ethernet([0x0e, 0, 0, 0, 4, device], [0x0e, 0, 0, 0, 0, 9], kind(&forged), &forged);
            let wrapped = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &inner].concat();
            let door: IpAddr = door.parse().unwrap();
            let packet = Packet::udp(way.me.at(40_000), (door, TUNNEL).into(), &wrapped);
            let before = stage.packets();
            stage.send(&[ethernet(way.gateway.mac, way.me.mac, IPV4, &packet.bytes())]);
            thread::sleep(Duration::from_millis(60));
            assert!(stage.packets()["tunnel"] > before["tunnel"], "{door} is dropped as what it is");
            assert!(
                !stage.at_victims[usize::from(!way.near)].has_seen(&inner),
                "{door} leads into the tunnel"
            );
        }
    }
}
