//! No address is a way into the tunnel: what a node takes for its own is more than anybody lists.

use std::{net::IpAddr, thread, time::Duration};

use lab::{Family, Lab, Plan, ProxyMode, raw::Packet, until};
use serde_json::json;

use crate::{
    frame::{IPV4, ethernet, kind},
    stage::{ARRIVES_WITHIN, Stage, Way},
};

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

/// What stands behind the Service `shop/dns`, one address of each family.
fn place(lab: &Lab, backends: [IpAddr; 2], port: u16) {
    for (ip, family) in backends.iter().zip(["IPv4", "IPv6"]) {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "shop", "name": format!("dns-{}", family.to_lowercase()),
                "labels": {"kubernetes.io/service-name": "dns"},
            },
            "addressType": family,
            "ports": [{"name": "", "protocol": "UDP", "port": port}],
            "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        });
        lab.manifests().write(&slice).unwrap();
    }
    lab.settle().unwrap();
    lab.sync_proxies().unwrap();
}

/// Who may write `EndpointSlices` lets a Service lead to a node's tunnel: kube-proxy would send on what a pod sends there.
#[test]
fn a_service_is_no_way_into_the_tunnel() {
    for enforced in [false, true] {
        let plan = if enforced { Plan::bulkhead() } else { Plan::flat() };
        let mut stage = Stage::raise(plan.proxy(ProxyMode::Nftables));
        let ways: Vec<_> = stage.ways.iter().filter(|way| !way.near).cloned().collect();
        let [v4, v6] = &ways[..] else { panic!("one way of each family") };
        let tunnels = |sender: u16, way: &Way| {
            let forged = Packet::udp(way.neighbour.at(47_000), way.to.at(53), b"out of the tunnel").bytes();
            let inner = ethernet(way.overlay.mac, [0x0e, 0, 0, 0, 0, 9], kind(&forged), &forged);
            let wrapped = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &inner].concat();
            let to = (way.service, 53).into();
            (inner, way.send(&Packet::udp(way.me.at(sender), to, &wrapped)))
        };
        // At first it leads to a pod, and a connection is there.
        place(&stage.lab, [v4.to.ip, v6.to.ip], 53);
        for way in &ways {
            let (_, frame) = tunnels(47_001, way);
            stage.send(&[frame]);
        }
        if enforced {
            let allowed = || Ok(stage.packets()["allowed"]);
            assert!(until(ARRIVES_WITHIN, allowed, |allowed| *allowed >= 2).unwrap() >= 2);
        }
        place(&stage.lab, [v4.nodes[1], v6.nodes[1]], TUNNEL);
        for way in &ways {
            let before = if enforced { stage.packets()["tunnel"] } else { 0 };
            let (inner, frame) = tunnels(47_002, way);
            stage.send(&[tunnels(47_001, way).1, frame]);
            if enforced {
                assert_eq!(stage.counted("tunnel", before + 2)["tunnel"], before + 2, "{way:?}");
                thread::sleep(Duration::from_millis(60));
            } else {
                stage.at_victims[1].await_all(std::slice::from_ref(&inner), "out of the tunnel, unenforced");
            }
            assert_eq!(stage.at_victims[1].has_seen(&inner), !enforced, "{way:?}");
        }
    }
}
