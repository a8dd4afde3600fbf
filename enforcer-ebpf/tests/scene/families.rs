//! The part of the table that one family has to itself.
#![expect(clippy::too_many_lines, reason = "the table of cases is long")]

use std::net::IpAddr;

use bulkhead_ebpf::{
    decide::Hook::{FromPod, ToPod},
    host::frames::{Between, MacBytes, arp, ethernet, tcp, udp},
    packet::{ICMPV6, TCP, TCP_SYN as SYN, UDP},
    reason::Reason,
};

use super::{
    A, B, Case, Host, RULES_A_AGAIN, RULES_NONE, RULES_OPEN, Remote,
    Step::{Packet, Policy},
    World, between, octets,
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
            Packet(A, FromPod, [claim(1, A.mac(), a, b), vec![0; 18]].concat(), R::Neighbour),
            Packet(A, ToPod, claim(1, B.mac(), b, a), R::Neighbour),
            Packet(A, ToPod, claim(2, B.mac(), b, a), R::Neighbour),
            Packet(A, ToPod, claim(1, B.mac(), b, b), R::Neighbour),
            Packet(A, ToPod, claim(1, B.mac(), b, [10, 1, 0, 1]), R::Overheard),
            Packet(A, ToPod, claim(2, B.mac(), b, [10, 1, 0, 1]), R::Overheard),
        ],
    );
    let targeted = |mac: MacBytes| {
        let mut frame = claim(1, A.mac(), a, b);
        frame[32..38].copy_from_slice(&mac);
        frame
    };
    case(
        "ARP with a word to somebody in it",
        vec![
            Packet(A, FromPod, targeted([0xff; 6]), R::Neighbour),
            Packet(A, FromPod, targeted(A.mac()), R::Neighbour),
            Packet(A, FromPod, targeted(*b"secret"), R::ArpClaim),
            Packet(A, FromPod, [claim(1, A.mac(), a, b), vec![0; 17], vec![7]].concat(), R::ArpClaim),
            Packet(A, FromPod, [claim(1, A.mac(), a, b), vec![7], vec![0; 17]].concat(), R::ArpClaim),
            Packet(A, FromPod, [claim(1, A.mac(), a, b), vec![0; 400]].concat(), R::ArpClaim),
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
    let odd = |id: u8, word: u16, len: usize| fragment(id, word, &vec![0; len]);
    case(
        "fragments of no datagram",
        vec![
            Packet(A, FromPod, fragment(1, 0x2000, &first), R::Allowed),
            Packet(A, FromPod, odd(1, 0x2003, 7), R::InvalidHeader),
            Packet(A, FromPod, odd(1, 3, 0), R::InvalidHeader),
            Packet(A, FromPod, odd(1, 0x1fff, 8), R::InvalidHeader),
            Packet(A, FromPod, odd(1, 0x1ffb, 12), R::Fragment),
            Packet(A, FromPod, fragment(1, 0x2000, &udp(1, 2, &[0; 17])), R::InvalidHeader),
        ],
    );
    // Membership messages carry a Router Alert option (RFC 2236 section 2): 24 bytes of header.
    let igmp = |way: Between, kind: u8, to: [u8; 4], group: [u8; 4]| {
        let mut frame = way.frame(2, &[&[0x94, 4, 0, 0, kind, 0, 0, 0][..], &group].concat());
        (frame[14], frame[22]) = (0x46, 1);
        frame[30..34].copy_from_slice(&to);
        frame
    };
    let (group, routers, reports) = ([239, 1, 2, 3], [224, 0, 0, 2], [224, 0, 0, 22]);
    let report = igmp(ar, 0x16, group, group);
    let from = |source: [u8; 4]| {
        let mut frame = report.clone();
        frame[26..30].copy_from_slice(&source);
        frame
    };
    let with = |at: usize, byte: u8| {
        let mut frame = report.clone();
        frame[at] = byte;
        frame
    };
    let mut longer = igmp(ar, 0x16, group, group);
    longer.extend(*b"word");
    let mut said = longer.clone();
    said[17] += 4;
    let query = igmp(between(Remote, A, false), 0x11, [224, 0, 0, 1], [0; 4]);
    case(
        "group membership: the pod's own, and queries for it",
        vec![
            Packet(A, FromPod, report.clone(), R::Neighbour),
            Packet(A, FromPod, igmp(ar, 0x12, group, group), R::Neighbour),
            Packet(A, FromPod, igmp(ar, 0x17, routers, group), R::Neighbour),
            Packet(A, FromPod, igmp(ar, 0x22, reports, [0, 0, 0, 0]), R::Neighbour),
            Packet(A, ToPod, query.clone(), R::Neighbour),
            Packet(A, ToPod, igmp(between(Remote, A, false), 0x16, group, group), R::Overheard),
            Packet(A, ToPod, igmp(between(Remote, A, false), 0x22, reports, [0; 4]), R::Overheard),
        ],
    );
    case(
        "group membership that is not as it should be",
        vec![
            Packet(A, FromPod, igmp(ar, 0x11, group, group), R::Multicast),
            Packet(A, FromPod, igmp(ar, 0x99, group, group), R::Multicast),
            Packet(A, FromPod, igmp(ar, 0x16, group, [239, 1, 2, 4]), R::Multicast),
            Packet(A, FromPod, igmp(ar, 0x17, group, group), R::Multicast),
            Packet(A, FromPod, igmp(ar, 0x22, group, group), R::Multicast),
            Packet(A, FromPod, with(22, 2), R::Multicast),
            Packet(A, FromPod, with(37, 1), R::Multicast),
            Packet(A, FromPod, longer, R::Multicast),
            Packet(A, FromPod, said, R::Multicast),
            Packet(A, FromPod, report[..report.len() - 1].to_vec(), R::InvalidHeader),
            Packet(A, FromPod, from(b), R::SourceIp),
            Packet(A, FromPod, from([0; 4]), R::SourceIp),
        ],
    );
    let outside = |source: &str, destination: &str| {
        let parse = |text: &str| text.parse().expect("an address");
        Between { source: parse(source), destination: parse(destination), ..ar }
    };
    case(
        "addresses that are nobody's",
        vec![
            Policy(A, RULES_OPEN, 1),
            Packet(A, FromPod, outside("10.1.0.2", "0.0.0.0").udp(1, 2), R::NobodysAddress),
            Packet(A, FromPod, outside("10.1.0.2", "0.1.2.3").udp(1, 2), R::NobodysAddress),
            Packet(A, FromPod, outside("10.1.0.2", "127.0.0.1").tcp(1, 2, SYN), R::NobodysAddress),
            // The cloud's metadata, a node's DNS cache; ordinary addresses to Linux.
            Packet(A, FromPod, outside("10.1.0.2", "169.254.20.10").udp(1, 53), R::Allowed),
            Packet(A, FromPod, outside("10.1.0.2", "240.0.0.1").udp(1, 53), R::Allowed),
            Packet(A, ToPod, outside("127.0.0.1", "10.1.0.2").udp(1, 2), R::SourceIp),
            Packet(A, ToPod, outside("0.0.0.0", "10.1.0.2").udp(1, 2), R::SourceIp),
            Packet(A, ToPod, outside("224.0.0.1", "10.1.0.2").udp(1, 2), R::SourceIp),
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

    let ip = |text: &str| -> IpAddr { text.parse().expect("an address") };
    // What Linux makes of the MACs.
    let (link_local, neighbours) = (ip("fe80::ff:fe00:a"), ip("fe80::ff:fe00:b"));
    let (nobody, everybody, routers) = (ip("::"), ip("ff02::1"), ip("ff02::2"));
    let (own, other) = (A.address(true), B.address(true));
    let (a, b) = (octets(own).1, octets(other).1);
    let solicited = |target: IpAddr| {
        let [.., high, middle, low] = octets(target).1;
        ip(&format!("ff02::1:ff{high:02x}:{middle:02x}{low:02x}"))
    };
    let to = |source, destination| Between { source, destination, ..ar };
    let option = |kind, mac: MacBytes| [&[kind, 1][..], &mac].concat();
    let (source_is, target_is) = (option(1, A.mac()), option(2, A.mac()));
    let message = |way: Between, kind, flags, target: IpAddr, options: &[u8]| {
        way.icmp(kind, 0, [flags, 0, 0, 0], &[&octets(target).1, options].concat())
    };
    let ask = |source, target: IpAddr, options: &[u8]| {
        message(to(source, solicited(target)), 135, 0, target, options)
    };
    let tell = |source, destination, target, options: &[u8]| {
        message(to(source, destination), 136, 0x60, target, options)
    };
    let edit = |mut frame: Vec<u8>, at: usize, byte| {
        frame[at] = byte;
        frame
    };
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    case(
        "discovery that tells the truth",
        vec![
            Packet(A, FromPod, ask(own, other, &source_is), R::Neighbour),
            Packet(A, FromPod, ask(link_local, other, &source_is), R::Neighbour),
            Packet(A, FromPod, message(to(own, other), 135, 0, other, &[]), R::Neighbour),
            Packet(A, FromPod, ask(nobody, own, &nonce), R::Neighbour),
            Packet(A, FromPod, ask(nobody, link_local, &[]), R::Neighbour),
            Packet(A, FromPod, tell(own, other, own, &target_is), R::Neighbour),
            Packet(A, FromPod, tell(own, Host.address(true), own, &target_is), R::Neighbour),
            Packet(A, FromPod, tell(own, everybody, own, &target_is), R::Neighbour),
            Packet(A, FromPod, tell(link_local, neighbours, link_local, &target_is), R::Neighbour),
            Packet(A, FromPod, to(link_local, routers).icmp(133, 0, [0; 4], &source_is), R::Neighbour),
            Packet(A, FromPod, to(nobody, routers).icmp(133, 0, [0; 4], &[]), R::Neighbour),
        ],
    );
    case(
        "discovery that does not",
        vec![
            Packet(A, FromPod, tell(own, other, other, &target_is), R::NeighbourClaim),
            Packet(A, FromPod, tell(own, other, own, &option(2, B.mac())), R::NeighbourClaim),
            Packet(A, FromPod, ask(own, other, &option(1, B.mac())), R::NeighbourClaim),
            Packet(A, FromPod, ask(nobody, other, &[]), R::NeighbourClaim),
            Packet(A, FromPod, tell(nobody, everybody, own, &[]), R::NeighbourClaim),
            Packet(A, FromPod, ask(other, other, &[]), R::NeighbourClaim),
            Packet(A, FromPod, ask(own, other, &[1, 0, 0, 0, 0, 0, 0, 0]), R::NeighbourClaim),
            Packet(A, FromPod, ask(own, other, &[1, 1, 2]), R::NeighbourClaim),
            Packet(A, FromPod, to(own, other).icmp(135, 0, [0; 4], &b[..15]), R::Truncated),
        ],
    );
    case(
        "link-local addresses that are others'",
        vec![
            Packet(A, FromPod, tell(own, everybody, neighbours, &target_is), R::NeighbourClaim),
            Packet(A, FromPod, tell(neighbours, everybody, neighbours, &target_is), R::NeighbourClaim),
            Packet(A, FromPod, tell(link_local, everybody, ip("fe80::1"), &target_is), R::NeighbourClaim),
            Packet(A, FromPod, ask(nobody, neighbours, &nonce), R::NeighbourClaim),
            Packet(A, FromPod, ask(neighbours, other, &source_is), R::NeighbourClaim),
            Packet(A, FromPod, to(neighbours, routers).icmp(133, 0, [0; 4], &[]), R::NeighbourClaim),
        ],
    );
    case(
        "discovery with a word to somebody in it, or to somebody far away",
        vec![
            Packet(A, FromPod, ask(own, other, &nonce), R::NeighbourClaim),
            Packet(A, FromPod, ask(own, other, &[14, 1, 0, 0, 0, 0, 0, 0].repeat(5)), R::NeighbourClaim),
            Packet(A, FromPod, ask(nobody, own, &nonce.repeat(3)), R::NeighbourClaim),
            Packet(A, FromPod, ask(own, other, &[1, 2].repeat(8)), R::NeighbourClaim),
            Packet(A, FromPod, edit(ask(own, other, &[]), 61, 1), R::NeighbourClaim),
            Packet(A, FromPod, edit(tell(own, other, own, &[]), 58, 0x61), R::NeighbourClaim),
            Packet(A, FromPod, edit(ask(own, other, &[]), 21, 254), R::NeighbourClaim),
            Packet(A, FromPod, [ask(own, other, &[]), vec![0; 8]].concat(), R::NeighbourClaim),
            Packet(A, FromPod, message(to(own, solicited(own)), 135, 0, other, &[]), R::NeighbourClaim),
            Packet(A, FromPod, message(to(own, everybody), 135, 0, other, &[]), R::NeighbourClaim),
            Packet(A, FromPod, tell(own, routers, own, &[]), R::NeighbourClaim),
            Packet(A, FromPod, to(own, everybody).icmp(133, 0, [0; 4], &[]), R::NeighbourClaim),
            Packet(A, FromPod, tell(own, Remote.address(true), own, &target_is), R::NeighbourClaim),
            Packet(A, FromPod, tell(own, World.address(true), own, &target_is), R::NeighbourClaim),
            Packet(
                A,
                FromPod,
                message(to(own, Remote.address(true)), 135, 0, Remote.address(true), &[]),
                R::NeighbourClaim,
            ),
        ],
    );
    let hear = |source, destination, kind, target| message(to(source, destination), kind, 0, target, &[]);
    case(
        "discovery is heard by whom it is about",
        vec![
            Packet(A, ToPod, hear(other, solicited(own), 135, own), R::Neighbour),
            Packet(A, ToPod, hear(nobody, solicited(own), 135, own), R::Neighbour),
            Packet(A, ToPod, hear(other, own, 135, own), R::Neighbour),
            Packet(A, ToPod, hear(neighbours, link_local, 135, link_local), R::Neighbour),
            Packet(A, ToPod, hear(other, solicited(own), 135, other), R::Overheard),
            Packet(A, ToPod, hear(other, own, 135, Host.address(true)), R::Overheard),
            Packet(A, ToPod, hear(other, own, 136, other), R::Neighbour),
            Packet(A, ToPod, hear(other, everybody, 136, other), R::Neighbour),
            Packet(A, ToPod, hear(other, Remote.address(true), 136, other), R::Overheard),
            Packet(A, ToPod, to(neighbours, routers).icmp(133, 0, [0; 4], &[]), R::Overheard),
            Packet(A, ToPod, to(ip("fe80::1"), everybody).icmp(134, 0, [0; 4], &[0; 8]), R::Neighbour),
            Packet(A, ToPod, to(other, own).icmp(135, 0, [0; 4], &a[..15]), R::Truncated),
        ],
    );
    case(
        "router advertisements and redirects",
        vec![
            Packet(A, FromPod, to(link_local, everybody).icmp(134, 0, [0; 4], &[0; 8]), R::ForbiddenIcmp6),
            Packet(A, FromPod, message(to(own, other), 137, 0, own, &[]), R::ForbiddenIcmp6),
        ],
    );
    let group = ip("ff02::fb");
    let alert = |source, destination: IpAddr, kind: u8, rest: &[u8]| {
        let report = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], rest].concat();
        let frame = to(source, destination).frame(0, &[&[ICMPV6, 0, 5, 2, 0, 0, 1, 0][..], &report].concat());
        edit(frame, 21, 1)
    };
    let groups = octets(group).1;
    let all = ip("ff02::16");
    case(
        "listener reports pass, queries do not",
        vec![
            Packet(A, FromPod, alert(link_local, all, 143, &[0; 16]), R::Neighbour),
            Packet(A, FromPod, alert(nobody, all, 143, &[]), R::Neighbour),
            Packet(A, FromPod, alert(nobody, group, 131, &groups), R::Neighbour),
            Packet(A, FromPod, alert(link_local, routers, 132, &groups), R::Neighbour),
            Packet(A, FromPod, alert(own, all, 143, &[]), R::Multicast),
            Packet(A, FromPod, alert(neighbours, all, 143, &[]), R::SourceIp),
            Packet(A, FromPod, alert(link_local, everybody, 130, &[0; 16]), R::SourceIp),
            Packet(A, ToPod, alert(ip("fe80::1"), everybody, 130, &[0; 16]), R::Neighbour),
            Packet(A, ToPod, alert(neighbours, all, 143, &[]), R::Overheard),
            Packet(A, ToPod, alert(neighbours, group, 131, &groups), R::Overheard),
            Packet(A, ToPod, alert(neighbours, routers, 132, &groups), R::Overheard),
        ],
    );
    case(
        "listener reports that are not as they should be",
        vec![
            Packet(A, FromPod, alert(link_local, everybody, 143, &[]), R::NeighbourClaim),
            Packet(A, FromPod, alert(link_local, all, 131, &groups), R::NeighbourClaim),
            Packet(A, FromPod, alert(link_local, group, 132, &groups), R::NeighbourClaim),
            Packet(A, FromPod, alert(link_local, group, 131, &[groups, groups].concat()), R::NeighbourClaim),
            Packet(A, FromPod, [alert(link_local, all, 143, &[]), vec![7]].concat(), R::NeighbourClaim),
            Packet(A, FromPod, edit(alert(link_local, all, 143, &[]), 21, 2), R::NeighbourClaim),
            Packet(A, FromPod, edit(alert(link_local, all, 143, &[]), 59, 7), R::NeighbourClaim),
            Packet(A, FromPod, to(link_local, all).icmp(143, 0, [0; 4], &[]), R::NeighbourClaim),
        ],
    );
    let mut reach = vec![Policy(A, RULES_OPEN, 1)];
    for text in ["::", "::1", "::10.1.0.3", "::ffff:10.1.0.3", "fe80::1", "2002:a01:3::1", "2001:0:a01:3::1"]
    {
        reach.push(Packet(A, FromPod, to(own, ip(text)).udp(1, 2), R::NobodysAddress));
        reach.push(Packet(A, ToPod, to(ip(text), own).udp(1, 2), R::SourceIp));
    }
    reach.push(Packet(A, FromPod, to(own, ip("64:ff9b::808:808")).udp(1, 2), R::Allowed));
    reach.push(Packet(A, FromPod, to(own, ip("2001:db8::1")).udp(1, 2), R::Allowed));
    case("addresses that are nobody's", reach);
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
            Packet(A, ToPod, fragment(1, 24, &[0; 8]), R::Overheard),
        ],
    );
    let syn = tcp(1, 2, SYN);
    case(
        "headers behind a first fragment's, and fragments of no datagram",
        vec![
            Packet(
                A,
                FromPod,
                chain(44, &[&[60, 0, 0, 1, 0, 0, 0, 1], &options(TCP)], &[&syn[..], &[0; 4]].concat()),
                R::ExtensionHeaders,
            ),
            Packet(A, FromPod, fragment(1, 1, &udp(1, 2, &[0; 17])), R::InvalidHeader),
            Packet(A, FromPod, fragment(1, 1, &first), R::Allowed),
            Packet(A, FromPod, fragment(1, 25, &[0; 7]), R::InvalidHeader),
            Packet(A, FromPod, fragment(1, 24, &[]), R::InvalidHeader),
            Packet(A, FromPod, fragment(1, 0xfff8, &[0; 8]), R::InvalidHeader),
        ],
    );
    case(
        "discovery in a fragment that is whole",
        vec![Packet(
            A,
            FromPod,
            {
                let body = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &b].concat();
                to(own, solicited(other)).frame(44, &[&[ICMPV6, 0, 0, 0, 0, 0, 0, 1][..], &body].concat())
            },
            R::NeighbourClaim,
        )],
    );
    case(
        "headers that others would read past",
        [135, 139, 140]
            .map(|next| {
                Packet(A, FromPod, chain(next, &[&[TCP, 0, 0, 0, 0, 0, 0, 0]], &syn), R::ExtensionHeaders)
            })
            .into(),
    );
    case(
        "fragmented discovery",
        vec![Packet(
            A,
            FromPod,
            {
                let body = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &b].concat();
                to(own, solicited(other)).frame(44, &[&[ICMPV6, 0, 0, 1, 0, 0, 0, 1][..], &body].concat())
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
