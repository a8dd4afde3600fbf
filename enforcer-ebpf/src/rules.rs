//! Whether the pod's rules allow a connection with a peer: boundary first, then at most three probes.

use crate::{
    abi::{
        CONN_TRANSLATED, DOOR, EGRESS, FIRST_POD_IDENTITY, IDENTITY_HOST, IDENTITY_REMOTE_NODE,
        IDENTITY_TUNNEL, IDENTITY_UNKNOWN_POD, INGRESS, PEER_ANY, Peer, RuleKey, ServiceKey, TENANT_UNKNOWN,
    },
    decide::{At, Hook, Site},
    family::Family,
    flow::Flow,
    origin::{NOBODY, STRANGER},
    packet::UDP,
    reason::Reason,
    tables::{Addresses, ConnRef, Tables},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub rule: u32,
    pub identity: u32,
    /// `SERVICE` or `NODE`: the packet goes where its destination may be translated; otherwise 0. A word, because
    /// the kernel's BTF knows no `Result` with its tag behind the fields.
    pub marked: u32,
}
const SERVICE: u32 = 1;
const NODE: u32 = 2;

/// What is asked of a rule set; small enough for one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// `INGRESS` or `EGRESS`: of the connection, seen from the endpoint.
    pub direction: u8,
    /// This packet of it goes the other way, so that its source is what the connection asked for.
    pub against: bool,
    /// Who stands behind an address of this node: see the module `origin`.
    pub origin: u32,
}

impl Question {
    #[inline(always)]
    pub const fn first(direction: u8, origin: u32) -> Self {
        Self { direction, against: false, origin }
    }

    /// About a connection that was judged before, under other rules.
    #[inline(always)]
    pub fn again(conn: ConnRef, direction: u8, against: bool) -> Self {
        let origin = if conn.is_stranger() {
            STRANGER
        } else if conn.state() & CONN_TRANSLATED != 0 {
            ENDING | u32::from(conn.origin())
        } else {
            NOBODY
        };
        Self { direction, against, origin }
    }
}

/// Of an origin only the low half is known. No interface index has this bit.
const ENDING: u32 = 1 << 31;

/// An address that no table knows: matched by nothing but rules for everybody.
const UNKNOWN: Peer =
    Peer { identity: IDENTITY_UNKNOWN_POD, blocks: 0, tenants: [TENANT_UNKNOWN; 2], ifindex: 0 };

/// Judges a connection in its own direction.
#[inline(never)]
pub fn allow<F: Family, T: Tables + Addresses<F>, H: At>(
    site: &Site<T, H>,
    flow: &Flow<F>,
    question: Question,
) -> Result<Grant, Reason> {
    let Question { direction, against, .. } = question;
    let port_be = if against { flow.rule_port(0) } else { flow.rule_port(1) };
    let rule_set = site.policy.rule_set();
    let mut key = RuleKey { rule_set, peer: PEER_ANY, direction, protocol: flow.protocol, port_be };
    let (peer, marked) = match frontend::<F, T, H>(site, site.hook().remote(flow), &key) {
        // It has no tenant: its backends have, and the door says whether this pod's may reach them.
        Some(IDENTITY_TUNNEL) => return Err(Reason::Tunnel),
        Some(identity) => (Peer { identity, ..UNKNOWN }, SERVICE),
        None => other(site, flow, question),
    };
    let own = site.endpoint.tenant;
    let mut door = if own.is_apart_from(own.of(&peer)) { peer.identity } else { 0 };
    let is_node = own.tenant() != 0 && peer.identity == IDENTITY_REMOTE_NODE;
    // A node has more addresses than are known to be one's, and its ports are open at all of them.
    let may_be_node = marked != SERVICE && flow.protocol == UDP && peer.identity < FIRST_POD_IDENTITY;
    if (is_node || may_be_node)
        && let Some(identity) = frontend::<F, T, H>(site, F::UNSPECIFIED, &key)
    {
        if identity == IDENTITY_TUNNEL {
            return Err(Reason::Tunnel);
        }
        if is_node {
            door = identity;
        }
    }
    // From here on it does not matter how this came to be known: the verifier goes on once, not once for every way.
    let [identity, blocks] =
        halves(site.tables.opaque(u64::from(peer.identity) | u64::from(peer.blocks) << 32));
    let [door, marked] = halves(site.tables.opaque(u64::from(door) | u64::from(marked) << 32));
    if door != 0 {
        key.peer = door;
        key.direction = direction | DOOR;
        if site.tables.rule(&key).is_none() {
            return Err(Reason::TenantBoundary);
        }
        key.direction = direction;
    }
    if marked == SERVICE {
        // Only rules for all protocols and ports speak of a Service: its port is not its backends'.
        (key.protocol, key.port_be) = (0, [0; 2]);
    }
    key.peer = identity;
    let mut rule = site.tables.rule(&key);
    if rule.is_none() && blocks != 0 {
        key.peer = blocks;
        rule = site.tables.rule(&key);
    }
    if rule.is_none() {
        key.peer = PEER_ANY;
        rule = site.tables.rule(&key);
    }
    match rule {
        Some(rule) => Ok(Grant { rule, identity, marked }),
        None => Err(Reason::PolicyDenied),
    }
}

/// Low and high.
#[inline(always)]
const fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

/// The number behind the Service that the connection goes to, if it goes to one. The unspecified address stands for
/// every other node's, which lead to node ports too.
#[inline(always)]
fn frontend<F: Family, T: Tables + Addresses<F>, H: At>(
    site: &Site<T, H>,
    address: F::Addr,
    key: &RuleKey,
) -> Option<u32> {
    // On its way to another node a packet has been translated already.
    if key.direction != EGRESS || site.hook() == Hook::ToOverlay {
        return None;
    }
    let RuleKey { protocol, port_be, .. } = *key;
    let key = ServiceKey { address, port_be, protocol, pad: 0 };
    Addresses::<F>::service(site.tables, &key)
}

/// The other end as policy sees it, and whether packets to it are marked.
#[inline(always)]
fn other<F: Family, T: Tables + Addresses<F>, H: At>(
    site: &Site<T, H>,
    flow: &Flow<F>,
    question: Question,
) -> (Peer, u32) {
    let mut peer = site.peer::<F>(site.hook().remote(flow)).unwrap_or(UNKNOWN);
    let is_host = peer.identity == IDENTITY_HOST;
    if is_host && question.direction == INGRESS && question.origin != NOBODY {
        let behind = match question.origin {
            STRANGER => None,
            origin if origin & ENDING != 0 => site.tables.endpoint_ending(origin as u16),
            origin => site.tables.endpoint(origin),
        };
        match behind {
            Some(endpoint) => peer = site.peer::<F>(F::own(endpoint)).unwrap_or(UNKNOWN),
            None => peer.identity = IDENTITY_REMOTE_NODE,
        }
    }
    // A segment from the middle of a connection that nobody saw begin may be an answer to who came in masqueraded:
    // marked, it would be judged, on its way back to them, as if the pod began.
    (peer, if is_host && question.direction == EGRESS && flow.opens(false) { NODE } else { 0 })
}
