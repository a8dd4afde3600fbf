//! What the agent is told, and how often.

use crate::{
    abi::{DROP_EVENT_TICKS, DropCount, DropKey, EGRESS, EVENT_DROP, EVENT_END, EVENT_NEW, Event, INGRESS},
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
    dropped(site.tables, &key, |event| {
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
    dropped(site.tables, &key, |event| {
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
    dropped(tables, &key, |event| {
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

/// Sends an event for a new key, and for an old one when its last event is long enough ago.
#[inline(always)]
fn dropped<T: Tables>(tables: &T, key: &DropKey, fill: impl FnOnce(&mut Event)) {
    let now = tables.now();
    let tick = tick(now);
    let known = tables.drop_count(key);
    let mut count = 1;
    if let Some(known) = known {
        let before = known.get();
        count = before.count.saturating_add(1);
        if tick.wrapping_sub(before.tick) < DROP_EVENT_TICKS {
            known.set(DropCount { count, tick: before.tick });
            return;
        }
    }
    let sent = tables.event(|event| {
        event.time = now;
        event.kind = EVENT_DROP;
        event.aggregated = count;
        fill(event);
    });
    // Without room in the ring the drops stay counted here, for the next event.
    let left = DropCount { count: if sent { 0 } else { count }, tick };
    match known {
        Some(known) => known.set(left),
        None => tables.insert_drop_count(key, left),
    }
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
