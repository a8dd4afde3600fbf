//! Neighbour and listener discovery: what IPv6 lets anybody say on the pods' own bridge.

use std::net::IpAddr;

use lab::raw::{ICMPV6, Packet};

use crate::{
    frame::{DESTINATION_OPTIONS, HOP_BY_HOP, Mac, PAD, behind, checksum, ethernet, fragment, kind},
    link::octets,
    stage::{Attempt, Party, Way},
};

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

pub fn claims(way: &Way) -> Vec<Attempt> {
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
    ]
}

/// Link-local addresses, listener reports, and messages that say more than they have to.
pub fn words(way: &Way) -> Vec<Attempt> {
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
    vec![
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
fn link_local(mac: Mac) -> [u8; 16] {
    let mut address = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0];
    address[8..11].copy_from_slice(&mac[..3]);
    address[13..].copy_from_slice(&mac[3..]);
    address[8] ^= 2;
    address
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
pub fn far(way: &Way) -> Vec<Attempt> {
    let own = option(TARGET, way.me.mac);
    let tell = message(way.me.ip, way.to, NEIGHBOUR_ADVERTISEMENT, &[&octets(way.me.ip), &own[..]].concat());
    let ask = message(way.me.ip, way.to, NEIGHBOUR_SOLICITATION, &octets(way.to.ip));
    vec![Attempt::new(
        "discovery to another node",
        "neighbour-claim",
        [tell, ask].map(|message| way.carry(&packet_of_255_hops(&message))).into(),
    )]
}
