//! On the pods' own bridge: frames, ARP and neighbour discovery.

use std::net::IpAddr;

use lab::{
    Family,
    raw::{ICMPV6, Packet},
};

use crate::{
    frame::{
        ARP, BROADCAST, DESTINATION_OPTIONS, HOP_BY_HOP, IPV4, IPV6, Mac, PAD, QINQ, VLAN, behind, checksum,
        ethernet, fragment, kind, set_total, with_options,
    },
    stage::{Attempt, Party, Way},
};

const IGMP: u8 = 2;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
/// Bridges talk to each other there, and pass none of it on (IEEE 802.1D).
const BRIDGES: Mac = [0x01, 0x80, 0xc2, 0, 0, 0];
const LLDP_BRIDGES: Mac = [0x01, 0x80, 0xc2, 0, 0, 0x0e];

/// Frames that no IP has to do with, and those that say so of IP.
pub fn frames(way: &Way) -> Vec<Attempt> {
    let inside = |port| {
        let packet = way.datagram(port).bytes();
        [&kind(&packet).to_be_bytes()[..], &packet].concat()
    };
    let packet = way.datagram(40_001).bytes();
    let (inner, innermost) = (inside(40_002), inside(40_003));
    let tag = |id: u16, rest: &[u8]| [&id.to_be_bytes()[..], rest].concat();
    let to = |mac, kind, payload: &[u8]| ethernet(mac, way.me.mac, kind, payload);
    let tagged = |outer, payload: &[u8]| to(way.to.mac, outer, payload);
    let ether = |kind| to(way.to.mac, kind, &[&[0; 4][..], &packet].concat());
    let twice = [&VLAN.to_be_bytes()[..], &tag(7, &innermost)].concat();
    vec![
        Attempt::new(
            "a VLAN tag",
            "vlan",
            vec![tagged(VLAN, &tag(0, &inner)), tagged(VLAN, &tag(7, &inner)), tagged(QINQ, &tag(7, &inner))],
        ),
        Attempt::new(
            "two VLAN tags",
            "vlan",
            vec![tagged(QINQ, &tag(5, &twice)), tagged(VLAN, &tag(5, &twice))],
        ),
        Attempt::new("tags of other kinds", "unsupported-ether-type", vec![ether(0x9100), ether(0x9200)]),
        Attempt::new("MPLS", "unsupported-ether-type", vec![ether(0x8847), ether(0x8848)]),
        Attempt::new("PPPoE", "unsupported-ether-type", vec![ether(0x8863), ether(0x8864)]),
        Attempt::new("LLDP to a pod", "unsupported-ether-type", vec![ether(0x88cc)]),
        Attempt::new(
            "RARP, EAPOL, MACsec",
            "unsupported-ether-type",
            [0x8035, 0x888e, 0x88e5].map(ether).into(),
        ),
        Attempt::new(
            "an EtherType that nobody has",
            "unsupported-ether-type",
            vec![ether(0x88b5), ether(0xffff)],
        ),
        Attempt::new("a length in place of an EtherType", "unsupported-ether-type", vec![ether(64)]),
        Attempt::new("LLDP", "unsupported-ether-type", vec![to(LLDP_BRIDGES, 0x88cc, &[0; 50])])
            .lost_anyway(true),
        // LLC 42 42 03 and a configuration message of priority 0: the root of the tree.
        Attempt::new(
            "a spanning tree of its own",
            "unsupported-ether-type",
            vec![to(BRIDGES, 38, &[&[0x42, 0x42, 3][..], &[0; 35]].concat())],
        ),
        Attempt::new(
            "no packet at all",
            "truncated",
            vec![to(way.to.mac, IPV4, &[]), to(way.to.mac, IPV6, &[])],
        ),
    ]
}

pub fn arp(way: &Way) -> Vec<Attempt> {
    let claim = |to, operation, own: (Mac, IpAddr), asked: IpAddr| {
        ethernet(to, way.me.mac, ARP, &arp_packet(operation, own, (way.to.mac, asked)))
    };
    let (me, other, gateway) = (way.me, way.neighbour, way.gateway);
    let nobody = "0.0.0.0".parse().unwrap();
    let named = |target: Mac| {
        let mut frame = claim(way.to.mac, REPLY, (me.mac, me.ip), way.to.ip);
        frame[32..38].copy_from_slice(&target);
        frame
    };
    let odd = |at: usize, value| {
        let mut frame = claim(way.to.mac, REPLY, (me.mac, me.ip), way.to.ip);
        frame[14 + at] = value;
        frame
    };
    vec![
        Attempt::new(
            "ARP answers for others",
            "arp-claim",
            [other.ip, gateway.ip, way.service]
                .map(|ip| claim(way.to.mac, REPLY, (me.mac, ip), way.to.ip))
                .into(),
        ),
        Attempt::new(
            "gratuitous ARP for others",
            "arp-claim",
            vec![
                claim(BROADCAST, REQUEST, (me.mac, gateway.ip), gateway.ip),
                claim(BROADCAST, REPLY, (me.mac, other.ip), other.ip),
            ],
        ),
        Attempt::new(
            "an ARP probe for another's address",
            "arp-claim",
            vec![claim(BROADCAST, REQUEST, (me.mac, nobody), other.ip)],
        ),
        Attempt::new(
            "an ARP question in another's name",
            "arp-claim",
            vec![claim(BROADCAST, REQUEST, (me.mac, gateway.ip), way.to.ip)],
        ),
        Attempt::new(
            "the own address at another's MAC",
            "arp-claim",
            vec![claim(way.to.mac, REPLY, (other.mac, me.ip), way.to.ip)],
        ),
        // Hardware type, address lengths, operation.
        Attempt::new("odd ARP", "arp-claim", vec![odd(1, 6), odd(4, 8), odd(5, 16), odd(7, 3), odd(7, 9)]),
        Attempt::new(
            "ARP with a word to somebody in it",
            "arp-claim",
            vec![
                [claim(way.to.mac, REPLY, (me.mac, me.ip), way.to.ip), b"behind the message".to_vec()]
                    .concat(),
                [claim(way.to.mac, REQUEST, (me.mac, me.ip), way.to.ip), vec![7; 400]].concat(),
                named(*b"target"),
            ],
        ),
        Attempt::new(
            "ARP about others",
            "overheard",
            vec![
                claim(way.to.mac, REQUEST, (me.mac, me.ip), other.ip),
                claim(BROADCAST, REQUEST, (me.mac, me.ip), gateway.ip),
                claim(way.to.mac, REPLY, (me.mac, me.ip), gateway.ip),
            ],
        )
        .untold(),
        Attempt::new(
            "half an ARP packet",
            "truncated",
            vec![claim(way.to.mac, REPLY, (me.mac, other.ip), way.to.ip)[..34].to_vec()],
        ),
    ]
}

/// Group membership (IGMP), with a router alert.
pub fn membership(way: &Way) -> Vec<Attempt> {
    let say = |kind: u8, to: [u8; 4], rest: &[u8]| {
        let mut payload = [&[kind, 0, 0, 0][..], rest].concat();
        let sum = checksum(&payload).to_be_bytes();
        payload[2..4].copy_from_slice(&sum);
        let packet =
            Packet { source: way.me.ip, destination: to.into(), protocol: IGMP, fragment: None, payload };
        let mut bytes = with_options(&packet, &[148, 4, 0, 0]);
        bytes[8] = 1;
        set_total(&mut bytes, None);
        way.carry(&bytes)
    };
    let (group, reports) = ([239, 1, 2, 3], [224, 0, 0, 22]);
    vec![
        Attempt::new(
            "group membership with a word to somebody in it",
            "multicast",
            vec![
                say(0x16, group, b"not the group"),
                say(0x16, group, &[239, 1, 2, 4]),
                say(0x22, group, &[0; 4]),
                [say(0x22, reports, &[0; 4]), b"behind".to_vec()].concat(),
            ],
        ),
        Attempt::new(
            "questions of a multicast router",
            "multicast",
            vec![say(0x11, [224, 0, 0, 1], &[0; 4])],
        ),
        Attempt::new(
            "group membership of its own",
            "overheard",
            vec![say(0x16, group, &group), say(0x22, reports, &[0; 4])],
        )
        .untold(),
    ]
}

fn arp_packet(operation: u8, sender: (Mac, IpAddr), target: (Mac, IpAddr)) -> Vec<u8> {
    let address = |(mac, ip): (Mac, IpAddr)| [&mac[..], &octets(ip)].concat();
    [&[0, 1, 8, 0, 6, 4, 0, operation][..], &address(sender), &address(target)].concat()
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const MLD_REPORT: u8 = 131;
const MLD_REPORT_2: u8 = 143;
/// A router alert and padding, after next header and length.
const ALERT: &[u8] = &[5, 2, 0, 0, 1, 0];
const SOURCE: u8 = 1;
const TARGET: u8 = 2;

pub fn discovery(way: &Way) -> Vec<Attempt> {
    let (me, other, gateway) = (way.me, way.neighbour, way.gateway);
    let nobody: IpAddr = "::".parse().unwrap();
    let send = |packet: &Packet| way.carry(&packet_of_255_hops(packet));
    let ask = |from, target, options: &[u8]| {
        message(from, way.to, NEIGHBOUR_SOLICITATION, &[&octets(target), options].concat())
    };
    let tell = |from, target, options: &[u8]| {
        message(from, way.to, NEIGHBOUR_ADVERTISEMENT, &[&octets(target), options].concat())
    };
    let own = option(TARGET, me.mac);
    let local = |mac| IpAddr::from(link_local(mac));
    let at = |to: Party, ip: &str| Party { ip: ip.parse().unwrap(), ..to };
    let everybody = at(way.to, "ff02::1");
    let edit = |mut frame: Vec<u8>, at: usize, byte| {
        frame[14 + at] = byte;
        frame
    };
    let report = |from, to: &str, kind: u8, rest: &[u8]| {
        let report = message(from, at(way.to, to), kind, rest);
        let mut frame = way.carry(&behind(&[(HOP_BY_HOP, ALERT)], &report).bytes());
        frame[14 + 7] = 1;
        frame
    };
    let routers = |from| send(&message(from, at(way.to, "ff02::2"), ROUTER_SOLICITATION, &[]));
    let lie = |kind| option(kind, other.mac);
    let advertisement = message(me.ip, way.to, ROUTER_ADVERTISEMENT, &[0; 8]);
    let link_local = message("fe80::1".parse().unwrap(), way.to, ROUTER_ADVERTISEMENT, &[0; 8]);
    let redirect = message(me.ip, way.to, REDIRECT, &[octets(me.ip), octets(other.ip)].concat());
    let hidden = behind(&[(DESTINATION_OPTIONS, PAD)], &advertisement);
    // RFC 7113: the message itself begins in the second fragment.
    let first_only = Packet { payload: hidden.payload[..8].to_vec(), ..hidden.clone() };
    vec![
        Attempt::new(
            "advertisements of others' addresses",
            "neighbour-claim",
            [other.ip, gateway.ip, way.service].map(|ip| send(&tell(me.ip, ip, &own))).into(),
        ),
        Attempt::new(
            "advertisements in others' names",
            "neighbour-claim",
            [other.ip, gateway.ip, nobody].map(|from| send(&tell(from, me.ip, &own))).into(),
        ),
        Attempt::new(
            "the own address at another's MAC (discovery)",
            "neighbour-claim",
            vec![send(&tell(me.ip, me.ip, &lie(TARGET)))],
        ),
        Attempt::new(
            "a solicitation with another's MAC",
            "neighbour-claim",
            vec![
                send(&ask(me.ip, way.to.ip, &lie(SOURCE))),
                send(&ask(gateway.ip, way.to.ip, &option(SOURCE, me.mac))),
                send(&message(me.ip, way.to, ROUTER_SOLICITATION, &lie(SOURCE))),
            ],
        ),
        Attempt::new(
            "duplicate address detection for another's",
            "neighbour-claim",
            vec![send(&ask(nobody, other.ip, &[])), send(&ask(nobody, way.to.ip, &[]))],
        ),
        Attempt::new(
            "options of discovery that do not add up",
            "neighbour-claim",
            vec![
                send(&tell(me.ip, me.ip, &[TARGET, 0, 0, 0, 0, 0, 0, 0])),
                send(&tell(me.ip, me.ip, &[TARGET, 4, 0, 0, 0, 0, 0, 0])),
                send(&tell(me.ip, me.ip, &[own.clone(), vec![TARGET]].concat())),
            ],
        ),
        Attempt::new(
            "discovery in a fragment",
            "neighbour-claim",
            vec![send(&fragment(&tell(me.ip, me.ip, &own), 3, 0, true))],
        ),
        Attempt::new(
            "a router advertisement",
            "forbidden-icmp6",
            vec![send(&advertisement), send(&link_local)],
        ),
        Attempt::new(
            "a router advertisement behind other headers",
            "forbidden-icmp6",
            vec![
                send(&hidden),
                send(&fragment(&advertisement, 4, 0, false)),
                send(&fragment(&hidden, 5, 0, true)),
            ],
        ),
        Attempt::new(
            "a router advertisement in a second fragment",
            "truncated",
            vec![send(&fragment(&first_only, 6, 0, true))],
        ),
        Attempt::new("a redirect", "forbidden-icmp6", vec![send(&redirect)]),
        Attempt::new(
            "link-local addresses of others",
            "neighbour-claim",
            vec![
                send(&tell(me.ip, local(other.mac), &own)),
                send(&tell(me.ip, local(gateway.mac), &own)),
                send(&tell(local(gateway.mac), local(gateway.mac), &own)),
                send(&tell(local(way.to.mac), me.ip, &own)),
                send(&message(
                    me.ip,
                    everybody,
                    NEIGHBOUR_ADVERTISEMENT,
                    &octets("fe80::1".parse().unwrap()),
                )),
            ],
        ),
        Attempt::new(
            "taking others' link-local addresses",
            "neighbour-claim",
            [other.mac, gateway.mac, way.to.mac].map(|mac| send(&ask(nobody, local(mac), &[]))).into(),
        ),
        Attempt::new(
            "discovery with a word to somebody in it",
            "neighbour-claim",
            vec![
                edit(send(&tell(me.ip, me.ip, &own)), 40 + 5, 7),
                [send(&tell(me.ip, me.ip, &own)), b"a word".to_vec()].concat(),
                send(&tell(me.ip, me.ip, &[&own[..], &[14, 1, 1, 2, 3, 4, 5, 6]].concat())),
                send(&tell(me.ip, me.ip, &[&own[..], &[200, 2], &[7; 14]].concat())),
                send(&behind(&[(DESTINATION_OPTIONS, &[1, 4, 1, 2, 3, 4])], &tell(me.ip, me.ip, &own))),
                send(&ask(me.ip, other.ip, &option(SOURCE, me.mac))),
            ],
        ),
        Attempt::new(
            "discovery that a router has passed on",
            "neighbour-claim",
            vec![way.send(&tell(me.ip, me.ip, &own))],
        ),
        Attempt::new(
            "listener reports in others' names",
            "source-ip",
            [gateway.mac, other.mac].map(|mac| report(local(mac), "ff02::16", MLD_REPORT_2, &[0; 16])).into(),
        ),
        Attempt::new(
            "listener reports with a word to somebody in them",
            "neighbour-claim",
            vec![
                report(local(me.mac), "ff02::1", MLD_REPORT_2, b"to all of you...."),
                report(local(me.mac), "ff02::fb", MLD_REPORT, b"not the group of the destination"),
                [report(local(me.mac), "ff02::16", MLD_REPORT_2, &[0; 16]), b"behind".to_vec()].concat(),
            ],
        ),
        Attempt::new(
            "discovery about others",
            "overheard",
            vec![
                solicitation(way, way.to.mac, other.ip),
                solicitation(way, [0x33, 0x33, 0xff, 0, 0, 1], gateway.ip),
                routers(local(me.mac)),
                report(local(me.mac), "ff02::16", MLD_REPORT_2, b"sixteen bytes in"),
            ],
        )
        .untold(),
    ]
}

/// Asks properly for somebody, in a frame to whomever.
fn solicitation(way: &Way, to: Mac, target: IpAddr) -> Vec<u8> {
    let [.., x, y, z] = octets(target)[..] else { panic!("an address") };
    let group: IpAddr = format!("ff02::1:ff{x:02x}:{y:02x}{z:02x}").parse().unwrap();
    let party = Party { mac: to, ip: group };
    let packet = packet_of_255_hops(&message(way.me.ip, party, NEIGHBOUR_SOLICITATION, &octets(target)));
    ethernet(to, way.me.mac, kind(&packet), &packet)
}

/// What Linux makes of a MAC (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: Mac) -> [u8; 16] {
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}

fn option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

/// A message of discovery: type, code, checksum, flags (an advertisement's "override"), the rest.
fn message(from: IpAddr, to: Party, kind: u8, rest: &[u8]) -> Packet {
    let flags = if kind == NEIGHBOUR_ADVERTISEMENT { 0x20 } else { 0 };
    let mut payload = [&[kind, 0, 0, 0, flags, 0, 0, 0], rest].concat();
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let summed = [&octets(from)[..], &octets(to.ip), &length, &[0, 0, 0, ICMPV6], &payload].concat();
    payload[2..4].copy_from_slice(&checksum(&summed).to_be_bytes());
    Packet { source: from, destination: to.ip, protocol: ICMPV6, fragment: None, payload }
}

/// Discovery is not heard with fewer (RFC 4861, 7.1).
fn packet_of_255_hops(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.bytes();
    bytes[7] = 255;
    bytes
}

/// Past policy to another node, if nobody looked where it goes.
pub fn discovery_far(way: &Way) -> Vec<Attempt> {
    let own = option(TARGET, way.me.mac);
    let tell = message(way.me.ip, way.to, NEIGHBOUR_ADVERTISEMENT, &[&octets(way.me.ip), &own[..]].concat());
    let ask = message(way.me.ip, way.to, NEIGHBOUR_SOLICITATION, &octets(way.to.ip));
    vec![Attempt::new(
        "discovery to another node",
        "neighbour-claim",
        [tell, ask].map(|message| way.carry(&packet_of_255_hops(&message))).into(),
    )]
}

/// All of this file that makes sense in the way's family.
pub fn attempts(way: &Way) -> Vec<Attempt> {
    let claims = match way.family {
        Family::V4 => [arp(way), membership(way)].concat(),
        Family::V6 => discovery(way),
    };
    frames(way).into_iter().chain(claims).collect()
}
