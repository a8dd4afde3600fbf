//! On the pods' own bridge: frames, ARP and group membership.

use std::net::IpAddr;

use lab::{Family, raw::Packet};

use crate::{
    discovery,
    frame::{ARP, BROADCAST, IPV4, IPV6, Mac, QINQ, VLAN, checksum, ethernet, kind, set_total, with_options},
    stage::{Attempt, Way},
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

pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// All of this file that makes sense in the way's family.
pub fn attempts(way: &Way) -> Vec<Attempt> {
    let claims = match way.family {
        Family::V4 => [arp(way), membership(way)].concat(),
        Family::V6 => [discovery::claims(way), discovery::words(way)].concat(),
    };
    frames(way).into_iter().chain(claims).collect()
}
