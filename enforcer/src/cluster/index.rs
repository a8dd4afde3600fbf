//! Everything we know, in one place with one owner: plain data, no lock, no I/O.
//!
//! Objects come from a source; addresses of this node's interfaces, flannel's network and attachments come
//! from this machine. The index answers who owns an address; what that means is `policy`'s business.

mod narrowed;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnetwork::IpNetwork;

use super::{
    addresses::Addresses,
    claim::{Claim, Claims},
    object::{
        EndpointSlice, Key, Kind, Labels, NAMESPACE_NAME_LABEL, Namespace, NetworkPolicy, Node, Object,
        ObjectRef, Pod,
    },
    packed::PackedMap,
    service::Services,
    shares::Shares,
    touched::Touched,
    words::Words,
};

#[derive(Clone, Debug, Default)]
pub struct Index {
    /// This node; `None` only in offline questions about pods that no node has.
    node: Option<String>,
    local_addresses: BTreeSet<IpAddr>,
    extra_pod_networks: BTreeSet<IpNetwork>,
    /// Addresses learnt from CNI ADD, before and after the pod's status has them.
    attachments: BTreeMap<Key, BTreeSet<IpAddr>>,
    namespaces: BTreeMap<String, Arc<Namespace>>,
    pods: PackedMap<Key, Arc<Pod>>,
    nodes: BTreeMap<String, Arc<Node>>,
    /// As they are in force.
    policies: PackedMap<Key, Arc<NetworkPolicy>>,
    shares: Shares,
    services: Services,
    /// Who says to own an address, derived from the above and kept in step by [`Index::reclaim_pod`] and
    /// the node upserts.
    claims: Addresses<Claims>,
    words: Words,
    touched: Touched,
}

/// Who owns an address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Owner<'a> {
    /// This node, by any of its addresses.
    ThisNode,
    /// Another node; its name if one is known.
    OtherNode(Option<&'a str>),
    Pod(&'a Arc<Pod>),
    /// Several living pods claim it and nothing here tells which is right: nobody's identity may be used
    /// (semantics 32: a reused address never inherits the old identity).
    Contested,
}

impl Index {
    pub fn new(node: Option<String>) -> Self {
        Self { node, ..Self::default() }
    }

    /// The same cluster from another node, which knows neither this machine's interfaces nor its attachments.
    #[must_use]
    pub fn seen_from(&self, node: Option<&str>) -> Self {
        let mut other = Self { node: node.map(str::to_owned), ..self.clone() };
        if self.node != other.node {
            other.local_addresses.clear();
            for key in self.attachments.keys() {
                other.detach(key);
            }
        }
        other
    }

    /// What changed since the last call.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// Everything there is, as if it had just come.
    pub fn all_touched(&self) -> Touched {
        Touched {
            addresses: self.claims.keys().chain(self.local_addresses.iter().copied()).collect(),
            pods: self.pods.keys().cloned().collect(),
            namespaces: self.namespaces.keys().cloned().collect(),
            policies: self.policies.keys().cloned().collect(),
            services: self.services.services().map(|service| service.key.clone()).collect(),
            pod_networks: true,
        }
    }

    /// Adds or replaces an object; whether anything changed.
    pub fn apply(&mut self, object: Object) -> bool {
        match object {
            Object::Namespace(namespace) => {
                let name = namespace.name.clone();
                let changed = replace(&mut self.namespaces, name.clone(), namespace);
                self.touch_namespace(name, changed)
            }
            Object::NetworkPolicy(mut policy) => {
                self.words.share_policy(&mut policy);
                self.set_policy(&policy.key.clone(), Some(policy))
            }
            Object::Pod(mut pod) => {
                self.words.share_pod(&mut pod);
                let key = pod.key.clone();
                self.reclaim_pod(&key, |index| {
                    let is_new = index.pods.get(&key).is_none_or(|known| **known != pod);
                    if is_new {
                        index.pods.insert(key.clone(), Arc::new(pod));
                    }
                    is_new
                })
            }
            Object::Node(node) => {
                let name = node.name.clone();
                self.reclaim_node(&name, |index| replace(&mut index.nodes, name.clone(), node))
            }
            Object::Service(service) => {
                let key = service.key.clone();
                let changed = self.services.set_service(service);
                self.touch_services([key], changed)
            }
            Object::EndpointSlice(slice) => {
                let before = self.services.slice(&slice.key).map(EndpointSlice::service_key);
                let touched: Vec<Key> = before.into_iter().chain([slice.service_key()]).collect();
                let changed = self.services.set_slice(slice);
                self.touch_services(touched, changed)
            }
        }
    }

    /// Removes an object; whether it was there.
    pub fn delete(&mut self, object: &ObjectRef) -> bool {
        let key = &object.key;
        match object.kind {
            Kind::Namespace => {
                let changed = self.namespaces.remove(&*key.name).is_some();
                self.touch_namespace(key.name.to_string(), changed)
            }
            Kind::NetworkPolicy => self.set_policy(key, None),
            Kind::Pod => self.reclaim_pod(key, |index| index.pods.remove(key).is_some()),
            Kind::Node => self.reclaim_node(&key.name, |index| index.nodes.remove(&*key.name).is_some()),
            Kind::Service => {
                let changed = self.services.remove_service(key);
                self.touch_services([key.clone()], changed)
            }
            Kind::EndpointSlice => {
                let service = self.services.slice(key).map(EndpointSlice::service_key);
                let changed = self.services.remove_slice(key);
                self.touch_services(service, changed)
            }
        }
    }

    /// Every address of this node's own interfaces (the bridge gateway, the overlay device, the uplink).
    pub fn set_local_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> bool {
        let addresses: BTreeSet<_> = addresses.into_iter().map(canonical).collect();
        let changed = self.local_addresses != addresses;
        self.touched.addresses.extend(self.local_addresses.symmetric_difference(&addresses));
        self.local_addresses = addresses;
        changed
    }

    /// Pod networks known beside the nodes' podCIDRs (flannel's `Network`).
    pub fn set_pod_networks(&mut self, networks: BTreeSet<IpNetwork>) -> bool {
        let changed = self.extra_pod_networks != networks;
        self.touched.pod_networks |= changed;
        self.extra_pod_networks = networks;
        changed
    }

    /// A pod's interface on this node has these addresses, whether or not its status says so yet.
    pub fn attach(&mut self, pod: Key, addresses: BTreeSet<IpAddr>) -> bool {
        let key = pod.clone();
        self.reclaim_pod(&key, |index| match index.attachments.get(&pod) {
            Some(known) if *known == addresses => false,
            _ => {
                index.attachments.insert(pod, addresses);
                true
            }
        })
    }

    pub fn detach(&mut self, pod: &Key) -> bool {
        self.reclaim_pod(pod, |index| index.attachments.remove(pod).is_some())
    }

    pub fn node_name(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// An undeclared namespace has its name label and nothing else (semantics 15).
    pub fn namespace(&self, name: &str) -> Cow<'_, Namespace> {
        if let Some(namespace) = self.namespaces.get(name) {
            return Cow::Borrowed(namespace);
        }
        let labels = Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned())]);
        Cow::Owned(Namespace { name: name.to_owned(), labels, annotations: Labels::new() })
    }

    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values().map(Arc::as_ref)
    }

    pub fn pod(&self, key: &Key) -> Option<&Arc<Pod>> {
        self.pods.get(key)
    }

    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().map(Arc::as_ref)
    }

    /// All pods of a namespace, by name.
    pub fn pods_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.pods
            .starting_at(&Key::new(namespace, ""))
            .map(|(_, pod)| pod.as_ref())
            .take_while(move |pod| *pod.key.namespace == *namespace)
    }

    /// Namespaces that have a pod, declared or not; costs their number, not that of the pods.
    pub fn inhabited_namespaces(&self) -> impl Iterator<Item = &str> {
        let first = self.pods.keys().next();
        std::iter::successors(first, |last| {
            // The least name after all names of this namespace: no name holds a character beyond the last.
            let beyond = Key::new(&last.namespace, char::MAX.to_string());
            self.pods.starting_at(&beyond).next().map(|(key, _)| key)
        })
        .map(|key| key.namespace.as_ref())
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name).map(Arc::as_ref)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().map(Arc::as_ref)
    }

    pub fn policy(&self, key: &Key) -> Option<&NetworkPolicy> {
        self.policies.get(key).map(Arc::as_ref)
    }

    pub(crate) fn shared_policy(&self, key: &Key) -> Option<&Arc<NetworkPolicy>> {
        self.policies.get(key)
    }

    pub fn policies(&self) -> impl Iterator<Item = &NetworkPolicy> {
        self.policies.values().map(Arc::as_ref)
    }

    pub fn policies_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a NetworkPolicy> {
        self.policies
            .starting_at(&Key::new(namespace, ""))
            .map(|(_, policy)| policy.as_ref())
            .take_while(move |policy| *policy.key.namespace == *namespace)
    }

    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Policies whose subject the pod is, by key; none for host-network and finished pods (semantics 31, 32).
    pub fn policies_selecting<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a NetworkPolicy> {
        self.policies_in(&pod.key.namespace)
            .filter(|policy| is_subject(pod) && policy.subjects.matches(&pod.labels))
    }

    /// Is the pod one whose interface this node judges?
    pub fn is_endpoint(&self, pod: &Pod) -> bool {
        is_subject(pod)
            && (pod.node.as_deref() == self.node.as_deref() || self.attachments.contains_key(&pod.key))
    }

    /// From the pod's status and, on this node, its attachment.
    pub fn addresses(&self, pod: &Pod) -> BTreeSet<IpAddr> {
        let attached = self.attachments.get(&pod.key).into_iter().flatten();
        pod.ips.iter().chain(attached).map(|a| canonical(*a)).collect()
    }

    pub fn pod_by_address(&self, address: IpAddr) -> Option<&Pod> {
        match self.owner(address) {
            Some(Owner::Pod(pod)) => Some(pod),
            _ => None,
        }
    }

    /// Name of the node that owns the address.
    pub fn node_by_address(&self, address: IpAddr) -> Option<&str> {
        match self.owner(address)? {
            Owner::ThisNode => self.node_name(),
            Owner::OtherNode(name) => name,
            Owner::Pod(_) | Owner::Contested => None,
        }
    }

    /// Decides between claims: what this machine knows for itself (its own addresses, then its attachments)
    /// beats what the cluster says, and a node's address is never taken for a pod's.
    pub fn owner(&self, address: IpAddr) -> Option<Owner<'_>> {
        let address = canonical(address);
        let claims = self.claims.get(&address);
        let claims = || claims.into_iter().flat_map(Claims::as_slice);
        let is_this_node =
            |claim: &Claim| claim.node_name().is_some_and(|name| self.node.as_deref() == Some(name));
        if self.local_addresses.contains(&address) || claims().any(is_this_node) {
            return Some(Owner::ThisNode);
        }
        let pods = || claims().filter_map(Claim::pod);
        let attached = |pod: &&Arc<Pod>| self.attachments.get(&pod.key).is_some_and(|a| a.contains(&address));
        if let Some(pod) = only(pods().filter(attached)) {
            return Some(Owner::Pod(pod));
        }
        if let Some(claim) = claims().find(|claim| claim.is_node()) {
            return Some(Owner::OtherNode(claim.node_name()));
        }
        match only(pods()) {
            Some(pod) => Some(Owner::Pod(pod)),
            None => pods().next().map(|_| Owner::Contested),
        }
    }

    /// Every address that has an owner.
    pub fn owned_addresses(&self) -> impl Iterator<Item = (IpAddr, Owner<'_>)> {
        let unclaimed = self.local_addresses.iter().filter(|a| !self.claims.contains_key(a));
        self.claims.keys().chain(unclaimed.copied()).filter_map(|a| Some((a, self.owner(a)?)))
    }

    /// Every address that is this node.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.owned_addresses().filter(|(_, owner)| *owner == Owner::ThisNode).map(|(address, _)| address)
    }

    /// Where pods live, known or not: all podCIDRs and the extra networks.
    pub fn pod_networks(&self) -> BTreeSet<IpNetwork> {
        self.nodes().flat_map(|n| &n.pod_cidrs).chain(&self.extra_pod_networks).copied().collect()
    }

    /// Runs a change to one pod or its attachment and brings that pod's claims up to date.
    fn reclaim_pod(&mut self, key: &Key, change: impl FnOnce(&mut Self) -> bool) -> bool {
        let before = self.pod_claims(key);
        let changed = change(self);
        if changed {
            let after = self.pod_claims(key);
            self.replace_claims(before, after);
            self.touched.pods.insert(key.clone());
        }
        changed
    }

    fn reclaim_node(&mut self, name: &str, change: impl FnOnce(&mut Self) -> bool) -> bool {
        let before = self.node_claims(name);
        let changed = change(self);
        if changed {
            let after = self.node_claims(name);
            self.replace_claims(before, after);
            self.touched.pod_networks = true;
        }
        changed
    }

    fn touch_namespace(&mut self, name: String, changed: bool) -> bool {
        if changed {
            self.touched.namespaces.insert(name);
        }
        changed
    }

    fn touch_services(&mut self, keys: impl IntoIterator<Item = Key>, changed: bool) -> bool {
        if changed {
            self.touched.services.extend(keys);
        }
        changed
    }

    /// Also of others in its namespace, if they have to share what there is.
    fn set_policy(&mut self, key: &Key, new: Option<NetworkPolicy>) -> bool {
        let old = self.written_policy(key).cloned();
        if old.as_deref() == new.as_ref() {
            return false;
        }
        let is_shared = self.shares.replace(old.as_deref(), new.as_ref());
        match new {
            Some(new) => self.policies.insert(key.clone(), Arc::new(new)),
            None => self.policies.remove(key),
        };
        self.touched.policies.insert(key.clone());
        if is_shared {
            let keys = self.policies_in(&key.namespace).map(|policy| &policy.key);
            let written = keys.filter_map(|key| self.written_policy(key)).cloned().collect();
            for policy in self.shares.deal(written) {
                if self.policies.get(&policy.key) != Some(&policy) {
                    self.touched.policies.insert(policy.key.clone());
                    self.policies.insert(policy.key.clone(), policy);
                }
            }
        }
        true
    }

    fn written_policy(&self, key: &Key) -> Option<&Arc<NetworkPolicy>> {
        self.shares.refused(key).or_else(|| self.policies.get(key))
    }

    fn replace_claims(
        &mut self,
        before: Option<(Claim, BTreeSet<IpAddr>)>,
        after: Option<(Claim, BTreeSet<IpAddr>)>,
    ) {
        if let Some((claim, addresses)) = before {
            for address in addresses {
                self.touched.addresses.insert(address);
                match self.claims.get(&address).map(|claims| claims.without(&claim)) {
                    Some(Some(left)) => _ = self.claims.insert(address, left),
                    Some(None) => _ = self.claims.remove(&address),
                    None => {}
                }
            }
        }
        if let Some((claim, addresses)) = after {
            for address in addresses {
                self.touched.addresses.insert(address);
                match self.claims.get_mut(&address) {
                    Some(claims) => claims.insert(claim.clone()),
                    None => _ = self.claims.insert(address, Claims::One(claim.clone())),
                }
            }
        }
    }

    fn pod_claims(&self, key: &Key) -> Option<(Claim, BTreeSet<IpAddr>)> {
        let pod = self.pods.get(key).filter(|pod| !pod.finished)?;
        let claim =
            if pod.host_network { Claim::HostPod(Arc::clone(pod)) } else { Claim::Pod(Arc::clone(pod)) };
        Some((claim, self.addresses(pod)))
    }

    fn node_claims(&self, name: &str) -> Option<(Claim, BTreeSet<IpAddr>)> {
        let node = self.nodes.get(name)?;
        Some((Claim::Node(Arc::clone(node)), node_addresses(node)))
    }
}

/// Policies can apply to the pod: host-network pods are nodes, finished pods nobody.
fn is_subject(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}

/// A node's own addresses and, in each podCIDR, those that flannel gives it: the first for the overlay
/// device and the second for the bridge.
pub fn node_addresses(node: &Node) -> BTreeSet<IpAddr> {
    let flannel = node.pod_cidrs.iter().flat_map(|cidr| [cidr.network(), successor(cidr.network())]);
    node.addresses.iter().copied().chain(flannel).map(canonical).collect()
}

fn successor(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits().wrapping_add(1)).into(),
        IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits().wrapping_add(1)).into(),
    }
}

/// One spelling per address: an IPv4-mapped IPv6 address is IPv4.
pub(super) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

pub(super) fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    let first = items.next()?;
    items.next().is_none().then_some(first)
}

pub(super) fn replace<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, Arc<V>>, key: K, value: V) -> bool {
    if map.get(&key).is_some_and(|known| **known == value) {
        return false;
    }
    map.insert(key, Arc::new(value));
    true
}
