//! What looks like an attack and is not: it arrives as it was sent.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    thread,
};

use lab::{Family, Pod, raw::Packet};

use crate::{
    frame::{DESTINATION_OPTIONS, HOP_BY_HOP, PAD, ROUTING, behind, with_options},
    stage::{ARRIVES_WITHIN, Way},
};

/// Frames that must arrive, by name.
pub fn frames(way: &Way) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let udp = |port, length| Packet::udp(way.me.at(port), way.to.at(53), &vec![5; length]);
    let pieces = udp(42_000, 4000).fragments(31, 1400);
    let mut reversed = udp(42_001, 4000).fragments(32, 1400);
    reversed[1..].reverse(); // the first one must come first, the others need not be in order
    let headers = match way.family {
        Family::V4 => {
            let with = |port, options: &[u8]| way.carry(&with_options(&udp(port, 30), options));
            vec![
                ("padding", vec![with(42_010, &[1, 1, 1, 0])]),
                ("a router alert", vec![with(42_011, &[148, 4, 0, 0])]),
                ("a stream's number", vec![with(42_012, &[136, 4, 0, 1])]),
                // Full: no router adds to it.
                ("a recorded route", vec![with(42_013, &[7, 7, 8, 10, 0, 0, 1, 0])]),
            ]
        }
        Family::V6 => {
            let with = |port, headers: &[(u8, &[u8])]| way.send(&behind(headers, &udp(port, 30)));
            let done: &[u8] = &[4, 0, 0, 0, 0, 0];
            vec![
                ("hop-by-hop options", vec![with(42_010, &[(HOP_BY_HOP, PAD)])]),
                ("destination options", vec![with(42_011, &[(DESTINATION_OPTIONS, PAD)])]),
                ("a route that has been taken", vec![with(42_012, &[(ROUTING, done)])]),
                (
                    "every header that a packet can have",
                    vec![with(
                        42_013,
                        &[
                            (HOP_BY_HOP, PAD),
                            (DESTINATION_OPTIONS, PAD),
                            (ROUTING, done),
                            (DESTINATION_OPTIONS, PAD),
                        ],
                    )],
                ),
                ("an atomic fragment", vec![way.send(&udp(42_014, 30).fragments(33, 1400)[0])]),
            ]
        }
    };
    let sends = |pieces: &[Packet]| pieces.iter().map(|piece| way.send(piece)).collect();
    [
        ("fragments", sends(&pieces)),
        ("fragments out of order", sends(&reversed)),
        ("an empty datagram", vec![way.send(&udp(42_002, 0))]),
        ("an echo request", vec![way.send(&Packet::echo_request(way.me.ip, way.to.ip, 5))]),
    ]
    .into_iter()
    .chain(headers)
    .collect()
}

/// A megabyte in large writes, which leave the pod as segments to be cut later, and comes back.
pub fn stream(from: &Pod, to: SocketAddr) {
    const WRITES: usize = 16;
    const LENGTH: usize = 64 << 10;
    let mut stream = {
        let _inside = from.netns().enter().unwrap();
        TcpStream::connect_timeout(&to, ARRIVES_WITHIN).unwrap()
    };
    stream.set_read_timeout(Some(ARRIVES_WITHIN)).unwrap();
    let data: Vec<u8> = (0..LENGTH).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let (mut half, sent) = (stream.try_clone().unwrap(), data.clone());
    let writer = thread::spawn(move || (0..WRITES).try_for_each(|_| half.write_all(&sent)));
    let mut echo = vec![0; LENGTH];
    for n in 0..WRITES {
        stream.read_exact(&mut echo).unwrap_or_else(|error| panic!("{to}, write {n}: {error}"));
        assert!(echo == data, "{to}, write {n} comes back as it was");
    }
    writer.join().unwrap().unwrap();
}

/// A datagram of several packets, and its echo.
pub fn datagram(from: &Pod, own: SocketAddr, to: SocketAddr) {
    let data: Vec<u8> = (0..8192_u16).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let socket = {
        let _inside = from.netns().enter().unwrap();
        UdpSocket::bind(own).unwrap()
    };
    socket.set_read_timeout(Some(ARRIVES_WITHIN)).unwrap();
    socket.send_to(&data, to).unwrap();
    let mut echo = vec![0; data.len() + 1];
    let length = socket.recv(&mut echo).unwrap_or_else(|error| panic!("{to}: {error}"));
    assert!(echo[..length] == data, "{to}: 8 KiB come back as they were, not {length} bytes");
}
