//! The table: what is seen, at whose hook, and the reason of the verdict.
#![expect(clippy::too_many_lines, reason = "the table of cases is long")]

use bulkhead_ebpf::{
    decide::Hook::{FromPod, ToPod},
    host::frames::{tcp, udp},
    packet::{ICMPV6, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP},
    reason::Reason,
};

use super::{
    A, B, Block, Case, Host, Moving, Node, OpenTenant, RULES_A, RULES_A_AGAIN, RULES_EGRESS, RULES_NONE,
    RULES_OPEN, Remote, Step,
    Step::{Adopted, Gone, Packet, Policy},
    TUNNEL, Tenant, Unknown, World, between,
    budgets::budgets,
    families::{four, six},
    services::services,
};

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
        "a SYN that the other end has not let in is not in the way of one of its own",
        vec![
            Policy(A, RULES_OPEN, 1),
            Policy(B, RULES_EGRESS, 1),
            Packet(A, FromPod, ab.tcp(7, 8, SYN), R::Allowed),
            Packet(B, ToPod, ab.tcp(7, 8, SYN), R::PolicyDenied),
            Packet(B, FromPod, to(B, A).tcp(8, 7, SYN), R::Allowed),
            Packet(A, ToPod, to(B, A).tcp(8, 7, SYN), R::Allowed),
            Packet(A, FromPod, ab.tcp(7, 8, SYN_ACK), R::Tracked),
            Packet(B, ToPod, ab.tcp(7, 8, SYN_ACK), R::Tracked),
            // That one is as closed as before.
            Packet(A, FromPod, ab.tcp(7, 8, SYN), R::Allowed),
            Packet(B, ToPod, ab.tcp(7, 8, SYN), R::PolicyDenied),
            Packet(B, ToPod, ab.tcp(7, 8, ACK), R::Tracked),
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
            Step::Tenant(A, 3, 0),
            Packet(A, FromPod, to(A, Tenant).tcp(2, 80, SYN), R::TenantBoundary),
            Packet(A, FromPod, to(A, Unknown).tcp(2, 443, SYN), R::TenantBoundary),
            Packet(A, FromPod, to(A, OpenTenant).tcp(2, 80, SYN), R::Allowed),
            Packet(A, FromPod, to(A, OpenTenant).tcp(2, 81, SYN), R::PolicyDenied),
            Packet(A, ToPod, to(OpenTenant, A).tcp(2, 443, SYN), R::TenantBoundary),
            Packet(A, FromPod, ar.tcp(2, 80, SYN), R::Allowed),
            Step::Tenant(A, 7, 0),
            Packet(A, FromPod, to(A, Tenant).tcp(3, 80, SYN), R::Allowed),
        ],
    );
    case(
        "who moves to another tenant is apart from nobody who has moved along, and from nobody who is still to move",
        vec![
            Step::Tenant(A, 7, 0),
            Packet(A, FromPod, to(A, Moving).tcp(1, 80, SYN), R::Allowed),
            Packet(A, FromPod, to(A, Tenant).tcp(1, 80, SYN), R::Allowed),
            Step::Tenant(A, 3, 1),
            Packet(A, FromPod, to(A, Moving).tcp(2, 80, SYN), R::Allowed),
            Packet(A, FromPod, to(A, Tenant).tcp(2, 80, SYN), R::TenantBoundary),
            Step::Tenant(A, 3, 0),
            Packet(A, FromPod, to(A, Moving).tcp(3, 80, SYN), R::TenantBoundary),
            Step::Tenant(A, 7, 1),
            Packet(A, FromPod, to(A, Moving).tcp(4, 80, SYN), R::TenantBoundary),
            Step::Tenant(A, 0, 1),
            Packet(A, FromPod, to(A, Moving).tcp(5, 80, SYN), R::Allowed),
        ],
    );
    case(
        "the tunnel port of a node is closed, tracked or not",
        vec![
            Packet(A, FromPod, to(A, Node).udp(1, TUNNEL), R::Tunnel),
            Packet(A, FromPod, to(A, Host).udp(1, TUNNEL), R::Tunnel),
            // Neither is what nobody has told of as a pod's: a broadcast address, another address of a node.
            Packet(A, FromPod, to(A, World).udp(1, TUNNEL), R::Tunnel),
            Packet(A, FromPod, to(A, Unknown).udp(1, TUNNEL), R::Tunnel),
            Packet(A, FromPod, to(A, Block).udp(1, TUNNEL), R::Tunnel),
            Packet(A, FromPod, to(A, Node).udp(1, TUNNEL - 1), R::Allowed),
            Packet(A, FromPod, ar.udp(1, TUNNEL), R::Allowed),
            Packet(A, ToPod, to(Host, A).udp(TUNNEL, 1), R::Allowed),
            Packet(A, FromPod, to(A, Host).udp(1, TUNNEL), R::Tunnel),
        ],
    );
    let tunnels: &[u8] =
        if v6 { &[4, 41, 47, 94, 97, 115, 137] } else { &[4, 41, 47, 55, 94, 97, 98, 115, 137] };
    let mut steps = vec![Policy(A, RULES_OPEN, 1)];
    for protocol in tunnels {
        for who in [Node, Host, World, Block, Unknown] {
            steps.push(Packet(A, FromPod, to(A, who).frame(*protocol, b"in here!"), R::Tunnel));
        }
        steps.push(Packet(A, FromPod, ar.frame(*protocol, b"in here!"), R::Allowed));
    }
    for who in [Node, Host, Unknown] {
        steps.push(Packet(A, FromPod, to(A, who).frame(50, b"no key.."), R::Tunnel));
    }
    steps.push(Packet(A, FromPod, to(A, World).frame(50, b"with key"), R::Allowed));
    case("tunnels go to pods alone, and those with keys to the world too", steps);
    let (server, client) = if v6 { (547, 546) } else { (67, 68) };
    case(
        "a pod is no DHCP server",
        vec![
            Policy(A, RULES_OPEN, 1),
            Packet(A, FromPod, ar.udp(server, client), R::DhcpServer),
            Packet(A, FromPod, ar.udp(server, 1000), R::DhcpServer),
            Packet(A, FromPod, ar.udp(1000, client), R::DhcpServer),
            Packet(A, FromPod, ar.udp(client, server), R::Allowed),
            // Whoever asked.
            Packet(A, ToPod, ra.udp(client + 1000, server), R::Allowed),
            Packet(A, FromPod, ar.udp(server, client + 1000), R::DhcpServer),
            Packet(A, ToPod, ra.udp(server, client), R::Tracked),
        ],
    );
    case("a pod reaches itself", vec![Packet(A, FromPod, to(A, A).tcp(1, 2, SYN), R::OwnAddress)]);
    case(
        "another's source address",
        vec![Packet(A, FromPod, edit(to(B, Remote).udp(1, 2), &[(11, 0xa)]), R::SourceIp)],
    );
    case("another's MAC address", vec![Packet(A, FromPod, edit(ar.udp(1, 2), &[(11, 0xb)]), R::SourceMac)]);
    let others = to(Remote, B).tcp(1, 8080, SYN);
    case(
        "not for this pod: flooded by the bridge, or sent to its MAC",
        vec![
            Packet(A, ToPod, others.clone(), R::Overheard),
            Packet(A, ToPod, edit(others, &[(5, 0xa)]), R::WrongDestination),
        ],
    );
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
        "lengths and flags that lie, in a connection too",
        vec![
            Packet(A, FromPod, ar.udp(1, 2), R::Allowed),
            Packet(A, FromPod, edit(ar.udp(1, 2), &[(transport_at + 5, 14)]), R::InvalidHeader),
            Packet(A, FromPod, edit(ar.udp(1, 2), &[(transport_at + 5, 16)]), R::InvalidHeader),
            Packet(A, FromPod, edit(ar.udp(1, 2), &[(transport_at + 5, 7)]), R::InvalidHeader),
            Packet(A, FromPod, edit(ar.udp(1, 2), &[(transport_at + 5, 0)]), R::InvalidHeader),
            Packet(A, FromPod, edit(ar.udp(1, 2), &[(transport_at + 4, 0xff)]), R::InvalidHeader),
            Packet(A, FromPod, ar.udp(1, 2), R::Tracked),
            Packet(A, FromPod, ar.tcp(1, 2, SYN), R::Allowed),
            Packet(A, FromPod, edit(ar.tcp(1, 2, ACK), &[(transport_at + 12, 6 << 4)]), R::Truncated),
            Packet(A, FromPod, edit(ar.tcp(1, 2, SYN), &[(transport_at + 12, 15 << 4)]), R::Truncated),
            Packet(A, FromPod, ar.tcp(1, 2, 0), R::InvalidHeader),
            Packet(A, FromPod, ar.tcp(1, 2, TCP_FIN), R::InvalidHeader),
            Packet(A, FromPod, ar.tcp(1, 2, TCP_FIN | 0x28), R::InvalidHeader),
            Packet(A, FromPod, ar.tcp(1, 2, ACK), R::Tracked),
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
        six(&mut cases);
    } else {
        four(&mut cases);
    }
    services(&mut cases, v6);
    budgets(&mut cases, v6);
    cases
}
