//! What the maps say about a new connection, asked as the programs ask: record, peer or Service, door, rules.
//! For `bulkhead explain`, which must not take our mirror's word for it.

use std::net::IpAddr;

use bulkhead_ebpf::{
    abi::{
        DOOR, EGRESS, Endpoint, FIRST_POD_IDENTITY, IDENTITY_REMOTE_NODE, IDENTITY_TUNNEL,
        IDENTITY_UNKNOWN_POD, PEER_ANY, Peer, RuleKey, TENANT_UNKNOWN,
    },
    packet::UDP,
    reason::Reason,
};

use super::{DatapathError, ServiceAddress};
use crate::{cluster::service::OTHER_NODES, policy::model::Direction};

/// Single lookups in the kernel's maps; tests put an image in their place.
pub trait Lookup {
    /// The record of exactly this interface.
    fn endpoint(&self, ifindex: u32) -> Result<Option<Endpoint>, DatapathError>;
    /// Exact match first, then the longest prefix.
    fn peer(&self, address: IpAddr) -> Result<Option<Peer>, DatapathError>;
    /// Identity number behind a Service's frontend.
    fn service(&self, at: &ServiceAddress) -> Result<Option<u32>, DatapathError>;
    /// Number of the grant of the longest match.
    fn rule(&self, key: &RuleKey) -> Result<Option<u32>, DatapathError>;
}

/// A connection as one end sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    pub direction: Direction,
    pub remote: IpAddr,
    /// IANA number.
    pub protocol: u8,
    /// Of the destination; 0 for ICMP.
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// What the other end is to the kernel.
    pub peer: Peer,
    /// It is a Service's frontend: which backend is meant is judged later.
    pub is_service: bool,
    /// Number of the grant, or why there is none.
    pub outcome: Result<u32, Reason>,
}

/// An address that no map knows: matched by nothing but rules for everybody.
const UNKNOWN: Peer =
    Peer { identity: IDENTITY_UNKNOWN_POD, blocks: 0, tenants: [TENANT_UNKNOWN; 2], ifindex: 0 };

/// As `bulkhead_ebpf::rules::allow` decides for the first packet of a connection whose sender nothing hides.
pub fn rule(lookup: &impl Lookup, endpoint: &Endpoint, attempt: &Attempt) -> Result<Ruling, DatapathError> {
    let Attempt { direction, remote, protocol, port } = *attempt;
    let direction = match direction {
        Direction::Ingress => bulkhead_ebpf::abi::INGRESS,
        Direction::Egress => EGRESS,
    };
    let frontend = |address| match direction {
        EGRESS => lookup.service(&ServiceAddress { address, port, protocol }),
        _ => Ok(None),
    };
    let service = frontend(remote)?;
    let peer = match service {
        Some(identity) => Peer { identity, ..UNKNOWN },
        None => lookup.peer(remote)?.unwrap_or(UNKNOWN),
    };
    let ruling = |outcome| Ok(Ruling { peer, is_service: service.is_some(), outcome });
    let key = RuleKey {
        rule_set: endpoint.policy.rule_set(),
        peer: PEER_ANY,
        direction,
        protocol,
        port_be: port.to_be_bytes(),
    };

    let elsewhere = || {
        let [v4, v6] = OTHER_NODES;
        frontend(if remote.is_ipv4() { v4 } else { v6 })
    };
    let behind = if service.is_none() && protocol == UDP && peer.identity < FIRST_POD_IDENTITY {
        elsewhere()?
    } else {
        service
    };
    if behind == Some(IDENTITY_TUNNEL) {
        return ruling(Err(Reason::Tunnel));
    }

    let own = endpoint.tenant;
    let mut door = own.is_apart_from(own.of(&peer)).then_some(peer.identity);
    if own.tenant() != 0 && peer.identity == IDENTITY_REMOTE_NODE {
        door = elsewhere()?.or(door);
    }
    if let Some(peer) = door
        && lookup.rule(&RuleKey { peer, direction: direction | DOOR, ..key })?.is_none()
    {
        return ruling(Err(Reason::TenantBoundary));
    }

    // Only rules for all protocols and ports speak of a Service: its port is not its backends'.
    let key = if service.is_some() { RuleKey { protocol: 0, port_be: [0; 2], ..key } } else { key };
    let blocks = Some(peer.blocks).filter(|blocks| *blocks != 0);
    for peer in [Some(peer.identity), blocks, Some(PEER_ANY)].into_iter().flatten() {
        if let Some(grant) = lookup.rule(&RuleKey { peer, ..key })? {
            return ruling(Ok(grant));
        }
    }
    ruling(Err(Reason::PolicyDenied))
}
