//! What the kernel does with [`Compiled`] and [`Entries`], step by step: the reference for its programs.

use std::{net::IpAddr, sync::Arc};

use super::{
    model::{
        BlockSet, Compiled, Direction, EndpointPolicy, Entries, EntryKey, Grant, Identity, PeerInfo,
        PortMatch, RulePeer, Tenancy,
    },
    prefixes::{full_length, truncated},
};

/// The verdict at one end that is a local pod, for a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Everything found that admits, most specific peer first; never empty.
    Allow(Vec<Grant>),
    /// Policies isolate the pod and no rule admits.
    NoRule,
    TenantBoundary,
}

impl Compiled {
    /// The exact address, else the longest prefix; `None` only if nothing was compiled.
    pub fn peer(&self, address: IpAddr) -> Option<&PeerInfo> {
        let prefix = |length| self.prefixes.get(&truncated(address, length));
        self.peers
            .get(&address)
            .map(Arc::as_ref)
            .or_else(|| (0..=full_length(address)).rev().find_map(prefix))
    }
}

impl EndpointPolicy {
    /// The verdict for a connection with `peer`, to `port` of the destination (0 for protocols without
    /// ports), `protocol` by its IANA number.
    pub fn decide(&self, peer: &PeerInfo, direction: Direction, protocol: u8, port: u16) -> Decision {
        let entries = self.rules.entries([&peer.identity].into_iter(), [&peer.blocks].into_iter());
        decide(&entries, self.tenant.as_deref(), peer, direction, protocol, port)
    }

    /// The verdict before translation, for a connection to a Service of this class ([`Compiled::services`]).
    ///
    /// The Service's port is not the backends', so no rule for a port is asked (semantics 18): only what holds
    /// for the Service itself, or for everybody on every protocol. A Service has no tenant; its pods' are
    /// judged after translation.
    pub fn decide_service(&self, class: &Arc<Identity>) -> Decision {
        if **class == Identity::Tunnel {
            return Decision::NoRule;
        }
        let entries = self.rules.entries([class].into_iter(), [].into_iter());
        if !self.is_door_open(class, &entries) {
            return Decision::TenantBoundary;
        }
        let peers = [RulePeer::Identity(Arc::clone(class)), RulePeer::Any];
        let grants = peers.map(|peer| entries.get(&EntryKey::everything(Direction::Egress, peer)).cloned());
        let grants: Vec<_> = grants.into_iter().flatten().collect();
        if grants.is_empty() { Decision::NoRule } else { Decision::Allow(grants) }
    }
}

impl EndpointPolicy {
    /// May the pod's tenant, if it has one, go to what stands behind this Service's class?
    pub fn reaches(&self, class: &Arc<Identity>) -> bool {
        self.is_door_open(class, &self.rules.entries([class].into_iter(), [].into_iter()))
    }

    fn is_door_open(&self, class: &Arc<Identity>, entries: &Entries) -> bool {
        let key = EntryKey::everything(Direction::Egress, RulePeer::Identity(Arc::clone(class)));
        self.tenant.is_none() || entries.contains_key(&EntryKey { door: true, ..key })
    }
}

/// The peer is behind the tenant's boundary, and its door is closed.
pub(super) fn is_bound(
    entries: &Entries,
    tenant: Option<&str>,
    peer: &PeerInfo,
    direction: Direction,
) -> bool {
    let key = EntryKey::everything(direction, RulePeer::Identity(Arc::clone(&peer.identity)));
    is_boundary(tenant, &peer.tenant) && !entries.contains_key(&EntryKey { door: true, ..key })
}

/// As [`EndpointPolicy::decide`], with entries that hold at least the peer's.
pub fn decide(
    entries: &Entries,
    tenant: Option<&str>,
    peer: &PeerInfo,
    direction: Direction,
    protocol: u8,
    port: u16,
) -> Decision {
    let identity = RulePeer::Identity(Arc::clone(&peer.identity));
    // A peer's entries follow one another, the coarsest first: far fewer than there are prefixes to ask for.
    let probe = |peer: &RulePeer, door: bool| {
        let coarsest = EntryKey { direction, door, peer: peer.clone(), ports: PortMatch::All };
        let of_peer = |key: &EntryKey| (key.direction, key.door) == (direction, door) && key.peer == *peer;
        let of_peer = entries.range(coarsest..).take_while(|(key, _)| of_peer(key));
        let matching = of_peer.filter(|(key, _)| key.ports.holds(protocol, port));
        matching.max_by_key(|(key, _)| key.ports.bits()).map(|(_, grant)| grant)
    };
    if is_bound(entries, tenant, peer, direction) {
        return Decision::TenantBoundary;
    }
    let blocks = (*peer.blocks != BlockSet::default()).then(|| RulePeer::Blocks(Arc::clone(&peer.blocks)));
    let peers = [Some(identity), blocks, Some(RulePeer::Any)];
    let grants: Vec<_> = peers.iter().flatten().filter_map(|peer| probe(peer, false)).cloned().collect();
    if grants.is_empty() { Decision::NoRule } else { Decision::Allow(grants) }
}

/// Shared sides have no boundary; an unknown pod is of another tenant than any.
fn is_boundary(own: Option<&str>, peer: &Tenancy) -> bool {
    match (own, peer) {
        (None, _) | (_, Tenancy::Shared) => false,
        (Some(own), Tenancy::Tenant(theirs)) => own != &**theirs,
        (Some(_), Tenancy::Unknown) => true,
    }
}
