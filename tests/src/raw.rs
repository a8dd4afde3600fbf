//! Packets made by hand, with checksums as real stacks want them, and sent past the local transport layer.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use crate::netns::Netns;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;
/// Next header of IPv6's fragment header.
const FRAGMENT_HEADER: u8 = 44;
const HOPS: u8 = 64;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// An IP packet without what differs from hop to hop. One that was sniffed equals the one that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Of the payload, or of the datagram that a fragment belongs to.
    pub protocol: u8,
    pub fragment: Option<Fragment>,
    /// From the transport header on, or a fragment's part of that.
    pub payload: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// 16 bits of it count in IPv4.
    pub id: u32,
    /// In bytes, a multiple of 8.
    pub offset: u16,
    pub more: bool,
}

/// What an ICMP error says of the packet that it quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    PortUnreachable,
    /// The next link takes no more than this (16 bits of it count in IPv4).
    TooBig(u32),
    TimeExceeded,
}

impl Packet {
    fn whole(source: IpAddr, destination: IpAddr, protocol: u8, payload: Vec<u8>) -> Self {
        Self { source, destination, protocol, fragment: None, payload }
    }

    /// A segment with these flags.
    pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8, data: &[u8]) -> Self {
        let mut segment = ports(from, to);
        segment.extend(0x1000_0000_u32.to_be_bytes()); // sequence number
        segment.extend(0x2000_0000_u32.to_be_bytes()); // acknowledgement number
        segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(data);
        Self::whole(from.ip(), to.ip(), TCP, segment).sealed(16)
    }

    pub fn udp(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Self {
        let mut datagram = ports(from, to);
        let length = u16::try_from(8 + data.len()).expect("a datagram has at most 64 KiB");
        datagram.extend(length.to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(data);
        Self::whole(from.ip(), to.ip(), UDP, datagram).sealed(6)
    }

    /// An INIT chunk (RFC 9260, 3.3.2), which asks for an association.
    pub fn sctp_init(from: SocketAddr, to: SocketAddr) -> Self {
        let mut packet = ports(from, to);
        packet.extend([0; 8]); // verification tag (none yet), checksum
        packet.extend([1, 0, 0, 20]);
        packet.extend(0x0102_0304_u32.to_be_bytes()); // initiate tag
        packet.extend(0xffff_u32.to_be_bytes()); // receiver window
        packet.extend([0, 1, 0, 1]); // streams out, in
        packet.extend(1_u32.to_be_bytes()); // first TSN
        let sum = crc32c(&packet).to_le_bytes();
        packet[8..12].copy_from_slice(&sum);
        Self::whole(from.ip(), to.ip(), SCTP, packet)
    }

    pub fn echo_request(from: IpAddr, to: IpAddr, id: u16) -> Self {
        Self::icmp(from, to, if from.is_ipv4() { [8, 0] } else { [128, 0] }, id.to_be_bytes(), &[7; 24])
    }

    /// With so many bytes of data.
    pub fn long_echo_request(from: IpAddr, to: IpAddr, id: u16, bytes: usize) -> Self {
        Self::icmp(
            from,
            to,
            if from.is_ipv4() { [8, 0] } else { [128, 0] },
            id.to_be_bytes(),
            &vec![7; bytes],
        )
    }

    pub fn echo_reply(from: IpAddr, to: IpAddr, id: u16) -> Self {
        Self::icmp(from, to, if from.is_ipv4() { [0, 0] } else { [129, 0] }, id.to_be_bytes(), &[7; 24])
    }

    /// From `from` to the sender of the packet that it quotes.
    pub fn error(from: IpAddr, trouble: Trouble, quoted: &Self) -> Self {
        // RFC 1812: up to 576 bytes in all; RFC 4443: up to the minimum MTU of 1280.
        let (kind, most) = match (from, trouble) {
            (IpAddr::V4(_), Trouble::PortUnreachable) => ([3, 3], 548),
            (IpAddr::V4(_), Trouble::TooBig(_)) => ([3, 4], 548),
            (IpAddr::V4(_), Trouble::TimeExceeded) => ([11, 0], 548),
            (IpAddr::V6(_), Trouble::PortUnreachable) => ([1, 4], 1232),
            (IpAddr::V6(_), Trouble::TooBig(_)) => ([2, 0], 1232),
            (IpAddr::V6(_), Trouble::TimeExceeded) => ([3, 0], 1232),
        };
        let rest = if let Trouble::TooBig(mtu) = trouble { mtu.to_be_bytes() } else { [0; 4] };
        let mut quote = quoted.bytes();
        quote.truncate(most);
        let mut message = vec![kind[0], kind[1], 0, 0];
        message.extend(rest);
        message.extend(quote);
        let protocol = if from.is_ipv4() { ICMP } else { ICMPV6 };
        Self::whole(from, quoted.source, protocol, message).sealed(2)
    }

    fn icmp(from: IpAddr, to: IpAddr, [kind, code]: [u8; 2], id: [u8; 2], data: &[u8]) -> Self {
        let mut message = vec![kind, code, 0, 0, id[0], id[1], 0, 1];
        message.extend(data);
        Self::whole(from, to, if from.is_ipv4() { ICMP } else { ICMPV6 }, message).sealed(2)
    }

    /// Cut into pieces of at most `most` bytes of payload (a multiple of 8).
    #[must_use]
    pub fn fragments(&self, id: u32, most: u16) -> Vec<Self> {
        assert!(most > 0 && most.is_multiple_of(8), "a fragment's length is in units of 8 bytes");
        let pieces: Vec<_> = self.payload.chunks(most.into()).collect();
        let last = pieces.len() - 1;
        let piece = |(n, piece): (usize, &&[u8])| {
            let offset = u16::try_from(n * usize::from(most)).expect("a datagram has at most 64 KiB");
            let fragment = Some(Fragment { id, offset, more: n != last });
            Self { fragment, payload: piece.to_vec(), ..self.clone() }
        };
        pieces.iter().enumerate().map(piece).collect()
    }

    /// With the transport checksum at this place of the payload.
    fn sealed(mut self, at: usize) -> Self {
        let length = u32::try_from(self.payload.len()).expect("a packet has at most 64 KiB");
        let mut summed = Vec::new();
        match (self.source, self.destination) {
            (IpAddr::V4(_), _) if self.protocol == ICMP => {}
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                summed.extend(source.octets());
                summed.extend(destination.octets());
                summed.extend([0, self.protocol]);
                summed.extend(u16::try_from(length).expect("checked above").to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                summed.extend(source.octets());
                summed.extend(destination.octets());
                summed.extend(length.to_be_bytes());
                summed.extend([0, 0, 0, self.protocol]);
            }
            _ => panic!("a packet has addresses of one family"),
        }
        summed.extend(&self.payload);
        let sum = match internet_checksum(&summed) {
            0 if self.protocol == UDP => 0xffff, // zero means none (RFC 768)
            sum => sum,
        };
        self.payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        self
    }

    /// As on the wire, from the network header on.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let fragment = self.fragment;
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let total = u16::try_from(20 + self.payload.len()).expect("a packet has at most 64 KiB");
                let [.., id_high, id_low] = fragment.map_or(1, |f| f.id).to_be_bytes();
                let place = fragment.map_or(0, |f| (f.offset / 8) | (u16::from(f.more) << 13)).to_be_bytes();
                bytes.extend([0x45, 0]);
                bytes.extend(total.to_be_bytes());
                bytes.extend([id_high, id_low, place[0], place[1], HOPS, self.protocol, 0, 0]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                let sum = internet_checksum(&bytes).to_be_bytes();
                bytes[10..12].copy_from_slice(&sum);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let extension = if fragment.is_some() { 8 } else { 0 };
                let length =
                    u16::try_from(extension + self.payload.len()).expect("a packet has at most 64 KiB");
                bytes.extend([0x60, 0, 0, 0]);
                bytes.extend(length.to_be_bytes());
                bytes.extend([if fragment.is_some() { FRAGMENT_HEADER } else { self.protocol }, HOPS]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                if let Some(Fragment { id, offset, more }) = fragment {
                    bytes.extend([self.protocol, 0]);
                    bytes.extend((offset | u16::from(more)).to_be_bytes());
                    bytes.extend(id.to_be_bytes());
                }
            }
            _ => panic!("a packet has addresses of one family"),
        }
        bytes.extend(&self.payload);
        bytes
    }

    /// From the network header on; `None`: not a packet that this module could have made.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let header = usize::from(bytes[0] & 0xf) * 4;
                let total = usize::from(u16_at(bytes, 2)?);
                let place = u16_at(bytes, 6)?;
                let (offset, more) = ((place & 0x1fff) * 8, place & 0x2000 != 0);
                let fragment = Fragment { id: u16_at(bytes, 4)?.into(), offset, more };
                let address = |at| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
                Some(Self {
                    source: address(12)?.into(),
                    destination: address(16)?.into(),
                    protocol: *bytes.get(9)?,
                    fragment: (offset != 0 || more).then_some(fragment),
                    payload: bytes.get(header..total)?.to_vec(),
                })
            }
            6 => {
                let address = |at| Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?));
                let payload = bytes.get(40..40 + usize::from(u16_at(bytes, 4)?))?;
                let (protocol, fragment, payload) = match *bytes.get(6)? {
                    FRAGMENT_HEADER => {
                        let place = u16_at(payload, 2)?;
                        let id = u32::from_be_bytes(payload.get(4..8)?.try_into().ok()?);
                        let fragment = Fragment { id, offset: place & !7, more: place & 1 != 0 };
                        (payload[0], Some(fragment), &payload[8..])
                    }
                    protocol => (protocol, None, payload),
                };
                let payload = payload.to_vec();
                Some(Self {
                    source: address(8)?.into(),
                    destination: address(24)?.into(),
                    protocol,
                    fragment,
                    payload,
                })
            }
            _ => None,
        }
    }

    /// Sends it from inside: routed and resolved like any packet, but as it is.
    pub fn send(&self, from: &Netns) -> Result<()> {
        let _inside = from.enter()?;
        let family = if self.source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        // IPPROTO_RAW: the header is ours, in both families.
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        let to = SockaddrStorage::from(SocketAddr::new(self.destination, 0));
        sendto(socket.as_raw_fd(), &self.bytes(), &to, MsgFlags::empty())
            .with_context(|| format!("cannot send {self:?}"))?;
        Ok(())
    }
}

fn ports(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    [from.port().to_be_bytes(), to.port().to_be_bytes()].concat()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from_be_bytes([0, 0, pair[0], *pair.get(1).unwrap_or(&0)]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

/// RFC 9260, appendix A: the polynomial 0x1EDC6F41, least significant bit first.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_books() {
        // RFC 1071, section 3; the check value of CRC-32C.
        assert_eq!(internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (a, b) in [("10.0.0.1:1000", "10.0.0.2:53"), ("[fd00::1]:1000", "[fd00::2]:53")] {
            let (a, b): (SocketAddr, SocketAddr) =
                (a.parse().unwrap_or_else(|_| panic!()), b.parse().unwrap_or_else(|_| panic!()));
            let datagram = Packet::udp(a, b, &[1; 100]);
            let fragments = datagram.fragments(77, 48);
            let joined: Vec<u8> = fragments.iter().flat_map(|f| f.payload.clone()).collect();
            assert_eq!((fragments.len(), joined), (3, datagram.payload.clone()));
            let error = Packet::error(b.ip(), Trouble::TooBig(1300), &datagram);
            assert_eq!(error.destination, a.ip());
            for packet in fragments.into_iter().chain([datagram, error, Packet::sctp_init(a, b)]) {
                assert_eq!(Packet::parse(&packet.bytes()), Some(packet));
            }
        }
    }
}
