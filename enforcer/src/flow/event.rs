//! Ring-buffer bytes to a checked observation: after this, nothing is a bare code any more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bulkhead_ebpf::{
    abi::{self, Event},
    reason::Reason,
};

use crate::policy::model::Direction;

pub(super) const ICMP: u8 = 1;
pub(super) const ICMP6: u8 = 58;

/// What one end of one connection did, or what happened to one packet, at a local pod's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time: u64,
    pub kind: Kind,
    pub reason: Reason,
    /// Of the connection, as seen from the local pod.
    pub direction: Direction,
    /// Where the packet was seen; `None` for records that the agent makes itself.
    pub hook: Option<Hook>,
    /// `None`: not known, or the record stands for a whole connection.
    pub is_reply: Option<bool>,
    pub ifindex: u32,
    /// 0: the interface has no endpoint.
    pub endpoint: u32,
    pub rule: u32,
    pub rule_set: u32,
    /// Identity number of the other end; 0: not looked up.
    pub remote_identity: u32,
    /// Like events that this one stands for; at least 1.
    pub aggregated: u32,
    /// A drop that stands for others at other addresses and ports too, because the pod has had too many.
    pub mixed: bool,
    /// `None`: the frame is neither IPv4 nor IPv6, or not readable.
    pub packet: Option<Packet>,
    /// Opener's and peer's; `None` for records that the agent makes itself.
    pub macs: Option<[[u8; 6]; 2]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    New,
    End(Totals),
    Drop,
}

/// A connection's life; pairs are from the opener, to the opener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub started: u64,
    pub duration_ns: u64,
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    FromPod,
    ToPod,
    ToOverlay,
}

/// Opener's and peer's side, whichever way the packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub addresses: [IpAddr; 2],
    pub protocol: u8,
    /// 0: none, or not known. ICMP: type and code are the bytes of the second.
    pub ports: [u16; 2],
    /// Byte 13 of the TCP header.
    pub tcp_flags: u8,
}

impl Packet {
    pub fn has_port(&self, port: u16) -> bool {
        !self.is_icmp() && self.ports.contains(&port)
    }

    const fn is_icmp(&self) -> bool {
        matches!(self.protocol, ICMP | ICMP6)
    }
}

/// Side of the observation's source and destination that is the local pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{0} bytes instead of {want}", want = size_of::<Event>())]
    Length(usize),
    #[error("{field} {value} is not known")]
    Code { field: &'static str, value: u8 },
    /// A drop for a reason to pass, or the reverse.
    #[error("kind {kind} contradicts reason {reason}", reason = reason.name())]
    Contradiction { kind: u8, reason: Reason },
}

impl Observation {
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let event = read(bytes)?;
        let reason = Reason::try_from(event.reason)
            .map_err(|unknown| DecodeError::Code { field: "reason", value: unknown.0 })?;
        let kind = match event.kind {
            abi::EVENT_NEW => Kind::New,
            abi::EVENT_END => Kind::End(Totals {
                started: event.started,
                duration_ns: event.time.saturating_sub(event.started),
                packets: event.packets,
                bytes: event.bytes,
            }),
            abi::EVENT_DROP => Kind::Drop,
            value => return Err(DecodeError::Code { field: "kind", value }),
        };
        if (kind == Kind::Drop) != reason.is_drop() {
            return Err(DecodeError::Contradiction { kind: event.kind, reason });
        }
        Ok(Self {
            time: event.time,
            kind,
            reason,
            direction: direction(event.direction)?,
            hook: Some(match event.hook {
                abi::HOOK_FROM_POD => Hook::FromPod,
                abi::HOOK_TO_POD => Hook::ToPod,
                abi::HOOK_TO_OVERLAY => Hook::ToOverlay,
                value => return Err(DecodeError::Code { field: "hook", value }),
            }),
            is_reply: match (kind, event.is_reply) {
                (Kind::End(_), _) => None,
                (_, 0) => Some(false),
                (_, 1) => Some(true),
                (_, value) => return Err(DecodeError::Code { field: "is_reply", value }),
            },
            ifindex: event.ifindex,
            endpoint: event.endpoint,
            rule: event.rule,
            rule_set: event.rule_set,
            remote_identity: event.remote_identity,
            aggregated: event.aggregated.max(1),
            mixed: event.mixed != 0,
            packet: addresses(event.family, event.source, event.destination)?.map(|addresses| Packet {
                addresses,
                protocol: event.protocol,
                ports: [event.source_port_be, event.destination_port_be].map(u16::from_be_bytes),
                tcp_flags: event.tcp_flags,
            }),
            macs: Some([event.source_mac, event.destination_mac]),
        }
        .opener_first())
    }

    /// The last packets of a connection and the attempts to begin it again are one thing to a reader (and one entry
    /// in the kernel's drop counts): told from the opener, whichever way this packet went.
    fn opener_first(mut self) -> Self {
        if self.is_reply == Some(true) {
            if let Some(packet) = &mut self.packet {
                packet.addresses.reverse();
                if !packet.is_icmp() {
                    packet.ports.reverse();
                }
            }
            if let Some(macs) = &mut self.macs {
                macs.reverse();
            }
        }
        self
    }

    pub fn local(&self) -> Side {
        match self.direction {
            Direction::Egress => Side::Source,
            Direction::Ingress => Side::Destination,
        }
    }
}

pub(super) fn direction(code: u8) -> Result<Direction, DecodeError> {
    match code {
        abi::INGRESS => Ok(Direction::Ingress),
        abi::EGRESS => Ok(Direction::Egress),
        value => Err(DecodeError::Code { field: "direction", value }),
    }
}

/// Address of a field that holds both families; IPv4 in its first four bytes.
pub(super) fn address(family: u8, bytes: [u8; 16]) -> Result<Option<IpAddr>, DecodeError> {
    let [a, b, c, d, ..] = bytes;
    match family {
        0 => Ok(None),
        4 => Ok(Some(Ipv4Addr::new(a, b, c, d).into())),
        6 => Ok(Some(Ipv6Addr::from(bytes).into())),
        value => Err(DecodeError::Code { field: "family", value }),
    }
}

fn addresses(
    family: u8,
    source: [u8; 16],
    destination: [u8; 16],
) -> Result<Option<[IpAddr; 2]>, DecodeError> {
    Ok(address(family, source)?.zip(address(family, destination)?).map(<[_; 2]>::from))
}

/// The bytes in the order of [`Event`]'s fields.
fn read(bytes: &[u8]) -> Result<Event, DecodeError> {
    if bytes.len() != size_of::<Event>() {
        return Err(DecodeError::Length(bytes.len()));
    }
    let mut rest = Fields(bytes);
    Ok(Event {
        time: rest.u64(),
        started: rest.u64(),
        packets: [rest.u64(), rest.u64()],
        bytes: [rest.u64(), rest.u64()],
        source: rest.take(),
        destination: rest.take(),
        ifindex: rest.u32(),
        endpoint: rest.u32(),
        rule: rest.u32(),
        rule_set: rest.u32(),
        remote_identity: rest.u32(),
        aggregated: rest.u32(),
        source_port_be: rest.take(),
        destination_port_be: rest.take(),
        source_mac: rest.take(),
        destination_mac: rest.take(),
        kind: rest.u8(),
        reason: rest.u8(),
        direction: rest.u8(),
        family: rest.u8(),
        protocol: rest.u8(),
        tcp_flags: rest.u8(),
        hook: rest.u8(),
        is_reply: rest.u8(),
        mixed: rest.u8(),
        ..Event::default()
    })
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk().expect("the length was checked");
        self.0 = rest;
        *head
    }
    fn u8(&mut self) -> u8 {
        u8::from_ne_bytes(self.take())
    }
    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }
    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }
}
