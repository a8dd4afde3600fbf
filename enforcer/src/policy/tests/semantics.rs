//! semantics.md, the lines that the compiler decides: each case bears its line's number. (9, 10 and 16 to
//! some part are the source's: it hands over directions and protocols with their defaults filled in.)

use super::shop::{
    INTO, OUT_OF, all, any, block, index_of, labels, named, namespace, objects, pods, pods_of, policy, probe,
    rule, tcp,
};
use crate::{
    cluster::object::{NetworkPolicy, Object, Peer, Port, Protocol},
    policy::{ProbeError, Settings, Simulator, probe::Verdict},
};

/// What a case holds, its policies, who passes and who does not.
type Case = (&'static str, Vec<NetworkPolicy>, &'static [&'static str], &'static [&'static str]);

fn check(cases: Vec<Case>, objects: &[Object], settings: &Settings) {
    for (case, policies, allowed, denied) in cases {
        let policies = policies.into_iter().map(Object::NetworkPolicy);
        let mut simulator =
            Simulator::new(index_of(objects.iter().cloned().chain(policies)), settings.clone());
        for (probes, want) in [(allowed, Verdict::Allow), (denied, Verdict::Deny)] {
            for text in probes {
                let answer = simulator.answer(&probe(text)).unwrap_or_else(|e| panic!("{case}: {text}: {e}"));
                assert_eq!(answer.verdict, want, "{case}: {text}: {answer:?}");
            }
        }
    }
}

fn db(rules: Vec<crate::cluster::object::Rule>) -> Vec<NetworkPolicy> {
    vec![policy("shop/db", labels(&["app=db"]), INTO, rules)]
}

fn db_from(peers: Vec<Peer>) -> Vec<NetworkPolicy> {
    db(vec![rule(peers, vec![])])
}

fn db_ports(ports: Vec<Port>) -> Vec<NetworkPolicy> {
    db(vec![rule(vec![], ports)])
}

fn web_to(peers: Vec<Peer>, ports: Vec<Port>) -> Vec<NetworkPolicy> {
    vec![policy("shop/web", labels(&["app=web"]), OUT_OF, vec![rule(peers, ports)])]
}

const WEB: &str = "shop/web shop/db TCP 80";
const BARE: &str = "shop/bare shop/db TCP 80";
const JOB: &str = "shop/job1 shop/db TCP 80";
const OPS: &str = "ops/web shop/db TCP 80";
const NODE: &str = "node:n1 shop/db TCP 80";
const WORLD: &str = "ip:8.8.8.8 shop/db TCP 80";
const SIX: &str = "ip:2001:db8::1 shop/db TCP 80";
const OUT: &str = "shop/web ops/web TCP 80";
const UNKNOWN: &str = "ip:10.244.1.99 shop/db TCP 80";

#[test]
fn selectors_and_peers() {
    let cases: Vec<Case> = vec![
        ("1 NotIn selects pods without the key", db_from(vec![pods(&["app!=web"])]), &[BARE, JOB], &[WEB]),
        ("1 In requires the key", db_from(vec![pods(&["tier="])]), &["shop/db shop/db TCP 80"], &[WEB, BARE]),
        ("1 Exists requires the key", db_from(vec![pods(&["app"])]), &[WEB, JOB], &[BARE]),
        ("1 an absent key", db_from(vec![pods(&["!app"])]), &[BARE], &[WEB, JOB]),
        ("1 an empty value is a value", db_from(vec![pods_of(&["empty="], &[])]), &[OPS], &[WEB]),
        ("2 {} selects everything", db_from(vec![pods(&[])]), &[WEB, BARE], &[OPS, WORLD]),
        ("3 requirements are ANDed", db_from(vec![pods(&["app=web", "tier"])]), &[], &[WEB, BARE]),
        ("4 podSelector: own namespace", db_from(vec![pods(&["app=web"])]), &[WEB], &[OPS, BARE]),
        ("5 one item ANDs", db_from(vec![pods_of(&["env=ops"], &["app=job"])]), &[], &[OPS, JOB, WEB]),
        (
            "5 two items OR",
            db_from(vec![pods_of(&["env=ops"], &[]), pods(&["app=job"])]),
            &[OPS, JOB],
            &[WEB],
        ),
        (
            "6 all namespaces: pods only",
            db_from(vec![pods_of(&[], &[])]),
            &[WEB, OPS, BARE],
            &[WORLD, NODE, UNKNOWN, "ip:192.168.0.1 shop/db TCP 80"],
        ),
        (
            "7 no restriction",
            db_from(vec![]),
            &[WEB, OPS, WORLD, NODE, UNKNOWN, "ip:8.8.8.8 shop/db ICMP 0"],
            &[],
        ),
        ("8 an empty list denies all", db(vec![]), &["shop/web shop/job2 TCP 80"], &[WEB, WORLD, NODE]),
        ("11 per direction", db(vec![]), &["shop/db shop/web TCP 80", "shop/db ip:8.8.8.8 TCP 80"], &[WEB]),
        (
            "12 policies add up",
            [db_from(vec![pods(&["app=job"])]), db(vec![]), db_from(vec![pods(&["!app"])])]
                .into_iter()
                .flatten()
                .zip(["shop/1", "shop/2", "shop/3"])
                .map(|(p, name)| policy(name, p.subjects, INTO, p.ingress.unwrap_or_default()))
                .collect(),
            &[JOB, BARE],
            &[WEB],
        ),
        (
            "13 peers and ports together",
            db(vec![
                rule(vec![pods(&["app=web"])], vec![tcp(80, 80)]),
                rule(vec![pods(&["app=job"])], vec![tcp(81, 81)]),
            ]),
            &[WEB, "shop/job1 shop/db TCP 81"],
            &[JOB, "shop/web shop/db TCP 81"],
        ),
        (
            "14 both sides must allow",
            [db_from(vec![pods(&["app=web"])]), web_to(vec![pods(&["app=job"])], vec![])].concat(),
            &["shop/web shop/job2 TCP 80"],
            &[WEB, JOB],
        ),
        (
            "15 name label of every namespace",
            db_from(vec![pods_of(&["kubernetes.io/metadata.name=ops"], &[])]),
            &[OPS],
            &[WEB],
        ),
        ("15 never pod labels", db_from(vec![pods_of(&["app=web"], &[])]), &[], &[WEB, OPS]),
    ];
    check(cases, &objects(), &Settings::default());
}

#[test]
fn ports() {
    let cases: Vec<Case> = vec![
        ("16 all of TCP", db_ports(vec![any(Protocol::Tcp)]), &[WEB], &["shop/web shop/db UDP 80"]),
        (
            "17 inclusive to the last port",
            db_ports(vec![tcp(1024, 65535)]),
            &["shop/web shop/db TCP 1024", "shop/web shop/db TCP 65535"],
            &["shop/web shop/db TCP 1023", "shop/web shop/db UDP 1024", "shop/web shop/db SCTP 1024"],
        ),
        ("17 a range of one", db_ports(vec![tcp(80, 80)]), &[WEB], &["shop/web shop/db TCP 81"]),
        (
            "18, 19 ingress: the subject's port",
            db_ports(vec![named("http", Protocol::Tcp)]),
            &["shop/web shop/db TCP 9090"],
            &["shop/web shop/db TCP 8080"],
        ),
        (
            "19 egress: the peer's port, for each pod behind equal labels",
            web_to(vec![pods(&["app=job"])], vec![named("http", Protocol::Tcp)]),
            &["shop/web shop/job1 TCP 81", "shop/web shop/job2 TCP 82"],
            &["shop/web shop/job1 TCP 82", "shop/web shop/job2 TCP 81", "shop/web shop/db TCP 9090"],
        ),
        (
            "19 a named port behind an ipBlock",
            web_to(vec![block("10.244.2.0/24", &[])], vec![named("http", Protocol::Tcp)]),
            &["shop/web shop/db TCP 9090", "shop/web shop/job2 TCP 82"],
            &["shop/web shop/job1 TCP 81", "shop/web shop/db TCP 82"],
        ),
        (
            "20 name, protocol and number",
            db_ports(vec![named("dns", Protocol::Udp), named("http", Protocol::Udp)]),
            &["shop/web shop/db UDP 53"],
            &["shop/web shop/db TCP 53", "shop/web shop/db UDP 9090"],
        ),
        (
            "21 no such name, no address without names",
            web_to(vec![], vec![named("http", Protocol::Tcp)]),
            &["shop/web shop/db TCP 9090"],
            &["shop/web shop/bare TCP 80", "shop/web ip:8.8.8.8 TCP 9090", "shop/web node:n2 TCP 9090"],
        ),
        ("22 UDP isolates TCP", db_ports(vec![any(Protocol::Udp)]), &["shop/web shop/db UDP 1"], &[WEB]),
        ("22 SCTP", db_ports(vec![any(Protocol::Sctp)]), &["shop/web shop/db SCTP 1"], &[WEB]),
        (
            "23 ICMP never matches ports",
            db_ports(vec![any(Protocol::Tcp), any(Protocol::Udp), any(Protocol::Sctp)]),
            &[WEB],
            &["shop/web shop/db ICMP 0"],
        ),
        (
            "23 no ports admits ICMP",
            db_from(vec![pods(&["app=web"])]),
            &["shop/web shop/db ICMP 0"],
            &["shop/bare shop/db ICMP 0"],
        ),
    ];
    check(cases, &objects(), &Settings::default());
}

#[test]
fn addresses() {
    let cases: Vec<Case> = vec![
        ("24 blocks hold pods", db_from(vec![block("10.244.1.0/28", &[])]), &[WEB, JOB], &[OPS, WORLD]),
        ("24 and nodes", db_from(vec![block("192.168.0.0/24", &[])]), &[NODE], &[WEB]),
        ("24 0/0 is IPv4", db_from(vec![block("0.0.0.0/0", &[])]), &[WORLD, WEB, NODE], &[SIX]),
        ("24 ::/0 is IPv6", db_from(vec![block("::/0", &[])]), &[SIX], &[WORLD, WEB]),
        (
            "25 except trims its own block",
            db_from(vec![block("8.0.0.0/7", &["8.8.0.0/16"])]),
            &["ip:9.9.9.9 shop/db TCP 80"],
            &[WORLD],
        ),
        (
            "25 a sibling admits",
            db_from(vec![block("8.0.0.0/7", &["8.8.0.0/16"]), block("8.8.8.0/24", &[])]),
            &[WORLD],
            &["ip:8.8.4.4 shop/db TCP 80"],
        ),
        (
            "26 all covering blocks and the pod's labels",
            db(vec![
                rule(vec![block("0.0.0.0/0", &[])], vec![tcp(1, 1)]),
                rule(vec![block("10.244.1.0/24", &[])], vec![tcp(2, 2)]),
                rule(vec![block("10.244.1.10/32", &[])], vec![tcp(3, 3)]),
                rule(vec![pods(&["app=web"])], vec![tcp(4, 4)]),
            ]),
            &[
                "shop/web shop/db TCP 1",
                "shop/web shop/db TCP 2",
                "shop/web shop/db TCP 3",
                "shop/web shop/db TCP 4",
            ],
            &["shop/web shop/db TCP 5", "shop/job1 shop/db TCP 3"],
        ),
        (
            "27 every address is the pod",
            db_from(vec![pods(&["app=web"])]),
            &[WEB, "ip:fd00:244:1::10 shop/db TCP 80"],
            &["ip:fd00:244:1::11 shop/db TCP 80"],
        ),
        ("28 its own address", db(vec![]), &["shop/db shop/db TCP 80"], &[WEB]),
        (
            "29 the own node by any address",
            db(vec![]),
            &[
                "node:n2 shop/db TCP 80",
                "ip:10.244.2.0 shop/db TCP 80",
                "ip:10.244.2.1 shop/db TCP 80",
                "ip:fd00:244:2::1 shop/db TCP 80",
                "shop/host shop/db TCP 80",
            ],
            &[NODE, "ip:10.244.1.0 shop/db TCP 80", "ip:10.244.1.1 shop/db TCP 80"],
        ),
        (
            "30 egress to the own node",
            web_to(vec![pods(&["app=db"])], vec![]),
            &["shop/web node:n1 TCP 80", WEB],
            &["shop/web node:n2 TCP 80"],
        ),
        (
            "31 host-network pods are nodes",
            vec![policy(
                "shop/all",
                all(),
                INTO,
                vec![rule(vec![pods_of(&[], &[]), pods(&["app=web"])], vec![])],
            )],
            &[WEB, "shop/web shop/host TCP 80"],
            &["shop/host shop/web TCP 80"],
        ),
        ("32 a reused address does not inherit", db_from(vec![pods(&["app=gone"])]), &[], &[WEB]),
    ];
    check(cases, &objects(), &Settings::default());
}

#[test]
fn line_30_egress_to_the_own_node_by_policy() {
    let settings = Settings { local_node_egress: false, ..Settings::default() };
    let cases: Vec<Case> = vec![
        (
            "30 policy decides",
            web_to(vec![], vec![tcp(80, 80)]),
            &["shop/web node:n1 TCP 80"],
            &["shop/web node:n1 TCP 81"],
        ),
        ("30 ingress stays open", db(vec![]), &["node:n2 shop/db TCP 80"], &[NODE]),
    ];
    check(cases, &objects(), &settings);
}

#[test]
fn line_32_finished_pods_and_pods_without_an_address_cannot_be_asked_about() {
    let simulator = Simulator::new(index_of(objects()), Settings::default());
    let error = |text| simulator.flow(&probe(text)).map_err(|e| e.to_string());
    assert_eq!(error("shop/gone shop/db TCP 80"), Err("pod shop/gone has finished".to_owned()));
    assert_eq!(error("shop/unborn shop/db TCP 80"), Err("shop/unborn has no address".to_owned()));
    assert_eq!(error("shop/nobody shop/db TCP 80"), Err("unknown pod shop/nobody".to_owned()));
    assert_eq!(error("node:n9 shop/db TCP 80"), Err("unknown node n9".to_owned()));
    assert_eq!(
        error("ops/web ip:fd00:244:1::10 TCP 80"),
        Err("ops/web and ip:fd00:244:1::10 have no address family in common".to_owned())
    );
    let no_port = crate::policy::Probe { port: None, ..probe(WEB) };
    assert_eq!(simulator.flow(&no_port), Err(ProbeError::PortMissing(no_port.protocol)));
}

#[test]
fn tenants() {
    let tenant = |value| ("bulkhead.io/tenant", value);
    let with = |shop: Object, ops: Object| objects().into_iter().chain([shop, ops]).collect::<Vec<_>>();
    let open = || policy("shop/open", all(), INTO, vec![rule(vec![], vec![])]);
    let red = || namespace("shop", &[tenant("red")], None);
    let blue = |door| namespace("ops", &[tenant("blue")], door);
    for (objects, case) in [
        (
            with(red(), blue(None)),
            ("38 denied whatever policy says", vec![open()], &[WEB] as &[_], &[OPS, OUT] as &[_]),
        ),
        (with(red(), namespace("ops", &[], None)), ("38 shared", vec![], &[OPS, OUT], &[])),
        (with(red(), namespace("ops", &[tenant("red")], None)), ("38 the same", vec![], &[OPS, OUT], &[])),
        (
            with(red(), namespace("ops", &[tenant("")], None)),
            ("38 empty is a tenant", vec![], &[WEB], &[OPS, OUT]),
        ),
        (
            with(red(), blue(None)),
            ("38 nodes have none", vec![], &[NODE, "shop/host shop/db TCP 80", WORLD], &[OPS]),
        ),
        (with(red(), blue(Some("green, red"))), ("39 one way", vec![], &[OUT], &[OPS])),
        (
            with(red(), blue(Some("*"))),
            ("39 any tenant, not an unknown pod", vec![], &[OUT], &[OPS, "ip:10.244.1.99 ops/web TCP 80"]),
        ),
        (with(red(), blue(Some("green"))), ("39 not that one", vec![], &[WEB], &[OUT])),
        (
            with(red(), blue(Some("red"))),
            (
                "39 policy decides behind the door",
                vec![policy("ops/shut", all(), INTO, vec![])],
                &[WEB],
                &[OUT],
            ),
        ),
        (
            with(red(), namespace("ops", &[], None)),
            (
                "40 unknown pods are others to tenants only",
                vec![],
                &["ip:10.244.1.99 ops/web TCP 80"],
                &[UNKNOWN, "shop/web ip:10.244.2.99 TCP 80"],
            ),
        ),
    ] {
        check(vec![case], &objects, &Settings::default());
    }
    let off = Settings { tenant_label: None, ..Settings::default() };
    check(vec![("no tenants at all", vec![], &[OPS, OUT, UNKNOWN], &[])], &with(red(), blue(None)), &off);
}

#[test]
fn line_41_a_policy_without_readable_rules_isolates() {
    let broken = NetworkPolicy { defects: vec!["unknown peer".to_owned()], ..db(vec![]).remove(0) };
    check(
        vec![("41", vec![broken], &["shop/db shop/web TCP 80"], &[WEB, WORLD])],
        &objects(),
        &Settings::default(),
    );
}
