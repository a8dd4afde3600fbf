//! A frame as the decision reads it, and the headers as they stand on the wire.

use crate::reason::Reason;

/// A frame with its Ethernet header, however the host or the kernel keeps it.
pub trait Packet {
    /// Bytes of the whole frame.
    fn frame_len(&self) -> u32;
    /// Interface whose hook sees the frame.
    fn ifindex(&self) -> u32;
    /// A VLAN tag was taken off the frame and is kept beside it.
    fn vlan_tagged(&self) -> bool;
    /// Interface by which the packet came into this network namespace; 0: made by the node itself.
    fn came_in_by(&self) -> u32;
    /// The packet's mark (`fwmark`), which stays with it inside this network namespace and which no pod can set.
    fn mark(&self) -> u32;
    fn set_mark(&self, mark: u32);
    /// `T` at a constant offset within the first [`HEAD`] bytes: the fast way.
    fn read<T: Wire>(&self, at: usize) -> Result<T, Reason>;
    /// `T` at any offset.
    fn load<T: Wire>(&self, at: u32) -> Result<T, Reason>;
}

/// Bytes that [`Packet::read`] reaches: Ethernet, IPv6 and TCP headers without options.
pub const HEAD: usize = 74;
/// The same with an IPv4 header.
pub const HEAD_V4: usize = 54;
pub const ETHERNET_LEN: u32 = 14;

/// A type that can be read from any bytes.
///
/// # Safety
/// Every bit pattern is a valid value, and there is no padding.
pub unsafe trait Wire: Copy {}

// SAFETY: bytes.
unsafe impl<const N: usize> Wire for [u8; N] {}
// SAFETY: integers.
unsafe impl<const N: usize> Wire for [u64; N] {}

/// Alignments are those that let whole words be read at once. Multi-byte fields stay in network byte order.
macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident align $align:literal size $size:literal { $($field:ident: $ty:ty),* })*) => { $(
        $(#[$doc])*
        #[repr(C, align($align))]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $(pub $field: $ty),* }
        const _: () = assert!(size_of::<$name>() == $size);
        // SAFETY: byte arrays and integers whose sizes add up to the whole (asserted above).
        unsafe impl Wire for $name {}
    )* };
}

wire! {
    Ethernet align 2 size 14 { destination: Mac, source: Mac, ether_type: [u8; 2] }
    Ipv4 align 4 size 20 {
        version_ihl: u8, tos: u8, total: [u8; 2], id: [u8; 2], fragment: [u8; 2],
        ttl: u8, protocol: u8, checksum: [u8; 2], source: u32, destination: u32
    }
    Ipv6 align 8 size 40 {
        version_class: u8, label: [u8; 3], payload: [u8; 2], next: u8, hops: u8,
        source: [u64; 2], destination: [u64; 2]
    }
    /// Up to where the shortest transport header ends, read under one check.
    Ipv4Ports align 4 size 28 { ip: Ipv4, ports: Ports, length: [u8; 2], rest: [u8; 2] }
    PortsAndLength align 4 size 8 { ports: Ports, length: [u8; 2], rest: [u8; 2] }
    LinkLayerOption align 2 size 8 { kind: u8, len: u8, address: Mac }
    Ports align 4 size 4 { source: [u8; 2], destination: [u8; 2] }
    Arp align 2 size 28 {
        hardware: [u8; 2], protocol: [u8; 2], hardware_len: u8, protocol_len: u8, operation: [u8; 2],
        sender_mac: Mac, sender: [u8; 4], target_mac: Mac, target: [u8; 4]
    }
}

/// A link-layer address in words, which compare without a loop over bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac {
    high: u16,
    middle: u16,
    low: u16,
}
const _: () = assert!(size_of::<Mac>() == 6);

impl Mac {
    pub const NONE: Self = Self::new([0; 6]);

    #[inline(always)]
    pub const fn new([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self {
            high: u16::from_ne_bytes([a, b]),
            middle: u16::from_ne_bytes([c, d]),
            low: u16::from_ne_bytes([e, f]),
        }
    }

    #[inline(always)]
    pub const fn bytes(self) -> [u8; 6] {
        let ([a, b], [c, d], [e, f]) =
            (self.high.to_ne_bytes(), self.middle.to_ne_bytes(), self.low.to_ne_bytes());
        [a, b, c, d, e, f]
    }
}

// SAFETY: integers without padding (asserted above).
unsafe impl Wire for Mac {}

pub const ETHER_IPV4: u16 = 0x0800;
pub const ETHER_ARP: u16 = 0x0806;
pub const ETHER_VLAN: u16 = 0x8100;
pub const ETHER_IPV6: u16 = 0x86dd;
pub const ETHER_QINQ: u16 = 0x88a8;

pub const ICMP: u8 = 1;
pub const IGMP: u8 = 2;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;

pub const TCP_FIN: u8 = 1;
pub const TCP_SYN: u8 = 2;
pub const TCP_RST: u8 = 4;
pub const TCP_ACK: u8 = 16;
