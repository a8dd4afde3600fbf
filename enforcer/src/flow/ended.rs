//! Records that the agent makes itself, out of what it finds in the kernel's tables.

use std::net::IpAddr;

use bulkhead_ebpf::{
    abi::{self, Conn, ConnKey, DropCount, DropKey},
    reason::Reason,
};

use super::{
    event::{self, DecodeError, ICMP, ICMP6, Kind, Observation, Packet, Totals},
    names::{LocalPod, Names, Who},
};
use crate::policy::model::Direction;

/// `last_seen` counts ticks of this many bits of nanoseconds.
const TICK_BITS: u32 = 30;
const ECHO_REQUEST: u16 = 8 << 8;
const ECHO6_REQUEST: u16 = 128 << 8;

impl Observation {
    /// The end of a connection that fell idle, found at `now` (`CLOCK_MONOTONIC`, nanoseconds).
    pub fn ended<A: Copy + Into<IpAddr>>(key: &ConnKey<A>, conn: &Conn, names: &Names, now: u64) -> Self {
        // Sides are 0 or 1; a value that is not must not take the agent down.
        let opener = usize::from(conn.sides & abi::CONN_OPENER);
        let counter = usize::from((conn.sides & abi::CONN_COUNTER) >> 1);
        let peer = 1 - opener;
        let addresses: [IpAddr; 2] = key.addresses.map(Into::into);
        let ports = key.ports_be.map(u16::from_be_bytes);
        let (endpoint, pod) = local(names, addresses[counter], now);
        let last_seen = u64::from(conn.last_seen) << TICK_BITS;
        Self {
            time: now,
            kind: Kind::End(Totals {
                started: conn.started,
                duration_ns: last_seen.saturating_sub(conn.started),
                packets: [conn.packets[opener], conn.packets[peer]],
                bytes: [conn.bytes[opener], conn.bytes[peer]],
            }),
            reason: Reason::Tracked,
            direction: if counter == opener { Direction::Egress } else { Direction::Ingress },
            hook: None,
            is_reply: None,
            ifindex: pod.map_or(0, |pod| pod.ifindex),
            endpoint,
            rule: conn.ends[counter].rule(),
            rule_set: pod.map_or(0, |pod| pod.rule_set),
            remote_identity: 0,
            aggregated: 1,
            mixed: false,
            packet: Some(Packet {
                addresses: [addresses[opener], addresses[peer]],
                protocol: key.protocol,
                ports: match key.protocol {
                    ICMP => [0, ECHO_REQUEST],
                    ICMP6 => [0, ECHO6_REQUEST],
                    _ => [ports[opener], ports[peer]],
                },
                tcp_flags: 0,
            }),
            macs: None,
        }
    }

    /// Drops that were counted and not sent, collected at `now`. The local pod's address and the source
    /// port were not kept: the first is told by the interface, the second is left out.
    pub fn suppressed(key: &DropKey, count: DropCount, names: &Names, now: u64) -> Result<Self, DecodeError> {
        let reason = Reason::try_from(key.reason)
            .map_err(|unknown| DecodeError::Code { field: "reason", value: unknown.0 })?;
        if !reason.is_drop() {
            return Err(DecodeError::Contradiction { kind: bulkhead_ebpf::abi::EVENT_DROP, reason });
        }
        let direction = event::direction(key.direction)?;
        let remote = event::address(key.family, key.remote)?;
        let local = names.local_by_ifindex(key.ifindex, now);
        let own = local.and_then(|(_, pod)| {
            pod.addresses.iter().copied().find(|own| remote.is_some_and(|r| r.is_ipv4() == own.is_ipv4()))
        });
        Ok(Self {
            time: now,
            kind: Kind::Drop,
            reason,
            direction,
            hook: None,
            is_reply: None,
            ifindex: key.ifindex,
            endpoint: local.map_or(0, |(id, _)| id),
            rule: 0,
            rule_set: local.map_or(0, |(_, pod)| pod.rule_set),
            remote_identity: 0,
            aggregated: count.count.max(1),
            mixed: false,
            packet: remote.zip(own).map(|(remote, own)| Packet {
                addresses: match direction {
                    Direction::Egress => [own, remote],
                    Direction::Ingress => [remote, own],
                },
                protocol: key.protocol,
                ports: [0, u16::from_be_bytes(key.port_be)],
                tcp_flags: 0,
            }),
            macs: None,
        })
    }
}

/// The local pod with this address and its endpoint number; 0: none.
fn local(names: &Names, address: IpAddr, now: u64) -> (u32, Option<&LocalPod>) {
    let endpoint = match names.parties.at(&address, now).map(|party| &party.who) {
        Some(Who::Pod { endpoint, .. }) => *endpoint,
        _ => 0,
    };
    (endpoint, names.endpoints.at(&endpoint, now).map(AsRef::as_ref))
}
