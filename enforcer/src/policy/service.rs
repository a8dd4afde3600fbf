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
    classify::Classes,
    lookup::{Decision, decide, is_bound},
    model::{
        BackendClass, BlockSet, Compiled, Direction, Entries, EntryKey, Grant, Identity, PeerInfo, RulePeer,
        RuleSet, ServiceClass,
    },
};
use crate::cluster::{Addresses, Frontend, Index, object::Protocol, service::PortRef};

/// The class of every frontend; equal classes share an allocation.
pub(super) fn services(
    index: &Index,
    settings: &Settings,
    classes: &mut Classes,
    compiled: &Compiled,
) -> BTreeMap<Frontend, Arc<Identity>> {
    let frontends = index.services().frontends(index.own_addresses());
    let mut projection = Projection::new(index, settings, classes, compiled);
    frontends.into_iter().map(|(frontend, ports)| (frontend, projection.identity(frontend, ports))).collect()
}

/// From addresses to what they are.
pub(super) struct Projection<'a> {
    index: &'a Index,
    settings: &'a Settings,
    classes: &'a mut Classes,
    peers: &'a Addresses<Arc<PeerInfo>>,
    prefixes: &'a BTreeMap<IpNetwork, PeerInfo>,
    /// A node port has a frontend for each address of the node: its class is made once.
    known: HashMap<(BTreeSet<PortRef<'a>>, Reached), Arc<Identity>>,
}

/// By which kind of frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Reached {
    ipv4: bool,
    elsewhere: bool,
}

impl<'a> Projection<'a> {
    /// `compiled`: with its addresses and prefixes.
    pub fn new(
        index: &'a Index,
        settings: &'a Settings,
        classes: &'a mut Classes,
        compiled: &'a Compiled,
    ) -> Self {
        let Compiled { peers, prefixes, .. } = compiled;
        Self { index, settings, classes, peers, prefixes, known: HashMap::new() }
    }

    /// What `ports`, those that are reached at the frontend, come to.
    pub fn identity(&mut self, frontend: Frontend, ports: BTreeSet<PortRef<'a>>) -> Arc<Identity> {
        let reached = Reached { ipv4: frontend.address.is_ipv4(), elsewhere: frontend.is_elsewhere() };
        let key = (ports, reached);
        if let Some(known) = self.known.get(&key) {
            return Arc::clone(known);
        }
        let class = if self.leads_into_tunnel(frontend.protocol, &key.0, reached.ipv4) {
            Identity::Tunnel
        } else {
            Identity::Service(self.class(frontend.protocol, &key.0, reached))
        };
        let identity = self.classes.intern(class);
        self.known.insert(key, Arc::clone(&identity));
        identity
    }

    /// Of several Services at one frontend, all backends.
    fn class(&self, protocol: Protocol, ports: &BTreeSet<PortRef<'_>>, reached: Reached) -> ServiceClass {
        let Reached { ipv4, elsewhere } = reached;
        let services = self.index.services();
        let backends = ports.iter().flat_map(|port| services.backends(*port, ipv4));
        let (mut pods, mut others) = (BTreeSet::new(), BTreeSet::new());
        for backend in backends {
            let Some(peer) = self.peer(backend.address).cloned() else { continue };
            let later = !elsewhere && self.is_judged_later(backend.address, &peer);
            let class = BackendClass { peer, port: backend.port };
            if later {
                pods.insert(class)
            } else {
                others.insert(class)
            };
        }
        // Asked about live connections: what a draining pod may have is judged later, like every pod's.
        for backend in ports.iter().flat_map(|port| services.draining(*port, ipv4)) {
            let Some(peer) = self.peer(backend.address).cloned() else { continue };
            if !elsewhere && self.is_judged_later(backend.address, &peer) {
                pods.insert(BackendClass { peer, port: backend.port });
            }
        }
        let defective = ports.iter().any(|port| services.is_defective(port.service));
        ServiceClass { protocol, pods, others, defective, elsewhere }
    }

    /// Whatever is no known pod's may be a node's: not all of a node's addresses are known. Endpoints that drain count,
    /// because live connections still go there.
    fn leads_into_tunnel(&self, protocol: Protocol, ports: &BTreeSet<PortRef<'_>>, ipv4: bool) -> bool {
        let (services, tunnel) = (self.index.services(), self.settings.tunnel_port);
        let is_pod =
            |address| self.peer(address).is_some_and(|peer| matches!(*peer.identity, Identity::Pod(_)));
        let leads = |port: &PortRef<'_>| {
            let backends = services.backends(*port, ipv4).into_iter().chain(services.draining(*port, ipv4));
            backends.into_iter().any(|backend| backend.port == tunnel && !is_pod(backend.address))
        };
        protocol == Protocol::Udp && tunnel != 0 && ports.iter().any(leads)
    }

    /// Known or not, it is a pod's address, and what goes there passes a hook after translation.
    fn is_judged_later(&self, address: IpAddr, peer: &PeerInfo) -> bool {
        let here = || self.index.pod_by_address(address).is_some_and(|pod| self.index.is_endpoint(pod));
        matches!(*peer.identity, Identity::Pod(_) | Identity::UnknownPod)
            && (self.settings.backends_elsewhere_judged || here())
    }

    /// `None` only if there is no prefix for everything else.
    fn peer(&self, address: IpAddr) -> Option<&PeerInfo> {
        let prefix = || self.classes.prefixes.around(address).and_then(|around| self.prefixes.get(&around));
        self.peers.get(&address).map(Arc::as_ref).or_else(prefix)
    }
}

impl RuleSet {
    /// Entries for those of the identities that are Services: towards each, everything or nothing. Where egress is
    /// open to everybody, and for other nodes' ports, only a tenant needs any: its doors.
    pub(super) fn services(&self, identities: &[&Arc<Identity>]) -> Entries {
        let services: Vec<_> = identities.iter().filter_map(|identity| service(identity)).collect();
        if services.is_empty() || self.egress.policies.is_empty() && self.tenant.is_none() {
            return Entries::new();
        }
        let peers = || services.iter().flat_map(|(_, class)| class.backends().map(|backend| &backend.peer));
        // The compiler shares equal ones, so that few are compared in full.
        let identities: HashMap<*const Identity, _> =
            peers().map(|peer| (Arc::as_ptr(&peer.identity), &peer.identity)).collect();
        let blocks: HashMap<*const BlockSet, _> =
            peers().map(|peer| (Arc::as_ptr(&peer.blocks), &peer.blocks)).collect();
        let entries = self.entries(identities.into_values(), blocks.into_values());
        let mut admitted = Entries::new();
        for (identity, class) in services {
            let key = EntryKey::everything(Direction::Egress, RulePeer::Identity(Arc::clone(identity)));
            if self.tenant.is_some() && self.is_open(class, &entries) {
                admitted.insert(EntryKey { door: true, ..key.clone() }, Grant::Door);
            }
            if !self.egress.policies.is_empty()
                && !class.elsewhere
                && let Some(grant) = self.admits(class, &entries)
            {
                admitted.insert(key, grant);
            }
        }
        admitted
    }

    /// No backend that is not judged later is behind the tenant's boundary.
    fn is_open(&self, class: &ServiceClass, entries: &Entries) -> bool {
        let tenant = self.tenant.as_deref();
        let is_within = |backend: &BackendClass| !is_bound(entries, tenant, &backend.peer, Direction::Egress);
        class.others.iter().all(is_within) && !(class.elsewhere && class.defective)
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
