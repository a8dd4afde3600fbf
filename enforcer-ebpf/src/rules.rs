//! Whether the pod's rules allow a connection with a peer: boundary first, then at most three probes.

use crate::{
    abi::{DOOR, IDENTITY_UNKNOWN_POD, PEER_ANY, Peer, RuleKey, TENANT_UNKNOWN},
    decide::{At, Site},
    family::Family,
    flow::Flow,
    reason::Reason,
    tables::{Addresses, Tables},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub rule: u32,
    pub identity: u32,
}

/// An address that no table knows: matched by nothing but rules for everybody.
const UNKNOWN: Peer = Peer { identity: IDENTITY_UNKNOWN_POD, blocks: 0, tenant: TENANT_UNKNOWN, ifindex: 0 };

/// Judges a connection in its own direction; `against`: this packet of it goes the other way, so that its
/// source is what the connection asked for.
#[inline(never)]
pub fn allow<F: Family, T: Tables + Addresses<F>, H: At>(
    site: &Site<T, H>,
    flow: &Flow<F>,
    direction: u8,
    against: bool,
) -> Result<Grant, Reason> {
    let peer = site.peer::<F>(site.hook().remote(flow)).unwrap_or(UNKNOWN);
    let mut key = RuleKey {
        rule_set: site.policy.rule_set(),
        peer: peer.identity,
        direction,
        protocol: flow.protocol,
        port_be: if against { flow.rule_port(0) } else { flow.rule_port(1) },
    };
    let own = site.endpoint.tenant;
    if own != 0 && peer.tenant != 0 && own != peer.tenant {
        key.direction = direction | DOOR;
        if site.tables.rule(&key).is_none() {
            return Err(Reason::TenantBoundary);
        }
        key.direction = direction;
    }
    let mut rule = site.tables.rule(&key);
    if rule.is_none() && peer.blocks != 0 {
        key.peer = peer.blocks;
        rule = site.tables.rule(&key);
    }
    if rule.is_none() {
        key.peer = PEER_ANY;
        rule = site.tables.rule(&key);
    }
    match rule {
        Some(rule) => Ok(Grant { rule, identity: peer.identity }),
        None => Err(Reason::PolicyDenied),
    }
}
