//! Clusters where much collides: few labels and values, nested blocks with exceptions, container ports
//! that share a name, ports at the edges of ranges, reused addresses.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;

use crate::{
    cluster::{
        Index,
        object::{
            ContainerPort, EndpointSlice, IpBlock, Key, Labels, NAMESPACE_NAME_LABEL, Namespace,
            NetworkPolicy, Node, Object, Operator, Peer, Pod, Port, Ports, Protocol, Requirement, Rule,
            Selector, Service, ServicePort, SlicePort,
        },
    },
    policy::{
        DEFAULT_TENANT_LABEL, Settings,
        probe::{EndpointRef, Family, Probe, ProbeProtocol},
        tenant::DOOR_ANNOTATION,
    },
};

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const VALUES: [&str; 3] = ["x", "y", ""];
const TENANTS: [&str; 3] = ["red", "blue", ""];
const PORT_NAMES: [&str; 2] = ["http", "dns"];
const PORTS: [u16; 10] = [1, 53, 80, 81, 1023, 1024, 32767, 32768, 65534, 65535];
const BLOCKS: [&str; 14] = [
    "0.0.0.0/0",
    "8.0.0.0/7",
    "8.8.0.0/16",
    "8.8.8.0/24",
    "8.8.8.8/32",
    "10.244.0.0/16",
    "10.244.1.0/24",
    "10.244.1.0/29",
    "192.168.0.0/24",
    "192.168.0.1/32",
    "::/0",
    "fd00:244::/32",
    "fd00:244:1::/64",
    "fd00:244:1::4/126",
];
const ADDRESSES: [&str; 14] = [
    "8.8.8.8",
    "8.8.8.9",
    "8.8.4.4",
    "9.9.9.9",
    "203.0.113.7",
    "10.244.1.0",
    "10.244.1.1",
    "10.244.1.5",
    "10.244.1.200",
    "10.244.2.6",
    "192.168.0.1",
    "192.168.0.77",
    "fd00:244:1::5",
    "2001:db8::1",
];

/// A cluster, settings, and questions about it.
#[derive(Clone, Debug)]
pub struct Case {
    pub objects: Vec<Object>,
    pub settings: Settings,
    pub probes: Vec<Probe>,
}

impl Case {
    /// The same seed gives the same case.
    pub fn of(seed: u64, probes: usize) -> Self {
        let mut random = Random(seed);
        let settings = Settings {
            tenant_label: random.chance(70).then(|| DEFAULT_TENANT_LABEL.to_owned()),
            local_node_egress: random.chance(60),
            ..Settings::default()
        };
        let mut objects = random.nodes();
        objects.extend(random.namespaces());
        objects.extend((0..random.below(8) + 2).map(|i| Object::Pod(random.pod(i))));
        objects.extend((0..random.below(7)).map(|i| Object::NetworkPolicy(random.policy(&format!("np{i}")))));
        let services = (0..random.below(4)).flat_map(|i| random.service(i, &objects)).collect::<Vec<_>>();
        objects.extend(services);
        let probes = (0..probes).map(|_| random.probe(&objects)).collect();
        Self { objects, settings, probes }
    }

    pub fn index(&self) -> Index {
        index(&self.objects)
    }
}

pub fn index(objects: &[Object]) -> Index {
    let mut index = Index::new(None);
    for object in objects {
        index.apply(object.clone());
    }
    index
}

/// splitmix64: enough to choose test cases, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        usize::try_from(bits % bound as u64).expect("below a usize")
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    fn pick_of<'i, T>(&mut self, items: &'i [T]) -> &'i T {
        &items[self.below(items.len())]
    }

    /// Up to `most` items.
    fn some<T: Ord>(&mut self, most: usize, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| item(self)).collect()
    }

    pub fn nodes(&mut self) -> Vec<Object> {
        let node = |i: usize, cidrs: bool| {
            let cidrs =
                if cidrs { vec![format!("10.244.{i}.0/24"), format!("fd00:244:{i}::/64")] } else { vec![] };
            Object::Node(Node {
                name: format!("n{i}"),
                addresses: parsed(&[format!("192.168.0.{i}"), format!("fd00:f::{i}")]),
                pod_cidrs: parsed(&cidrs),
            })
        };
        let second = self.chance(85);
        vec![node(1, true), node(2, second)]
    }

    pub fn namespaces(&mut self) -> Vec<Object> {
        let mut namespaces = Vec::new();
        for name in NAMESPACES {
            if self.chance(15) {
                continue; // undeclared
            }
            let mut labels = Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned())]);
            let mut annotations = Labels::new();
            if self.chance(60) {
                labels.insert("env".to_owned(), self.pick(&VALUES).to_owned());
            }
            if self.chance(60) {
                labels.insert(DEFAULT_TENANT_LABEL.to_owned(), self.pick(&TENANTS).to_owned());
            }
            if self.chance(40) {
                let door = self.pick(&["red", "blue", "red, blue", "*", "", "green"]);
                annotations.insert(DOOR_ANNOTATION.to_owned(), door.to_owned());
            }
            namespaces.push(Object::Namespace(Namespace { name: name.to_owned(), labels, annotations }));
        }
        namespaces
    }

    pub fn pod(&mut self, number: usize) -> Pod {
        let node = self.pick(&[Some(1), Some(1), Some(1), Some(2), Some(2), None]);
        let host_network = node.is_some() && self.chance(12);
        let net = node.unwrap_or(1);
        // Few host parts: a finished pod's address is often somebody else's by now.
        let host = if self.chance(15) { 5 } else { 10 + number };
        let mut ips = Vec::new();
        if host_network {
            ips.push(format!("192.168.0.{net}"));
        } else {
            let families = self.below(10);
            if families < 8 {
                ips.push(format!("10.244.{net}.{host}"));
            }
            if families > 3 && families < 9 {
                ips.push(format!("fd00:244:{net}::{host}"));
            }
        }
        let port = |r: &mut Self| ContainerPort {
            name: r.pick(&PORT_NAMES).to_owned(),
            protocol: r.protocol(),
            port: r.pick(&PORTS),
        };
        Pod {
            key: Key::new(self.pick(&NAMESPACES), format!("p{number}")),
            uid: None,
            labels: self.labels(&["app", "tier", "noise"]),
            node: node.map(|i| format!("n{i}").into()),
            host_network,
            finished: self.chance(12),
            ips: parsed(&ips).into(),
            ports: self.some(3, port).into_iter().collect(),
            workload: None,
        }
    }

    /// With its slices. Addresses collide, port names miss one another, backends are anybody.
    pub fn service(&mut self, number: usize, objects: &[Object]) -> Vec<Object> {
        let key = Key::new(self.pick(&NAMESPACES), format!("s{number}"));
        let name = |r: &mut Self| r.pick(&["", "", "http"]).to_owned();
        let port = |r: &mut Self| ServicePort {
            name: name(r),
            protocol: r.protocol(),
            port: r.pick(&PORTS),
            node_port: r.chance(50).then(|| r.pick(&PORTS)),
        };
        let ports = (0..=self.below(2)).map(|_| port(self)).collect();
        let mut addresses = Vec::new();
        if self.chance(85) {
            let host = self.below(3) + 1;
            addresses.push(format!("10.96.0.{host}"));
            if self.chance(50) {
                addresses.push(format!("fd00:96::{host}"));
            }
            if self.chance(20) {
                addresses.push(self.pick(&ADDRESSES).to_owned());
            }
        }
        let mut made =
            vec![Object::Service(Service { key: key.clone(), addresses: parsed(&addresses).into(), ports })];
        for slice in 0..self.below(4) {
            let namespace = if self.chance(95) { key.namespace.as_ref() } else { self.pick(&NAMESPACES) };
            let ipv4 = self.chance(75);
            let backends = (0..=self.below(3)).flat_map(|_| self.backend(objects));
            let addresses = backends.filter(|a| a.is_ipv4() == ipv4).collect();
            let protocol = |r: &mut Self| if r.chance(70) { Protocol::Tcp } else { r.protocol() };
            let port =
                |r: &mut Self| SlicePort { name: name(r), protocol: protocol(r), port: r.pick(&PORTS) };
            made.push(Object::EndpointSlice(EndpointSlice {
                key: Key::new(namespace, format!("s{number}-{slice}")),
                service: key.name.to_string(),
                addresses,
                draining: [].into(),
                ports: (0..=self.below(2)).map(|_| port(self)).collect(),
                defective: false,
            }));
        }
        made
    }

    /// Addresses of somebody, most often of a pod.
    fn backend(&mut self, objects: &[Object]) -> BTreeSet<IpAddr> {
        match self.pick_of(objects) {
            _ if self.chance(15) => parsed(&[self.pick(&ADDRESSES).to_owned()]),
            Object::Pod(pod) => pod.ips.iter().copied().collect(),
            Object::Node(node) => node.addresses.clone(),
            _ => BTreeSet::new(),
        }
    }

    pub fn policy(&mut self, name: &str) -> NetworkPolicy {
        let mut direction =
            |percent| self.chance(percent).then(|| (0..self.below(3)).map(|i| self.rule(i)).collect());
        let (ingress, egress) = (direction(70), direction(60));
        NetworkPolicy {
            key: Key::new(self.pick(&NAMESPACES), name),
            labels: Labels::new(),
            subjects: self.selector(&["app", "tier"], 50),
            ingress,
            egress,
            defects: Vec::new(),
        }
    }

    pub fn rule(&mut self, index: usize) -> Rule {
        let peers = if self.chance(15) { Vec::new() } else { self.some(3, Self::peer) };
        let ports = if self.chance(35) { Vec::new() } else { self.some(3, Self::port) };
        Rule { index, peers, ports }
    }

    fn peer(&mut self) -> Peer {
        if self.chance(45) {
            let cidr = network(self.pick(&BLOCKS));
            let inside = |e: &IpNetwork| {
                e.is_ipv4() == cidr.is_ipv4() && cidr.contains(e.ip()) && e.prefix() > cidr.prefix()
            };
            let except = self.some(3, |r| network(r.pick(&BLOCKS))).into_iter().filter(inside).collect();
            return Peer::Block(IpBlock { cidr, except });
        }
        let namespaces = self.chance(60).then(|| self.selector(&["env", NAMESPACE_NAME_LABEL, "app"], 40));
        Peer::Pods { namespaces, pods: self.selector(&["app", "tier", "env"], 40) }
    }

    fn port(&mut self) -> Port {
        let ports = match self.below(4) {
            0 => Ports::All,
            1 => Ports::Named(self.pick(&PORT_NAMES).to_owned()),
            _ => {
                let (a, b) = (self.pick(&PORTS), self.pick(&PORTS));
                Ports::Range(a.min(b), a.max(b))
            }
        };
        Port { protocol: self.protocol(), ports }
    }

    fn protocol(&mut self) -> Protocol {
        self.pick(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
    }

    fn labels(&mut self, keys: &[&str]) -> Labels {
        let mut labels = Labels::new();
        for key in keys {
            if self.chance(65) {
                labels.insert((*key).to_owned(), self.pick(&VALUES).to_owned());
            }
        }
        labels
    }

    fn selector(&mut self, keys: &[&str], empty_percent: usize) -> Selector {
        if self.chance(empty_percent) {
            return Selector::default();
        }
        let requirement = |r: &mut Self| {
            let key = r.pick(keys).into();
            let values = |r: &mut Self| {
                let name = |r: &mut Self| {
                    if r.chance(25) { r.pick(&NAMESPACES) } else { r.pick(&VALUES) }.to_owned()
                };
                [name(r), name(r)].into()
            };
            let operator = match r.below(6) {
                0 => Operator::Exists,
                1 => Operator::DoesNotExist,
                2 => Operator::NotIn(values(r)),
                _ => Operator::In(values(r)),
            };
            Requirement { key, operator }
        };
        Selector { requirements: self.some(2, requirement).into_iter().collect() }
    }

    fn probe(&mut self, objects: &[Object]) -> Probe {
        if let Some(probe) = self.chance(25).then(|| self.service_probe(objects)).flatten() {
            return probe;
        }
        Probe {
            src: self.end(objects),
            dst: self.end(objects),
            protocol: self.pick(&[
                ProbeProtocol::Tcp,
                ProbeProtocol::Tcp,
                ProbeProtocol::Udp,
                ProbeProtocol::Sctp,
                ProbeProtocol::Icmp,
            ]),
            port: Some(self.pick(&PORTS)),
            family: self.pick(&[None, None, Some(Family::V4), Some(Family::V6)]),
        }
    }

    /// To one of a Service's addresses, or to a node by a node port.
    fn service_probe(&mut self, objects: &[Object]) -> Option<Probe> {
        let services: Vec<_> = objects
            .iter()
            .filter_map(|o| if let Object::Service(s) = o { Some(s) } else { None })
            .filter(|service| !service.addresses.is_empty())
            .collect();
        let service = (!services.is_empty()).then(|| self.pick(&services))?;
        let ServicePort { protocol, port, node_port, .. } =
            self.pick(&service.ports.iter().collect::<Vec<_>>());
        let (dst, port) = match node_port {
            Some(node_port) if self.chance(50) => {
                (EndpointRef::Node(self.pick(&["n1", "n2"]).to_owned()), *node_port)
            }
            _ => {
                let addresses: Vec<_> = service.addresses.iter().copied().collect();
                (EndpointRef::Ip(self.pick(&addresses)), *port)
            }
        };
        let protocol = match protocol {
            Protocol::Tcp => ProbeProtocol::Tcp,
            Protocol::Udp => ProbeProtocol::Udp,
            Protocol::Sctp => ProbeProtocol::Sctp,
        };
        Some(Probe { src: self.end(objects), dst, protocol, port: Some(port), family: None })
    }

    fn end(&mut self, objects: &[Object]) -> EndpointRef {
        let pods: Vec<_> =
            objects.iter().filter_map(|o| if let Object::Pod(p) = o { Some(p) } else { None }).collect();
        match self.below(10) {
            0 => EndpointRef::Node(self.pick(&["n1", "n2"]).to_owned()),
            1 | 2 => EndpointRef::Ip(self.pick(&ADDRESSES).parse().expect("a constant")),
            _ => EndpointRef::Pod(self.pick(&pods).key.clone()),
        }
    }
}

fn network(text: &str) -> IpNetwork {
    text.parse().expect("a constant")
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug> + Ord>(texts: &[String]) -> BTreeSet<T> {
    texts.iter().map(|text| text.parse().expect("written here")).collect()
}

/// A sentence for the message of a failing case.
pub fn describe(probe: &Probe) -> String {
    let port = probe.port.map(|p| format!(":{p}")).unwrap_or_default();
    format!("{} -> {}{port} {} {:?}", probe.src, probe.dst, probe.protocol, probe.family)
}
