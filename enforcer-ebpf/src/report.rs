//! What the agent is told, and how often.

use core::cell::Cell;

use crate::{
    abi::{DROP_EVENT_TICKS, DropCount, DropKey, EGRESS, EVENT_DROP, EVENT_END, EVENT_NEW, Event, INGRESS},
    budget,
    decide::{At, Denial, Hook, Site},
    family::Family,
    flow::Flow,
    packet::{Ethernet, Packet},
    reason::Reason,
    rules::Grant,
    tables::{Addresses, ConnRef, Tables, tick},
};

/// The first allow verdict of a connection at this end.
#[inline(never)]
pub fn new<F: Family, P: Packet, T: Tables, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
    grant: &Grant,
    against: bool,
) {
    site.tables.event(|event| {
        event.time = site.tables.now();
        event.kind = EVENT_NEW;
        event.reason = Reason::Allowed as u8;
        event.direction = site.hook().direction() ^ u8::from(against);
        event.is_reply = u8::from(against);
        event.aggregated = 1;
        event.rule = grant.rule;
        event.remote_identity = grant.identity;
        place(event, site);
        frame(event, packet);
        describe(event, flow);
    });
}

/// A connection's end, with its counts.
#[inline(never)]
pub fn end<F: Family, P: Packet, T: Tables + Addresses<F>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
    conn: ConnRef,
    sender: usize,
) {
    let opener = conn.opener();
    let own = site.hook().own_side(sender);
    site.tables.event(|event| {
        event.time = site.tables.now();
        event.kind = EVENT_END;
        event.reason = Reason::Tracked as u8;
        event.direction = if opener == own { EGRESS } else { INGRESS };
        event.aggregated = 1;
        event.rule = conn.end(own).rule();
        event.remote_identity = identity::<F, T, H>(site, site.hook().remote(flow));
        place(event, site);
        frame(event, packet);
        describe(event, flow);
        conn.copy_counts(opener, event);
        if sender != opener {
            event.is_reply = 1;
            event.source = F::wide(flow.destination);
            event.destination = F::wide(flow.source);
            event.source_port_be = flow.ports[1];
            event.destination_port_be = flow.ports[0];
        }
    });
}

/// A drop of a packet whose addresses are known.
#[inline(never)]
pub fn denied<F: Family, P: Packet, T: Tables + Addresses<F>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
    Denial { reason, against, .. }: Denial,
) -> Reason {
    let direction = site.hook().direction() ^ u8::from(against);
    let remote = site.hook().remote(flow);
    let key = DropKey {
        remote: F::wide(remote),
        ifindex: site.ifindex,
        port_be: if against { flow.ports[0] } else { flow.ports[1] },
        protocol: flow.protocol,
        direction,
        reason: reason as u8,
        family: F::NUMBER,
        pad: [0; 2],
    };
    dropped(site.tables, key, Some(site.endpoint.mark), |event| {
        event.direction = direction;
        event.is_reply = u8::from(against);
        event.remote_identity = identity::<F, T, H>(site, remote);
        event.reason = reason as u8;
        place(event, site);
        frame(event, packet);
        describe(event, flow);
    });
    reason
}

/// A drop of a frame whose addresses could not be read, or did not matter.
#[inline(never)]
pub fn unread<P: Packet, T: Tables, H: At>(
    packet: &P,
    site: &Site<T, H>,
    family: u8,
    reason: Reason,
) -> Reason {
    let key = bare(site.ifindex, site.hook(), family, reason);
    dropped(site.tables, key, None, |event| {
        event.direction = site.hook().direction();
        event.family = family;
        event.reason = reason as u8;
        place(event, site);
        frame(event, packet);
    });
    reason
}

/// A drop on an interface that is no endpoint's.
#[inline(never)]
pub fn stranger<P: Packet, T: Tables>(packet: &P, tables: &T, hook: Hook, reason: Reason) -> Reason {
    let key = bare(packet.ifindex(), hook, 0, reason);
    dropped(tables, key, None, |event| {
        event.direction = hook.direction();
        event.reason = reason as u8;
        event.hook = hook.code();
        event.ifindex = packet.ifindex();
        frame(event, packet);
    });
    reason
}

#[inline(always)]
fn bare(ifindex: u32, hook: Hook, family: u8, reason: Reason) -> DropKey {
    DropKey {
        ifindex,
        direction: hook.direction(),
        reason: reason as u8,
        family,
        remote: [0; 16],
        port_be: [0; 2],
        protocol: 0,
        pad: [0; 2],
    }
}

/// Sends an event for a new key, and for an old one when its last event is long enough ago. An endpoint that has more
/// to tell than its budget (`payer`: its mark) has new keys counted as one, whatever the other end: a flood of drops at
/// random addresses neither fills the ring nor pushes others' counts out of their table.
#[inline(always)]
fn dropped<T: Tables>(tables: &T, mut key: DropKey, payer: Option<u16>, fill: impl FnOnce(&mut Event)) {
    let now = tables.now();
    let tick = tick(now);
    let mut known = tables.drop_count(&key);
    let mut count = counted(known);
    if was_told(known, tick) {
        return;
    }
    let mut mixed = 0;
    if let Some(mark) = payer
        && !budget::may_tell(tables, mark, now)
    {
        tables.lost_detail();
        if known.is_some() {
            return; // and is told when there is something left
        }
        mixed = 1;
        (key.remote, key.port_be, key.protocol, key.family) = ([0; 16], [0; 2], 0, 0);
        known = tables.drop_count(&key);
        count = counted(known);
        if was_told(known, tick) {
            return;
        }
    }
    let sent = tables.event(|event| {
        event.time = now;
        event.kind = EVENT_DROP;
        event.aggregated = count;
        event.mixed = mixed;
        fill(event);
    });
    // Without room in the ring the drops stay counted here, for the next event.
    let left = DropCount { count: if sent { 0 } else { count }, tick };
    match known {
        Some(known) => known.set(left),
        None => tables.insert_drop_count(&key, left),
    }
}

/// Counts one more; gives how many were not told of.
#[inline(always)]
fn counted(known: Option<&Cell<DropCount>>) -> u32 {
    let Some(known) = known else { return 1 };
    let DropCount { count, tick } = known.get();
    let count = count.saturating_add(1);
    known.set(DropCount { count, tick });
    count
}

#[inline(always)]
fn was_told(known: Option<&Cell<DropCount>>, tick: u32) -> bool {
    known.is_some_and(|known| tick.wrapping_sub(known.get().tick) < DROP_EVENT_TICKS)
}

#[inline(always)]
fn place<T, H: At>(event: &mut Event, site: &Site<T, H>) {
    event.ifindex = site.ifindex;
    event.endpoint = site.endpoint.id;
    event.rule_set = site.policy.rule_set();
    event.hook = site.hook().code();
}

#[inline(always)]
fn frame<P: Packet>(event: &mut Event, packet: &P) {
    if let Ok(ethernet) = packet.read::<Ethernet>(0) {
        event.source_mac = ethernet.source.bytes();
        event.destination_mac = ethernet.destination.bytes();
    }
}

#[inline(always)]
fn describe<F: Family>(event: &mut Event, flow: &Flow<F>) {
    event.family = F::NUMBER;
    event.protocol = flow.protocol;
    event.tcp_flags = flow.tcp_flags;
    event.source = F::wide(flow.source);
    event.destination = F::wide(flow.destination);
    if flow.protocol == F::ICMP {
        event.destination_port_be = flow.icmp;
    } else {
        event.source_port_be = flow.ports[0];
        event.destination_port_be = flow.ports[1];
    }
}

#[inline(always)]
fn identity<F: Family, T: Tables + Addresses<F>, H: At>(site: &Site<T, H>, remote: F::Addr) -> u32 {
    site.peer::<F>(remote).map_or(0, |peer| peer.identity)
}
