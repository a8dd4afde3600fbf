//! Services: what stands behind each frontend of this node, and what a rule set admits to it.
//!
//! kube-proxy translates after the source's own hook has seen the packet. There a Service passes if some backend
//! would: a pod is judged for real at the first hook after translation. A backend that is no pod is judged by
//! nobody else, so each of them must be allowed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnetwork::IpNetwork;

use super::{
    Settings,
    classify::{Interner, Lengths, full_length},
    lookup::{Decision, decide},
    model::{
        BackendClass, BlockSet, Direction, Entries, EntryKey, Grant, Identity, PeerInfo, RulePeer, RuleSet,
        ServiceClass,
    },
};
use crate::cluster::{Frontend, Index, object::Protocol, service::PortRef};

/// The class of every frontend; equal classes share an allocation.
pub(super) fn services(
    index: &Index,
    settings: &Settings,
    peers: &BTreeMap<IpAddr, PeerInfo>,
    prefixes: &BTreeMap<IpNetwork, PeerInfo>,
) -> BTreeMap<Frontend, Arc<Identity>> {
    let projection = Projection { index, settings, peers, prefixes, lengths: Lengths::of(prefixes.keys()) };
    let mut classes = Interner::default();
    // A node port has a frontend for each address of the node: its class is made once.
    let mut known: HashMap<(BTreeSet<PortRef<'_>>, bool), Arc<Identity>> = HashMap::new();
    let mut services = BTreeMap::new();
    for (frontend, ports) in index.services().frontends(index.own_addresses()) {
        let ipv4 = frontend.address.is_ipv4();
        let project = || projection.class(frontend.protocol, &ports, ipv4);
        let class = known
            .entry((ports.clone(), ipv4))
            .or_insert_with(|| classes.intern(Identity::Service(project())));
        services.insert(frontend, Arc::clone(class));
    }
    services
}

/// From addresses to what they are.
struct Projection<'a> {
    index: &'a Index,
    settings: &'a Settings,
    peers: &'a BTreeMap<IpAddr, PeerInfo>,
    prefixes: &'a BTreeMap<IpNetwork, PeerInfo>,
    lengths: Lengths,
}

impl Projection<'_> {
    /// Of several Services at one frontend, all backends.
    fn class(&self, protocol: Protocol, ports: &BTreeSet<PortRef<'_>>, ipv4: bool) -> ServiceClass {
        let services = self.index.services();
        let backends = ports.iter().flat_map(|port| services.backends(*port, ipv4));
        let (mut pods, mut others) = (BTreeSet::new(), BTreeSet::new());
        for backend in backends {
            let Some(peer) = self.peer(backend.address).cloned() else { continue };
            let later = self.is_judged_later(backend.address, &peer);
            let class = BackendClass { peer, port: backend.port };
            if later {
                pods.insert(class)
            } else {
                others.insert(class)
            };
        }
        let defective = ports.iter().any(|port| services.is_defective(port.service));
        ServiceClass { protocol, pods, others, defective }
    }

    /// Known or not, it is a pod's address, and what goes there passes a hook after translation.
    fn is_judged_later(&self, address: IpAddr, peer: &PeerInfo) -> bool {
        let here = || self.index.pod_by_address(address).is_some_and(|pod| self.index.is_endpoint(pod));
        matches!(*peer.identity, Identity::Pod(_) | Identity::UnknownPod)
            && (self.settings.backends_elsewhere_judged || here())
    }

    /// `None` only if there is no prefix for everything else.
    fn peer(&self, address: IpAddr) -> Option<&PeerInfo> {
        let prefix = || {
            let covering = self.lengths.covering(address, full_length(address));
            covering.into_iter().find_map(|network| self.prefixes.get(&network))
        };
        self.peers.get(&address).or_else(prefix)
    }
}

impl RuleSet {
    /// Entries for those of the identities that are Services: towards each, everything or nothing. None are
    /// needed where egress is open to everybody.
    pub(super) fn services(&self, identities: &[&Arc<Identity>]) -> Entries {
        let services: Vec<_> = identities.iter().filter_map(|identity| service(identity)).collect();
        if services.is_empty() || self.egress.policies.is_empty() {
            return Entries::new();
        }
        let peers = || services.iter().flat_map(|(_, class)| class.backends().map(|backend| &backend.peer));
        // The compiler shares equal ones, so that few are compared in full.
        let identities: HashMap<*const Identity, _> =
            peers().map(|peer| (Arc::as_ptr(&peer.identity), &peer.identity)).collect();
        let blocks: HashMap<*const BlockSet, _> =
            peers().map(|peer| (Arc::as_ptr(&peer.blocks), &peer.blocks)).collect();
        let entries = self.entries(identities.into_values(), blocks.into_values());
        let admitted = services.iter().filter_map(|(identity, class)| {
            let peer = RulePeer::Identity(Arc::clone(identity));
            Some((EntryKey::everything(Direction::Egress, peer), self.admits(class, &entries)?))
        });
        admitted.collect()
    }

    /// `entries`: those of the backends. Names every rule that allows a backend.
    fn admits(&self, class: &ServiceClass, entries: &Entries) -> Option<Grant> {
        let number = class.protocol.number();
        let judge = |backend: &BackendClass| {
            let tenant = self.tenant.as_deref();
            match decide(entries, tenant, &backend.peer, Direction::Egress, number, backend.port) {
                Decision::Allow(grants) => Some(grants),
                Decision::NoRule | Decision::TenantBoundary => None,
            }
        };
        let others: Option<Vec<Vec<Grant>>> = class.others.iter().map(judge).collect();
        let grants: Vec<Grant> =
            others?.into_iter().chain(class.pods.iter().filter_map(judge)).flatten().collect();
        if class.defective || grants.is_empty() {
            return None;
        }
        let rules = grants.into_iter().filter_map(|grant| match grant {
            Grant::Rules(rules) => Some(rules),
            Grant::NotIsolated | Grant::LocalNode | Grant::Door => None,
        });
        let rules: BTreeSet<_> = rules.flatten().collect();
        Some(if rules.is_empty() { Grant::LocalNode } else { Grant::Rules(rules) })
    }
}

fn service(identity: &Arc<Identity>) -> Option<(&Arc<Identity>, &ServiceClass)> {
    match identity.as_ref() {
        Identity::Service(class) => Some((identity, class)),
        _ => None,
    }
}

impl ServiceClass {
    pub fn backends(&self) -> impl Iterator<Item = &BackendClass> {
        self.pods.iter().chain(&self.others)
    }
}
