//! The specification once more, read straight off the objects: slow, without identities, scopes, prefixes
//! or entries, and sharing nothing with the compiler but the types of the objects.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    cluster::object::{
        EndpointSlice, Key, Labels, NAMESPACE_NAME_LABEL, Namespace, NetworkPolicy, Node, Object, Operator,
        Peer, Pod, Port, Ports, Protocol, Rule, Selector, Service, ServicePort,
    },
    policy::{
        Settings,
        probe::{EndpointRef, Family, Probe, ProbeProtocol},
    },
};

/// Whether each side allows; to a Service, whether each side allows every backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdicts {
    pub egress: bool,
    pub ingress: bool,
    /// To a Service, from a pod: whether the source's own hook lets it go on to be translated.
    pub before_translation: Option<bool>,
}

/// `None`: the question cannot be asked (an unknown name, a finished pod, no address of the family).
pub fn answer(objects: &[Object], settings: &Settings, probe: &Probe) -> Option<Verdicts> {
    let cluster = Cluster { objects, settings };
    let (src, dst) = (cluster.addresses(&probe.src)?, cluster.addresses(&probe.dst)?);
    let of = |addresses: &BTreeSet<IpAddr>, v4: bool| addresses.iter().copied().find(|a| a.is_ipv4() == v4);
    let families = match probe.family {
        Some(Family::V4) => vec![true],
        Some(Family::V6) => vec![false],
        None => vec![true, false],
    };
    let (src, dst) = families.into_iter().find_map(|v4| Some((of(&src, v4)?, of(&dst, v4)?)))?;
    let wanted = Wanted {
        protocol: match probe.protocol {
            ProbeProtocol::Tcp => Some(Protocol::Tcp),
            ProbeProtocol::Udp => Some(Protocol::Udp),
            ProbeProtocol::Sctp => Some(Protocol::Sctp),
            ProbeProtocol::Icmp => None,
        },
        port: probe.port?,
    };
    let source = cluster.pod_at(&probe.src, src);
    // What is sent to one's own address never leaves the pod, whoever else may claim the address.
    if src == dst {
        return Some(Verdicts { egress: true, ingress: true, before_translation: None });
    }
    if let Some(proxy) = cluster.proxy(&probe.src, source)
        && let Some(backends) = cluster.behind(dst, &proxy, wanted)
    {
        return Some(cluster.to_service(source, src, &backends, wanted));
    }
    let (egress, ingress) = cluster.judge(source, src, cluster.pod_at(&probe.dst, dst), dst, wanted);
    Some(Verdicts { egress, ingress, before_translation: None })
}

/// The policies that isolate a pod in one direction; none if there is no such pod.
pub fn isolating(objects: &[Object], pod: &Key, ingress: bool) -> BTreeSet<Key> {
    let settings = Settings::default(); // isolation does not depend on them
    let cluster = Cluster { objects, settings: &settings };
    let Some(pod) = cluster.living().find(|living| living.key == *pod && !living.host_network) else {
        return BTreeSet::new();
    };
    let mut found = BTreeSet::new();
    for policy in cluster.policies() {
        let isolates = if ingress { policy.ingress.is_some() } else { policy.egress.is_some() };
        if isolates && policy.key.namespace == pod.key.namespace && matches(&policy.subjects, &pod.labels) {
            found.insert(policy.key.clone());
        }
    }
    found
}

#[derive(Clone, Copy)]
struct Wanted {
    /// `None`: ICMP.
    protocol: Option<Protocol>,
    port: u16,
}

struct Proxy {
    node: Option<String>,
}

enum Who<'a> {
    OwnNode,
    OtherNode,
    Pod(&'a Pod),
    UnknownPod,
    World,
}

struct Cluster<'a> {
    objects: &'a [Object],
    settings: &'a Settings,
}

impl<'a> Cluster<'a> {
    fn pods(&self) -> impl Iterator<Item = &'a Pod> {
        self.objects.iter().filter_map(|o| if let Object::Pod(pod) = o { Some(pod) } else { None })
    }

    fn living(&self) -> impl Iterator<Item = &'a Pod> {
        self.pods().filter(|pod| !pod.finished)
    }

    fn nodes(&self) -> impl Iterator<Item = &'a Node> {
        self.objects.iter().filter_map(|o| if let Object::Node(node) = o { Some(node) } else { None })
    }

    fn policies(&self) -> impl Iterator<Item = &'a NetworkPolicy> {
        self.objects.iter().filter_map(|o| if let Object::NetworkPolicy(p) = o { Some(p) } else { None })
    }

    /// The two ends of a connection that nobody translates.
    fn judge(
        &self,
        source: Option<&Pod>,
        src: IpAddr,
        destination: Option<&Pod>,
        dst: IpAddr,
        wanted: Wanted,
    ) -> (bool, bool) {
        let egress = source.is_none_or(|pod| {
            self.allows(pod, false, dst, wanted) && self.node_port_allows(pod, dst, wanted)
        });
        let ingress = destination.is_none_or(|pod| self.allows(pod, true, src, wanted));
        (egress, ingress)
    }

    /// Another node's port leads a tenant nowhere where it may not go.
    fn node_port_allows(&self, source: &Pod, dst: IpAddr, wanted: Wanted) -> bool {
        if !matches!(self.who(dst, node_of(source).as_deref()), Who::OtherNode) {
            return true;
        }
        let is_asked = |port: &&ServicePort| {
            port.node_port == Some(wanted.port) && Some(port.protocol) == wanted.protocol
        };
        let services =
            self.objects.iter().filter_map(|o| if let Object::Service(s) = o { Some(s) } else { None });
        let services = services.filter(|service| !service.addresses.is_empty());
        let mut backends = services.flat_map(|service| {
            let ports = service.ports.iter().filter(is_asked);
            ports.flat_map(|port| self.targets(service, port, dst.is_ipv4()))
        });
        backends.all(|(address, _)| self.tenants_allow(source, false, &self.who(address, None)))
    }

    /// The kube-proxy that a connection from here meets.
    fn proxy(&self, src: &EndpointRef, source: Option<&'a Pod>) -> Option<Proxy> {
        let node = match (source, src) {
            (Some(pod), _) => node_of(pod),
            (None, EndpointRef::Node(name)) => Some(name.clone()),
            (None, EndpointRef::Pod(key)) => node_of(self.living().find(|p| p.key == *key)?),
            (None, EndpointRef::Ip(_)) => return None,
        };
        Some(Proxy { node })
    }

    /// What the kube-proxy may make of a destination; `None`: no Service's.
    fn behind(&self, dst: IpAddr, proxy: &Proxy, wanted: Wanted) -> Option<Vec<(IpAddr, u16)>> {
        let mut found = false;
        let mut backends = Vec::new();
        for object in self.objects {
            let Object::Service(service) = object else { continue };
            for port in &service.ports {
                let by_address = service.addresses.contains(&dst) && port.port == wanted.port;
                let by_node = port.node_port == Some(wanted.port)
                    && !service.addresses.is_empty()
                    && matches!(self.who(dst, proxy.node.as_deref()), Who::OwnNode);
                if Some(port.protocol) != wanted.protocol || !(by_address || by_node) {
                    continue;
                }
                found = true;
                backends.extend(self.targets(service, port, dst.is_ipv4()));
            }
        }
        found.then_some(backends)
    }

    fn targets(&self, service: &Service, port: &ServicePort, ipv4: bool) -> Vec<(IpAddr, u16)> {
        let mut targets = Vec::new();
        for slice in self.slices() {
            let is_of = *slice.service == *service.key.name;
            for target in &slice.ports {
                let joined = target.name == port.name && target.protocol == port.protocol;
                if !is_of || slice.key.namespace != service.key.namespace || !joined {
                    continue;
                }
                let alike = slice.addresses.iter().filter(|a| a.is_ipv4() == ipv4);
                targets.extend(alike.map(|a| (*a, target.port)));
            }
        }
        targets
    }

    fn slices(&self) -> impl Iterator<Item = &'a EndpointSlice> {
        self.objects.iter().filter_map(|o| if let Object::EndpointSlice(s) = o { Some(s) } else { None })
    }

    fn to_service(
        &self,
        source: Option<&Pod>,
        src: IpAddr,
        backends: &[(IpAddr, u16)],
        wanted: Wanted,
    ) -> Verdicts {
        let mut verdicts = Verdicts { egress: !backends.is_empty(), ingress: true, before_translation: None };
        let (mut some, mut all_others) = (false, true);
        for (address, port) in backends {
            let wanted = Wanted { port: *port, ..wanted };
            let destination = self.pod_at(&EndpointRef::Ip(*address), *address);
            let (egress, ingress) = self.judge(source, src, destination, *address, wanted);
            verdicts.egress = verdicts.egress && egress;
            // To itself a pod comes back under its node's address.
            verdicts.ingress = verdicts.ingress && (ingress || *address == src);
            // Before translation nobody looks on to what another node makes of its ports.
            let egress = source.is_none_or(|pod| self.allows(pod, false, *address, wanted));
            some = some || egress;
            let judged_later = matches!(self.who(*address, None), Who::Pod(_) | Who::UnknownPod);
            all_others = all_others && (egress || judged_later);
        }
        let passes = |pod: &Pod| self.open_to_everybody(pod) || (some && all_others);
        Verdicts { before_translation: source.map(passes), ..verdicts }
    }

    /// No policy for egress, or one that admits anybody on every protocol.
    fn open_to_everybody(&self, pod: &Pod) -> bool {
        let mut rules = Vec::new();
        let mut isolated = false;
        for policy in self.policies() {
            let Some(egress) = &policy.egress else { continue };
            if policy.key.namespace == pod.key.namespace && matches(&policy.subjects, &pod.labels) {
                isolated = true;
                rules.extend(egress);
            }
        }
        !isolated || rules.iter().any(|rule| rule.peers.is_empty() && rule.ports.is_empty())
    }

    fn namespace(&self, name: &str) -> Namespace {
        let declared = self.objects.iter().find_map(|o| match o {
            Object::Namespace(namespace) if namespace.name == name => Some(namespace.clone()),
            _ => None,
        });
        declared.unwrap_or_else(|| Namespace {
            name: name.to_owned(),
            labels: Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned())]),
            annotations: Labels::new(),
        })
    }

    fn addresses(&self, end: &EndpointRef) -> Option<BTreeSet<IpAddr>> {
        match end {
            EndpointRef::Ip(address) => Some(BTreeSet::from([*address])),
            EndpointRef::Node(name) => self.nodes().find(|n| n.name == *name).map(|n| n.addresses.clone()),
            EndpointRef::Pod(key) => {
                self.living().find(|pod| pod.key == *key).map(|pod| pod.ips.iter().copied().collect())
            }
        }
    }

    /// The pod of the pod network that stands behind an end.
    fn pod_at(&self, end: &EndpointRef, address: IpAddr) -> Option<&'a Pod> {
        if let EndpointRef::Pod(key) = end {
            return self.living().find(|pod| pod.key == *key && !pod.host_network);
        }
        match self.who(address, None) {
            Who::Pod(pod) => Some(pod),
            _ => None,
        }
    }

    /// Whose an address is, for a pod on `node`.
    fn who(&self, address: IpAddr, node: Option<&str>) -> Who<'a> {
        let of_node = self.nodes().filter(|n| {
            n.addresses.contains(&address)
                || n.pod_cidrs.iter().any(|c| c.network() == address || plus_one(c.network()) == address)
        });
        let of_host_pod = self.living().filter(|pod| pod.host_network && pod.ips.contains(&address));
        let names: Vec<_> = of_node
            .map(|n| Some(n.name.as_str()))
            .chain(of_host_pod.map(|pod| pod.node.as_deref()))
            .collect();
        if node.is_some() && names.contains(&node) {
            return Who::OwnNode;
        }
        if !names.is_empty() {
            return Who::OtherNode;
        }
        let pods: Vec<_> = self.living().filter(|pod| pod.ips.contains(&address)).collect();
        match pods.as_slice() {
            [pod] => Who::Pod(pod),
            [] if !self.nodes().flat_map(|n| &n.pod_cidrs).any(|cidr| cidr.contains(address)) => Who::World,
            _ => Who::UnknownPod,
        }
    }

    fn allows(&self, subject: &Pod, ingress: bool, remote: IpAddr, wanted: Wanted) -> bool {
        let who = self.who(remote, subject.node.as_deref());
        if matches!(who, Who::OwnNode) && (ingress || self.settings.local_node_egress) {
            return true;
        }
        if !self.tenants_allow(subject, ingress, &who) {
            return false;
        }
        let mut isolated = false;
        for policy in self.policies() {
            let rules = if ingress { &policy.ingress } else { &policy.egress };
            let Some(rules) = rules else { continue };
            if policy.key.namespace != subject.key.namespace || !matches(&policy.subjects, &subject.labels) {
                continue;
            }
            isolated = true;
            let destination = match who {
                _ if ingress => Some(subject),
                Who::Pod(pod) => Some(pod),
                _ => None,
            };
            if rules.iter().any(|rule| self.rule_allows(&policy.key, rule, &who, remote, destination, wanted))
            {
                return true;
            }
        }
        !isolated
    }

    fn tenants_allow(&self, subject: &Pod, ingress: bool, who: &Who) -> bool {
        let Some(label) = &self.settings.tenant_label else { return true };
        let own = self.namespace(&subject.key.namespace);
        let Some(own_tenant) = own.labels.get(label) else { return true };
        let other = match who {
            Who::Pod(pod) => self.namespace(&pod.key.namespace),
            Who::UnknownPod => return false,
            _ => return true,
        };
        let Some(other_tenant) = other.labels.get(label) else { return true };
        let (source_tenant, destination) = if ingress { (other_tenant, &own) } else { (own_tenant, &other) };
        let door = destination.annotations.get("bulkhead.io/allow-tenants").map_or("", AsRef::as_ref);
        let mut let_in = door.split(',').map(str::trim);
        own_tenant == other_tenant || let_in.any(|t| t == "*" || (!t.is_empty() && *t == **source_tenant))
    }

    fn rule_allows(
        &self,
        policy: &Key,
        rule: &Rule,
        who: &Who,
        remote: IpAddr,
        destination: Option<&Pod>,
        wanted: Wanted,
    ) -> bool {
        let peer =
            rule.peers.is_empty() || rule.peers.iter().any(|peer| self.is_peer(policy, peer, who, remote));
        let port = rule.ports.is_empty() || rule.ports.iter().any(|port| is_port(port, destination, wanted));
        peer && port
    }

    fn is_peer(&self, policy: &Key, peer: &Peer, who: &Who, remote: IpAddr) -> bool {
        match (peer, who) {
            (Peer::Block(block), _) => {
                let mut holds = block.cidr.contains(remote);
                for except in &block.except {
                    holds = holds && !except.contains(remote);
                }
                holds
            }
            (Peer::Pods { namespaces, pods }, Who::Pod(pod)) => {
                let in_namespace = match namespaces {
                    None => pod.key.namespace == policy.namespace,
                    Some(selector) => matches(selector, &self.namespace(&pod.key.namespace).labels),
                };
                in_namespace && matches(pods, &pod.labels)
            }
            (Peer::Pods { .. }, _) => false,
        }
    }
}

fn is_port(port: &Port, destination: Option<&Pod>, wanted: Wanted) -> bool {
    if wanted.protocol != Some(port.protocol) {
        return false;
    }
    match &port.ports {
        Ports::All => true,
        Ports::Range(first, last) => *first <= wanted.port && wanted.port <= *last,
        Ports::Named(name) => destination.is_some_and(|pod| {
            pod.ports.iter().any(|c| c.name == *name && c.protocol == port.protocol && c.port == wanted.port)
        }),
    }
}

fn node_of(pod: &Pod) -> Option<String> {
    pod.node.as_deref().map(str::to_owned)
}

fn matches(selector: &Selector, labels: &Labels) -> bool {
    for requirement in &selector.requirements {
        let value = labels.get(&requirement.key);
        let holds = match (&requirement.operator, value) {
            (Operator::In(values), Some(value)) => values.contains(value),
            (Operator::NotIn(values), Some(value)) => !values.contains(value),
            (Operator::In(_) | Operator::Exists, None) | (Operator::DoesNotExist, Some(_)) => false,
            (Operator::NotIn(_) | Operator::DoesNotExist, None) | (Operator::Exists, Some(_)) => true,
        };
        if !holds {
            return false;
        }
    }
    true
}

fn plus_one(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(a) => Ipv4Addr::from(u32::from(a) + 1).into(),
        IpAddr::V6(a) => Ipv6Addr::from(u128::from(a) + 1).into(),
    }
}
