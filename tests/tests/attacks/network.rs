//! IP packets: whose they say they are, where they go, and what their headers make of themselves.

use std::net::IpAddr;

use lab::{
    Family,
    node::TUNNEL_PORT,
    raw::{Packet, SYN},
};

use crate::{
    frame::{
        BROADCAST, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, Mac, PAD, ROUTING, behind, ethernet, fragment,
        kind, set_total, with_options,
    },
    stage::{Attempt, Way},
};

pub fn attempts(way: &Way) -> Vec<Attempt> {
    let headers = match way.family {
        Family::V4 => options(way),
        Family::V6 => extensions(way),
    };
    let destinations = if way.near { destinations(way) } else { tunnels(way) };
    let rest = [dhcp(way), sources(way), headers, lengths(way), fragments(way), after_fragments(way)];
    rest.into_iter().flatten().chain(destinations).collect()
}

fn sources(way: &Way) -> Vec<Attempt> {
    let in_name = |mac: Mac, port| {
        let packet = way.datagram(port).bytes();
        ethernet(way.to.mac, mac, kind(&packet), &packet)
    };
    let says = |ip: IpAddr| {
        let from = (ip, 40_000).into();
        way.send(&Packet::udp(from, way.to.at(53), b"in another's name"))
    };
    let all = |texts: &[&str]| texts.iter().map(|text| says(text.parse().unwrap())).collect();
    let nobody: &[&str] = match way.family {
        Family::V4 => &["0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"],
        Family::V6 => &["::", "::1", "ff02::1"],
    };
    // Mapped, compatible, translated, 6to4, Teredo, link-local.
    let dressed: &[&str] = &[
        "::ffff:10.244.1.2",
        "::10.244.1.2",
        "64:ff9b::10.244.1.2",
        "2002:af4:102::1",
        "2001:0:af4:102::1",
        "fe80::1",
    ];
    let (far, v4) = (!way.near, way.family == Family::V4);
    let mut attempts = vec![
        Attempt::new(
            "another's source MAC",
            "source-mac",
            [way.neighbour.mac, [2, 0, 0, 0, 0, 1], [0; 6]].map(|mac| in_name(mac, 40_004)).into(),
        ),
        Attempt::new(
            "a group's source MAC",
            "source-mac",
            [BROADCAST, [1, 0, 0x5e, 0, 0, 1]].map(|mac| in_name(mac, 40_005)).into(),
        )
        .lost_anyway(true),
        Attempt::new("a neighbour's address", "source-ip", vec![says(way.neighbour.ip)]),
        Attempt::new(
            "the gateway's and the nodes' addresses",
            "source-ip",
            [way.gateway.ip, way.nodes[0], way.nodes[1]].map(says).into(),
        )
        .lost_anyway(far && v4),
        Attempt::new("the receiver's own address", "source-ip", vec![says(way.to.ip)]),
        Attempt::new("a Service's address", "source-ip", vec![says(way.service)]),
        Attempt::new("an address of the world", "source-ip", vec![says(way.world)]),
        Attempt::new("sources that are nobody", "source-ip", all(nobody)).lost_anyway(far && !v4),
    ];
    if !v4 {
        attempts.push(Attempt::new("IPv4 dressed as IPv6", "source-ip", all(dressed)));
    }
    attempts
}

/// What the whole bridge would hear.
fn destinations(way: &Way) -> Vec<Attempt> {
    let (groups, all): (&[(&str, Mac)], _) = match way.family {
        Family::V4 => (
            &[("224.0.0.251", [1, 0, 0x5e, 0, 0, 0xfb]), ("239.1.2.3", [1, 0, 0x5e, 1, 2, 3])],
            "255.255.255.255",
        ),
        Family::V6 => {
            (&[("ff02::fb", [0x33, 0x33, 0, 0, 0, 0xfb]), ("ff05::1:3", [0x33, 0x33, 0, 1, 0, 3])], "ff02::1")
        }
    };
    let nobody: &[&str] = match way.family {
        Family::V4 => &["0.0.0.0", "0.0.0.1", "127.0.0.1", "127.255.255.255"],
        Family::V6 => &[
            "::",
            "::1",
            "::10.244.1.3",
            "::ffff:10.244.1.3",
            "fe80::1",
            "2002:af4:103::1",
            "2001:0:af4:103::1",
        ],
    };
    let to = |ip: IpAddr, mac, port| {
        let packet = Packet::udp(way.me.at(1067), (ip, port).into(), b"to whom it may concern").bytes();
        ethernet(mac, way.me.mac, kind(&packet), &packet)
    };
    let group = |(ip, mac): &(&str, Mac)| to(ip.parse().unwrap(), *mac, 5353);
    let all: IpAddr = all.parse().unwrap();
    let echo = Packet::echo_request(way.me.ip, all, 9).bytes();
    let (server, client) = if way.family == Family::V4 { (67, 68) } else { (547, 546) };
    let offer = Packet::udp(way.me.at(server), (all, client).into(), b"take this address").bytes();
    let offer = ethernet(BROADCAST, way.me.mac, kind(&offer), &offer);
    vec![
        Attempt::new("to a group", "multicast", groups.iter().map(group).collect()),
        Attempt::new("to everybody", "multicast", vec![to(all, BROADCAST, 53)]),
        Attempt::new("a DHCP offer to everybody", "multicast", vec![offer]),
        Attempt::new(
            "an echo request to everybody",
            "multicast",
            vec![ethernet(BROADCAST, way.me.mac, kind(&echo), &echo)],
        ),
        Attempt::new(
            "to addresses that are nobody's",
            "nobodys-address",
            nobody.iter().map(|ip| to(ip.parse().unwrap(), way.to.mac, 53)).collect(),
        ),
        // The bridge takes it where the frame says.
        Attempt::new(
            "to a third pod's address",
            "wrong-destination",
            vec![to(way.neighbour.ip, way.to.mac, 53)],
        ),
        // RFC 1122, 3.3.6: one pod's address in a frame for all.
        Attempt::new("to one pod in a frame for everybody", "multicast", vec![to(way.to.ip, BROADCAST, 53)]),
    ]
}

/// As a server that answers, from whichever port, and as one that asks a server's client.
fn dhcp(way: &Way) -> Vec<Attempt> {
    let (server, client) = if way.family == Family::V4 { (67, 68) } else { (547, 546) };
    let say = |from, to| way.send(&Packet::udp(way.me.at(from), way.to.at(to), b"take this address"));
    vec![Attempt::new(
        "a DHCP server",
        "dhcp-server",
        vec![say(server, client), say(server, 1067), say(1067, client), say(server, server)],
    )]
}

/// Frames of its own making on the overlay, wrapped as another node would wrap them.
fn tunnels(way: &Way) -> Vec<Attempt> {
    const VNI_1: [u8; 8] = [8, 0, 0, 0, 0, 0, 1, 0];
    let own_device = Mac::from([0x0e, 0, 0, 0, way.overlay.mac[4], 1]);
    let attempt = |name, device: Mac, port, to: &[IpAddr]| {
        let forged = Packet::udp(way.neighbour.at(port), way.to.at(53), b"out of the tunnel").bytes();
        let inner = ethernet(device, [0x0e, 0, 0, 0, 0, 9], kind(&forged), &forged);
        let wrapped = [&VNI_1[..], &inner].concat();
        let wrap = |ip| way.send(&Packet::udp(way.me.at(40_000), (ip, TUNNEL_PORT).into(), &wrapped));
        let frames = to.iter().map(|ip| wrap(*ip)).collect();
        Attempt { arrivals: vec![inner], ..Attempt::new(name, "tunnel", frames) }
    };
    let other = way.overlay;
    let raw = |ip: IpAddr, protocol: u8| {
        let payload = way.datagram(40_013).bytes();
        way.send(&Packet { source: way.me.ip, destination: ip, protocol, fragment: None, payload })
    };
    // IP in IP, IPv6 in IP, GRE, ESP, IPIP, EtherIP, L2TP, MPLS in IP.
    let all = |ip: IpAddr| [4, 41, 47, 50, 94, 97, 115, 137].map(|protocol| raw(ip, protocol)).to_vec();
    let unkeyed = |ip: IpAddr| [4, 41, 47, 94, 97, 115, 137].map(|protocol| raw(ip, protocol)).to_vec();
    vec![
        Attempt::new("tunnels of its own to the other node", "tunnel", all(way.nodes[1])).at_node(),
        Attempt::new(
            "tunnels of its own to the own node",
            "tunnel",
            [way.nodes[0], way.gateway.ip, other.ip].into_iter().flat_map(all).collect(),
        )
        .lost_anyway(true),
        Attempt::new("tunnels of its own to the world", "tunnel", unkeyed(way.world)).lost_anyway(true),
        attempt("a tunnel to the other node", other.mac, 40_010, &[way.nodes[1]]),
        attempt("a tunnel to the other node's overlay address", other.mac, 40_011, &[other.ip]),
        attempt("a tunnel to the own node", own_device, 40_012, &[way.nodes[0], way.gateway.ip]),
    ]
}

fn options(way: &Way) -> Vec<Attempt> {
    let with = |options: &[u8]| way.carry(&with_options(&way.datagram(40_006), options));
    let IpAddr::V4(other) = way.neighbour.ip else { panic!("options are IPv4's") };
    let [a, b, c, d] = other.octets();
    vec![
        Attempt::new(
            "a source route",
            "invalid-header",
            vec![
                with(&[131, 7, 4, a, b, c, d, 0]),
                with(&[137, 7, 4, a, b, c, d, 0]),
                with(&[1, 131, 7, 4, a, b, c, d]),
            ],
        )
        .lost_anyway(!way.near),
        Attempt::new(
            "options that do not add up",
            "invalid-header",
            vec![with(&[68, 0, 0, 0]), with(&[68, 1, 0, 0]), with(&[68, 5, 0, 0]), with(&[1, 1, 1, 68])],
        )
        .lost_anyway(!way.near),
    ]
}

fn extensions(way: &Way) -> Vec<Attempt> {
    let with = |headers: &[(u8, &[u8])]| way.send(&behind(headers, &way.datagram(40_006)));
    let IpAddr::V6(other) = way.neighbour.ip else { panic!("extension headers are IPv6's") };
    let route = |kind: u8| [&[kind, 1, 0, 0, 0, 0][..], &other.octets()].concat();
    let (source, mobile, segment) = (route(0), route(2), route(4));
    let part: &[u8] = &[0, 0, 0, 0, 0, 1];
    vec![
        Attempt::new(
            "a route with segments left",
            "extension-headers",
            [&source, &mobile, &segment].map(|route| with(&[(ROUTING, route)])).into(),
        ),
        Attempt::new(
            "a route behind options",
            "extension-headers",
            vec![with(&[(DESTINATION_OPTIONS, PAD), (ROUTING, &source)])],
        ),
        Attempt::new(
            "too many headers",
            "extension-headers",
            vec![with(&[(DESTINATION_OPTIONS, PAD); 8]), with(&[(DESTINATION_OPTIONS, PAD); 20])],
        ),
        Attempt::new(
            "hop-by-hop options that are not first",
            "extension-headers",
            vec![
                with(&[(DESTINATION_OPTIONS, PAD), (HOP_BY_HOP, PAD)]),
                with(&[(HOP_BY_HOP, PAD), (HOP_BY_HOP, PAD)]),
            ],
        ),
        Attempt::new(
            "fragments of fragments",
            "extension-headers",
            vec![with(&[(FRAGMENT, part), (FRAGMENT, part)])],
        ),
        Attempt::new(
            "headers that others would read past",
            "extension-headers",
            [135, 139, 140].map(|number| with(&[(number, &[0; 6])])).into(),
        ),
        Attempt::new("a header longer than the packet", "truncated", {
            let mut frame = with(&[(DESTINATION_OPTIONS, PAD)]);
            frame[14 + 41] = 200;
            vec![frame]
        }),
    ]
}

/// Lengths that lie, and packets that end too soon.
fn lengths(way: &Way) -> Vec<Attempt> {
    let good = way.datagram(40_007).bytes();
    let edit = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        ethernet(way.to.mac, way.me.mac, kind(&good), &bytes)
    };
    let short = |packet: Packet, keep: usize| {
        way.send(&Packet { payload: packet.payload[..keep].to_vec(), ..packet })
    };
    let either = [
        Attempt::new(
            "a transport header that is not all there",
            "truncated",
            vec![
                short(way.segment(SYN), 10),
                short(way.segment(SYN), 19),
                short(way.datagram(40_008), 7),
                short(way.datagram(40_008), 0),
                short(Packet::echo_request(way.me.ip, way.to.ip, 1), 4),
            ],
        ),
        Attempt::new(
            "half a network header",
            "truncated",
            vec![edit(&|b| b.truncate(10)), edit(&|b| b.truncate(19))],
        )
        .lost_anyway(!way.near),
        Attempt::new(
            "a version that is neither",
            "invalid-header",
            vec![edit(&|b| b[0] = 0x05), edit(&|b| b[0] ^= 0x20)],
        )
        .lost_anyway(!way.near),
    ];
    let length = |of: u16| {
        let mut packet = way.datagram(40_014);
        packet.payload[4..6].copy_from_slice(&of.to_be_bytes());
        way.send(&packet)
    };
    let offset = |words: u8| {
        let mut packet = way.segment(SYN);
        packet.payload[12] = words << 4;
        way.send(&packet)
    };
    let true_length = u16::try_from(way.datagram(40_014).payload.len()).unwrap();
    let lies = [
        Attempt::new(
            "datagrams that lie about their length",
            "invalid-header",
            [0, 1, 7, 8, true_length - 1, true_length + 1, 0xffff].map(length).into(),
        ),
        Attempt::new("a TCP header beyond the packet", "truncated", [6, 15].map(offset).into()),
    ];
    let own = match way.family {
        Family::V4 => vec![
            Attempt::new(
                "a total length beyond the packet",
                "invalid-header",
                vec![edit(&|b| set_total(b, Some(1500))), edit(&|b| set_total(b, Some(0xffff)))],
            )
            .lost_anyway(!way.near),
            Attempt::new(
                "a total length within the header",
                "invalid-header",
                vec![edit(&|b| set_total(b, Some(0))), edit(&|b| set_total(b, Some(19)))],
            )
            .lost_anyway(!way.near),
            Attempt::new(
                "a header length that cannot be",
                "invalid-header",
                vec![
                    edit(&|b| b[0] = 0x44),
                    edit(&|b| b[0] = 0x40),
                    edit(&|b| {
                        b[0] = 0x4f;
                        set_total(b, Some(40));
                    }),
                ],
            )
            .lost_anyway(!way.near),
        ],
        Family::V6 => vec![
            Attempt::new(
                "a payload length beyond the packet",
                "invalid-header",
                vec![edit(&|b| b[4..6].fill(0xff)), edit(&|b| b[5] += 1)],
            )
            .lost_anyway(!way.near),
            Attempt::new("a payload length of zero", "truncated", vec![edit(&|b| b[4..6].fill(0))]),
            // RFC 2675: the option says 64 KiB.
            Attempt::new("a jumbogram that is none", "truncated", {
                let mut frame =
                    way.send(&behind(&[(HOP_BY_HOP, &[0xc2, 4, 0, 1, 0, 0])], &way.datagram(40_015)));
                frame[14 + 4..14 + 6].fill(0);
                vec![frame]
            })
            .lost_anyway(!way.near),
        ],
    };
    either.into_iter().chain(lies).chain(own).collect()
}

fn fragments(way: &Way) -> Vec<Attempt> {
    let segment = Packet::tcp(way.me.at(40_000), way.to.at(80), SYN, &[7; 64]);
    let piece = |packet: &Packet, id, offset: usize, end: usize| {
        let piece = Packet { payload: packet.payload[offset..end].to_vec(), ..packet.clone() };
        way.send(&fragment(&piece, id, u16::try_from(offset).unwrap(), end < packet.payload.len()))
    };
    let datagram = Packet::udp(way.me.at(40_000), way.to.at(53), &[7; 64]);
    let echo = Packet::echo_request(way.me.ip, way.to.ip, 1);
    vec![
        Attempt::new(
            "a TCP header in two fragments",
            "truncated",
            vec![piece(&segment, 20, 0, 8), piece(&segment, 21, 0, 16)],
        ),
        Attempt::new(
            "a fragment over a TCP header",
            "invalid-header",
            vec![piece(&segment, 22, 8, 84), piece(&segment, 23, 16, 84)],
        ),
        Attempt::new(
            "later fragments without a first",
            "fragment-not-tracked",
            vec![
                piece(&segment, 24, 24, 84),
                piece(&datagram, 25, 8, 72),
                piece(&datagram, 26, 16, 40),
                piece(&echo, 27, 8, 32),
            ],
        ),
    ]
}

/// What a first fragment that was allowed, or was not, does for later ones.
fn after_fragments(way: &Way) -> Vec<Attempt> {
    let datagram = Packet::udp(way.me.at(43_000), way.to.at(53), &[7; 120]);
    let segment = Packet::tcp(way.me.at(43_000), way.to.at(80), SYN, &[7; 100]);
    let piece = |packet: &Packet, id, offset: u16, payload: &[u8], more| {
        way.send(&fragment(&Packet { payload: payload.to_vec(), ..packet.clone() }, id, offset, more))
    };
    let first = |packet: &Packet, id| piece(packet, id, 0, &packet.payload[..64], true);
    let others = Packet::udp(way.me.at(43_000), way.neighbour.at(53), &[7; 120]);
    let (server, client) = if way.family == Family::V4 { (67, 68) } else { (547, 546) };
    let denied = Packet::udp(way.me.at(server), way.to.at(client), &[8; 120]);
    let mut attempts = vec![
        Attempt::new(
            "fragments of no datagram",
            "invalid-header",
            vec![
                piece(&datagram, 50, 64, &[9; 7], true),
                piece(&datagram, 50, 64, &[], false),
                piece(&datagram, 50, 64, &[], true),
                // What it would be joined to is longer than a datagram can be.
                piece(&datagram, 50, 0xfff8, &[9; 64], false),
                piece(&datagram, 51, 0, &datagram.payload[..63], true),
            ],
        )
        .after(vec![first(&datagram, 50)]),
        Attempt::new(
            "fragments over a TCP header that was allowed",
            "invalid-header",
            vec![piece(&segment, 52, 8, &[9; 64], true), piece(&segment, 52, 16, &[9; 64], false)],
        )
        .after(vec![first(&segment, 52)]),
        Attempt::new("a second first fragment", "dhcp-server", vec![first(&denied, 53)])
            .after(vec![first(&datagram, 53)]),
        Attempt::new(
            "fragments after a first that was not allowed",
            "fragment-not-tracked",
            vec![piece(&denied, 54, 64, &[9; 64], false)],
        )
        .after(vec![first(&denied, 54)]),
        Attempt::new(
            "fragments after a first of another number, protocol or receiver",
            "fragment-not-tracked",
            vec![
                piece(&datagram, 56, 64, &[9; 64], false),
                piece(&segment, 55, 64, &[9; 64], false),
                piece(&datagram, 57, 64, &[9; 64], false),
            ],
        )
        .after(vec![first(&datagram, 55), first(&others, 57)]),
    ];
    if way.family == Family::V6 {
        let hidden = behind(&[(DESTINATION_OPTIONS, PAD)], &datagram);
        attempts.push(Attempt::new(
            "headers behind a fragment's, to be written over",
            "extension-headers",
            vec![piece(&hidden, 58, 0, &hidden.payload[..64], true)],
        ));
    }
    attempts
}
