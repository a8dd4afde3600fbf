//! The part of the table that one family has to itself.
#![expect(clippy::too_many_lines, reason = "the table of cases is long")]

use std::net::{IpAddr, Ipv6Addr};

use bulkhead_ebpf::{
    decide::Hook::{FromPod, ToPod},
    host::frames::{Between, MacBytes, arp, ethernet, tcp, udp},
    packet::{ICMPV6, TCP, TCP_SYN as SYN, UDP},
    reason::Reason,
};

use super::{
    A, B, Case, RULES_A_AGAIN, RULES_NONE, Remote,
    Step::{Packet, Policy},
    between, octets,
};

/// What only IPv4 has.
pub fn four(cases: &mut Vec<Case>) {
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
    let igmp = |mut frame: Vec<u8>| {
        frame[14] = 0x46;
        frame[17] += 4;
        frame[23] = 2;
        frame[30..34].copy_from_slice(&[224, 0, 0, 1]);
        frame.splice(34..34, [0x94, 4, 0, 0]);
        frame[38] = 0x16;
        frame
    };
    let own = igmp(ar.udp(0, 0));
    let from = |source: [u8; 4]| {
        let mut frame = own.clone();
        frame[26..30].copy_from_slice(&source);
        frame
    };
    let of_kind = |kind: u8| {
        let mut frame = own.clone();
        frame[38] = kind;
        frame
    };
    case(
        "group membership: the pod's own, and queries for it",
        vec![
            Packet(A, FromPod, own.clone(), R::Neighbour),
            Packet(A, ToPod, igmp(between(Remote, A, false).udp(0, 0)), R::Neighbour),
            Packet(A, FromPod, of_kind(0x22), R::Neighbour),
            Packet(A, FromPod, of_kind(0x11), R::Multicast),
            Packet(A, FromPod, of_kind(0x99), R::Multicast),
            Packet(A, FromPod, from(b), R::SourceIp),
            Packet(A, FromPod, from([0; 4]), R::SourceIp),
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
pub fn six(cases: &mut Vec<Case>) {
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
