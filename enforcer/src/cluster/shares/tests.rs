use std::collections::BTreeSet;

use super::*;
use crate::cluster::{
    Index,
    object::{Kind, Object, ObjectRef, Port, Protocol},
};

fn policy(name: &str, peers: Vec<Peer>, ports: Vec<Port>) -> NetworkPolicy {
    NetworkPolicy {
        key: Key::new("shop", name),
        labels: [].into(),
        subjects: Selector::default(),
        ingress: Some(vec![Rule { index: 0, peers, ports }]),
        egress: None,
        defects: Vec::new(),
    }
}

fn blocks(count: usize) -> Vec<Peer> {
    let block = |n: usize| {
        let cidr = format!("10.{}.{}.0/24", n / 256, n % 256).parse().expect("a prefix");
        Peer::Block(IpBlock { cidr, except: [].into() })
    };
    (0..count).map(block).collect()
}

fn everyone_but(count: usize, of: usize) -> Peer {
    let hole = |n: usize| format!("10.{of}.{}.{}/32", n / 256, n % 256).parse().expect("a prefix");
    Peer::Block(IpBlock {
        cidr: "0.0.0.0/0".parse().expect("a prefix"),
        except: (0..count).map(hole).collect(),
    })
}

fn port(number: u16) -> Port {
    Port { protocol: Protocol::Tcp, ports: Ports::Range(number, number) }
}

/// Names of the policies that admit nothing, and of those that were touched.
fn told(index: &mut Index) -> (Vec<String>, Vec<String>) {
    let is_shut = |policy: &&NetworkPolicy| policy.ingress.as_ref().is_some_and(Vec::is_empty);
    let shut = index.policies().filter(is_shut).map(|policy| {
        assert!(policy.defects.iter().any(|why| why.starts_with("no room: ")), "{policy:?}");
        policy.key.name.to_string()
    });
    let shut = shut.collect();
    (shut, index.take_touched().policies.iter().map(|key| key.name.to_string()).collect())
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn a_policy_beyond_every_measure_admits_nothing_and_takes_no_other_down() {
    let many = |count| (1..=count).map(port).collect();
    let label = |n: usize| Peer::Pods {
        namespaces: None,
        pods: Selector {
            requirements: (0..n)
                .map(|n| crate::cluster::object::Requirement {
                    key: format!("k{n}").into(),
                    operator: crate::cluster::object::Operator::Exists,
                })
                .collect(),
        },
    };
    for (case, hostile) in [
        ("peers", policy("big", vec![label(1); MAX_PEERS + 1], vec![])),
        ("requirements", policy("big", vec![label(MAX_PEERS + 1)], vec![])),
        ("peers times ports", policy("big", blocks(400), many(400))),
        ("ports", policy("big", vec![], many(5000))),
        ("prefixes", policy("big", blocks(MAX_PREFIXES + 1), vec![])),
        ("exceptions", policy("big", vec![everyone_but(MAX_PREFIXES, 1)], vec![])),
        ("crossings", policy("big", (0..30).map(|of| everyone_but(90, of)).collect(), vec![])),
    ] {
        let mut index = Index::new(None);
        let good = policy("zoo", blocks(100), vec![port(80)]);
        index.apply(Object::NetworkPolicy(good.clone()));
        index.apply(Object::NetworkPolicy(hostile.clone()));
        assert_eq!(told(&mut index), (names(&["big"]), names(&["big", "zoo"])), "{case}");
        assert_eq!(index.policy(&good.key), Some(&good));
        assert!(!index.apply(Object::NetworkPolicy(hostile)), "it has not changed");
        let cured = policy("big", blocks(1), vec![]);
        index.apply(Object::NetworkPolicy(cured.clone()));
        assert_eq!(told(&mut index), (vec![], names(&["big"])), "{case}");
        assert_eq!(index.policy(&cured.key), Some(&cured));
    }
}

#[test]
fn what_is_large_and_useful_has_room() {
    for useful in [
        policy("clouds", blocks(10_000), vec![port(443), port(80)]),
        policy("but", vec![everyone_but(10_000, 1)], vec![]),
        policy("ports", vec![], (1..=4_000).map(port).collect()),
    ] {
        let mut index = Index::new(None);
        index.apply(Object::NetworkPolicy(useful.clone()));
        assert_eq!(index.policy(&useful.key), Some(&useful));
    }
    let mut index = Index::new(None);
    for n in 0..10_000 {
        index.apply(Object::NetworkPolicy(policy(
            &format!("p{n}"),
            vec![everyone_but(3, 1)],
            vec![port(80)],
        )));
    }
    assert_eq!(told(&mut index).0, names(&[]), "the same block in ten thousand policies is one");
}

#[test]
fn policies_find_room_in_the_order_of_their_names_whatever_came_first() {
    let each = MAX_PREFIXES / 2 - 8;
    let shifted = |name: &str, by: usize| policy(name, blocks(by + each).split_off(by), vec![]);
    let all = [shifted("a", 0), shifted("b", each), shifted("c", 2 * each), policy("d", blocks(1), vec![])];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let mut index = Index::new(None);
        for number in order {
            index.apply(Object::NetworkPolicy(all[number].clone()));
        }
        assert_eq!(told(&mut index).0, names(&["c"]), "{order:?}");
        index.delete(&ObjectRef { kind: Kind::NetworkPolicy, key: all[0].key.clone() });
        assert_eq!(told(&mut index), (vec![], names(&["a", "c"])), "{order:?}");
        index.apply(Object::NetworkPolicy(all[0].clone()));
        assert_eq!(told(&mut index), (names(&["c"]), names(&["a", "c"])), "{order:?}");
        index.delete(&ObjectRef { kind: Kind::NetworkPolicy, key: all[2].key.clone() });
        assert_eq!(told(&mut index).0, names(&[]), "{order:?}");
    }
}

#[test]
fn another_namespace_has_its_own_room() {
    let mut index = Index::new(None);
    let full = policy("full", blocks(MAX_PREFIXES), vec![]);
    let mut other = policy("other", blocks(MAX_PREFIXES), vec![]);
    other.key = Key::new("elsewhere", "other");
    for policy in [&full, &other] {
        index.apply(Object::NetworkPolicy(policy.clone()));
    }
    let in_force: BTreeSet<_> = index.policies().map(|policy| policy.defects.clone()).collect();
    assert_eq!(in_force, [vec![]].into());
}
