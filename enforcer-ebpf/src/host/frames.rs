//! Frames to ask questions with: as far as the decision reads them; checksums are left empty.

use std::{net::IpAddr, vec, vec::Vec};

use crate::packet::{ETHER_ARP, ETHER_IPV4, ETHER_IPV6, ICMP, ICMPV6, SCTP, TCP, UDP};

pub type MacBytes = [u8; 6];

/// Addresses of a frame and its packet.
#[derive(Clone, Copy, Debug)]
pub struct Between {
    pub source_mac: MacBytes,
    pub destination_mac: MacBytes,
    pub source: IpAddr,
    pub destination: IpAddr,
}

impl Between {
    /// The same in the opposite direction.
    #[must_use]
    pub const fn reply(self) -> Self {
        Self {
            source_mac: self.destination_mac,
            destination_mac: self.source_mac,
            source: self.destination,
            destination: self.source,
        }
    }

    pub const fn is_ipv6(self) -> bool {
        matches!(self.source, IpAddr::V6(_))
    }

    /// A whole frame.
    pub fn frame(self, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let ether_type = if self.is_ipv6() { ETHER_IPV6 } else { ETHER_IPV4 };
        let packet = ip(self.source, self.destination, protocol, transport);
        ethernet(self.destination_mac, self.source_mac, ether_type, &packet)
    }

    /// `flags` as in byte 13 of the header.
    pub fn tcp(self, source: u16, destination: u16, flags: u8) -> Vec<u8> {
        self.frame(TCP, &tcp(source, destination, flags))
    }

    pub fn udp(self, source: u16, destination: u16) -> Vec<u8> {
        self.frame(UDP, &udp(source, destination, b"payload"))
    }

    pub fn sctp(self, source: u16, destination: u16) -> Vec<u8> {
        self.frame(SCTP, &[&ports(source, destination)[..], &[0; 8]].concat())
    }

    /// An ICMP or ICMPv6 message.
    pub fn icmp(self, icmp_type: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let protocol = if self.is_ipv6() { ICMPV6 } else { ICMP };
        self.frame(protocol, &[&[icmp_type, code, 0, 0][..], &rest, payload].concat())
    }

    pub fn echo(self, reply: bool, id: u16) -> Vec<u8> {
        let icmp_type = match (self.is_ipv6(), reply) {
            (false, false) => 8,
            (false, true) => 0,
            (true, false) => 128,
            (true, true) => 129,
        };
        let [high, low] = id.to_be_bytes();
        self.icmp(icmp_type, 0, [high, low, 0, 1], b"ping")
    }

    /// "Unreachable" about a packet, given as its frame.
    pub fn unreachable(self, frame: &[u8]) -> Vec<u8> {
        let icmp_type = if self.is_ipv6() { 1 } else { 3 };
        self.icmp(icmp_type, 3, [0; 4], &frame[14..])
    }
}

pub fn ethernet(destination: MacBytes, source: MacBytes, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &ether_type.to_be_bytes(), payload].concat()
}

/// # Panics
/// If the addresses are of different families, or the packet is too long for its length field.
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = |header: usize| u16::try_from(header + payload.len()).expect("a packet's length").to_be_bytes();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [high, low] = len(20);
            let head = [0x45, 0, high, low, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
            [&head[..], &source.octets(), &destination.octets(), payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = len(0);
            let head = [0x60, 0, 0, 0, high, low, protocol, 255];
            [&head[..], &source.octets(), &destination.octets(), payload].concat()
        }
        _ => panic!("two families in one packet"),
    }
}

fn ports(source: u16, destination: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
    [a, b, c, d]
}

pub fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut header = vec![0; 20];
    header[..4].copy_from_slice(&ports(source, destination));
    header[12] = 5 << 4;
    header[13] = flags;
    header
}

/// # Panics
/// If the datagram is too long for its length field.
pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).expect("a datagram's length").to_be_bytes();
    [&ports(source, destination)[..], &len, &[0, 0], payload].concat()
}

/// An ARP packet for Ethernet and IPv4; `operation` 1 asks, 2 answers.
pub fn arp(
    frame_source: MacBytes,
    operation: u8,
    sender_mac: MacBytes,
    sender: [u8; 4],
    target: [u8; 4],
) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    let body = [&head[..], &sender_mac, &sender, &[0; 6], &target].concat();
    ethernet([0xff; 6], frame_source, ETHER_ARP, &body)
}
