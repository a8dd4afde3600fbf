//! Whole lines, as a pipeline downstream sees them.

use bulkhead_ebpf::{
    abi::{self, Conn, ConnKey, ConnKey6, DropCount, DropKey, EndWord, Event},
    reason::Reason,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::flow::{event::DecodeError, record::Line, ring::Item};

fn line(flow: Flow) -> Value {
    let line = Item::Flow(flow).line("node-a");
    let value = serde_json::to_value(&line).unwrap();
    assert_eq!(serde_json::from_value::<Line>(value.clone()).unwrap(), line, "a line reads back as it was");
    value
}

fn cart() -> Value {
    json!({
        "ID": 12, "identity": 301, "namespace": "shop", "pod_name": "cart-0",
        "labels": ["k8s:app=cart", "k8s:io.kubernetes.pod.namespace=shop"],
        "workloads": [{"name": "cart", "kind": "Deployment"}],
    })
}

fn front() -> Value {
    json!({
        "ID": 11, "identity": 300, "namespace": "shop", "pod_name": "front-0",
        "labels": ["k8s:app=front", "k8s:io.kubernetes.pod.namespace=shop"],
        "workloads": [{"name": "front", "kind": "Deployment"}],
    })
}

fn intruder() -> Value {
    json!({
        "identity": 302, "namespace": "evil", "pod_name": "intruder",
        "labels": ["k8s:app=intruder", "k8s:io.kubernetes.pod.namespace=evil"],
        "workloads": [{"name": "intruder", "kind": "Deployment"}],
    })
}

fn cart_in() -> Value {
    json!([{"name": "cart-in", "namespace": "shop", "labels": ["k8s:team=shop"], "kind": "NetworkPolicy"}])
}

#[test]
fn an_allowed_connection_names_both_ends_and_the_rule() {
    assert_eq!(
        line(flow(&new_connection())),
        json!({
            "flow": {
                "time": "2026-01-02T03:05:35.000000007Z",
                "uuid": "00000000-0000-0000-0000-000000000000",
                "emitter": {"name": "bulkhead", "version": env!("CARGO_PKG_VERSION")},
                "verdict": "FORWARDED",
                "ethernet": {"source": "02:00:00:00:00:01", "destination": "02:00:00:00:00:02"},
                "IP": {"source": "10.244.1.2", "destination": "10.244.1.3", "ipVersion": "IPv4"},
                "l4": {"TCP": {"source_port": 40000, "destination_port": 80, "flags": {"SYN": true}}},
                "source": front(),
                "destination": cart(),
                "Type": "L3_L4",
                "node_name": "node-a",
                "event_type": {"type": 5},
                "traffic_direction": "INGRESS",
                "policy_match_type": 2,
                "is_reply": false,
                "interface": {"index": 5, "name": "veth0c"},
                "ingress_allowed_by": cart_in(),
                "Summary": "TCP Flags: SYN",
                "extensions": {
                    "@type": "type.googleapis.com/google.protobuf.Struct",
                    "value": {
                        "reason": "allowed",
                        "granted": "rules",
                        "rule": [
                            {"policy": "shop/cart-in", "index": 2, "file": "policies/cart.yaml", "line": 14}
                        ],
                        "tenant": {"source": "acme", "destination": "acme"},
                        "connection": {"state": "new"},
                        "aggregated": 1,
                    },
                },
            },
            "node_name": "node-a",
            "time": "2026-01-02T03:05:35.000000007Z",
        })
    );
}

#[test]
fn a_denied_connection_names_the_policies_that_isolate() {
    assert_eq!(
        line(flow(&dropped())),
        json!({
            "flow": {
                "time": "2026-01-02T03:05:35.000000007Z",
                "uuid": "00000000-0000-0000-0000-000000000000",
                "emitter": {"name": "bulkhead", "version": env!("CARGO_PKG_VERSION")},
                "verdict": "DROPPED",
                "drop_reason_desc": "POLICY_DENIED",
                "ethernet": {"source": "02:00:00:00:00:01", "destination": "02:00:00:00:00:02"},
                "IP": {"source": "10.244.2.9", "destination": "10.244.1.3", "ipVersion": "IPv4"},
                "l4": {"TCP": {"source_port": 40000, "destination_port": 80, "flags": {"SYN": true}}},
                "source": intruder(),
                "destination": cart(),
                "Type": "L3_L4",
                "node_name": "node-a",
                "event_type": {"type": 5},
                "traffic_direction": "INGRESS",
                "is_reply": false,
                "interface": {"index": 5, "name": "veth0c"},
                "ingress_denied_by": cart_in(),
                "Summary": "TCP Flags: SYN",
                "extensions": {
                    "@type": "type.googleapis.com/google.protobuf.Struct",
                    "value": {
                        "reason": "policy-denied",
                        "rule": [{"policy": "shop/cart-in", "file": "policies/cart.yaml", "line": 14}],
                        "tenant": {"destination": "acme"},
                        "aggregated": 3,
                    },
                },
            },
            "node_name": "node-a",
            "time": "2026-01-02T03:05:35.000000007Z",
        })
    );
}

#[test]
fn a_late_packet_of_a_cut_connection_is_told_as_the_attempt_that_it_answers() {
    let attempt = dropped();
    let late = Event {
        source: attempt.destination,
        destination: attempt.source,
        source_port_be: attempt.destination_port_be,
        destination_port_be: attempt.source_port_be,
        source_mac: attempt.destination_mac,
        destination_mac: attempt.source_mac,
        hook: abi::HOOK_FROM_POD,
        is_reply: 1,
        ..attempt
    };
    let mut want = line(flow(&attempt));
    want["flow"]["is_reply"] = json!(true);
    assert_eq!(line(flow(&late)), want);
}

#[test]
fn a_drop_that_no_policy_made_is_a_drop_event_over_ipv6_too() {
    let mut told = line(flow(&Event {
        source: INTRUDER6,
        destination: CART6,
        family: 6,
        protocol: 58,
        source_port_be: [0, 0],
        destination_port_be: [134, 0],
        tcp_flags: 0,
        reason: Reason::ForbiddenIcmp6 as u8,
        ..dropped()
    }));
    let flow = told["flow"].take();
    let parts = json!({
        "IP": flow["IP"], "l4": flow["l4"], "event_type": flow["event_type"],
        "drop_reason_desc": flow["drop_reason_desc"], "denied": flow["ingress_denied_by"],
        "source": flow["source"], "summary": flow["Summary"],
    });
    assert_eq!(
        parts,
        json!({
            "IP": {"source": "fd00:0:0:2::9", "destination": "fd00:0:0:1::3", "ipVersion": "IPv6"},
            "l4": {"ICMPv6": {"type": 134}},
            "event_type": {"type": 1, "sub_type": 176},
            "drop_reason_desc": "FORBIDDEN_ICMPV6_MESSAGE",
            "denied": null,
            "source": intruder(),
            "summary": "ICMPv6 type 134 code 0",
        })
    );
}

#[test]
fn the_end_of_a_connection_tells_what_went_each_way() {
    let end = Event {
        started: 60 * SECOND,
        packets: [10, 8],
        bytes: [1000, u64::MAX],
        kind: abi::EVENT_END,
        reason: Reason::Tracked as u8,
        hook: abi::HOOK_FROM_POD,
        tcp_flags: 17,
        is_reply: 1,
        ..new_connection()
    };
    let told = line(flow(&end));
    let flow = &told["flow"];
    assert_eq!(
        json!([flow["event_type"], flow["trace_observation_point"], flow["is_reply"], flow["verdict"]]),
        json!([{"type": 4}, "FROM_ENDPOINT", null, "FORWARDED"])
    );
    assert_eq!(json!([flow["source"], flow["destination"]]), json!([front(), cart()]), "opener to peer");
    assert_eq!(flow["ingress_allowed_by"], cart_in());
    assert_eq!(
        flow["extensions"]["value"]["connection"],
        json!({
            "state": "end", "started": "2026-01-02T03:05:05.000000000Z",
            "packets_from_source": "10", "packets_to_source": "8",
            "bytes_from_source": "1000", "bytes_to_source": "18446744073709551615",
            "duration_ms": "30000",
        })
    );
}

#[test]
fn an_idle_connection_is_told_from_its_opener_whichever_side_that_was() {
    let key: ConnKey6 = ConnKey {
        addresses: [CART6, INTRUDER6],
        ports_be: [443_u16, 50_000].map(u16::to_be_bytes),
        protocol: 17,
        pad: [0; 3],
    };
    let conn = Conn {
        ends: [EndWord::new(3, ALLOW_FRONT), EndWord::default()],
        packets: [1, 2],
        bytes: [100, 200],
        started: SECOND,
        last_seen: 4,
        sides: abi::CONN_OPENER,
        ..Conn::default()
    };
    let told = line(flow_of(Observation::ended(&key, &conn, &names(), 90 * SECOND)));
    let flow = &told["flow"];
    assert_eq!(
        json!([
            flow["source"],
            flow["destination"],
            flow["l4"],
            flow["traffic_direction"],
            flow["interface"]
        ]),
        json!([
            intruder(),
            cart(),
            {"UDP": {"source_port": 50000, "destination_port": 443}},
            "INGRESS",
            {"index": 5, "name": "veth0c"},
        ])
    );
    assert_eq!(flow["ingress_allowed_by"], cart_in());
    assert_eq!(
        flow["extensions"]["value"]["connection"],
        json!({
            "state": "end", "started": "2026-01-02T03:04:06.000000000Z",
            "packets_from_source": "2", "packets_to_source": "1",
            "bytes_from_source": "200", "bytes_to_source": "100",
            "duration_ms": "3294",
        })
    );
    let conn = Conn { sides: 0, ..conn };
    let told = line(flow_of(Observation::ended(&key, &conn, &names(), 90 * SECOND)));
    assert_eq!(
        json!([told["flow"]["source"], told["flow"]["destination"], told["flow"]["traffic_direction"]]),
        json!([cart(), intruder(), "EGRESS"])
    );
}

#[test]
fn collected_drops_name_the_pod_behind_the_interface_and_who_isolates_it() {
    let key = DropKey {
        remote: sixteen(INTRUDER),
        ifindex: 5,
        port_be: 80_u16.to_be_bytes(),
        protocol: 6,
        direction: abi::INGRESS,
        reason: Reason::PolicyDenied as u8,
        family: 4,
        pad: [0; 2],
    };
    let count = DropCount { count: 900, tick: 1 };
    let seen = Observation::suppressed(&key, count, &names(), 90 * SECOND).unwrap();
    let told = line(flow_of(seen));
    let flow = &told["flow"];
    assert_eq!(
        json!([flow["source"], flow["destination"], flow["l4"], flow["IP"]["destination"]]),
        json!([intruder(), cart(), {"TCP": {"destination_port": 80}}, "10.244.1.3"])
    );
    assert_eq!(json!([flow["verdict"], flow["ingress_denied_by"]]), json!(["DROPPED", cart_in()]));
    let ours = &flow["extensions"]["value"];
    assert_eq!(json!([ours["aggregated"], ours["suppressed"]]), json!([900, true]));

    let allowed = DropKey { reason: Reason::Allowed as u8, ..key };
    assert_eq!(
        Observation::suppressed(&allowed, count, &names(), 0),
        Err(DecodeError::Contradiction { kind: abi::EVENT_DROP, reason: Reason::Allowed })
    );
}

#[test]
fn a_forged_source_address_is_told_as_the_pod_that_sent_it() {
    let told = line(flow(&Event {
        source: sixteen(FRONT),
        destination: sixteen([8, 8, 8, 8]),
        remote_identity: 0,
        direction: abi::EGRESS,
        hook: abi::HOOK_FROM_POD,
        reason: Reason::SourceIp as u8,
        ..dropped()
    }));
    let flow = &told["flow"];
    assert_eq!(
        json!([flow["source"], flow["IP"]["source"], flow["destination"], flow["egress_denied_by"]]),
        json!([cart(), "10.244.1.2", {"identity": 3, "labels": ["reserved:world"]}, null])
    );
}

/// `front:40000 -> port` of `to`, told at the front's own interface.
fn to(to: [u8; 4], port: u16) -> Value {
    let event = Event {
        destination: sixteen(to),
        destination_port_be: port.to_be_bytes(),
        remote_identity: 400,
        direction: abi::EGRESS,
        hook: abi::HOOK_FROM_POD,
        ..new_connection()
    };
    line(flow(&event))["flow"].take()
}

#[test]
fn a_service_is_named_by_its_address_and_by_its_backend() {
    let cart_service = json!({"name": "cart", "namespace": "shop"});
    let by_address = to(CART_SERVICE, 8080);
    assert_eq!(by_address["destination_service"], cart_service);
    assert_eq!(by_address["destination"], json!({"identity": 400}), "nobody's address but the Service's");
    assert_eq!(by_address["source_service"], Value::Null);

    let by_backend = to(CART, 8443);
    assert_eq!((&by_backend["destination_service"], &by_backend["destination"]), (&cart_service, &cart()));

    for (address, port) in [(CART_SERVICE, 8081), (CART, 80), (INTRUDER, 8443)] {
        assert_eq!(to(address, port)["destination_service"], Value::Null, "{address:?} {port}");
    }

    let reply = Event {
        source: sixteen(FRONT),
        source_port_be: 80_u16.to_be_bytes(),
        destination_port_be: 40_000_u16.to_be_bytes(),
        ..dropped()
    };
    let reply = line(flow(&reply))["flow"].take();
    assert_eq!(reply["source_service"], json!({"name": "front", "namespace": "shop"}));
    assert_eq!(reply["destination_service"], Value::Null);
}

#[test]
fn a_frame_without_an_ip_header_still_names_its_pod() {
    let told = line(flow(&Event { family: 0, reason: Reason::Vlan as u8, ..dropped() }));
    let flow = &told["flow"];
    assert_eq!(
        json!([flow["source"], flow["destination"], flow["IP"], flow["l4"], flow["event_type"]]),
        json!([null, cart(), null, null, {"type": 1, "sub_type": 182}])
    );
}

#[test]
fn what_contradicts_itself_is_an_error() {
    let cases = [
        (Event { kind: 9, ..dropped() }, DecodeError::Code { field: "kind", value: 9 }),
        (Event { reason: 200, ..dropped() }, DecodeError::Code { field: "reason", value: 200 }),
        (Event { direction: 2, ..dropped() }, DecodeError::Code { field: "direction", value: 2 }),
        (Event { hook: 3, ..dropped() }, DecodeError::Code { field: "hook", value: 3 }),
        (Event { family: 5, ..dropped() }, DecodeError::Code { field: "family", value: 5 }),
        (Event { is_reply: 7, ..dropped() }, DecodeError::Code { field: "is_reply", value: 7 }),
        (
            Event { reason: Reason::Allowed as u8, ..dropped() },
            DecodeError::Contradiction { kind: abi::EVENT_DROP, reason: Reason::Allowed },
        ),
        (
            Event { reason: Reason::PolicyDenied as u8, ..new_connection() },
            DecodeError::Contradiction { kind: abi::EVENT_NEW, reason: Reason::PolicyDenied },
        ),
    ];
    for (event, error) in cases {
        assert_eq!(Observation::decode(&raw(&event)), Err(error), "{error}");
    }
    assert_eq!(Observation::decode(&[0; 135]), Err(DecodeError::Length(135)));
}

#[test]
fn the_wall_clock_may_step_between_samples() {
    assert_eq!(Clock::fixed(BOOT).wall(SECOND).to_string(), "2026-01-02T03:04:06.000000000Z");
    assert_eq!(Clock::fixed(i64::MAX).wall(u64::MAX), Timestamp(i64::MAX));
    let clock = Clock::sampled();
    let now = clock.wall(crate::flow::clock::monotonic());
    assert!((now.0 - Timestamp::now().0).abs() < 1_000_000_000, "within a second of the system's time");
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let decoded = Observation::decode(&bytes);
        prop_assert!(bytes.len() == size_of::<Event>() || decoded.is_err());
    }

    /// Valid codes in random company always give a line that reads back.
    #[test]
    fn whatever_decodes_can_be_told(
        bytes in proptest::array::uniform32(any::<u8>()),
        words in proptest::array::uniform6(any::<u32>()),
        longs in proptest::array::uniform6(any::<u64>()),
        reason in proptest::sample::select(Reason::ALL.to_vec()),
        codes in (0_u8..2, proptest::sample::select(vec![0_u8, 4, 6]), any::<u8>(), any::<u8>(), 0_u8..2, 0_u8..2),
        end in any::<bool>(),
    ) {
        let (direction, family, protocol, tcp_flags, hook, is_reply) = codes;
        let pass = if end { abi::EVENT_END } else { abi::EVENT_NEW };
        let event = Event {
            time: longs[0], started: longs[1],
            packets: [longs[2], longs[3]], bytes: [longs[4], longs[5]],
            source: bytes[..16].try_into().unwrap(), destination: bytes[16..].try_into().unwrap(),
            ifindex: words[0], endpoint: words[1], rule: words[2], rule_set: words[3],
            remote_identity: words[4], aggregated: words[5],
            kind: if reason.is_drop() { abi::EVENT_DROP } else { pass },
            reason: reason as u8, direction, family, protocol, tcp_flags, hook, is_reply,
            ..Event::default()
        };
        line(flow(&event));
    }
}
