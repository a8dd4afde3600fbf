//! What every address is: pods and nodes by exact address, everybody else by longest prefix.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
};

use ipnetwork::IpNetwork;

use super::{
    Settings,
    model::{BlockSet, Identity, PeerInfo, PodIdentity, Scope, Tenancy},
    prefixes::Prefixes,
    tenant,
};
use crate::cluster::{
    Index, Owner,
    object::{ContainerPort, Labels, Pod},
};

/// Equal values share one allocation, so that later comparisons are cheap and memory stays small.
#[derive(Debug)]
pub(super) struct Interner<T> {
    known: HashSet<Arc<T>>,
    /// In use when last swept.
    in_use: usize,
}

impl<T: Eq + Hash> Interner<T> {
    pub fn intern(&mut self, value: T) -> Arc<T> {
        if let Some(known) = self.known.get(&value) {
            return Arc::clone(known);
        }
        let value = Arc::new(value);
        self.known.insert(Arc::clone(&value));
        value
    }

    /// Lets go of what nobody else has, now and then: the cost is spread over what came since.
    pub fn sweep(&mut self) {
        if self.known.len() > 2 * self.in_use + 64 {
            self.known.retain(|value| Arc::strong_count(value) > 1);
            self.known.shrink_to_fit();
            self.in_use = self.known.len();
        }
    }
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), in_use: 0 }
    }
}

/// Classes that occur, and the prefixes that they depend on.
#[derive(Debug, Default)]
pub(super) struct Classes {
    identities: Interner<Identity>,
    block_sets: Interner<BlockSet>,
    peers: Interner<PeerInfo>,
    /// Those of the scope's blocks and of the index' pod networks.
    pub prefixes: Prefixes,
}

impl Classes {
    pub fn new(index: &Index, scope: &Scope) -> Self {
        Self { prefixes: Prefixes::new(&scope.blocks, index.pod_networks()), ..Self::default() }
    }

    pub fn intern(&mut self, identity: Identity) -> Arc<Identity> {
        self.identities.intern(identity)
    }

    pub fn sweep(&mut self) {
        self.peers.sweep(); // first: it has the others
        self.identities.sweep();
        self.block_sets.sweep();
    }
}

/// Gives identities and block sets to whatever is in one index under one scope.
pub(super) struct Classifier<'a> {
    index: &'a Index,
    settings: &'a Settings,
    scope: &'a Scope,
    classes: &'a mut Classes,
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
    pub fn new(index: &'a Index, settings: &'a Settings, scope: &'a Scope, classes: &'a mut Classes) -> Self {
        Self { index, settings, scope, classes, namespaces: HashMap::new() }
    }

    pub fn identity(&mut self, pod: &'a Pod) -> Arc<Identity> {
        let scope = self.scope;
        let namespace = self.namespace(&pod.key.namespace).clone();
        self.classes.identities.intern(Identity::Pod(PodIdentity {
            namespace: pod.key.namespace.clone(),
            labels: project(&pod.labels, &scope.label_keys),
            namespace_labels: namespace.labels,
            ports: named(&pod.ports, &scope.port_names),
            tenant: namespace.tenant,
            door: namespace.door,
        }))
    }

    /// `None`: neither policies nor pod networks tell it apart.
    pub fn prefix(&mut self, prefix: IpNetwork) -> Option<PeerInfo> {
        let class = self.classes.prefixes.class(prefix)?;
        let blocks = self.classes.block_sets.intern(BlockSet { blocks: class.blocks, ..BlockSet::default() });
        Some(if class.pod_network {
            self.other(Identity::UnknownPod, blocks, Tenancy::Unknown)
        } else {
            self.other(Identity::World, blocks, Tenancy::Shared)
        })
    }

    /// A pod's or node's address. Its blocks are those of the prefix that would hold it.
    pub fn peer(
        &mut self,
        address: IpAddr,
        owner: Owner<'a>,
        prefixes: &BTreeMap<IpNetwork, PeerInfo>,
    ) -> Arc<PeerInfo> {
        let around = self.classes.prefixes.around(address).and_then(|prefix| prefixes.get(&prefix));
        let blocks = around.map(|peer| Arc::clone(&peer.blocks)).unwrap_or_default();
        let peer = match owner {
            Owner::Pod(pod) => PeerInfo {
                identity: self.identity(pod),
                blocks: self.classes.block_sets.intern(BlockSet {
                    pod: true,
                    blocks: blocks.blocks.clone(),
                    ports: named(&pod.ports, &self.scope.block_port_names),
                }),
                tenant: self.tenant(pod).map_or(Tenancy::Shared, |tenant| Tenancy::Tenant(tenant.into())),
            },
            Owner::ThisNode => self.other(Identity::Host, blocks, Tenancy::Shared),
            Owner::OtherNode(_) => self.other(Identity::RemoteNode, blocks, Tenancy::Shared),
            Owner::Contested => self.other(Identity::UnknownPod, blocks, Tenancy::Unknown),
        };
        self.classes.peers.intern(peer)
    }

    pub fn tenant(&mut self, pod: &'a Pod) -> Option<String> {
        self.namespace(&pod.key.namespace).tenant.clone()
    }

    pub fn door(&mut self, pod: &'a Pod) -> tenant::Door {
        self.namespace(&pod.key.namespace).door.clone()
    }

    fn other(&mut self, identity: Identity, blocks: Arc<BlockSet>, tenant: Tenancy) -> PeerInfo {
        PeerInfo { identity: self.classes.identities.intern(identity), blocks, tenant }
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

fn project(labels: &Labels, keys: &BTreeSet<String>) -> Labels {
    labels.iter().filter(|(key, _)| keys.contains(&***key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn named(ports: &[ContainerPort], names: &BTreeSet<String>) -> BTreeSet<ContainerPort> {
    ports.iter().filter(|port| names.contains(&port.name)).cloned().collect()
}
