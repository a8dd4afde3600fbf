//! What every address is: pods and nodes by exact address, everybody else by longest prefix.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::{
    Settings,
    model::{BlockSet, Identity, PeerInfo, PodIdentity, Scope, Tenancy},
    tenant,
};
use crate::cluster::{
    Index, Owner,
    object::{ContainerPort, IpBlock, Labels, Pod},
};

/// Equal values share one allocation, so that later comparisons are cheap and memory stays small.
pub(super) struct Interner<T>(HashSet<Arc<T>>);

impl<T: Eq + Hash> Interner<T> {
    pub fn intern(&mut self, value: T) -> Arc<T> {
        if let Some(known) = self.0.get(&value) {
            return Arc::clone(known);
        }
        let value = Arc::new(value);
        self.0.insert(Arc::clone(&value));
        value
    }
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

/// Gives identities and block sets to everything in one index under one scope.
pub(super) struct Classifier<'a> {
    index: &'a Index,
    settings: &'a Settings,
    scope: &'a Scope,
    identities: Interner<Identity>,
    block_sets: Interner<BlockSet>,
    namespaces: HashMap<&'a str, NamespaceClass>,
}

/// A namespace's share in its pods' identities.
#[derive(Clone)]
struct NamespaceClass {
    labels: Labels,
    tenant: Option<String>,
    door: tenant::Door,
}

impl<'a> Classifier<'a> {
    pub fn new(index: &'a Index, settings: &'a Settings, scope: &'a Scope) -> Self {
        let (identities, block_sets) = (Interner::default(), Interner::default());
        Self { index, settings, scope, identities, block_sets, namespaces: HashMap::new() }
    }

    pub fn identity(&mut self, pod: &'a Pod) -> Arc<Identity> {
        let scope = self.scope;
        let namespace = self.namespace(&pod.key.namespace).clone();
        self.identities.intern(Identity::Pod(PodIdentity {
            namespace: pod.key.namespace.clone(),
            labels: project(&pod.labels, &scope.label_keys),
            namespace_labels: namespace.labels,
            ports: named(&pod.ports, &scope.port_names),
            tenant: namespace.tenant,
            door: namespace.door,
        }))
    }

    /// The prefixes that policies or pod networks tell apart. An address belongs to a block exactly if the
    /// longest prefix that holds it does: no finer prefix of that block (or exception) holds the address.
    pub fn prefixes(&mut self) -> BTreeMap<IpNetwork, PeerInfo> {
        let networks = self.index.pod_networks();
        let mut blocks_of: BTreeMap<IpNetwork, Vec<&IpBlock>> = BTreeMap::new();
        for network in networks.iter().copied().chain(everything()) {
            blocks_of.entry(masked(network)).or_default();
        }
        for block in &self.scope.blocks {
            blocks_of.entry(block.cidr).or_default().push(block);
            for except in &block.except {
                blocks_of.entry(*except).or_default();
            }
        }
        let networks: BTreeSet<_> = networks.into_iter().map(masked).collect();
        let lengths = Lengths::of(blocks_of.keys());
        let mut prefixes = BTreeMap::new();
        for prefix in blocks_of.keys() {
            let covering: Vec<_> = lengths.covering(prefix.ip(), prefix.prefix()).collect();
            let candidates = covering.iter().filter_map(|net| blocks_of.get(net)).flatten();
            let is_out = |block: &IpBlock| covering.iter().any(|net| block.except.contains(net));
            let blocks = candidates.filter(|b| !is_out(b)).map(|b| (*b).clone()).collect();
            let blocks = self.block_sets.intern(BlockSet { blocks, ..BlockSet::default() });
            let unknown = covering.iter().any(|net| networks.contains(net));
            let (identity, tenant) = if unknown {
                (Identity::UnknownPod, Tenancy::Unknown)
            } else {
                (Identity::World, Tenancy::Shared)
            };
            prefixes.insert(*prefix, PeerInfo { identity: self.identities.intern(identity), blocks, tenant });
        }
        prefixes
    }

    /// Pods and nodes. Their blocks are those of the prefix that would hold the address.
    pub fn peers(&mut self, prefixes: &BTreeMap<IpNetwork, PeerInfo>) -> BTreeMap<IpAddr, PeerInfo> {
        let lengths = Lengths::of(prefixes.keys());
        let index = self.index;
        let mut peers = BTreeMap::new();
        for (address, owner) in index.owned_addresses() {
            let around = lengths.covering(address, full_length(address)).find_map(|net| prefixes.get(&net));
            let blocks = around.map(|peer| Arc::clone(&peer.blocks)).unwrap_or_default();
            let peer = match owner {
                Owner::Pod(pod) => PeerInfo {
                    identity: self.identity(pod),
                    blocks: self.block_sets.intern(BlockSet {
                        pod: true,
                        blocks: blocks.blocks.clone(),
                        ports: named(&pod.ports, &self.scope.block_port_names),
                    }),
                    tenant: self.tenant(pod).map_or(Tenancy::Shared, Tenancy::Tenant),
                },
                Owner::ThisNode => self.other(Identity::Host, blocks, Tenancy::Shared),
                Owner::OtherNode(_) => self.other(Identity::RemoteNode, blocks, Tenancy::Shared),
                Owner::Contested => self.other(Identity::UnknownPod, blocks, Tenancy::Unknown),
            };
            peers.insert(address, peer);
        }
        peers
    }

    pub fn tenant(&mut self, pod: &'a Pod) -> Option<String> {
        self.namespace(&pod.key.namespace).tenant.clone()
    }

    pub fn door(&mut self, pod: &'a Pod) -> tenant::Door {
        self.namespace(&pod.key.namespace).door.clone()
    }

    fn other(&mut self, identity: Identity, blocks: Arc<BlockSet>, tenant: Tenancy) -> PeerInfo {
        PeerInfo { identity: self.identities.intern(identity), blocks, tenant }
    }

    fn namespace(&mut self, name: &'a str) -> &NamespaceClass {
        let (index, settings, scope) = (self.index, self.settings, self.scope);
        self.namespaces.entry(name).or_insert_with(|| {
            let namespace = index.namespace(name);
            NamespaceClass {
                labels: project(&namespace.labels, &scope.namespace_label_keys),
                tenant: tenant::tenant(&namespace, settings),
                door: tenant::door(&namespace, settings),
            }
        })
    }
}

/// Prefix lengths in use, longest first, per family: a longest-prefix search over an ordinary map.
pub(super) struct Lengths {
    v4: Vec<u8>,
    v6: Vec<u8>,
}

impl Lengths {
    pub fn of<'n>(networks: impl Iterator<Item = &'n IpNetwork>) -> Self {
        let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
        for network in networks {
            if network.is_ipv4() {
                v4.insert(network.prefix())
            } else {
                v6.insert(network.prefix())
            };
        }
        Self { v4: v4.into_iter().rev().collect(), v6: v6.into_iter().rev().collect() }
    }

    /// Prefixes of `address`, of the lengths in use up to `longest`, longest first.
    pub fn covering(&self, address: IpAddr, longest: u8) -> impl Iterator<Item = IpNetwork> {
        let lengths = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        lengths
            .iter()
            .filter(move |length| **length <= longest)
            .map(move |length| truncated(address, *length))
    }
}

pub(super) fn full_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The network of `length` bits around `address`.
pub(super) fn truncated(address: IpAddr, length: u8) -> IpNetwork {
    let network = IpNetwork::new(address, length).expect("the length is one of this family's");
    masked(network)
}

fn masked(network: IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).expect("the length comes from a network")
}

fn everything() -> [IpNetwork; 2] {
    let v4 = Ipv4Network::new(std::net::Ipv4Addr::UNSPECIFIED, 0).expect("length 0");
    let v6 = Ipv6Network::new(std::net::Ipv6Addr::UNSPECIFIED, 0).expect("length 0");
    [v4.into(), v6.into()]
}

fn project(labels: &Labels, keys: &BTreeSet<String>) -> Labels {
    labels.iter().filter(|(key, _)| keys.contains(*key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn named(ports: &BTreeSet<ContainerPort>, names: &BTreeSet<String>) -> BTreeSet<ContainerPort> {
    ports.iter().filter(|port| names.contains(&port.name)).cloned().collect()
}
