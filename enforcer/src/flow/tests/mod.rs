//! A small shop: `shop/front` on this node, `shop/cart` isolated by `shop/cart-in`, and an intruder.
#![expect(clippy::unwrap_used, reason = "tests")]

mod export;
mod golden;
mod names;
mod ring;

use std::{net::IpAddr, sync::Arc};

use bulkhead_ebpf::{abi, abi::Event, reason::Reason};

use super::{
    clock::{Clock, Timestamp},
    enrich::Flow,
    event::Observation,
    names::{LocalPod, Names, Party, Place, PolicyInfo, Tables, Who},
};
use crate::{
    cluster::{
        Frontend,
        object::{Key, Peer, Pod, Port, Ports, Protocol, Rule, Selector, Workload},
    },
    policy::model::{DirectionRules, Grant, PolicyRules, RuleRef, RuleSet},
};

/// 2026-01-02T03:04:05Z, when the machine had run for 0 seconds.
const BOOT: i64 = 1_767_323_045_000_000_000;
const SECOND: u64 = 1_000_000_000;

const FRONT: [u8; 4] = [10, 244, 1, 2];
const CART: [u8; 4] = [10, 244, 1, 3];
const INTRUDER: [u8; 4] = [10, 244, 2, 9];
const CART6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3];
const INTRUDER6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9];

const CART_SERVICE: [u8; 4] = [10, 96, 0, 10];

const CART_ENDPOINT: u32 = 12;
const CART_RULES: u32 = 7;
const ALLOW_FRONT: u32 = 41;

fn pod(namespace: &str, name: &str, app: &str, identity: u32, endpoint: u32) -> Party {
    Party {
        who: Who::Pod {
            pod: Arc::new(Pod {
                key: Key::new(namespace, name),
                uid: None,
                labels: [("app".to_owned(), app.to_owned())].into(),
                node: None,
                host_network: false,
                finished: false,
                ips: [].into(),
                ports: [].into(),
                workload: Some(Arc::new(Workload { kind: "Deployment".into(), name: app.into() })),
            }),
            endpoint,
        },
        identity,
        tenant: (namespace == "shop").then(|| "acme".into()),
    }
}

fn tables() -> Tables {
    let cart = pod("shop", "cart-0", "cart", 301, CART_ENDPOINT);
    let intruder = pod("evil", "intruder", "intruder", 302, 0);
    let policy = Key::new("shop", "cart-in");
    let rule = Rule {
        index: 2,
        peers: vec![Peer::Pods { namespaces: None, pods: Selector::default() }],
        ports: vec![Port { protocol: Protocol::Tcp, ports: Ports::Range(80, 80) }],
    };
    let isolation = PolicyRules { policy: policy.clone(), labels: [].into(), rules: vec![rule] };
    Tables {
        parties: [
            (FRONT.into(), pod("shop", "front-0", "front", 300, 11)),
            (CART.into(), cart.clone()),
            (CART6.into(), cart.clone()),
            (INTRUDER.into(), intruder.clone()),
            (INTRUDER6.into(), intruder),
        ]
        .into(),
        endpoints: [(
            CART_ENDPOINT,
            Arc::new(LocalPod {
                party: Arc::new(cart),
                addresses: vec![CART.into(), CART6.into()],
                rule_set: CART_RULES,
                ifindex: 5,
                ifname: "veth0c".into(),
            }),
        )]
        .into(),
        grants: [
            (1, Arc::new(Grant::NotIsolated)),
            (ALLOW_FRONT, Arc::new(Grant::Rules([RuleRef { policy: policy.clone(), rule: 2 }].into()))),
        ]
        .into(),
        rule_sets: [(
            CART_RULES,
            Arc::new(RuleSet {
                ingress: DirectionRules { policies: vec![Arc::new(isolation)] },
                ..RuleSet::default()
            }),
        )]
        .into(),
        policies: [(
            policy,
            Arc::new(PolicyInfo {
                labels: [("team".to_owned(), "shop".to_owned())].into(),
                place: Some(Place { file: "policies/cart.yaml".into(), line: 14 }),
            }),
        )]
        .into(),
        services: [(at(CART_SERVICE, 8080), "cart"), (at(CART, 8443), "cart"), (at(FRONT, 80), "front")]
            .map(|(at, name)| (at, Arc::new(Key::new("shop", name))))
            .into(),
        pod_networks: vec!["10.244.0.0/16".parse().unwrap()],
    }
}

fn at(address: [u8; 4], port: u16) -> Frontend {
    Frontend { address: address.into(), protocol: Protocol::Tcp, port }
}

fn names() -> Names {
    Names::default().next(tables(), 0)
}

fn sixteen(v4: [u8; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&v4);
    bytes
}

/// The first packet of `front:40000 -> cart:80`, seen on its way to the cart and allowed by rule 41.
fn new_connection() -> Event {
    Event {
        time: 90 * SECOND + 7,
        source: sixteen(FRONT),
        destination: sixteen(CART),
        ifindex: 5,
        endpoint: CART_ENDPOINT,
        rule: ALLOW_FRONT,
        rule_set: CART_RULES,
        remote_identity: 300,
        aggregated: 1,
        source_port_be: 40_000_u16.to_be_bytes(),
        destination_port_be: 80_u16.to_be_bytes(),
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        kind: abi::EVENT_NEW,
        reason: Reason::Allowed as u8,
        direction: abi::INGRESS,
        family: 4,
        protocol: 6,
        tcp_flags: 2,
        hook: abi::HOOK_TO_POD,
        ..Event::default()
    }
}

/// The intruder's first packet to the cart, over IPv4.
fn dropped() -> Event {
    Event {
        source: sixteen(INTRUDER),
        rule: 0,
        remote_identity: 302,
        aggregated: 3,
        kind: abi::EVENT_DROP,
        reason: Reason::PolicyDenied as u8,
        ..new_connection()
    }
}

/// The event as the ring buffer hands it over: field by field, in the order of the ABI.
fn raw(event: &Event) -> Vec<u8> {
    let mut bytes = Vec::new();
    let longs =
        [event.time, event.started, event.packets[0], event.packets[1], event.bytes[0], event.bytes[1]];
    for long in longs {
        bytes.extend(long.to_ne_bytes());
    }
    bytes.extend(event.source);
    bytes.extend(event.destination);
    let words =
        [event.ifindex, event.endpoint, event.rule, event.rule_set, event.remote_identity, event.aggregated];
    for word in words {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(event.source_port_be);
    bytes.extend(event.destination_port_be);
    bytes.extend(event.source_mac);
    bytes.extend(event.destination_mac);
    bytes.extend([event.kind, event.reason, event.direction, event.family]);
    bytes.extend([event.protocol, event.tcp_flags, event.hook, event.is_reply, event.mixed]);
    bytes.resize(size_of::<Event>(), 0);
    bytes
}

fn flow(event: &Event) -> Flow {
    flow_of(Observation::decode(&raw(event)).unwrap())
}

fn flow_of(seen: Observation) -> Flow {
    let clock = Clock::fixed(BOOT);
    Flow { uuid: uuid::Uuid::nil(), ..Flow::of(seen, &names(), |time| clock.wall(time)) }
}

fn wall(seconds: u64) -> Timestamp {
    Clock::fixed(BOOT).wall(seconds * SECOND)
}

fn address(bytes: [u8; 4]) -> IpAddr {
    bytes.into()
}
