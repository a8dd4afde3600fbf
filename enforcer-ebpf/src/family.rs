//! IPv4 and IPv6 as parameters of one code path: addresses, and the network header.

use core::{fmt::Debug, mem::transmute};

use crate::{
    abi::Endpoint,
    decide::{At, Site},
    fast::Plain,
    flow::Flow,
    neighbour,
    packet::{ETHERNET_LEN, ICMP, ICMPV6, Ipv4, Ipv4Ports, Ipv6, Packet, PortsAndLength},
    reason::Reason,
    tables::Addresses,
};

pub trait Family: Sized + 'static {
    /// An address as whole words, its bytes in memory as on the wire: what the machine compares and copies
    /// at once. A key of such addresses has the very bytes of one of byte arrays.
    type Addr: Copy + Debug + PartialEq;
    /// 4 or 6, as in events.
    const NUMBER: u8;
    /// Offset of the transport header when there are no options.
    const TRANSPORT: usize;
    /// Protocol number of this family's ICMP, and its types of an echo.
    const ICMP: u8;
    const ECHO_REQUEST: u8;
    const ECHO_REPLY: u8;
    const UNSPECIFIED: Self::Addr;

    /// The pod's own address; unspecified: none.
    fn own(endpoint: &Endpoint) -> Self::Addr;
    /// As in keys and events that serve both families.
    fn wide(address: Self::Addr) -> [u8; 16];
    /// Order of addresses and ports on a connection key.
    fn lower(a: (Self::Addr, [u8; 2]), b: (Self::Addr, [u8; 2])) -> bool;
    /// Multicast or limited broadcast.
    fn is_multicast(address: Self::Addr) -> bool;
    /// No host's address on any network (RFC 6890): who sends there means a host by another name, or hides one. What
    /// some networks use is not among these: 169.254/16 and 240/4 are policy's to decide.
    fn is_nobodys(address: Self::Addr) -> bool;
    /// UDP ports of a DHCP server and of its clients.
    const DHCP: [u16; 2];
    /// The ICMP message is about another packet, which it quotes.
    fn is_error(icmp_type: u8) -> bool;
    /// The headers of a packet that can take the short way.
    fn plain<P: Packet>(packet: &P) -> Option<Plain<Self>>;
    /// Reads the network header at `at`, up to the transport header, into an empty flow (in place, for
    /// the sake of the stack). A quoted packet may be cut short.
    fn network<P: Packet, T: Addresses<Self>>(
        packet: &P,
        tables: &T,
        at: u32,
        quoted: bool,
        flow: &mut Flow<Self>,
    ) -> Result<(), Reason>;

    /// The verdict on neighbour discovery, if this ICMP message is some.
    fn discovery<P: Packet, T: Addresses<Self>, H: At>(
        packet: &P,
        site: &Site<T, H>,
        flow: &Flow<Self>,
    ) -> Result<Option<Reason>, Reason>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V4 {}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V6 {}

impl Family for V4 {
    type Addr = u32;
    const NUMBER: u8 = 4;
    const TRANSPORT: usize = 34;
    const ICMP: u8 = ICMP;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const UNSPECIFIED: u32 = 0;
    const DHCP: [u16; 2] = [67, 68];

    #[inline(always)]
    fn own(endpoint: &Endpoint) -> u32 {
        u32::from_ne_bytes(endpoint.ipv4)
    }

    #[inline(always)]
    fn wide(address: u32) -> [u8; 16] {
        let [a, b, c, d] = address.to_ne_bytes();
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    #[inline(always)]
    fn lower(a: (u32, [u8; 2]), b: (u32, [u8; 2])) -> bool {
        let rank = |(address, port): (u32, [u8; 2])| {
            u64::from(u32::from_be(address)) << 16 | u64::from(u16::from_be_bytes(port))
        };
        rank(a) <= rank(b)
    }

    #[inline(always)]
    fn is_multicast(address: u32) -> bool {
        address.to_ne_bytes()[0] & 0xf0 == 0xe0 || address == u32::MAX
    }

    /// This network (0/8) and loopback.
    #[inline(always)]
    fn is_nobodys(address: u32) -> bool {
        matches!(address.to_ne_bytes()[0], 0 | 127)
    }

    /// Unreachable, source quench, redirect, time exceeded, parameter problem.
    #[inline(always)]
    fn is_error(icmp_type: u8) -> bool {
        matches!(icmp_type, 3 | 4 | 5 | 11 | 12)
    }

    #[inline(always)]
    fn plain<P: Packet>(packet: &P) -> Option<Plain<Self>> {
        const DO_NOT_FRAGMENT: u16 = 0x4000;
        let Ipv4Ports { ip, ports, length, .. } = packet.read(ETHERNET_LEN as usize).ok()?;
        let total = u32::from(u16::from_be_bytes(ip.total));
        if ip.version_ihl != 0x45
            || u16::from_be_bytes(ip.fragment) & !DO_NOT_FRAGMENT != 0
            || total + ETHERNET_LEN > packet.frame_len()
        {
            return None;
        }
        let payload = total.checked_sub(20)?;
        let (source, destination, protocol) = (ip.source, ip.destination, ip.protocol);
        Some(Plain { source, destination, protocol, ports, length, payload })
    }

    #[inline(always)]
    fn network<P: Packet, T: Addresses<Self>>(
        packet: &P,
        tables: &T,
        at: u32,
        quoted: bool,
        flow: &mut Flow<Self>,
    ) -> Result<(), Reason> {
        let _ = tables;
        let ip: Ipv4 = if quoted { packet.load(at)? } else { packet.read(ETHERNET_LEN as usize)? };
        let header = u32::from(ip.version_ihl & 0x0f) * 4;
        if ip.version_ihl >> 4 != 4 || header < 20 {
            return Err(Reason::InvalidHeader);
        }
        let end = end(packet, at, header, u32::from(u16::from_be_bytes(ip.total)), quoted)?;
        if header > 20 && !quoted {
            options(packet, at + 20, at + header)?;
        }
        let word = u16::from_be_bytes(ip.fragment);
        flow.source = ip.source;
        flow.destination = ip.destination;
        flow.protocol = ip.protocol;
        flow.at = at + header;
        flow.end = end;
        flow.fragment = (word & 0x1fff) << 3 | (word >> 13 & 1);
        flow.fragment_id = u32::from(u16::from_be_bytes(ip.id));
        flow.fragment_protocol = ip.protocol;
        Ok(())
    }

    #[inline(always)]
    fn discovery<P: Packet, T: Addresses<Self>, H: At>(
        _: &P,
        _: &Site<T, H>,
        _: &Flow<Self>,
    ) -> Result<Option<Reason>, Reason> {
        Ok(None)
    }
}

/// End of the IP packet in the frame. A total of 0 is a packet of more than 64 KiB that the kernel will
/// cut into segments ("BIG TCP"): only those may leave it open.
#[inline(always)]
fn end<P: Packet>(packet: &P, at: u32, header: u32, total: u32, quoted: bool) -> Result<u32, Reason> {
    let rest = packet.frame_len().saturating_sub(at);
    if quoted || total == 0 && rest > 0xffff {
        return Ok(packet.frame_len());
    }
    if total < header || total > rest {
        return Err(Reason::InvalidHeader);
    }
    Ok(at + total)
}

/// Options must be well formed, and none may send the packet elsewhere than its destination says.
///
/// Byte by byte: a walk in steps of unknown length has more paths than the verifier follows.
#[inline(never)]
fn options<P: Packet>(packet: &P, start: u32, end: u32) -> Result<(), Reason> {
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    const MAX_LEN: u32 = 40;
    let mut skip = 0;
    for at in start..start + MAX_LEN {
        if at >= end {
            break;
        }
        if skip > 0 {
            skip -= 1;
            continue;
        }
        let [kind] = packet.load(at)?;
        match kind {
            0 => break,
            1 => {}
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(Reason::InvalidHeader),
            _ => {
                let [len]: [u8; 1] = packet.load(at + 1)?;
                if len < 2 || u32::from(len) > MAX_LEN || at + u32::from(len) > end {
                    return Err(Reason::InvalidHeader);
                }
                skip = len - 1;
            }
        }
    }
    Ok(())
}

impl Family for V6 {
    type Addr = [u64; 2];
    const NUMBER: u8 = 6;
    const TRANSPORT: usize = 54;
    const ICMP: u8 = ICMPV6;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const UNSPECIFIED: [u64; 2] = [0; 2];
    const DHCP: [u16; 2] = [547, 546];

    #[inline(always)]
    fn own(endpoint: &Endpoint) -> [u64; 2] {
        words(endpoint.ipv6)
    }

    #[inline(always)]
    fn wide(address: [u64; 2]) -> [u8; 16] {
        // SAFETY: integers of the same size.
        unsafe { transmute(address) }
    }

    #[inline(always)]
    fn lower(a: ([u64; 2], [u8; 2]), b: ([u64; 2], [u8; 2])) -> bool {
        let ([x, y], [v, w]) = (a.0.map(u64::from_be), b.0.map(u64::from_be));
        if x != v {
            return x < v;
        }
        if y != w {
            return y < w;
        }
        u16::from_be_bytes(a.1) <= u16::from_be_bytes(b.1)
    }

    #[inline(always)]
    fn is_multicast(address: [u64; 2]) -> bool {
        address[0].to_ne_bytes()[0] == 0xff
    }

    /// Unspecified, loopback and IPv4-compatible (`::/96`), IPv4-mapped (`::ffff:0:0/96`), link-local, 6to4 (`2002::/16`),
    /// Teredo (`2001::/32`). NAT64's prefix is in use, and its gateway is somebody.
    #[inline(always)]
    fn is_nobodys(address: [u64; 2]) -> bool {
        let [high, low] = address.map(u64::from_be);
        let middle = low >> 32;
        high == 0 && (middle == 0 || middle == 0xffff)
            || high >> 54 == 0x3fa
            || high >> 48 == 0x2002
            || high >> 32 == 0x2001_0000
    }

    #[inline(always)]
    fn is_error(icmp_type: u8) -> bool {
        icmp_type < 128
    }

    #[inline(always)]
    fn plain<P: Packet>(packet: &P) -> Option<Plain<Self>> {
        let ip: Ipv6 = packet.read(ETHERNET_LEN as usize).ok()?;
        let payload = u32::from(u16::from_be_bytes(ip.payload));
        if ip.version_class >> 4 != 6 || payload + ETHERNET_LEN + 40 > packet.frame_len() {
            return None;
        }
        let PortsAndLength { ports, length, .. } = packet.read(Self::TRANSPORT).ok()?;
        let (source, destination, protocol) = (ip.source, ip.destination, ip.next);
        Some(Plain { source, destination, protocol, ports, length, payload })
    }

    #[inline(always)]
    fn network<P: Packet, T: Addresses<Self>>(
        packet: &P,
        tables: &T,
        at: u32,
        quoted: bool,
        flow: &mut Flow<Self>,
    ) -> Result<(), Reason> {
        let ip: Ipv6 = if quoted { packet.load(at)? } else { packet.read(ETHERNET_LEN as usize)? };
        if ip.version_class >> 4 != 6 {
            return Err(Reason::InvalidHeader);
        }
        let total = match u32::from(u16::from_be_bytes(ip.payload)) {
            0 if packet.frame_len() - at.min(packet.frame_len()) > 0xffff + 40 => 0,
            payload => payload + 40,
        };
        let end = end(packet, at, 40, total, quoted)?;
        flow.source = ip.source;
        flow.destination = ip.destination;
        flow.protocol = ip.next;
        flow.at = at + 40;
        flow.end = end;
        if is_extension(ip.next) { extensions(packet, tables, flow) } else { Ok(()) }
    }

    #[inline(always)]
    fn discovery<P: Packet, T: Addresses<Self>, H: At>(
        packet: &P,
        site: &Site<T, H>,
        flow: &Flow<Self>,
    ) -> Result<Option<Reason>, Reason> {
        neighbour::discovery(packet, site, flow)
    }
}

/// The address as the words that the decision works on.
#[inline(always)]
pub const fn words(address: [u8; 16]) -> [u64; 2] {
    // SAFETY: integers of the same size.
    unsafe { transmute(address) }
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// Headers that end hosts of these protocols read past, and we do not.
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;
/// RFC 8200 lets a packet carry six; more is a trick.
const MAX_EXTENSIONS: usize = 7;

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(
        next,
        HOP_BY_HOP
            | ROUTING
            | FRAGMENT
            | AUTHENTICATION
            | DESTINATION_OPTIONS
            | MOBILITY
            | HOST_IDENTITY
            | SHIM6
    )
}

/// Walks to the transport header, or to a later fragment's payload.
#[inline(never)]
fn extensions<P: Packet, T: Addresses<V6>>(
    packet: &P,
    tables: &T,
    flow: &mut Flow<V6>,
) -> Result<(), Reason> {
    let first = flow.at;
    for _ in 0..MAX_EXTENSIONS {
        let [next, len, third, fourth]: [u8; 4] = packet.load(flow.at)?;
        let header = match flow.protocol {
            // Only directly after the IPv6 header (RFC 8200, 4.1).
            HOP_BY_HOP if flow.at != first => return Err(Reason::ExtensionHeaders),
            MOBILITY | HOST_IDENTITY | SHIM6 => return Err(Reason::ExtensionHeaders),
            // With segments left the packet would go on to an address that nobody has judged.
            ROUTING if fourth != 0 => return Err(Reason::ExtensionHeaders),
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (u32::from(len) + 1) * 8,
            AUTHENTICATION => (u32::from(len) + 2) * 4,
            FRAGMENT => {
                if flow.fragment_header != 0 {
                    return Err(Reason::ExtensionHeaders);
                }
                let word = u16::from_be_bytes([third, fourth]);
                flow.fragment_id = u32::from_be_bytes(packet.load(flow.at + 4)?);
                flow.fragment_protocol = next;
                flow.fragment = word & 0xfff9;
                flow.fragment_header = 1;
                8
            }
            _ => return Ok(()),
        };
        flow.at += header;
        flow.protocol = next;
        tables.settle(flow);
        if flow.at > flow.end {
            return Err(Reason::Truncated);
        }
        if flow.is_later_fragment() {
            return Ok(());
        }
    }
    if is_extension(flow.protocol) { Err(Reason::ExtensionHeaders) } else { Ok(()) }
}
