//! A small fixed cluster and short spellings for the tables.

use std::collections::BTreeSet;

use crate::{
    cluster::{
        Index,
        object::{
            ContainerPort, IpBlock, Key, Labels, NAMESPACE_NAME_LABEL, Namespace, NetworkPolicy, Node,
            Object, Operator, Peer, Pod, Port, Ports, Protocol, Requirement, Rule, Selector,
        },
    },
    policy::{Probe, probe::EndpointRef, probe::ProbeProtocol},
};

/// Two nodes; `shop` with web (both families), db, two jobs behind equal labels, and an unlabelled pod;
/// `ops` with its own web, and a host-network pod; a finished pod that once had web's address.
pub fn objects() -> Vec<Object> {
    let mut objects = vec![node("n1", 1), node("n2", 2), namespace("shop", &[("env", "prod")], None)];
    objects.push(namespace("ops", &[("env", "ops"), ("empty", "")], None));
    let web_ports = [("http", Protocol::Tcp, 8080)];
    objects.extend([
        Object::Pod(Pod {
            finished: true,
            ..pod("shop/gone", "n2", &["10.244.1.10"], &[("app", "gone")], &[])
        }),
        Object::Pod(pod("shop/web", "n1", &["10.244.1.10", "fd00:244:1::10"], &[("app", "web")], &web_ports)),
        Object::Pod(pod(
            "shop/db",
            "n2",
            &["10.244.2.11", "fd00:244:2::11"],
            &[("app", "db"), ("tier", "")],
            &[("http", Protocol::Tcp, 9090), ("dns", Protocol::Udp, 53)],
        )),
        Object::Pod(pod(
            "shop/job1",
            "n1",
            &["10.244.1.14"],
            &[("app", "job")],
            &[("http", Protocol::Tcp, 81)],
        )),
        Object::Pod(pod(
            "shop/job2",
            "n2",
            &["10.244.2.14"],
            &[("app", "job")],
            &[("http", Protocol::Tcp, 82)],
        )),
        Object::Pod(pod("shop/bare", "n1", &["10.244.1.12"], &[], &[])),
        Object::Pod(pod("shop/unborn", "n1", &[], &[("app", "web")], &[])),
        Object::Pod(pod("ops/web", "n2", &["10.244.2.13"], &[("app", "web")], &[])),
        Object::Pod(Pod {
            host_network: true,
            ..pod("shop/host", "n2", &["192.168.0.2"], &[("app", "web")], &[])
        }),
    ]);
    objects
}

pub fn index_of(objects: impl IntoIterator<Item = Object>) -> Index {
    let mut index = Index::new(None);
    for object in objects {
        index.apply(object);
    }
    index
}

fn node(name: &str, number: u8) -> Object {
    Object::Node(Node {
        name: name.into(),
        addresses: parsed(&[&format!("192.168.0.{number}"), &format!("fd00:f::{number}")]),
        pod_cidrs: parsed(&[&format!("10.244.{number}.0/24"), &format!("fd00:244:{number}::/64")]),
    })
}

pub fn namespace(name: &str, labels: &[(&str, &str)], door: Option<&str>) -> Object {
    let mut labels = pairs(labels);
    labels.insert(NAMESPACE_NAME_LABEL, name);
    let annotations =
        door.map(|d| ("bulkhead.io/allow-tenants".to_owned(), d.to_owned())).into_iter().collect();
    Object::Namespace(Namespace { name: name.into(), labels, annotations })
}

pub fn pod(
    name: &str,
    node: &str,
    ips: &[&str],
    labels: &[(&str, &str)],
    ports: &[(&str, Protocol, u16)],
) -> Pod {
    let port = |(name, protocol, port): &(&str, _, _)| ContainerPort {
        name: (*name).into(),
        protocol: *protocol,
        port: *port,
    };
    Pod {
        key: key(name),
        uid: None,
        labels: pairs(labels),
        node: Some(node.into()),
        host_network: false,
        finished: false,
        ips: parsed(ips).into(),
        ports: ports.iter().map(port).collect(),
        workload: None,
    }
}

/// `source destination PROTOCOL port`.
pub fn probe(text: &str) -> Probe {
    let words: Vec<_> = text.split_whitespace().collect();
    let [src, dst, protocol, port] = words[..] else { panic!("a probe has four words: {text}") };
    let end = |text: &str| text.parse::<EndpointRef>().expect("an end");
    let protocol: ProbeProtocol = protocol.parse().expect("a protocol");
    Probe { src: end(src), dst: end(dst), protocol, port: Some(port.parse().expect("a port")), family: None }
}

pub const INTO: bool = true;
pub const OUT_OF: bool = false;

/// Isolates in one direction, with these rules.
pub fn policy(name: &str, subjects: Selector, ingress: bool, rules: Vec<Rule>) -> NetworkPolicy {
    let rules = Some(rules.into_iter().enumerate().map(|(index, rule)| Rule { index, ..rule }).collect());
    let (ingress, egress) = if ingress { (rules, None) } else { (None, rules) };
    NetworkPolicy { key: key(name), labels: Labels::new(), subjects, ingress, egress, defects: Vec::new() }
}

pub fn rule(peers: Vec<Peer>, ports: Vec<Port>) -> Rule {
    Rule { index: 0, peers, ports }
}

pub fn all() -> Selector {
    Selector::default()
}

/// `key=value`, `key`, `!key` or `key!=value`.
pub fn labels(requirements: &[&str]) -> Selector {
    let values = |value: &str| [value.to_owned()].into();
    let requirement = |text: &&str| {
        let (key, operator) = match (text.split_once("!="), text.split_once('='), text.strip_prefix('!')) {
            (Some((key, value)), ..) => (key, Operator::NotIn(values(value))),
            (_, Some((key, value)), _) => (key, Operator::In(values(value))),
            (.., Some(key)) => (key, Operator::DoesNotExist),
            _ => (*text, Operator::Exists),
        };
        Requirement { key: key.into(), operator }
    };
    Selector { requirements: requirements.iter().map(requirement).collect() }
}

pub fn pods(requirements: &[&str]) -> Peer {
    Peer::Pods { namespaces: None, pods: labels(requirements) }
}

pub fn pods_of(namespaces: &[&str], requirements: &[&str]) -> Peer {
    Peer::Pods { namespaces: Some(labels(namespaces)), pods: labels(requirements) }
}

pub fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::Block(IpBlock { cidr: cidr.parse().expect("a prefix"), except: parsed(except).into() })
}

pub fn tcp(first: u16, last: u16) -> Port {
    Port { protocol: Protocol::Tcp, ports: Ports::Range(first, last) }
}

pub fn any(protocol: Protocol) -> Port {
    Port { protocol, ports: Ports::All }
}

pub fn named(name: &str, protocol: Protocol) -> Port {
    Port { protocol, ports: Ports::Named(name.into()) }
}

fn key(name: &str) -> Key {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    Key::new(namespace, name)
}

fn pairs(labels: &[(&str, &str)]) -> Labels {
    labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub fn parsed<T: std::str::FromStr<Err: std::fmt::Debug> + Ord>(texts: &[&str]) -> BTreeSet<T> {
    texts.iter().map(|text| text.parse().expect("written here")).collect()
}
