//! Services and their backends: where a Service is reached from this node, and what stands behind it.
//!
//! As kube-proxy reads them: a Service's port belongs to the slices' ports of the same name and protocol, and
//! to the endpoints of the frontend's family. What narrows kube-proxy's choice on one node (traffic policies,
//! topology hints) is not read: all backends count, so that a rule must hold for whichever is chosen.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    index::{canonical, only, replace},
    object::{EndpointSlice, Key, Protocol, Service, ServicePort},
};

/// Where a connection to a Service goes before translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Frontend {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

/// In place of an address: any of another node.
pub const OTHER_NODES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

impl Frontend {
    /// The port of another node.
    pub fn is_elsewhere(&self) -> bool {
        self.address.is_unspecified()
    }
}

/// Where it goes afterwards; the protocol stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub address: IpAddr,
    pub port: u16,
}

/// One port of one Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRef<'a> {
    pub service: &'a Key,
    pub name: &'a str,
    pub protocol: Protocol,
}

#[derive(Clone, Debug, Default)]
pub struct Services {
    by_key: BTreeMap<Key, Arc<Service>>,
    slices: BTreeMap<Key, Arc<EndpointSlice>>,
    /// Slices by their Service; a slice may come before its Service.
    slices_of: BTreeMap<Key, BTreeSet<Key>>,
}

impl Services {
    pub fn set_service(&mut self, service: Service) -> bool {
        replace(&mut self.by_key, service.key.clone(), service)
    }

    pub fn remove_service(&mut self, key: &Key) -> bool {
        self.by_key.remove(key).is_some()
    }

    pub fn set_slice(&mut self, slice: EndpointSlice) -> bool {
        if self.slices.get(&slice.key).is_some_and(|known| known.service != slice.service) {
            self.remove_slice(&slice.key);
        }
        self.slices_of.entry(slice.service_key()).or_default().insert(slice.key.clone());
        replace(&mut self.slices, slice.key.clone(), slice)
    }

    pub fn remove_slice(&mut self, key: &Key) -> bool {
        let Some(slice) = self.slices.remove(key) else { return false };
        let service = slice.service_key();
        if let Some(slices) = self.slices_of.get_mut(&service) {
            slices.remove(key);
            if slices.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        true
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.by_key.values().map(Arc::as_ref)
    }

    pub fn service(&self, key: &Key) -> Option<&Service> {
        self.by_key.get(key).map(Arc::as_ref)
    }

    pub fn slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.values().map(Arc::as_ref)
    }

    /// Where a pod of a node with these addresses reaches which Services. Two Services that claim one frontend
    /// both stand there: which of them kube-proxy serves is not known, so a rule must hold for both.
    pub fn frontends(
        &self,
        own_addresses: impl IntoIterator<Item = IpAddr>,
    ) -> BTreeMap<Frontend, BTreeSet<PortRef<'_>>> {
        let own_addresses: Vec<_> = own_addresses.into_iter().collect();
        let mut frontends: BTreeMap<Frontend, BTreeSet<PortRef<'_>>> = BTreeMap::new();
        for service in self.services() {
            for (frontend, port) in service.frontends(own_addresses.iter().copied()) {
                frontends.entry(frontend).or_default().insert(port);
            }
        }
        frontends
    }

    /// Who is reached at one frontend; `own_address`: it is an address of the node.
    pub fn at(&self, frontend: Frontend, own_address: bool) -> BTreeSet<PortRef<'_>> {
        self.services().flat_map(|service| service.ports_at(frontend, own_address)).collect()
    }

    /// What stands behind a port of a Service, of one address family.
    pub fn backends(&self, of: PortRef<'_>, ipv4: bool) -> BTreeSet<Backend> {
        let slices = self.slices_of.get(of.service).into_iter().flatten();
        slices.filter_map(|key| self.slices.get(key)).flat_map(|slice| slice.backends(of, ipv4)).collect()
    }

    /// Where connections to a port of a Service may still live that began when there was a backend.
    pub fn draining(&self, of: PortRef<'_>, ipv4: bool) -> BTreeSet<Backend> {
        let slices = self.slices_of.get(of.service).into_iter().flatten();
        slices.filter_map(|key| self.slices.get(key)).flat_map(|slice| slice.drained(of, ipv4)).collect()
    }

    /// Whoever may stand behind a Service, by any of its ports.
    pub fn backend_addresses(&self, service: &Key) -> BTreeSet<IpAddr> {
        let slices = self.slices_of.get(service).into_iter().flatten();
        let slices = slices.filter_map(|key| self.slices.get(key));
        let addresses = slices.flat_map(|slice| slice.addresses.iter().chain(&slice.draining));
        addresses.map(|address| canonical(*address)).collect()
    }

    pub fn slice(&self, key: &Key) -> Option<&EndpointSlice> {
        self.slices.get(key).map(Arc::as_ref)
    }

    /// Where a Service's backends serve it; nowhere if there is no such Service.
    pub fn served(&self, service: &Key) -> impl Iterator<Item = Frontend> {
        let slices = self.slices_of.get(service).filter(|_| self.by_key.contains_key(service));
        slices.into_iter().flatten().filter_map(|key| self.slices.get(key)).flat_map(|slice| slice.served())
    }

    /// Whose Service is reached at an address and port, or, where none is, served from there. Left out where
    /// it may be several Services'. Endpoints of headless Services are named too.
    pub fn names(&self, own_addresses: impl IntoIterator<Item = IpAddr>) -> BTreeMap<Frontend, &Key> {
        let mut served: BTreeMap<Frontend, BTreeSet<&Key>> = BTreeMap::new();
        for slice in self.slices() {
            let Some((service, _)) = self.by_key.get_key_value(&slice.service_key()) else { continue };
            for at in slice.served() {
                served.entry(at).or_default().insert(service);
            }
        }
        for (frontend, ports) in self.frontends(own_addresses) {
            served.insert(frontend, ports.into_iter().map(|port| port.service).collect());
        }
        served.into_iter().filter_map(|(at, services)| Some((at, only(services.into_iter())?))).collect()
    }

    /// Does the Service have backends that cannot be read?
    pub fn is_defective(&self, service: &Key) -> bool {
        let slices = self.slices_of.get(service).into_iter().flatten();
        slices.filter_map(|key| self.slices.get(key)).any(|slice| slice.defective)
    }
}

impl Service {
    /// Where a pod of a node with these addresses reaches which port; nowhere without an address of its own. The
    /// unspecified addresses stand for those of every other node.
    pub fn frontends(
        &self,
        own_addresses: impl Iterator<Item = IpAddr> + Clone,
    ) -> impl Iterator<Item = (Frontend, PortRef<'_>)> {
        let ports = self.ports.iter().filter(|_| !self.addresses.is_empty());
        ports.flat_map(move |port| {
            let by_port = self.addresses.iter().map(|a| (canonical(*a), port.port));
            let nodes = own_addresses.clone().chain(OTHER_NODES);
            let by_node_port =
                port.node_port.into_iter().flat_map(move |p| nodes.clone().map(move |a| (a, p)));
            by_port.chain(by_node_port).map(|(address, number)| {
                let frontend = Frontend { address, protocol: port.protocol, port: number };
                (frontend, PortRef::of(self, port))
            })
        })
    }

    /// Its ports that are reached at a frontend; `own_address`: it is an address of the node.
    pub fn ports_at(&self, frontend: Frontend, own_address: bool) -> impl Iterator<Item = PortRef<'_>> {
        let by_address = self.addresses.iter().any(|a| canonical(*a) == frontend.address);
        let is_reached = move |port: &&ServicePort| {
            let by_node = (own_address || frontend.is_elsewhere()) && port.node_port == Some(frontend.port);
            port.protocol == frontend.protocol
                && !self.addresses.is_empty()
                && (by_node || (by_address && port.port == frontend.port))
        };
        self.ports.iter().filter(is_reached).map(|port| PortRef::of(self, port))
    }
}

impl<'a> PortRef<'a> {
    fn of(service: &'a Service, port: &'a ServicePort) -> Self {
        Self { service: &service.key, name: &port.name, protocol: port.protocol }
    }
}

impl EndpointSlice {
    pub fn service_key(&self) -> Key {
        Key::new(&self.key.namespace, &self.service)
    }

    fn served(&self) -> impl Iterator<Item = Frontend> {
        self.addresses.iter().flat_map(|address| {
            let address = canonical(*address);
            self.ports.iter().map(move |p| Frontend { address, protocol: p.protocol, port: p.port })
        })
    }

    fn backends(&self, of: PortRef<'_>, ipv4: bool) -> impl Iterator<Item = Backend> {
        self.at(&self.addresses, of, ipv4)
    }

    fn drained(&self, of: PortRef<'_>, ipv4: bool) -> impl Iterator<Item = Backend> {
        self.at(&self.draining, of, ipv4)
    }

    fn at(&self, addresses: &[IpAddr], of: PortRef<'_>, ipv4: bool) -> impl Iterator<Item = Backend> {
        let ports = self.ports.iter().filter(move |p| p.name == of.name && p.protocol == of.protocol);
        ports.flat_map(move |port| {
            let addresses = addresses.iter().map(|a| canonical(*a)).filter(move |a| a.is_ipv4() == ipv4);
            addresses.map(|address| Backend { address, port: port.port })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::object::SlicePort;

    fn service(name: &str, addresses: &[&str], node_port: Option<u16>) -> Service {
        let port = |name: &str, port, node_port| ServicePort {
            name: name.to_owned(),
            protocol: Protocol::Tcp,
            port,
            node_port,
        };
        Service {
            key: Key::new("shop", name),
            addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
            ports: [port("http", 80, node_port), port("admin", 81, None)].into(),
        }
    }

    fn slice(name: &str, service: &str, addresses: &[&str], port: (&str, Protocol, u16)) -> EndpointSlice {
        EndpointSlice {
            key: Key::new("shop", name),
            service: service.to_owned(),
            addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
            draining: [].into(),
            ports: [SlicePort { name: port.0.to_owned(), protocol: port.1, port: port.2 }].into(),
            defective: false,
        }
    }

    fn frontends(services: &Services) -> Vec<String> {
        let own = ["192.168.0.1", "fd00:f::1"].map(|a| a.parse().expect("an address"));
        let line = |(frontend, ports): (Frontend, BTreeSet<PortRef<'_>>)| {
            let names: Vec<_> = ports.iter().map(|p| format!("{}:{}", p.service.name, p.name)).collect();
            format!("{} {} {}", frontend.address, frontend.port, names.join(","))
        };
        services.frontends(own).into_iter().map(line).collect()
    }

    fn backends(services: &Services, ipv4: bool) -> Vec<String> {
        let service = Key::new("shop", "web");
        let port = PortRef { service: &service, name: "http", protocol: Protocol::Tcp };
        services.backends(port, ipv4).iter().map(|b| format!("{} {}", b.address, b.port)).collect()
    }

    #[test]
    fn a_service_is_reached_by_its_addresses_and_by_this_nodes() {
        let mut services = Services::default();
        services.set_service(service("web", &["10.96.0.10", "::ffff:10.96.0.10"], Some(30080)));
        services.set_service(service("bare", &[], Some(30081)));
        let of_web = [
            "0.0.0.0 30080 web:http",
            "10.96.0.10 80 web:http",
            "10.96.0.10 81 web:admin",
            "192.168.0.1 30080 web:http",
            ":: 30080 web:http",
            "fd00:f::1 30080 web:http",
        ];
        assert_eq!(frontends(&services), of_web);

        services.set_service(service("rival", &["10.96.0.10"], None));
        let of_both = ["10.96.0.10 80 rival:http,web:http", "10.96.0.10 81 rival:admin,web:admin"];
        assert_eq!(frontends(&services)[1..3], of_both);
        assert!(services.remove_service(&Key::new("shop", "rival")));
        assert_eq!(frontends(&services), of_web);
    }

    #[test]
    fn an_address_and_port_have_the_name_of_the_one_service_that_is_there() {
        let mut services = Services::default();
        services.set_service(service("web", &["10.96.0.10"], Some(30080)));
        services.set_service(service("headless", &[], None));
        services.set_service(service("rival", &["10.96.0.11"], None));
        let tcp = |port| ("http", Protocol::Tcp, port);
        for (name, service, address, port) in [
            ("a", "web", "10.244.1.1", tcp(8080)),
            ("b", "rival", "10.244.1.1", tcp(8080)),
            ("c", "web", "10.244.1.2", tcp(8080)),
            ("d", "headless", "10.244.1.3", tcp(5432)),
            ("e", "rival", "10.96.0.10", tcp(80)),
            ("f", "unknown", "10.244.1.4", tcp(80)),
        ] {
            services.set_slice(slice(name, service, &[address], port));
        }
        let own = "192.168.0.1".parse().expect("an address");
        let names: Vec<_> = services
            .names([own])
            .iter()
            .map(|(at, key)| format!("{} {} {key}", at.address, at.port))
            .collect();
        assert_eq!(
            names,
            [
                "0.0.0.0 30080 shop/web",
                "10.96.0.10 80 shop/web", // though it is a backend of the other
                "10.96.0.10 81 shop/web",
                "10.96.0.11 80 shop/rival",
                "10.96.0.11 81 shop/rival",
                "10.244.1.2 8080 shop/web",
                "10.244.1.3 5432 shop/headless",
                "192.168.0.1 30080 shop/web",
                ":: 30080 shop/web",
            ]
        );
    }

    #[test]
    fn a_port_joins_the_slices_ports_of_its_name_protocol_and_family() {
        let mut services = Services::default();
        for (name, service, address, port) in [
            ("a", "web", "10.244.1.1", ("http", Protocol::Tcp, 8080)),
            ("b", "web", "10.244.1.2", ("http", Protocol::Tcp, 8081)),
            ("c", "web", "fd00:244::1", ("http", Protocol::Tcp, 8080)),
            ("other-name", "web", "10.244.1.3", ("admin", Protocol::Tcp, 8080)),
            ("other-protocol", "web", "10.244.1.4", ("http", Protocol::Udp, 8080)),
            ("other-service", "db", "10.244.1.5", ("http", Protocol::Tcp, 8080)),
        ] {
            assert!(services.set_slice(slice(name, service, &[address], port)));
        }
        assert_eq!(backends(&services, true), ["10.244.1.1 8080", "10.244.1.2 8081"]);
        assert_eq!(backends(&services, false), ["fd00:244::1 8080"]);

        let moved = slice("a", "db", &["10.244.1.1"], ("http", Protocol::Tcp, 8080));
        assert!(services.set_slice(moved.clone()) && !services.set_slice(moved), "once it is a change");
        assert!(
            services.remove_slice(&Key::new("shop", "c")) && !services.remove_slice(&Key::new("shop", "c"))
        );
        assert_eq!(
            (backends(&services, true), backends(&services, false)),
            (vec!["10.244.1.2 8081".into()], vec![])
        );
    }
}
