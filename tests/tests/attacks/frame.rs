//! Frames made by hand, and how one is known again where it arrives.

use lab::raw::{Fragment, Packet};

pub type Mac = [u8; 6];

pub const BROADCAST: Mac = [0xff; 6];

pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const VLAN: u16 = 0x8100;
pub const IPV6: u16 = 0x86dd;
pub const QINQ: u16 = 0x88a8;

/// Next headers of IPv6 that [`lab::raw`] has no name for.
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const DESTINATION_OPTIONS: u8 = 60;

pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to, &from, &kind.to_be_bytes()[..], payload].concat()
}

/// EtherType of an IP packet, by its version.
pub fn kind(packet: &[u8]) -> u16 {
    if packet[0] >> 4 == 6 { IPV6 } else { IPV4 }
}

/// An IPv4 packet with these options (a multiple of four bytes).
pub fn with_options(packet: &Packet, options: &[u8]) -> Vec<u8> {
    let mut bytes = packet.bytes();
    bytes.splice(20..20, options.iter().copied());
    let words = u8::try_from(options.len() / 4).unwrap();
    bytes[0] += words;
    set_total(&mut bytes, None);
    bytes
}

/// Writes what an IPv4 header says of the packet's length (its true one if not told), and seals the header.
pub fn set_total(bytes: &mut [u8], total: Option<u16>) {
    let total = total.unwrap_or(u16::try_from(bytes.len()).unwrap());
    bytes[2..4].copy_from_slice(&total.to_be_bytes());
    seal(bytes);
}

/// Seals the header of an IPv4 packet that was changed; IPv6 has no checksum.
pub fn reseal(packet: &mut [u8]) {
    if kind(packet) == IPV4 {
        seal(packet);
    }
}

/// The checksum of an IPv4 header, over as much of it as there is.
fn seal(bytes: &mut [u8]) {
    bytes[10..12].fill(0);
    let header = (usize::from(bytes[0] & 0xf) * 4).clamp(20, bytes.len());
    let sum = checksum(&bytes[..header]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// RFC 1071.
pub fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default());
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// An IPv6 packet whose payload stands behind these headers, each given as its number and its bytes from the third on.
pub fn behind(headers: &[(u8, &[u8])], packet: &Packet) -> Packet {
    let mut packet = packet.clone();
    for (number, rest) in headers.iter().rev() {
        assert_eq!((rest.len() + 2) % 8, 0, "extension headers come in units of 8 bytes");
        let units = u8::try_from((rest.len() + 2) / 8 - 1).unwrap();
        // A fragment header has a reserved byte in place of a length.
        let length = if *number == FRAGMENT { 0 } else { units };
        packet.payload = [&[packet.protocol, length], *rest, &packet.payload].concat();
        packet.protocol = *number;
    }
    packet
}

/// A `PadN` option that fills a header of 8 bytes.
pub const PAD: &[u8] = &[1, 4, 0, 0, 0, 0];

/// One fragment of a datagram, said to begin at `offset` (a multiple of 8).
pub fn fragment(packet: &Packet, id: u32, offset: u16, more: bool) -> Packet {
    Packet { fragment: Some(Fragment { id, offset, more }), ..packet.clone() }
}

/// Whether `seen` is what became of `sent` on the way: other link-layer addresses, VLAN tags taken off, a hop less,
/// and cut to the length that it claims.
pub fn is_same(sent: &[u8], seen: &[u8]) -> bool {
    /// As much of a packet tells it from all others.
    const LEAST: usize = 2 + 40;
    let (sent, seen) = (timeless(sent), timeless(seen));
    sent == seen || seen.len() >= LEAST && sent.starts_with(&seen)
}

/// From the EtherType on, without what a hop changes.
fn timeless(frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame[12..].to_vec();
    while [VLAN, QINQ].iter().any(|tag| bytes.starts_with(&tag.to_be_bytes())) {
        bytes.drain(..4.min(bytes.len()));
    }
    let changes: &[usize] = match bytes.first_chunk().map(|kind| u16::from_be_bytes(*kind)) {
        Some(IPV4) => &[10, 12, 13], // TTL, checksum
        Some(IPV6) => &[9],
        _ => &[],
    };
    for at in changes {
        if let Some(byte) = bytes.get_mut(*at) {
            *byte = 0;
        }
    }
    bytes
}
