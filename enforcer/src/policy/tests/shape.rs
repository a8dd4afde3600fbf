//! The form of the output: how many entries, which grants, whose addresses, what the answers say.

use super::shop::{
    INTO, OUT_OF, any, block, index_of, labels, named, objects, parsed, pods, pods_of, policy, probe, rule,
    tcp,
};
use crate::{
    cluster::object::{Key, NetworkPolicy, Object, Pod, Protocol},
    policy::{
        Settings, Simulator,
        model::{Direction, Entries, Grant, Identity, PortMatch, RulePeer, RuleRef, Tenancy},
        probe::Probe,
    },
};

fn with(policies: impl IntoIterator<Item = NetworkPolicy>) -> Simulator {
    let policies = policies.into_iter().map(Object::NetworkPolicy);
    Simulator::new(index_of(objects().into_iter().chain(policies)), Settings::default())
}

/// All entries of shop/db on its node, but for those of the node itself.
fn entries(policies: impl IntoIterator<Item = NetworkPolicy>, direction: Direction) -> Entries {
    let compiled = with(policies).compiled(Some("n2"));
    let peers = || compiled.peers.values().map(AsRef::as_ref).chain(compiled.prefixes.values());
    let rules = &compiled.endpoints[&Key::new("shop", "db")].rules;
    let mut entries = rules.entries(peers().map(|p| &p.identity), peers().map(|p| &p.blocks));
    entries.retain(|key, grant| key.direction == direction && *grant != Grant::LocalNode);
    entries
}

fn rules(list: &[(&str, usize)]) -> Grant {
    let rule = |(name, rule): &(&str, usize)| RuleRef { policy: Key::new("shop", *name), rule: *rule };
    Grant::Rules(list.iter().map(rule).collect())
}

#[test]
fn all_pods_cost_one_entry_whatever_their_labels() {
    let found = entries(
        [policy(
            "shop/db",
            labels(&["app=db"]),
            INTO,
            vec![rule(vec![pods_of(&[], &[])], vec![tcp(80, 80)])],
        )],
        Direction::Ingress,
    );
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn an_open_direction_costs_one_entry() {
    let found = entries([policy("shop/db", labels(&["app=db"]), INTO, vec![])], Direction::Egress);
    let (key, grant) = found.first_key_value().expect("an entry");
    assert_eq!(
        (found.len(), &key.peer, key.ports, grant),
        (1, &RulePeer::Any, PortMatch::All, &Grant::NotIsolated)
    );
}

#[test]
fn a_finer_entry_names_the_coarser_rules_too() {
    let all_web = rule(vec![pods(&["app=web"])], vec![]);
    let web_80 = rule(vec![pods(&["app=web"])], vec![tcp(80, 80)]);
    let tcp_for_all = rule(vec![], vec![any(Protocol::Tcp)]);
    let subjects = || labels(&["app=db"]);
    let found = entries(
        [
            policy("shop/x", subjects(), INTO, vec![all_web, web_80]),
            policy("shop/y", subjects(), INTO, vec![tcp_for_all]),
        ],
        Direction::Ingress,
    );
    let found: Vec<_> = found
        .iter()
        .map(|(key, grant)| (matches!(key.peer, RulePeer::Any), key.ports, grant.clone()))
        .collect();
    assert_eq!(
        found,
        [
            (true, PortMatch::Protocol(6), rules(&[("y", 0)])),
            (false, PortMatch::All, rules(&[("x", 0)])),
            (false, PortMatch::port(6, 80), rules(&[("x", 0), ("x", 1), ("y", 0)])),
        ]
    );
}

#[test]
fn pods_alike_to_every_selector_share_an_identity() {
    let compiled =
        with([policy("shop/db", labels(&["app=db"]), INTO, vec![rule(vec![pods(&["tier"])], vec![])])])
            .compiled(Some("n1"));
    let identity =
        |address: &str| compiled.peer(address.parse().expect("an address")).map(|peer| peer.identity.clone());
    assert_eq!(identity("10.244.1.10"), identity("10.244.1.12"), "their app labels are in no peer selector");
    assert_ne!(identity("10.244.1.10"), identity("10.244.2.11"), "tier is");
    assert_eq!(identity("192.168.0.1").as_deref(), Some(&Identity::Host));
    assert_eq!(identity("192.168.0.2").as_deref(), Some(&Identity::RemoteNode));
    assert_eq!(identity("10.244.2.99").as_deref(), Some(&Identity::UnknownPod));
    assert_eq!(identity("8.8.8.8").as_deref(), Some(&Identity::World));
}

#[test]
fn prefixes_hold_pod_networks_blocks_exceptions_and_everything() {
    let peer = block("8.0.0.0/7", &["8.8.0.0/16"]);
    let compiled = with([policy("shop/db", labels(&["app=db"]), INTO, vec![rule(vec![peer], vec![])])])
        .compiled(Some("n1"));
    let prefixes: Vec<_> = compiled
        .prefixes
        .iter()
        .map(|(net, p)| (net.to_string(), p.blocks.blocks.len(), p.tenant.clone()))
        .collect();
    let want = [
        ("0.0.0.0/0", 0, Tenancy::Shared),
        ("8.0.0.0/7", 1, Tenancy::Shared),
        ("8.8.0.0/16", 0, Tenancy::Shared),
        ("10.244.1.0/24", 0, Tenancy::Unknown),
        ("10.244.2.0/24", 0, Tenancy::Unknown),
        ("::/0", 0, Tenancy::Shared),
        ("fd00:244:1::/64", 0, Tenancy::Unknown),
        ("fd00:244:2::/64", 0, Tenancy::Unknown),
    ];
    assert_eq!(prefixes, want.map(|(net, blocks, tenant)| (net.to_owned(), blocks, tenant)));
}

#[test]
fn two_living_pods_with_one_address_are_nobody_until_this_node_knows() {
    let mut index = index_of(objects());
    let mut twin = Pod::clone(index.pod(&Key::new("shop", "web")).expect("the shop has a web"));
    twin.key = Key::new("ops", "twin");
    index.apply(Object::Pod(twin));
    let address = "10.244.1.10".parse().expect("an address");
    let mut index = index.seen_from(Some("n1"));
    assert_eq!(index.owner(address), Some(crate::cluster::Owner::Contested));
    assert!(index.attach(Key::new("ops", "twin"), [address].into()));
    assert_eq!(index.pod_by_address(address).map(|pod| pod.key.to_string()), Some("ops/twin".to_owned()));
    assert!(index.detach(&Key::new("ops", "twin")));
    assert_eq!(index.pod_by_address(address), None);
}

#[test]
fn an_attachment_gives_a_pod_its_address_before_the_status_does() {
    let mut index = index_of(objects()).seen_from(Some("n1"));
    let (unborn, address) = (Key::new("shop", "unborn"), "10.244.1.77".parse().expect("an address"));
    assert_eq!(index.pod_by_address(address), None);
    index.attach(unborn.clone(), [address].into());
    assert_eq!(index.pod_by_address(address).map(|pod| &pod.key), Some(&unborn));
    assert_eq!(index.seen_from(Some("n2")).pod_by_address(address), None, "other nodes wait for the status");
}

#[test]
fn this_nodes_own_addresses_are_this_node() {
    let mut index = index_of(objects()).seen_from(Some("n1"));
    let address = "172.16.0.1".parse().expect("an address");
    assert_eq!(index.node_by_address(address), None);
    assert!(index.set_local_addresses(parsed(&["172.16.0.1"])));
    assert_eq!(index.node_by_address(address), Some("n1"));
}

#[test]
fn answers_name_policies_and_rules_or_the_reason() {
    let from_web = rule(vec![pods(&["app=web"])], vec![tcp(80, 80)]);
    let to_named = rule(vec![pods(&["app=db"])], vec![named("http", Protocol::Tcp)]);
    let mut simulator = with([
        policy(
            "shop/allow-web",
            labels(&["app=db"]),
            INTO,
            vec![rule(vec![pods(&["app=job"])], vec![]), from_web],
        ),
        policy("shop/deny-all", labels(&["app=db"]), INTO, vec![]),
        policy("shop/out", labels(&["app=job"]), OUT_OF, vec![to_named]),
    ]);
    let mut by =
        |text| simulator.answer(&probe(text)).map(|a| (a.egress.by, a.ingress.by)).expect("an answer");
    let said = |egress: &str, ingress: &str| (egress.to_owned(), ingress.to_owned());
    assert_eq!(by("shop/web shop/db TCP 80"), said("not isolated", "shop/allow-web ingress rule 1"));
    let isolated = "isolated by shop/allow-web, shop/deny-all, no rule allows";
    assert_eq!(by("ip:8.8.8.8 shop/db TCP 80"), said("not a pod", isolated));
    assert_eq!(
        by("shop/job1 shop/db TCP 9090"),
        said("shop/out egress rule 0", "shop/allow-web ingress rule 0")
    );
    assert_eq!(by("node:n2 shop/db TCP 1"), said("not a pod", "own node"));
    assert_eq!(by("shop/db shop/db TCP 1"), said("own address", "own address"));
}

#[test]
fn probes_and_answers_are_the_json_of_simulate() {
    let text = r#"{"src":"shop/web","dst":"ip:8.8.8.8","protocol":"TCP","port":80,"family":"IPv4"}"#;
    let question: Probe = serde_json::from_str(text).expect("a probe");
    assert_eq!(serde_json::to_string(&question).expect("JSON"), text);
    let answer = with([]).answer(&question).expect("an answer");
    assert_eq!(
        serde_json::to_string(&answer).expect("JSON"),
        r#"{"verdict":"allow","egress":{"verdict":"allow","by":"not isolated"},"ingress":{"verdict":"allow","by":"not a pod"}}"#
    );
    for wrong in ["web", "ip:8.8", "node:", "a/b/c", "/x"] {
        assert!(
            serde_json::from_value::<Probe>(
                serde_json::json!({"src": wrong, "dst": "a/b", "protocol": "TCP"})
            )
            .is_err()
        );
    }
}
