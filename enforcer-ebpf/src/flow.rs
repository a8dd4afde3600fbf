//! What a packet says of itself: addresses, protocol, ports, fragment, and the key of its connection.

use crate::{
    abi::ConnKey,
    family::{Family, V4, V6},
    packet::{Packet, PortsAndLength, SCTP, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP, Wire},
    reason::Reason,
};

/// Plain integers without padding, so that the kernel may keep it in a map.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<F: Family> {
    pub source: F::Addr,
    pub destination: F::Addr,
    /// Offset of the transport header, and of the packet's end.
    pub at: u32,
    pub end: u32,
    pub fragment_id: u32,
    /// Source's and destination's port on the connection key: see [`Flow::key`].
    pub ports: [[u8; 2]; 2],
    /// Where a fragment belongs in its datagram, in bytes, plus 1 if more follow; 0: not a fragment.
    pub fragment: u16,
    /// Type and code of this family's ICMP.
    pub icmp: [u8; 2],
    pub protocol: u8,
    /// The protocol that every fragment of the datagram names.
    pub fragment_protocol: u8,
    /// Byte 13 of the TCP header; 0 for other protocols.
    pub tcp_flags: u8,
    /// 1: an IPv6 fragment header has been seen.
    pub fragment_header: u8,
}
const _: () = assert!(size_of::<Flow<V4>>() == 32 && size_of::<Flow<V6>>() == 56);

/// The port that stands for "not an echo" beside an ICMP message's type and code.
const NOT_ECHO: [u8; 2] = [0xff, 0xff];

impl<F: Family> Flow<F> {
    #[inline(always)]
    pub fn empty() -> Self {
        Self {
            source: F::UNSPECIFIED,
            destination: F::UNSPECIFIED,
            protocol: 0,
            tcp_flags: 0,
            icmp: [0; 2],
            ports: [[0; 2]; 2],
            at: 0,
            end: 0,
            fragment: 0,
            fragment_id: 0,
            fragment_protocol: 0,
            fragment_header: 0,
        }
    }

    /// Reads the transport header. A quoted packet need only show its first eight bytes.
    #[inline(always)]
    pub fn transport<P: Packet>(&mut self, packet: &P, quoted: bool) -> Result<(), Reason> {
        let least = match self.protocol {
            TCP => 20,
            UDP => 8,
            SCTP => 12,
            icmp if icmp == F::ICMP => 8,
            _ => return Ok(()),
        };
        if self.at + if quoted { 8 } else { least } > self.end {
            return Err(Reason::Truncated);
        }
        if self.protocol == F::ICMP {
            let [icmp_type, code, _, _, id @ ..]: [u8; 6] = self.read(packet, 0)?;
            self.icmp = [icmp_type, code];
            self.ports = match icmp_type {
                request if request == F::ECHO_REQUEST => [id, [0; 2]],
                reply if reply == F::ECHO_REPLY => [[0; 2], id],
                _ => [self.icmp, NOT_ECHO],
            };
            return Ok(());
        }
        let PortsAndLength { ports, length, .. } = self.read(packet, 0)?;
        self.ports = [ports.source, ports.destination];
        if quoted {
            return Ok(());
        }
        let rest = self.end - self.at;
        if self.protocol == UDP {
            let length = u32::from(u16::from_be_bytes(length));
            if length < rest || length > rest && self.fragment == 0 {
                return Err(Reason::InvalidHeader);
            }
        }
        if self.protocol == TCP {
            let [offset, flags]: [u8; 2] = self.read(packet, 12)?;
            // A segment that opens and closes at once belongs to no connection, and one that neither opens, nor
            // acknowledges, nor resets, to no protocol (RFC 9293, 3.10.7).
            if offset < 5 << 4
                || flags & TCP_SYN != 0 && flags & (TCP_FIN | TCP_RST) != 0
                || flags & (TCP_SYN | TCP_ACK | TCP_RST) == 0
            {
                return Err(Reason::InvalidHeader);
            }
            if u32::from(offset >> 4) * 4 > rest {
                return Err(Reason::Truncated);
            }
            self.tcp_flags = flags;
        }
        Ok(())
    }

    /// Directly where the transport header is at its usual place.
    #[inline(always)]
    fn read<T: Wire, P: Packet>(&self, packet: &P, offset: usize) -> Result<T, Reason> {
        if self.at == F::TRANSPORT as u32 {
            packet.read(F::TRANSPORT + offset)
        } else {
            packet.load(self.at + offset as u32)
        }
    }

    /// The connection's key and the side of it that sent this packet.
    ///
    /// ICMP echo has the identifier as the asking side's port and 0 as the other's. Another ICMP message
    /// has its type and code as the sender's port and 0xffff as the receiver's: it is nobody's reply.
    #[inline(always)]
    pub fn key(&self) -> (ConnKey<F::Addr>, usize) {
        key::<F>(self.source, self.destination, self.ports, self.protocol)
    }

    /// The side of the connection's key that sent this packet.
    #[inline(always)]
    pub fn sender(&self) -> usize {
        let [from, to] = self.ports;
        usize::from(!F::lower((self.source, from), (self.destination, to)))
    }

    /// As a packet in the opposite direction would be.
    #[inline(always)]
    pub fn reverse(&mut self) {
        (self.source, self.destination) = (self.destination, self.source);
        self.ports = [self.ports[1], self.ports[0]];
    }

    /// Begins with the transport header, and more fragments follow.
    #[inline(always)]
    pub fn is_first_fragment(&self) -> bool {
        self.fragment == 1
    }

    /// Has no transport header.
    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment > 1
    }

    /// Nothing stands between the network header and the transport header.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        self.at == F::TRANSPORT as u32 && self.fragment == 0
    }

    /// Asks for a TCP connection: never a reply.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.protocol == TCP && self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// May begin a connection; `adopted`: so may a TCP segment from the middle of one.
    #[inline(always)]
    pub fn opens(&self, adopted: bool) -> bool {
        match self.protocol {
            TCP => adopted || self.is_syn(),
            icmp if icmp == F::ICMP => self.icmp[0] != F::ECHO_REPLY,
            _ => true,
        }
    }

    #[inline(always)]
    pub fn is_error(&self) -> bool {
        self.protocol == F::ICMP && F::is_error(self.icmp[0])
    }

    /// The port that rules know, of the source (0) or the destination (1).
    #[inline(always)]
    pub fn rule_port(&self, which: usize) -> [u8; 2] {
        match self.protocol {
            TCP | UDP | SCTP => self.ports[which & 1],
            _ => [0; 2],
        }
    }
}

/// The key of a packet's connection, and the side of it that sent the packet.
#[inline(always)]
pub fn key<F: Family>(
    source: F::Addr,
    destination: F::Addr,
    [from, to]: [[u8; 2]; 2],
    protocol: u8,
) -> (ConnKey<F::Addr>, usize) {
    if F::lower((source, from), (destination, to)) {
        (ConnKey { addresses: [source, destination], ports_be: [from, to], protocol, pad: [0; 3] }, 0)
    } else {
        (ConnKey { addresses: [destination, source], ports_be: [to, from], protocol, pad: [0; 3] }, 1)
    }
}
