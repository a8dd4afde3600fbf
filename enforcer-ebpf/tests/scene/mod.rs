//! A small world and what must happen in it: the same table is run on the host and in the kernel.
#![expect(clippy::too_many_lines, reason = "the table of cases is long")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bulkhead_ebpf::{
    abi::{
        BLOCKS_TAG, Config, DOOR, EGRESS, Endpoint, IDENTITY_HOST, IDENTITY_REMOTE_NODE,
        IDENTITY_UNKNOWN_POD, IDENTITY_WORLD, INGRESS, PEER_ANY, Peer, PolicyWord, RULE_BITS_ALL,
        RULE_BITS_PORT, RULE_BITS_PROTOCOL, RuleKey, TENANT_UNKNOWN,
    },
    decide::Hook::{self, FromPod, ToPod},
    host::frames::{Between, MacBytes, arp, ethernet, tcp, udp},
    packet::{ICMPV6, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP},
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
    Host,
    Node,
    /// An external address in an ipBlock, and one in none.
    Block,
    World,
    /// An address of the pod network that no pod is known to own.
    Unknown,
}
pub use Who::{A, B, Block, Host, Node, OpenTenant, Remote, Tenant, Unknown, World};

pub const ALL: [Who; 10] = [A, B, Remote, Tenant, OpenTenant, Host, Node, Block, World, Unknown];

impl Who {
    pub const fn address(self, v6: bool) -> IpAddr {
        let (four, six) = match self {
            A => ([10, 1, 0, 2], [0xfd00, 1, 0, 0, 0, 0, 0, 2]),
            B => ([10, 1, 0, 3], [0xfd00, 1, 0, 0, 0, 0, 0, 3]),
            Remote => ([10, 2, 0, 2], [0xfd00, 2, 0, 0, 0, 0, 0, 2]),
            Tenant => ([10, 2, 0, 7], [0xfd00, 2, 0, 0, 0, 0, 0, 7]),
            OpenTenant => ([10, 2, 0, 8], [0xfd00, 2, 0, 0, 0, 0, 0, 8]),
            Host => ([10, 1, 0, 1], [0xfd00, 1, 0, 0, 0, 0, 0, 1]),
            Node => ([192, 168, 0, 2], [0xfd00, 9, 0, 0, 0, 0, 0, 2]),
            Block => ([203, 0, 113, 9], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 9]),
            World => ([198, 51, 100, 1], [0x2600, 0, 0, 0, 0, 0, 0, 1]),
            Unknown => ([10, 9, 9, 9], [0xfd00, 9, 9, 0, 0, 0, 0, 9]),
        };
        if v6 {
            let [a, b, c, d, e, f, g, h] = six;
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h))
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

    const fn peer(self) -> Peer {
        let (identity, blocks, tenant) = match self {
            A => (300, 0, 0),
            B => (301, 0, 0),
            Remote => (302, 0, 0),
            Tenant => (303, 0, 7),
            OpenTenant => (304, 0, 7),
            Host => (IDENTITY_HOST, 0, 0),
            Node => (IDENTITY_REMOTE_NODE, 0, 0),
            Block => (IDENTITY_WORLD, BLOCKS_TAG | 5, 0),
            World => (IDENTITY_WORLD, 0, 0),
            Unknown => (IDENTITY_UNKNOWN_POD, 0, TENANT_UNKNOWN),
        };
        Peer { identity, blocks, tenant, pad: 0 }
    }
}

/// Peers by exact address.
pub fn peers() -> Vec<(IpAddr, Peer)> {
    [A, B, Remote, Tenant, OpenTenant, Host, Node]
        .into_iter()
        .flat_map(|who| [false, true].map(|v6| (who.address(v6), who.peer())))
        .collect()
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

pub const CONFIG: Config = Config { tunnel_port_be: TUNNEL.to_be_bytes(), pad: [0; 6] };
/// A's rules, and the same under another number; a set without rules is any other number.
pub const RULES_A: u32 = 1;
pub const RULES_A_AGAIN: u32 = 4;
pub const RULES_B: u32 = 2;
pub const RULES_NONE: u32 = 9;
/// Rules of somebody who may do everything.
pub const RULES_OPEN: u32 = 5;

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
        (RULE_BITS_ALL, key(RULES_OPEN, PEER_ANY, INGRESS, 0, 0), 31),
        (RULE_BITS_ALL, key(RULES_OPEN, PEER_ANY, EGRESS, 0, 0), 32),
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
        ..Endpoint::default()
    }
}

#[derive(Clone, Debug)]
pub enum Step {
    /// A frame at a pod's hook, and the reason of its verdict.
    Packet(Who, Hook, Vec<u8>, Reason),
    /// From now on the pod is under this rule set and generation.
    Policy(Who, u32, u32),
    Tenant(Who, u32),
    Adopted(Who),
    /// The interface has no record.
    Gone,
}
use Step::{Adopted, Gone, Packet, Policy};

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

const SYN: u8 = TCP_SYN;
const SYN_ACK: u8 = TCP_SYN | TCP_ACK;
const ACK: u8 = TCP_ACK;
const FIN: u8 = TCP_FIN | TCP_ACK;
const RST: u8 = TCP_RST;

/// The cases of one family.
pub fn cases(v6: bool) -> Vec<Case> {
    use Reason as R;
    let to = |source, destination| between(source, destination, v6);
    let ab = to(A, B);
    let ar = to(A, Remote);
    let ra = to(Remote, A);
    let transport_at = if v6 { 54 } else { 34 };
    let edit = |mut frame: Vec<u8>, edits: &[(usize, u8)]| {
        for &(at, byte) in edits {
            frame[at] = byte;
        }
        frame
    };
    let mut cases = vec![];
    let mut case = |name, steps| cases.push(Case { name, v6, steps });

    case("no record of the interface", vec![Gone, Packet(A, FromPod, ar.udp(1, 2), R::NoEndpoint)]);
    case("a rule for a peer and port allows", vec![Packet(A, FromPod, ab.tcp(999, 80, SYN), R::Allowed)]);
    case("another port is denied", vec![Packet(A, FromPod, ab.tcp(999, 81, SYN), R::PolicyDenied)]);
    case("another protocol is denied", vec![Packet(A, FromPod, ab.udp(999, 80), R::PolicyDenied)]);
    case("another peer is denied", vec![Packet(A, FromPod, to(A, World).tcp(9, 80, SYN), R::PolicyDenied)]);
    case("a rule for every peer allows", vec![Packet(A, FromPod, to(A, World).tcp(9, 443, SYN), R::Allowed)]);
    case(
        "every protocol is allowed",
        vec![
            Packet(A, FromPod, ar.udp(1, 2), R::Allowed),
            Packet(A, FromPod, ar.sctp(1, 2), R::Allowed),
            Packet(A, FromPod, ar.echo(false, 7), R::Allowed),
            Packet(A, FromPod, ar.frame(47, b"gre!"), R::Allowed),
        ],
    );
    case(
        "a port range holds at its ends and not beyond",
        vec![
            Packet(A, ToPod, ra.tcp(1, 8080, SYN), R::Allowed),
            Packet(A, ToPod, ra.tcp(1, 8087, SYN), R::Allowed),
            Packet(A, ToPod, ra.tcp(1, 8088, SYN), R::PolicyDenied),
            Packet(A, ToPod, ra.tcp(1, 8079, SYN), R::PolicyDenied),
        ],
    );
    case(
        "an ipBlock's rule allows",
        vec![
            Packet(A, FromPod, to(A, Block).udp(5, 53), R::Allowed),
            Packet(A, FromPod, to(A, World).udp(5, 53), R::PolicyDenied),
        ],
    );
    case("the node may enter", vec![Packet(A, ToPod, to(Host, A).tcp(1, 1, SYN), R::Allowed)]);
    case("an unknown pod may not", vec![Packet(A, ToPod, to(Unknown, A).tcp(1, 8080, SYN), R::PolicyDenied)]);
    case(
        "replies pass although the other direction is closed",
        vec![
            Packet(A, FromPod, ab.tcp(999, 80, SYN), R::Allowed),
            Packet(A, ToPod, ab.reply().tcp(80, 999, SYN_ACK), R::Tracked),
            Packet(A, FromPod, ab.tcp(999, 80, ACK), R::Tracked),
            Packet(A, ToPod, ab.reply().tcp(80, 998, SYN_ACK), R::NotTracked),
        ],
    );
    case(
        "both ends judge, each for itself",
        vec![
            Packet(A, FromPod, ab.tcp(999, 80, SYN), R::Allowed),
            Packet(B, ToPod, ab.tcp(999, 80, SYN), R::Allowed),
            Packet(B, FromPod, ab.reply().tcp(80, 999, SYN_ACK), R::Tracked),
            Packet(A, ToPod, ab.reply().tcp(80, 999, SYN_ACK), R::Tracked),
        ],
    );
    case(
        "what one end allowed is not allowed at the other",
        vec![
            Policy(A, RULES_OPEN, 1),
            Packet(A, FromPod, ab.udp(999, 53), R::Allowed),
            Packet(B, ToPod, ab.udp(999, 53), R::PolicyDenied),
            Packet(B, FromPod, ab.reply().udp(53, 999), R::PolicyDenied),
        ],
    );
    case(
        "a pod that was spoken to without hearing it may begin by itself",
        vec![
            Policy(B, RULES_OPEN, 1),
            Packet(B, FromPod, to(B, A).udp(53, 999), R::Allowed),
            Packet(A, ToPod, to(B, A).udp(53, 999), R::PolicyDenied),
            Policy(A, RULES_A, 2),
            Packet(A, FromPod, ab.udp(999, 53), R::PolicyDenied),
            Packet(B, FromPod, to(B, A).tcp(7, 80, SYN), R::Allowed),
            Packet(A, FromPod, ab.tcp(80, 7, SYN_ACK), R::PolicyDenied),
        ],
    );
    case(
        "a pod that was spoken to may begin what its rules allow",
        vec![
            Policy(B, RULES_OPEN, 1),
            Packet(B, FromPod, to(B, Remote).udp(53, 999), R::Allowed),
            Packet(A, ToPod, ra.udp(53, 999), R::PolicyDenied),
            Packet(A, FromPod, ar.udp(999, 53), R::Allowed),
            Packet(A, ToPod, ra.udp(53, 999), R::Tracked),
        ],
    );
    case("a segment from the middle of nothing", vec![Packet(A, FromPod, ar.tcp(1, 2, ACK), R::NotTracked)]);
    case("a reset from the middle of nothing", vec![Packet(A, ToPod, ra.tcp(1, 8080, RST), R::NotTracked)]);
    case(
        "an adopted pod's connection goes on",
        vec![
            Adopted(A),
            Packet(A, FromPod, ar.tcp(1, 2, ACK), R::Allowed),
            Packet(A, ToPod, ra.tcp(2, 1, ACK), R::Tracked),
            Packet(A, FromPod, ab.tcp(1, 81, ACK), R::PolicyDenied),
        ],
    );
    case(
        "a tightened policy cuts at the next packet",
        vec![
            Packet(A, FromPod, ab.tcp(999, 80, SYN), R::Allowed),
            Packet(A, ToPod, ab.reply().tcp(80, 999, SYN_ACK), R::Tracked),
            Policy(A, RULES_NONE, 2),
            Packet(A, ToPod, ab.reply().tcp(80, 999, ACK), R::PolicyDenied),
            Packet(A, FromPod, ab.tcp(999, 80, ACK), R::PolicyDenied),
            Policy(A, RULES_A, 3),
            Packet(A, FromPod, ab.tcp(999, 80, ACK), R::Tracked),
        ],
    );
    case(
        "an unrelated change is not noticed",
        vec![
            Packet(A, ToPod, ra.tcp(1, 8081, SYN), R::Allowed),
            Policy(A, RULES_A_AGAIN, 2),
            Packet(A, FromPod, ar.tcp(8081, 1, SYN_ACK), R::Tracked),
            Packet(A, ToPod, ra.tcp(1, 8081, ACK), R::Tracked),
        ],
    );
    case(
        "generation 0 is never current",
        vec![
            Policy(A, RULES_A, 0),
            Packet(A, FromPod, ab.tcp(999, 80, SYN), R::Allowed),
            Policy(A, RULES_NONE, 0),
            Packet(A, FromPod, ab.tcp(999, 80, ACK), R::PolicyDenied),
        ],
    );
    case(
        "a SYN the other way is not a reply",
        vec![
            Packet(A, FromPod, ar.tcp(1000, 2000, SYN), R::Allowed),
            Packet(A, ToPod, ra.tcp(2000, 1000, SYN), R::PolicyDenied),
            Packet(A, ToPod, ra.tcp(2000, 1000, SYN_ACK), R::Tracked),
        ],
    );
    case(
        "a SYN the other way passes if it may, and leaves the connection alone",
        vec![
            Packet(A, FromPod, ar.tcp(8080, 2000, SYN), R::Allowed),
            Packet(A, ToPod, ra.tcp(2000, 8080, SYN), R::Allowed),
            Packet(A, ToPod, ra.tcp(2000, 8080, SYN_ACK), R::Tracked),
        ],
    );
    case(
        "a new connection takes the place of a closed one, with its own direction",
        vec![
            Packet(A, FromPod, ar.tcp(8080, 2000, SYN), R::Allowed),
            Packet(A, ToPod, ra.tcp(2000, 8080, RST), R::Tracked),
            Packet(A, ToPod, ra.tcp(2000, 8080, SYN), R::Allowed),
            Policy(A, RULES_NONE, 2),
            Packet(A, FromPod, ar.tcp(8080, 2000, SYN_ACK), R::PolicyDenied),
        ],
    );
    case(
        "a SYN of the opener is judged again",
        vec![
            Packet(A, FromPod, ab.tcp(999, 80, SYN), R::Allowed),
            Packet(A, FromPod, ab.tcp(999, 80, SYN), R::Tracked),
            Packet(A, ToPod, ab.reply().tcp(80, 999, FIN), R::Tracked),
            Packet(A, FromPod, ab.tcp(999, 80, SYN), R::Allowed),
        ],
    );
    case(
        "an echo is answered, and an answer without question dropped",
        vec![
            Packet(A, ToPod, ra.echo(true, 7), R::NotTracked),
            Packet(A, FromPod, ar.echo(false, 7), R::Allowed),
            Packet(A, ToPod, ra.echo(true, 7), R::Tracked),
            Packet(A, ToPod, ra.echo(true, 8), R::NotTracked),
            Packet(A, ToPod, ra.echo(false, 7), R::PolicyDenied),
        ],
    );
    case(
        "a tenant's boundary comes before policy",
        vec![
            Packet(A, FromPod, to(A, Tenant).tcp(1, 80, SYN), R::Allowed),
            Step::Tenant(A, 3),
            Packet(A, FromPod, to(A, Tenant).tcp(2, 80, SYN), R::TenantBoundary),
            Packet(A, FromPod, to(A, Unknown).tcp(2, 443, SYN), R::TenantBoundary),
            Packet(A, FromPod, to(A, OpenTenant).tcp(2, 80, SYN), R::Allowed),
            Packet(A, FromPod, to(A, OpenTenant).tcp(2, 81, SYN), R::PolicyDenied),
            Packet(A, ToPod, to(OpenTenant, A).tcp(2, 443, SYN), R::TenantBoundary),
            Packet(A, FromPod, ar.tcp(2, 80, SYN), R::Allowed),
            Step::Tenant(A, 7),
            Packet(A, FromPod, to(A, Tenant).tcp(3, 80, SYN), R::Allowed),
        ],
    );
    case(
        "the tunnel port of a node is closed, tracked or not",
        vec![
            Packet(A, FromPod, to(A, Node).udp(1, TUNNEL), R::Tunnel),
            Packet(A, FromPod, to(A, Host).udp(1, TUNNEL), R::Tunnel),
            Packet(A, FromPod, to(A, Node).udp(1, TUNNEL - 1), R::Allowed),
            Packet(A, FromPod, ar.udp(1, TUNNEL), R::Allowed),
            Packet(A, ToPod, to(Host, A).udp(TUNNEL, 1), R::Allowed),
            Packet(A, FromPod, to(A, Host).udp(1, TUNNEL), R::Tunnel),
        ],
    );
    case("a pod reaches itself", vec![Packet(A, FromPod, to(A, A).tcp(1, 2, SYN), R::OwnAddress)]);
    case(
        "another's source address",
        vec![Packet(A, FromPod, edit(to(B, Remote).udp(1, 2), &[(11, 0xa)]), R::SourceIp)],
    );
    case("another's MAC address", vec![Packet(A, FromPod, edit(ar.udp(1, 2), &[(11, 0xb)]), R::SourceMac)]);
    case("not for this pod", vec![Packet(A, ToPod, to(Remote, B).tcp(1, 8080, SYN), R::WrongDestination)]);
    case(
        "VLAN tags",
        vec![
            Packet(A, FromPod, edit(ar.udp(1, 2), &[(12, 0x81), (13, 0)]), R::Vlan),
            Packet(A, FromPod, edit(ar.udp(1, 2), &[(12, 0x88), (13, 0xa8)]), R::Vlan),
            Packet(A, ToPod, edit(ra.tcp(1, 8080, SYN), &[(12, 0x81), (13, 0)]), R::Vlan),
        ],
    );
    case(
        "unknown EtherTypes",
        vec![
            Packet(A, FromPod, edit(ar.udp(1, 2), &[(12, 0x88), (13, 0x47)]), R::UnsupportedEtherType),
            Packet(A, ToPod, edit(ra.udp(1, 2), &[(12, 0x88), (13, 0xcc)]), R::UnsupportedEtherType),
        ],
    );
    case(
        "multicast and broadcast",
        vec![
            Packet(A, FromPod, edit(ar.udp(1, 2), &[(0, 1)]), R::Multicast),
            Packet(
                A,
                FromPod,
                edit(ar.udp(1, 2), &[(if v6 { 38 } else { 30 }, if v6 { 0xff } else { 224 })]),
                R::Multicast,
            ),
            Packet(
                A,
                ToPod,
                edit(ra.udp(1, 2), &[(if v6 { 38 } else { 30 }, if v6 { 0xff } else { 239 })]),
                R::Multicast,
            ),
        ],
    );
    case(
        "a frame that ends inside a header",
        vec![
            Packet(A, FromPod, ar.udp(1, 2)[..14].to_vec(), R::Truncated),
            Packet(A, FromPod, ar.udp(1, 2)[..30].to_vec(), R::Truncated),
            Packet(A, FromPod, ar.frame(TCP, &tcp(1, 2, SYN)[..19]), R::Truncated),
            Packet(A, FromPod, ar.frame(UDP, &udp(1, 2, b"")[..7]), R::Truncated),
            Packet(A, FromPod, ar.frame(132, &[0; 11]), R::Truncated),
            Packet(A, FromPod, ar.frame(if v6 { ICMPV6 } else { 1 }, &[8, 0, 0, 0, 0, 0, 0]), R::Truncated),
        ],
    );
    case(
        "headers that contradict themselves",
        vec![
            Packet(A, FromPod, edit(ar.udp(1, 2), &[(14, 0x55)]), R::InvalidHeader),
            Packet(A, FromPod, edit(ar.udp(1, 2), &[(if v6 { 18 } else { 16 }, 0xff)]), R::InvalidHeader),
            Packet(A, FromPod, edit(ar.tcp(1, 2, SYN), &[(transport_at + 12, 4 << 4)]), R::InvalidHeader),
            Packet(A, FromPod, ar.tcp(1, 2, TCP_SYN | TCP_FIN), R::InvalidHeader),
            Packet(A, FromPod, ar.tcp(1, 2, TCP_SYN | TCP_RST), R::InvalidHeader),
        ],
    );
    case(
        "padding after the packet does no harm",
        vec![Packet(A, FromPod, [ar.udp(1, 2), vec![0; 20]].concat(), R::Allowed)],
    );

    let syn = ab.tcp(999, 80, SYN);
    let udp_in = ra.udp(3, 4);
    case(
        "errors about a connection pass, others do not",
        vec![
            Packet(A, ToPod, to(World, A).unreachable(&syn), R::ErrorNotTracked),
            Packet(A, FromPod, syn.clone(), R::Allowed),
            Packet(A, ToPod, ab.reply().unreachable(&syn), R::Related),
            // A router on the way.
            Packet(A, ToPod, to(World, A).unreachable(&syn), R::Related),
            // The quoted packet was never sent.
            Packet(A, ToPod, to(World, A).unreachable(&ab.tcp(998, 80, SYN)), R::ErrorNotTracked),
            Packet(A, ToPod, to(World, A).unreachable(&ab.reply().tcp(80, 999, ACK)), R::ErrorNotTracked),
            Packet(A, FromPod, ab.unreachable(&ab.reply().tcp(80, 999, SYN_ACK)), R::ErrorNotTracked),
            Packet(A, ToPod, ab.reply().tcp(80, 999, SYN_ACK), R::Tracked),
            Packet(A, FromPod, ab.unreachable(&ab.reply().tcp(80, 999, SYN_ACK)), R::Related),
            // A pod reports on nothing that was not sent to itself.
            Packet(A, FromPod, ab.unreachable(&to(B, Remote).tcp(80, 999, ACK)), R::ErrorNotTracked),
        ],
    );
    case(
        "errors follow the policy in force",
        vec![
            Packet(A, FromPod, syn.clone(), R::Allowed),
            Policy(A, RULES_A_AGAIN, 2),
            Packet(A, ToPod, to(World, A).unreachable(&syn), R::Related),
            Policy(A, RULES_NONE, 3),
            Packet(A, ToPod, to(World, A).unreachable(&syn), R::ErrorNotTracked),
        ],
    );
    case(
        "an error about what the other pod alone allowed",
        vec![
            Policy(B, RULES_OPEN, 1),
            Packet(B, FromPod, to(B, A).udp(5, 6), R::Allowed),
            Packet(A, FromPod, ab.unreachable(&to(B, A).udp(5, 6)), R::ErrorNotTracked),
        ],
    );
    case(
        "a closed port's error about an allowed datagram",
        vec![
            Policy(A, RULES_OPEN, 1),
            Packet(A, ToPod, udp_in.clone(), R::Allowed),
            Packet(A, FromPod, ar.unreachable(&udp_in), R::Related),
        ],
    );
    case(
        "an error that quotes too little",
        vec![
            Packet(A, FromPod, syn.clone(), R::Allowed),
            Packet(A, ToPod, to(World, A).unreachable(&syn[..transport_at + 7]), R::ErrorNotTracked),
            Packet(A, ToPod, to(World, A).unreachable(&syn[..transport_at + 8]), R::Related),
            Packet(A, ToPod, to(World, A).unreachable(&syn[..14]), R::ErrorNotTracked),
        ],
    );
    case(
        "other ICMP is judged by rules without ports, and is nobody's reply",
        vec![
            Packet(A, FromPod, ar.icmp(if v6 { 139 } else { 13 }, 0, [0, 7, 0, 0], b""), R::Allowed),
            Packet(A, ToPod, ra.icmp(if v6 { 139 } else { 13 }, 0, [0, 7, 0, 0], b""), R::PolicyDenied),
            Packet(A, ToPod, ra.icmp(if v6 { 140 } else { 14 }, 0, [0, 7, 0, 0], b""), R::PolicyDenied),
        ],
    );

    if v6 {
        six(&mut cases)
    } else {
        four(&mut cases)
    }
    cases
}

/// What only IPv4 has.
fn four(cases: &mut Vec<Case>) {
    use Reason as R;
    let ar = between(A, Remote, false);
    let (a, b) = (octets(A.address(false)).0, octets(B.address(false)).0);
    let mut case = |name, steps| cases.push(Case { name, v6: false, steps });
    let claim = |operation, mac, sender, target| arp(A.mac(), operation, mac, sender, target);
    case(
        "ARP that tells the truth",
        vec![
            Packet(A, FromPod, claim(1, A.mac(), a, b), R::Neighbour),
            Packet(A, FromPod, claim(2, A.mac(), a, b), R::Neighbour),
            Packet(A, FromPod, claim(1, A.mac(), [0; 4], a), R::Neighbour),
            Packet(A, ToPod, claim(2, B.mac(), b, a), R::Neighbour),
        ],
    );
    case(
        "ARP that does not",
        vec![
            Packet(A, FromPod, claim(2, A.mac(), b, a), R::ArpClaim),
            Packet(A, FromPod, claim(1, B.mac(), a, b), R::ArpClaim),
            Packet(A, FromPod, claim(1, A.mac(), [0; 4], b), R::ArpClaim),
            Packet(A, FromPod, claim(2, A.mac(), [0; 4], a), R::ArpClaim),
            Packet(A, FromPod, claim(3, A.mac(), a, b), R::ArpClaim),
            Packet(A, FromPod, claim(1, A.mac(), a, b)[..41].to_vec(), R::Truncated),
            Packet(A, FromPod, arp(B.mac(), 2, B.mac(), b, a), R::SourceMac),
        ],
    );

    let with_options = |options: &[u8]| {
        let mut frame = ar.tcp(1, 2, SYN);
        frame.splice(34..34, options.iter().copied());
        frame[14] = 0x45 + u8::try_from(options.len() / 4).expect("short");
        frame[17] += u8::try_from(options.len()).expect("short");
        frame
    };
    case(
        "options are read past",
        vec![
            Packet(A, FromPod, with_options(&[1, 1, 1, 0]), R::Allowed),
            Packet(A, FromPod, with_options(&[7, 7, 4, 0, 0, 0, 0, 0]), R::Tracked),
            Packet(A, FromPod, with_options(&[0, 131, 131, 131]), R::Tracked),
            Packet(A, FromPod, with_options(&[1; 40]), R::Tracked),
        ],
    );
    case(
        "source routes and broken options",
        vec![
            Packet(A, FromPod, with_options(&[131, 3, 4, 0]), R::InvalidHeader),
            Packet(A, FromPod, with_options(&[1, 137, 3, 4]), R::InvalidHeader),
            Packet(A, FromPod, with_options(&[7, 1, 0, 0]), R::InvalidHeader),
            Packet(A, FromPod, with_options(&[7, 5, 0, 0]), R::InvalidHeader),
        ],
    );
    let fragment = |id: u8, word: u16, payload: &[u8]| {
        let mut frame = ar.frame(UDP, payload);
        let [high, low] = word.to_be_bytes();
        (frame[19], frame[20], frame[21]) = (id, high, low);
        frame
    };
    let first = udp(1, 2, &[0; 16]);
    case(
        "fragments follow their first",
        vec![
            Packet(A, FromPod, fragment(1, 3, &[0; 8]), R::FragmentNotTracked),
            Packet(A, FromPod, fragment(1, 0x2000, &first), R::Allowed),
            Packet(A, FromPod, fragment(1, 0x2003, &[0; 8]), R::Fragment),
            Packet(A, FromPod, fragment(1, 4, &[0; 8]), R::Fragment),
            Packet(A, FromPod, fragment(2, 4, &[0; 8]), R::FragmentNotTracked),
            Policy(A, RULES_A_AGAIN, 2),
            Packet(A, FromPod, fragment(1, 5, &[0; 8]), R::FragmentNotTracked),
        ],
    );
    case(
        "a denied first fragment lets none through",
        vec![
            Policy(A, RULES_NONE, 1),
            Packet(A, FromPod, fragment(1, 0x2000, &first), R::PolicyDenied),
            Packet(A, FromPod, fragment(1, 3, &[0; 8]), R::FragmentNotTracked),
        ],
    );
    case(
        "a first fragment without its header",
        vec![Packet(A, FromPod, fragment(1, 0x2000, &first[..7]), R::Truncated)],
    );
    let mut overlap = ar.tcp(1, 2, SYN);
    overlap[21] = 1;
    case("a fragment that would overwrite judged ports", vec![Packet(A, FromPod, overlap, R::InvalidHeader)]);
    // Membership messages carry a Router Alert option (RFC 2236 section 2): 24 bytes of header.
    let igmp = |who: Hook, frame: Vec<u8>| {
        let mut frame = frame;
        frame[14] = 0x46;
        frame[17] += 4;
        frame[23] = 2;
        frame[30..34].copy_from_slice(&[224, 0, 0, 1]);
        frame.splice(34..34, [0x94, 4, 0, 0]);
        (who, frame)
    };
    let (from, own) = igmp(FromPod, ar.udp(0, 0));
    let (to, query) = igmp(ToPod, between(Remote, A, false).udp(0, 0));
    let mut forged = own.clone();
    forged[29] = 99;
    case(
        "group membership: the pod's own, and queries for it",
        vec![
            Packet(A, from, own, R::Neighbour),
            Packet(A, to, query, R::Neighbour),
            Packet(A, from, forged, R::SourceIp),
        ],
    );
    case(
        "limited broadcast",
        vec![Packet(
            A,
            FromPod,
            {
                let mut frame = ar.udp(68, 67);
                frame[30..34].copy_from_slice(&[255; 4]);
                frame
            },
            R::Multicast,
        )],
    );
}

/// What only IPv6 has.
fn six(cases: &mut Vec<Case>) {
    use Reason as R;
    let ar = between(A, Remote, true);
    let mut case = |name, steps| cases.push(Case { name, v6: true, steps });

    let solicited = IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2));
    let link_local = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xa));
    let nobody = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let (a, b) = (octets(A.address(true)).1, octets(B.address(true)).1);
    let from = |source| Between { source, destination: solicited, ..ar };
    let option = |kind, mac: MacBytes| [&[kind, 1][..], &mac].concat();
    let message = |source, icmp_type, target: [u8; 16], option: &[u8]| {
        from(source).icmp(icmp_type, 0, [0; 4], &[&target[..], option].concat())
    };
    let own = A.address(true);
    case(
        "discovery that tells the truth",
        vec![
            Packet(A, FromPod, message(own, 135, b, &option(1, A.mac())), R::Neighbour),
            Packet(A, FromPod, message(link_local, 135, b, &option(1, A.mac())), R::Neighbour),
            Packet(A, FromPod, message(nobody, 135, a, &[]), R::Neighbour),
            Packet(A, FromPod, message(own, 136, a, &option(2, A.mac())), R::Neighbour),
            Packet(
                A,
                FromPod,
                message(link_local, 136, octets(link_local).1, &option(2, A.mac())),
                R::Neighbour,
            ),
            Packet(A, FromPod, from(link_local).icmp(133, 0, [0; 4], &option(1, A.mac())), R::Neighbour),
            Packet(A, ToPod, message(B.address(true), 136, b, &option(2, B.mac())), R::Neighbour),
            Packet(A, ToPod, from(link_local).icmp(134, 0, [0; 4], &[0; 8]), R::Neighbour),
        ],
    );
    case(
        "discovery that does not",
        vec![
            Packet(A, FromPod, message(own, 136, b, &option(2, A.mac())), R::NeighbourClaim),
            Packet(A, FromPod, message(own, 136, a, &option(2, B.mac())), R::NeighbourClaim),
            Packet(A, FromPod, message(own, 135, b, &option(1, B.mac())), R::NeighbourClaim),
            Packet(A, FromPod, message(nobody, 135, b, &[]), R::NeighbourClaim),
            Packet(A, FromPod, message(nobody, 136, a, &[]), R::NeighbourClaim),
            Packet(A, FromPod, message(B.address(true), 135, b, &[]), R::NeighbourClaim),
            Packet(A, FromPod, message(own, 135, b, &[1, 0, 0, 0, 0, 0, 0, 0]), R::NeighbourClaim),
            Packet(A, FromPod, message(own, 135, b, &[1, 1, 2]), R::NeighbourClaim),
            Packet(A, FromPod, message(own, 135, b, &[14, 1, 0, 0, 0, 0, 0, 0].repeat(5)), R::NeighbourClaim),
            Packet(A, FromPod, from(own).icmp(135, 0, [0; 4], &b[..15]), R::Truncated),
        ],
    );
    case(
        "router advertisements and redirects",
        vec![
            Packet(A, FromPod, from(link_local).icmp(134, 0, [0; 4], &[0; 8]), R::ForbiddenIcmp6),
            Packet(A, FromPod, message(own, 137, a, &[]), R::ForbiddenIcmp6),
        ],
    );
    let alert = |icmp_type: u8| {
        let report = [&[icmp_type, 0, 0, 0, 0, 0, 0, 0][..], &[0; 16]].concat();
        let hop_by_hop = [&[ICMPV6, 0, 5, 2, 0, 0, 1, 0][..], &report].concat();
        move |source| from(source).frame(0, &hop_by_hop)
    };
    case(
        "listener reports pass, queries do not",
        vec![
            Packet(A, FromPod, alert(143)(link_local), R::Neighbour),
            Packet(A, FromPod, alert(131)(nobody), R::Neighbour),
            Packet(A, FromPod, alert(143)(own), R::Multicast),
            Packet(A, FromPod, alert(130)(link_local), R::SourceIp),
        ],
    );
    case(
        "link-local is for discovery only",
        vec![Packet(A, FromPod, Between { source: link_local, ..ar }.udp(1, 2), R::SourceIp)],
    );

    let chain = |first: u8, headers: &[&[u8]], transport: &[u8]| {
        ar.frame(first, &[headers.concat().as_slice(), transport].concat())
    };
    let syn = tcp(1, 2, SYN);
    let options = |next| [next, 0, 1, 4, 0, 0, 0, 0];
    case(
        "extension headers are read past",
        vec![
            Packet(A, FromPod, chain(0, &[&options(60), &options(TCP)], &syn), R::Allowed),
            Packet(A, FromPod, chain(43, &[&[TCP, 0, 4, 0, 0, 0, 0, 0]], &syn), R::Tracked),
            Packet(A, FromPod, chain(51, &[&[TCP, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]], &syn), R::Tracked),
            // An atomic fragment is none.
            Packet(A, FromPod, chain(44, &[&[TCP, 0, 0, 0, 0, 0, 0, 9]], &syn), R::Tracked),
        ],
    );
    case(
        "extension headers that are a trick",
        vec![
            Packet(A, FromPod, chain(60, &[&options(0), &options(TCP)], &syn), R::ExtensionHeaders),
            Packet(
                A,
                FromPod,
                chain(43, &[&[TCP, 2, 0, 1, 0, 0, 0, 0], &[0; 16]], &syn),
                R::ExtensionHeaders,
            ),
            Packet(A, FromPod, chain(60, &[&options(60).repeat(7)], &syn), R::ExtensionHeaders),
            Packet(
                A,
                FromPod,
                chain(44, &[&[44, 0, 0, 1, 0, 0, 0, 9], &[TCP, 0, 0, 1, 0, 0, 0, 9]], &syn),
                R::ExtensionHeaders,
            ),
            Packet(A, FromPod, chain(60, &[&[TCP, 9, 1, 4, 0, 0, 0, 0]], &syn), R::Truncated),
        ],
    );
    let fragment = |id: u8, word: u16, payload: &[u8]| {
        let [high, low] = word.to_be_bytes();
        chain(44, &[&[UDP, 0, high, low, 0, 0, 0, id]], payload)
    };
    let first = udp(1, 2, &[0; 16]);
    case(
        "fragments follow their first",
        vec![
            Packet(A, FromPod, fragment(1, 24, &[0; 8]), R::FragmentNotTracked),
            Packet(A, FromPod, fragment(1, 1, &first), R::Allowed),
            Packet(A, FromPod, fragment(1, 24, &[0; 8]), R::Fragment),
            Packet(A, FromPod, fragment(2, 24, &[0; 8]), R::FragmentNotTracked),
            Packet(A, ToPod, fragment(1, 24, &[0; 8]), R::WrongDestination),
        ],
    );
    case(
        "fragmented discovery",
        vec![Packet(
            A,
            FromPod,
            {
                let body = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &b].concat();
                from(own).frame(44, &[&[ICMPV6, 0, 0, 1, 0, 0, 0, 1][..], &body].concat())
            },
            R::NeighbourClaim,
        )],
    );
    case(
        "a frame with another version inside",
        vec![Packet(
            A,
            FromPod,
            ethernet(Remote.mac(), A.mac(), 0x0800, &ar.udp(1, 2)[14..]),
            R::InvalidHeader,
        )],
    );
}
