//! semantics.md 18 and 36, as far as the source's own hook decides: what passes on towards a Service.

use super::shop::{
    OUT_OF, all, any, block, index_of, labels, named, objects, parsed, pods, pods_of, policy, rule, tcp,
};
use crate::{
    cluster::{
        Frontend,
        object::{
            EndpointSlice, Key, NetworkPolicy, Object, Peer, Port, Protocol, Service, ServicePort, SlicePort,
        },
    },
    policy::{
        Settings, compile,
        lookup::Decision,
        model::{Compiled, Grant, Identity, RuleRef},
        scope,
    },
};

/// One port 80 under the number, with a node port; `targets` as `address port`.
fn service(name: &str, number: u8, targets: &[&str]) -> Vec<Object> {
    let ports = [("", 80, Some(30000 + u16::from(number)))];
    let port = |(name, port, node_port): (&str, _, _)| ServicePort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port,
        node_port,
    };
    let key = Key::new("shop", name);
    let addresses = parsed(&[&format!("10.96.0.{number}"), &format!("fd00:96::{number}")]);
    let mut objects =
        vec![Object::Service(Service { key, addresses: addresses.into(), ports: ports.map(port).into() })];
    objects.extend(targets.iter().enumerate().map(|(i, target)| {
        let (address, port) = target.split_once(' ').expect("address port");
        Object::EndpointSlice(EndpointSlice {
            key: Key::new("shop", format!("{name}-{i}")),
            service: name.into(),
            addresses: parsed(&[address]).into(),
            draining: [].into(),
            ports: [SlicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: port.parse().expect("a port"),
            }]
            .into(),
            defective: false,
        })
    }));
    objects
}

const DB: &str = "10.244.2.11 9090";
const JOB: &str = "10.244.1.14 81";
const OPS: &str = "10.244.2.13 80";
const HOST: &str = "192.168.0.2 6443";
const OWN_HOST: &str = "192.168.0.1 6443";
const OUTSIDE: &str = "8.8.8.8 443";
const NOBODY: &str = "10.244.1.99 80";

fn compiled(objects: impl IntoIterator<Item = Object>, settings: &Settings) -> Compiled {
    let index = index_of(objects).seen_from(Some("n1"));
    compile(&index, settings, &scope(&index, settings))
}

fn frontend(address: &str, port: u16) -> Frontend {
    Frontend { address: address.parse().expect("an address"), protocol: Protocol::Tcp, port }
}

/// What shop/web on n1 may do with a Service of these backends.
fn decide(targets: &[&str], policies: Vec<NetworkPolicy>, settings: &Settings) -> Decision {
    let policies = policies.into_iter().map(Object::NetworkPolicy);
    let compiled = compiled(objects().into_iter().chain(service("s", 1, targets)).chain(policies), settings);
    let class = &compiled.services[&frontend("10.96.0.1", 80)];
    compiled.endpoints[&Key::new("shop", "web")].decide_service(class)
}

fn web_to(peers: Vec<Peer>, ports: Vec<Port>) -> Vec<NetworkPolicy> {
    vec![policy("shop/web", labels(&["app=web"]), OUT_OF, vec![rule(peers, ports)])]
}

#[test]
fn a_service_passes_if_some_pod_would_and_every_other_backend_does() {
    let db = || pods(&["app=db"]);
    let world = || block("8.0.0.0/8", &[]);
    let nodes = || block("192.168.0.0/24", &[]);
    for (case, targets, policies, want) in [
        ("not isolated", &[DB, OUTSIDE][..], vec![], true),
        ("not isolated, nobody there", &[], vec![], true),
        ("the one pod", &[DB], web_to(vec![db()], vec![]), true),
        ("another pod", &[OPS], web_to(vec![db()], vec![]), false),
        ("some pod", &[DB, JOB, OPS], web_to(vec![db()], vec![]), true),
        ("nobody there", &[], web_to(vec![db()], vec![]), false),
        ("nobody there, for a rule for everybody too", &[], web_to(vec![], vec![tcp(80, 80)]), false),
        ("the target's port", &[DB], web_to(vec![db()], vec![tcp(9090, 9090)]), true),
        ("not the Service's port", &[DB], web_to(vec![db()], vec![tcp(80, 80)]), false),
        ("not the Service's port, for everybody", &[OUTSIDE], web_to(vec![], vec![tcp(80, 80)]), false),
        ("the target's port, for everybody", &[OUTSIDE], web_to(vec![], vec![tcp(443, 443)]), true),
        ("not the Service's own address", &[DB], web_to(vec![block("10.96.0.0/16", &[])], vec![]), false),
        (
            "a name of the target's port",
            &[DB, JOB],
            web_to(vec![pods(&[])], vec![named("http", Protocol::Tcp)]),
            true,
        ),
        (
            "the name of another port",
            &[OPS],
            web_to(vec![pods_of(&[], &[])], vec![named("http", Protocol::Tcp)]),
            false,
        ),
        ("another protocol", &[DB], web_to(vec![db()], vec![any(Protocol::Udp)]), false),
        ("outside, allowed", &[OUTSIDE], web_to(vec![world()], vec![]), true),
        ("outside, excepted", &[OUTSIDE], web_to(vec![block("8.0.0.0/8", &["8.8.8.8/32"])], vec![]), false),
        ("another node, allowed", &[HOST], web_to(vec![nodes()], vec![tcp(6443, 6443)]), true),
        ("another node is no pod", &[HOST], web_to(vec![pods_of(&[], &[])], vec![]), false),
        ("the own node, 30", &[OWN_HOST], web_to(vec![db()], vec![]), true),
        ("mixed: a pod and a denied node", &[DB, HOST], web_to(vec![db()], vec![]), false),
        ("mixed: a pod and an allowed node", &[DB, HOST], web_to(vec![db(), nodes()], vec![]), true),
        ("mixed: no pod, an allowed node", &[OPS, HOST], web_to(vec![db(), nodes()], vec![]), true),
        ("two nodes, one denied", &[OWN_HOST, HOST], web_to(vec![db()], vec![]), false),
        ("an unknown pod is judged later", &[DB, NOBODY], web_to(vec![db()], vec![]), true),
        ("an unknown pod alone", &[NOBODY], web_to(vec![db()], vec![]), false),
        ("the pod itself is a backend like others", &["10.244.1.10 8080"], web_to(vec![db()], vec![]), false),
        ("by the pod's own block", &[DB], web_to(vec![block("10.244.2.11/32", &[])], vec![]), true),
    ] {
        let decision = decide(targets, policies, &Settings::default());
        assert_eq!(matches!(decision, Decision::Allow(_)), want, "{case}: {decision:?}");
    }
}

#[test]
fn the_own_node_is_excused_only_where_the_setting_says_so() {
    let strict = Settings { local_node_egress: false, ..Settings::default() };
    assert_eq!(decide(&[OWN_HOST], web_to(vec![], vec![tcp(80, 80)]), &strict), Decision::NoRule);
    assert_eq!(
        decide(&[OWN_HOST], web_to(vec![], vec![tcp(80, 80)]), &Settings::default()),
        Decision::Allow(vec![Grant::LocalNode])
    );
}

#[test]
fn a_pod_elsewhere_that_nobody_judges_on_the_way_must_be_allowed_like_any_backend() {
    let blind = Settings { backends_elsewhere_judged: false, ..Settings::default() };
    for (case, targets, selected, want) in [
        ("allowed, elsewhere", &[DB][..], "app=db", true),
        ("denied, elsewhere", &[DB, OPS], "app=db", false),
        ("unknown", &[DB, NOBODY], "app=db", false),
        ("denied, here: the hook there judges", &[DB, JOB], "app=db", true),
        ("denied, both", &[DB, JOB], "app=web", false),
    ] {
        let policies = web_to(vec![pods(&[selected])], vec![]);
        let decision = decide(targets, policies, &blind);
        assert_eq!(matches!(decision, Decision::Allow(_)), want, "{case}: {decision:?}");
    }
}

#[test]
fn the_grant_names_every_rule_that_allows_a_backend() {
    let web = || labels(&["app=web"]);
    let policies = vec![
        policy(
            "shop/a",
            web(),
            OUT_OF,
            vec![rule(vec![pods(&["app=job"])], vec![]), rule(vec![pods(&["app=db"])], vec![])],
        ),
        policy("shop/b", web(), OUT_OF, vec![rule(vec![], vec![tcp(443, 443)])]),
    ];
    let named = |name: &str, rule| RuleRef { policy: Key::new("shop", name), rule };
    assert_eq!(
        decide(&[DB, OWN_HOST, OUTSIDE], policies, &Settings::default()),
        Decision::Allow(vec![Grant::Rules([named("a", 1), named("b", 0)].into())])
    );
}

#[test]
fn what_cannot_be_read_closes_the_service() {
    let mut slices = service("s", 1, &[DB]);
    for object in &mut slices {
        if let Object::EndpointSlice(slice) = object {
            slice.defective = true;
        }
    }
    let policies = web_to(vec![pods(&["app=db"])], vec![]).into_iter().map(Object::NetworkPolicy);
    let compiled = compiled(objects().into_iter().chain(slices).chain(policies), &Settings::default());
    let web = &compiled.endpoints[&Key::new("shop", "web")];
    assert_eq!(web.decide_service(&compiled.services[&frontend("10.96.0.1", 80)]), Decision::NoRule);
}

#[test]
fn a_pod_that_gets_no_more_connections_keeps_the_service_open_for_those_it_has() {
    // Each target is a slice of its own.
    let pass = |drained: &[&str], selected: &str| {
        let mut objects: Vec<_> = objects().into_iter().chain(service("s", 1, &[DB, OPS, HOST])).collect();
        for object in &mut objects {
            let Object::EndpointSlice(slice) = object else { continue };
            if drained
                .iter()
                .any(|target| slice.addresses == parsed(&[target.split(' ').next().unwrap_or(target)]).into())
            {
                slice.draining = std::mem::take(&mut slice.addresses);
            }
        }
        let policies = web_to(vec![pods(&[selected])], vec![]).into_iter().map(Object::NetworkPolicy);
        let compiled = compiled(objects.into_iter().chain(policies), &Settings::default());
        let web = &compiled.endpoints[&Key::new("shop", "web")];
        matches!(web.decide_service(&compiled.services[&frontend("10.96.0.1", 80)]), Decision::Allow(_))
    };
    assert!(pass(&[DB, HOST], "app=db"), "its pod drains, and what is no pod is nobody's backend any more");
    assert!(!pass(&[DB], "app=db"), "a node still is");
    assert!(!pass(&[OPS, HOST], "app=nobody"), "no pod that may be reached");
}

/// Another node's port, for a pod of a tenant: whoever stands behind it must be within reach.
#[test]
fn another_nodes_port_is_open_to_a_tenant_only_if_every_backend_is() {
    use super::shop::namespace;
    let reached = |tenants: [(&str, Option<&str>); 2], targets: &[&str]| {
        let spaces = tenants.map(|(name, tenant)| {
            let labels: Vec<_> = tenant.iter().map(|tenant| ("bulkhead.io/tenant", *tenant)).collect();
            namespace(name, &labels, None)
        });
        let objects = objects().into_iter().filter(|o| !matches!(o, Object::Namespace(_))).chain(spaces);
        let compiled = compiled(objects.chain(service("s", 1, targets)), &Settings::default());
        compiled.endpoints[&Key::new("shop", "web")].reaches(&compiled.services[&frontend("0.0.0.0", 30001)])
    };
    let (shop, ops) = (("shop", Some("red")), ("ops", Some("blue")));
    assert!(reached([shop, ops], &[DB]), "its own tenant's");
    assert!(!reached([shop, ops], &[OPS]), "another tenant's");
    assert!(!reached([shop, ops], &[DB, OPS]), "some of another tenant");
    assert!(reached([shop, ("ops", None)], &[DB, OPS]), "shared");
    assert!(!reached([shop, ops], &[NOBODY]), "an unknown pod's");
    assert!(reached([("shop", None), ops], &[OPS]), "a pod without tenant");
    assert!(reached([shop, ops], &[OUTSIDE, HOST]), "no pods");
}

#[test]
fn tenants_of_backends_bound_what_a_policy_allows() {
    use super::shop::namespace;
    let tenants = |door| {
        [
            namespace("shop", &[("bulkhead.io/tenant", "red")], None),
            namespace("ops", &[("bulkhead.io/tenant", "blue")], door),
        ]
    };
    for (door, want) in [(None, false), (Some("red"), true), (Some("green"), false)] {
        let policies = web_to(vec![pods_of(&[], &[])], vec![]).into_iter().map(Object::NetworkPolicy);
        let objects =
            objects().into_iter().chain(tenants(door)).chain(service("s", 1, &[OPS])).chain(policies);
        let compiled = compiled(objects, &Settings::default());
        let web = &compiled.endpoints[&Key::new("shop", "web")];
        let decision = web.decide_service(&compiled.services[&frontend("10.96.0.1", 80)]);
        assert_eq!(matches!(decision, Decision::Allow(_)), want, "{door:?}");
    }
}

#[test]
fn services_with_like_backends_share_a_class() {
    let policies = web_to(vec![pods(&["app=job"])], vec![]).into_iter().map(Object::NetworkPolicy);
    let services = [
        service("one", 1, &[JOB]),
        service("two", 2, &["10.244.2.14 81"]), // job2: as job1, on another node
        service("other-port", 3, &["10.244.1.14 82"]),
        service("other-pod", 4, &[DB]),
    ];
    let compiled = compiled(
        objects().into_iter().chain(services.into_iter().flatten()).chain(policies),
        &Settings::default(),
    );
    let class = |address: &str, port| &compiled.services[&frontend(address, port)];
    let one = class("10.96.0.1", 80);
    assert_eq!(one, class("10.96.0.2", 80));
    assert_eq!(one, class("192.168.0.1", 30001), "by the node port as well");
    assert_ne!(one, class("10.96.0.3", 80));
    assert_ne!(one, class("10.96.0.4", 80));
    let Identity::Service(v6) = class("fd00:96::1", 80).as_ref() else { panic!("a Service") };
    assert_eq!(v6.backends().count(), 0, "slices of IPv4 stand behind frontends of IPv4");
    assert!(!compiled.services.contains_key(&frontend("192.168.0.2", 30001)), "another node's address");
}

#[test]
fn two_services_at_one_frontend_must_both_be_allowed() {
    let mut rival = service("rival", 1, &[HOST]);
    let first = service("first", 1, &[DB]);
    let policies = || web_to(vec![pods(&["app=db"])], vec![]).into_iter().map(Object::NetworkPolicy);
    let decision = |objects: Vec<Object>| {
        let compiled = compiled(
            super::shop::objects().into_iter().chain(objects).chain(policies()),
            &Settings::default(),
        );
        compiled.endpoints[&Key::new("shop", "web")]
            .decide_service(&compiled.services[&frontend("10.96.0.1", 80)])
    };
    assert!(matches!(decision(first.clone()), Decision::Allow(_)));
    rival.extend(first);
    assert_eq!(decision(rival), Decision::NoRule);
}

#[test]
fn nobody_reaches_a_service_with_a_tunnel_behind_it() {
    let draining = |objects: &mut Vec<Object>| {
        for object in objects {
            if let Object::EndpointSlice(slice) = object {
                slice.draining = std::mem::take(&mut slice.addresses);
            }
        }
    };
    let class = |targets: &[&str], protocol, drains: bool, settings: &Settings| {
        let mut offered = service("s", 1, targets);
        if drains {
            draining(&mut offered);
        }
        for object in &mut offered {
            match object {
                Object::Service(service) => {
                    service.ports =
                        service.ports.iter().map(|p| ServicePort { protocol, ..p.clone() }).collect();
                }
                Object::EndpointSlice(slice) => {
                    slice.ports = slice.ports.iter().map(|p| SlicePort { protocol, ..p.clone() }).collect();
                }
                _ => {}
            }
        }
        let compiled = compiled(objects().into_iter().chain(offered), settings);
        let frontend = |address, port| Frontend { protocol, ..frontend(address, port) };
        let reached = [("10.96.0.1", 80), ("192.168.0.1", 30001), ("0.0.0.0", 30001)];
        let classes = reached.map(|(address, port)| &compiled.services[&frontend(address, port)]);
        let tunnels = classes.map(|class| **class == Identity::Tunnel);
        if tunnels[0] {
            let decision = compiled.endpoints[&Key::new("shop", "web")].decide_service(classes[0]);
            assert_eq!(decision, Decision::NoRule, "open as its egress is");
        }
        tunnels
    };
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let (usual, none) = (Settings::default(), Settings { tunnel_port: 0, ..Settings::default() });
    for (case, targets, protocol, drains, settings, want) in [
        ("another node's", &["192.168.0.2 8472"][..], udp, false, &usual, true),
        ("the own node's", &["192.168.0.1 8472"], udp, false, &usual, true),
        ("an address of a node that nobody knows", &["8.8.8.8 8472"], udp, false, &usual, true),
        ("an address that is no pod's yet", &["10.244.1.99 8472"], udp, false, &usual, true),
        ("among others", &[DB, "192.168.0.2 8472"], udp, false, &usual, true),
        ("live connections go there still", &["192.168.0.2 8472"], udp, true, &usual, true),
        ("a pod's", &["10.244.2.11 8472"], udp, false, &usual, false),
        ("another port", &["192.168.0.2 8473"], udp, false, &usual, false),
        ("another protocol", &["192.168.0.2 8472"], tcp, false, &usual, false),
        ("no tunnels", &["192.168.0.2 8472"], udp, false, &none, false),
    ] {
        assert_eq!(class(targets, protocol, drains, settings), [want; 3], "{case}");
    }
}

#[test]
fn isolation_without_rules_admits_no_service() {
    let policies = vec![policy("shop/all", all(), OUT_OF, vec![])];
    assert_eq!(decide(&[DB], policies, &Settings::default()), Decision::NoRule);
}
