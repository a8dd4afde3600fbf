//! A small world and what must happen in it: the same table is run on the host and in the kernel.
mod budgets;
mod cases;
mod families;
mod services;

pub use cases::cases;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bulkhead_ebpf::{
    abi::{
        BLOCKS_TAG, Config, DOOR, EGRESS, Endpoint, IDENTITY_HOST, IDENTITY_REMOTE_NODE, IDENTITY_TUNNEL,
        IDENTITY_UNKNOWN_POD, IDENTITY_WORLD, INGRESS, Limits, PEER_ANY, Peer, PolicyWord, RULE_BITS_ALL,
        RULE_BITS_PORT, RULE_BITS_PROTOCOL, RuleKey, ServiceKey, TENANT_UNKNOWN,
    },
    decide::Hook,
    host::{
        Memory,
        frames::{Between, MacBytes},
    },
    packet::{TCP, UDP},
    reason::Reason,
};

/// The interface of whichever pod's hook is at work: the only one that a test run in the kernel has.
pub const IFINDEX: u32 = 1;
pub const TUNNEL: u16 = 8472;
const GATEWAY_MAC: MacBytes = [2, 0, 0, 0, 0, 1];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    A,
    B,
    /// A pod of another node.
    Remote,
    /// A pod of tenant 7, whose door is closed, and one whose door is open.
    Tenant,
    OpenTenant,
    /// As `Tenant`, on its way from tenant 7 to tenant 3.
    Moving,
    Host,
    Node,
    /// An external address in an ipBlock, and one in none.
    Block,
    World,
    /// An address of the pod network that no pod is known to own.
    Unknown,
    /// The cluster address of a Service.
    Vip,
}
pub use Who::{A, B, Block, Host, Moving, Node, OpenTenant, Remote, Tenant, Unknown, Vip, World};

impl Who {
    pub const fn address(self, v6: bool) -> IpAddr {
        let (four, six) = match self {
            A => ([10, 1, 0, 2], [0xfd00, 1, 0, 0, 0, 0, 0, 2]),
            B => ([10, 1, 0, 3], [0xfd00, 1, 0, 0, 0, 0, 0, 3]),
            Remote => ([10, 2, 0, 2], [0xfd00, 2, 0, 0, 0, 0, 0, 2]),
            Tenant => ([10, 2, 0, 7], [0xfd00, 2, 0, 0, 0, 0, 0, 7]),
            OpenTenant => ([10, 2, 0, 8], [0xfd00, 2, 0, 0, 0, 0, 0, 8]),
            Moving => ([10, 2, 0, 9], [0xfd00, 2, 0, 0, 0, 0, 0, 9]),
            Host => ([10, 1, 0, 1], [0xfd00, 1, 0, 0, 0, 0, 0, 1]),
            Node => ([192, 168, 0, 2], [0xfd00, 9, 0, 0, 0, 0, 0, 2]),
            Block => ([203, 0, 113, 9], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 9]),
            World => ([198, 51, 100, 1], [0x2600, 0, 0, 0, 0, 0, 0, 1]),
            Unknown => ([10, 9, 9, 9], [0xfd00, 9, 9, 0, 0, 0, 0, 9]),
            Vip => ([172, 30, 0, 10], [0xfd30, 0, 0, 0, 0, 0, 0, 0xa]),
        };
        if v6 {
            IpAddr::V6(Ipv6Addr::from_segments(six))
        } else {
            let [a, b, c, d] = four;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
    }

    pub const fn mac(self) -> MacBytes {
        match self {
            A => [2, 0, 0, 0, 0, 0xa],
            B => [2, 0, 0, 0, 0, 0xb],
            _ => GATEWAY_MAC,
        }
    }

    /// Interface of the pod, other than [`IFINDEX`]: where others find its record.
    pub const fn ifindex(self) -> u32 {
        match self {
            A => 70,
            B => 71,
            _ => 0,
        }
    }

    /// Packets to Services and the node carry this.
    pub const fn mark(self) -> u16 {
        match self {
            A => 5,
            B => 0xfff,
            _ => 0,
        }
    }

    const fn peer(self) -> Peer {
        let (identity, blocks, before) = match self {
            A => (300, 0, 0),
            B => (301, 0, 0),
            Remote => (302, 0, 0),
            Tenant | Moving => (303, 0, 7),
            OpenTenant => (304, 0, 7),
            Host => (IDENTITY_HOST, 0, 0),
            Node => (IDENTITY_REMOTE_NODE, 0, 0),
            Block => (IDENTITY_WORLD, BLOCKS_TAG | 5, 0),
            World | Vip => (IDENTITY_WORLD, 0, 0),
            Unknown => (IDENTITY_UNKNOWN_POD, 0, TENANT_UNKNOWN),
        };
        let after = if matches!(self, Moving) { 3 } else { before };
        Peer { identity, blocks, tenants: [before, after], ifindex: self.ifindex() }
    }
}

/// Peers by exact address.
pub fn peers() -> Vec<(IpAddr, Peer)> {
    [A, B, Remote, Tenant, OpenTenant, Moving, Host, Node]
        .into_iter()
        .flat_map(|who| [false, true].map(|v6| (who.address(v6), who.peer())))
        .collect()
}

/// Interface by which what a pod sends to a Service comes into the node.
pub const BRIDGE: u32 = 50;

/// Other bits of the mark are others': kube-proxy's is one of them.
const OTHERS_MARK: u32 = 0x4000;

/// Frontends of Services, and the number that stands for their backends.
pub fn services() -> Vec<(IpAddr, u8, u16, u32)> {
    let frontends = [
        (Vip, TCP, 80, 500),
        (Vip, TCP, 81, 501),
        (Vip, TCP, 443, 501),
        (Host, TCP, 30080, 500),
        (Host, TCP, 30081, 501),
        (Vip, UDP, 53, 500),
        (Vip, UDP, 54, IDENTITY_TUNNEL),
        (Host, UDP, 30054, IDENTITY_TUNNEL),
    ];
    let of = |v6: bool| {
        frontends.map(|(who, protocol, port, backends)| (who.address(v6), protocol, port, backends))
    };
    // The same node ports at other nodes.
    let elsewhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
        .map(|any| [(any, TCP, 30080, 502), (any, TCP, 30081, 501), (any, UDP, 30054, IDENTITY_TUNNEL)]);
    [&of(false)[..], &of(true), &elsewhere.concat()].concat()
}

/// Everything else, by prefix length.
pub fn prefixes() -> Vec<(u32, IpAddr, Peer)> {
    [
        (0, World.address(false), World),
        (0, World.address(true), World),
        (8, Unknown.address(false), Unknown),
        (16, Unknown.address(true), Unknown),
        (24, Block.address(false), Block),
        (32, Block.address(true), Block),
    ]
    .map(|(bits, address, who)| (bits, address, who.peer()))
    .to_vec()
}

pub const CONFIG: Config = Config { tunnel_port_be: TUNNEL.to_be_bytes(), lets: 0, mark_mask: 0xfff0_0000 };
/// A's rules, and the same under another number; a set without rules is any other number.
pub const RULES_A: u32 = 1;
pub const RULES_A_AGAIN: u32 = 4;
pub const RULES_B: u32 = 2;
pub const RULES_NONE: u32 = 9;
/// Rules of somebody who may do everything.
pub const RULES_OPEN: u32 = 5;
/// Nobody but the node may come in.
pub const RULES_HOST: u32 = 6;
/// Everybody may come in, and nothing may be begun.
pub const RULES_INGRESS: u32 = 7;
/// Anything may be begun, and nobody may come in.
pub const RULES_EGRESS: u32 = 8;

pub fn rules() -> Vec<(u32, RuleKey, u32)> {
    let key = |rule_set, peer, direction, protocol, port: u16| RuleKey {
        rule_set,
        peer,
        direction,
        protocol,
        port_be: port.to_be_bytes(),
    };
    let mut rules = vec![
        (RULE_BITS_PORT, key(RULES_B, 300, INGRESS, TCP, 80), 21),
        (RULE_BITS_ALL, key(RULES_B, IDENTITY_HOST, INGRESS, 0, 0), 24),
        (RULE_BITS_ALL, key(RULES_HOST, IDENTITY_HOST, INGRESS, 0, 0), 25),
        (RULE_BITS_ALL, key(RULES_OPEN, PEER_ANY, INGRESS, 0, 0), 31),
        (RULE_BITS_ALL, key(RULES_OPEN, PEER_ANY, EGRESS, 0, 0), 32),
        (RULE_BITS_ALL, key(RULES_OPEN, 502, EGRESS | DOOR, 0, 0), 33),
        (RULE_BITS_ALL, key(RULES_INGRESS, PEER_ANY, INGRESS, 0, 0), 33),
        (RULE_BITS_ALL, key(RULES_EGRESS, PEER_ANY, EGRESS, 0, 0), 34),
    ];
    for set in [RULES_A, RULES_A_AGAIN] {
        rules.extend([
            (RULE_BITS_PORT, key(set, 301, EGRESS, TCP, 80), 11),
            (RULE_BITS_ALL, key(set, 302, EGRESS, 0, 0), 12),
            // 8080 to 8087
            (RULE_BITS_PORT - 3, key(set, 302, INGRESS, TCP, 8080), 13),
            (RULE_BITS_PORT, key(set, BLOCKS_TAG | 5, EGRESS, UDP, 53), 14),
            (RULE_BITS_ALL, key(set, IDENTITY_HOST, INGRESS, 0, 0), 15),
            (RULE_BITS_ALL, key(set, IDENTITY_HOST, EGRESS, 0, 0), 16),
            (RULE_BITS_PROTOCOL, key(set, IDENTITY_REMOTE_NODE, EGRESS, UDP, 0), 17),
            (RULE_BITS_PORT, key(set, 303, EGRESS, TCP, 80), 18),
            (RULE_BITS_PORT, key(set, 304, EGRESS, TCP, 80), 19),
            (RULE_BITS_ALL, key(set, 304, EGRESS | DOOR, 0, 0), 20),
            (RULE_BITS_PORT, key(set, PEER_ANY, EGRESS, TCP, 443), 22),
            (RULE_BITS_ALL, key(set, 500, EGRESS, 0, 0), 23),
            (RULE_BITS_ALL, key(set, 500, EGRESS | DOOR, 0, 0), 26),
        ]);
    }
    rules
}

pub fn octets(address: IpAddr) -> ([u8; 4], [u8; 16]) {
    match address {
        IpAddr::V4(address) => (address.octets(), [0; 16]),
        IpAddr::V6(address) => ([0; 4], address.octets()),
    }
}

/// The record of A or B.
pub fn endpoint(who: Who) -> Endpoint {
    let rule_set = if who == A { RULES_A } else { RULES_B };
    Endpoint {
        ifindex: IFINDEX,
        id: if who == A { 1 } else { 2 },
        policy: PolicyWord::new(rule_set, 1),
        ipv4: octets(who.address(false)).0,
        ipv6: octets(who.address(true)).1,
        mac: who.mac(),
        identity: who.peer().identity,
        mark: who.mark(),
        ..Endpoint::default()
    }
}

/// The scene in memory.
pub fn memory() -> Memory {
    let mut memory = Memory::default();
    memory.config = CONFIG;
    memory.now.set(1 << 40);
    for (address, peer) in peers() {
        match address {
            IpAddr::V4(address) => memory.peers_v4.insert(address.octets(), peer),
            IpAddr::V6(address) => memory.peers_v6.insert(address.octets(), peer),
        };
    }
    for (bits, address, peer) in prefixes() {
        match address {
            IpAddr::V4(_) => memory.prefix_v4(bits, octets(address).0, peer),
            IpAddr::V6(_) => memory.prefix_v6(bits, octets(address).1, peer),
        }
    }
    for (bits, key, rule) in rules() {
        memory.allow(bits, key, rule);
    }
    for (address, protocol, port, backends) in services() {
        let port_be = port.to_be_bytes();
        match address {
            IpAddr::V4(a) => {
                let key = ServiceKey { address: a.octets(), port_be, protocol, pad: 0 };
                memory.services_v4.insert(key, backends)
            }
            IpAddr::V6(a) => {
                let key = ServiceKey { address: a.octets(), port_be, protocol, pad: 0 };
                memory.services_v6.insert(key, backends)
            }
        };
    }
    memory.origins = [A, B].map(|who| (who.mark().into(), who.ifindex())).into();
    memory.endpoints = endpoints([endpoint(A), endpoint(B)], Some(A));
    memory
}

/// Both records at their own interfaces, and that of the pod whose hook is at work.
pub fn endpoints(pods: [Endpoint; 2], at_hook: Option<Who>) -> HashMap<u32, Endpoint> {
    let own = [A, B].into_iter().zip(pods).map(|(who, pod)| Endpoint { ifindex: who.ifindex(), ..pod });
    let hook = at_hook.map(|who| Endpoint { ifindex: IFINDEX, ..pods[usize::from(who == B)] });
    own.chain(hook).map(|record| (record.ifindex, record)).collect()
}

#[derive(Clone, Debug)]
pub enum Step {
    /// A frame at a pod's hook, and the reason of its verdict.
    Packet(Who, Hook, Vec<u8>, Reason),
    /// The same for a frame that has come through the node, with this pod's mark on it.
    Translated(Who, Hook, Vec<u8>, Option<Who>, Reason),
    /// The same with this pod's mark, for a frame that does not tell any more where it came in.
    Marked(Who, Hook, Vec<u8>, Who, Reason),
    /// From now on the pod is under this rule set and generation.
    Policy(Who, u32, u32),
    /// From now on the pod belongs to this tenant, and sees peers' tenants before (0) or after (1) their move.
    Tenant(Who, u32, u32),
    Adopted(Who),
    /// From now on endpoints have this budget.
    Limits(Limits),
    /// The interface has no record.
    Gone,
}

/// A frame at a hook.
pub struct Sight<'s> {
    pub who: Who,
    pub hook: Hook,
    pub bytes: &'s [u8],
    pub came_in_by: u32,
    pub mark: u32,
    pub want: Reason,
}

impl Step {
    /// What is seen in this step, if anything is.
    pub fn sight(&self) -> Option<Sight<'_>> {
        let bits = |who: Who| u32::from(who.mark()) << 20 | OTHERS_MARK;
        let (who, hook, bytes, came_in_by, mark, want) = match self {
            Self::Packet(who, hook, bytes, want) => (who, hook, bytes, 0, 0, want),
            Self::Translated(who, hook, bytes, mark, want) => {
                (who, hook, bytes, BRIDGE, mark.map_or(OTHERS_MARK, bits), want)
            }
            Self::Marked(who, hook, bytes, mark, want) => (who, hook, bytes, 0, bits(*mark), want),
            _ => return None,
        };
        Some(Sight { who: *who, hook: *hook, bytes, came_in_by, mark, want: *want })
    }
}

pub struct Case {
    pub name: &'static str,
    pub v6: bool,
    pub steps: Vec<Step>,
}

pub fn between(source: Who, destination: Who, v6: bool) -> Between {
    Between {
        source_mac: source.mac(),
        destination_mac: destination.mac(),
        source: source.address(v6),
        destination: destination.address(v6),
    }
}
