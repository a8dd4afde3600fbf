//! Connection tracking: which packets belong to what this end has allowed.

use crate::{
    abi::{CONN_ENDED, CONN_FIN, CONN_REPLIED, CONN_RESET, Conn, EGRESS, EndWord, INGRESS},
    decide::{At, Denial, Hook, Site},
    family::Family,
    flow::Flow,
    packet::{Packet, TCP, TCP_FIN, TCP_RST},
    reason::Reason,
    report,
    rules::allow,
    tables::{Addresses, ConnRef, Inserted, Tables, tick},
};

/// Judges a packet by its connection, or as the first of one.
///
/// An entry says who opened the connection; this end's word in it says whether this end has allowed it
/// under the policy in force. Without that word the connection is judged here, in its own direction, so
/// an entry that another pod's packet made is worth nothing at this end.
#[inline(never)]
pub fn track<F: Family, P: Packet, T: Tables + Addresses<F>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
) -> Result<Reason, Denial> {
    let (key, sender) = flow.key();
    let Some(conn) = site.conn::<F>(&key) else {
        if !flow.opens(site.adopted()) {
            return Err(Reason::NotTracked.into());
        }
        let grant = allow(site, flow, site.hook().direction(), false)?;
        if begin(packet, site, flow, grant.rule) {
            report::new(packet, site, flow, &grant, false);
        }
        return Ok(Reason::Allowed);
    };
    let (state, opener) = (conn.state(), conn.opener());
    let own = site.hook().own_side(sender);
    // A SYN is nobody's reply. Only the opener's own, before any answer, is a retransmission.
    if flow.is_syn() && (sender != opener || state != 0) {
        let grant = allow(site, flow, site.hook().direction(), false)?;
        if sender == opener || is_closed(state) {
            restart(packet, site, flow, conn, grant.rule);
            report::new(packet, site, flow, &grant, false);
        } else {
            // Both sides at once, or a port in use: the older connection keeps the entry.
            report::new(packet, site, flow, &grant, false);
        }
        return Ok(Reason::Allowed);
    }
    let end = conn.end(own);
    let generation = site.policy.generation();
    let mut reason = Reason::Tracked;
    if end.generation() != generation || generation == 0 {
        let against = sender != opener;
        let direction = if opener == own { EGRESS } else { INGRESS };
        match allow(site, flow, direction, against) {
            Ok(grant) => {
                conn.set_end(own, EndWord::new(generation, grant.rule));
                if end.generation() == 0 {
                    report::new(packet, site, flow, &grant, against);
                    reason = Reason::Allowed;
                }
            }
            // The other pod has spoken first and was not heard: the pod is free to begin by itself.
            Err(_)
                if end.generation() == 0
                    && against
                    && site.hook() == Hook::FromPod
                    && flow.protocol != TCP
                    && flow.opens(false) =>
            {
                let grant = allow(site, flow, site.hook().direction(), false)?;
                restart(packet, site, flow, conn, grant.rule);
                report::new(packet, site, flow, &grant, false);
                return Ok(Reason::Allowed);
            }
            Err(reason) => return Err(Denial { reason, against }),
        }
    }
    account(packet, site, flow, conn, Sides { sender, own, opener }, state);
    Ok(reason)
}

/// A connection's entry after its first packet.
#[inline(always)]
fn opened<F: Family, P: Packet, T: Tables, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
    sender: usize,
    rule: u32,
) -> Conn {
    let now = site.tables.now();
    let own = site.hook().own_side(sender);
    let end = EndWord::new(site.policy.generation(), rule);
    let none = EndWord(0);
    let bytes = u64::from(packet.frame_len());
    let on = |side: usize| side == 0;
    Conn {
        ends: if on(own) { [end, none] } else { [none, end] },
        packets: if on(sender) { [1, 0] } else { [0, 1] },
        bytes: if on(sender) { [bytes, 0] } else { [0, bytes] },
        started: now,
        last_seen: tick(now),
        sides: sender as u8 | (own as u8) << 1,
        state: closing(flow, sender),
        origin: 0,
    }
}

/// Enters a new connection: whether this packet is the first to do so. It is allowed, room or not.
#[inline(never)]
fn begin<F: Family, P: Packet, T: Tables + Addresses<F>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
    rule: u32,
) -> bool {
    let (key, sender) = flow.key();
    match site.insert_conn::<F>(&key, &opened(packet, site, flow, sender, rule)) {
        // The faster packet has told of the connection; this end's word is added with the next one.
        Inserted::Exists => return false,
        Inserted::Done => {}
        Inserted::Full => site.tables.lost_conn(),
    }
    true
}

/// A new connection under the key of an old one.
#[inline(never)]
fn restart<F: Family, P: Packet, T: Tables + Addresses<F>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
    conn: ConnRef,
    rule: u32,
) {
    let sender = flow.sender();
    let own = site.hook().own_side(sender);
    if flow.protocol == TCP && conn.state() & CONN_ENDED == 0 && conn.counter() == own {
        report::end(packet, site, flow, conn, sender);
    }
    conn.replace(&opened(packet, site, flow, sender, rule));
}

#[derive(Clone, Copy)]
struct Sides {
    sender: usize,
    own: usize,
    opener: usize,
}

/// Writes down one more packet of an allowed connection.
#[inline(always)]
fn account<F: Family, P: Packet, T: Tables + Addresses<F>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
    conn: ConnRef,
    sides: Sides,
    was: u8,
) {
    let Sides { sender, own, opener } = sides;
    let mut state = was | closing(flow, sender);
    if sender != opener {
        state |= CONN_REPLIED;
    }
    conn.seen(site.tables.tick());
    if conn.counter() == own {
        conn.add(sender, packet.frame_len());
        if is_closed(state) && state & CONN_ENDED == 0 {
            state |= CONN_ENDED;
            report::end(packet, site, flow, conn, sender);
        }
    }
    conn.set_state(was, state);
}

/// The bits of `CONN_*` that a segment from this side adds.
#[inline(always)]
fn closing<F: Family>(flow: &Flow<F>, sender: usize) -> u8 {
    let mut bits = 0;
    if flow.tcp_flags & TCP_RST != 0 {
        bits |= CONN_RESET;
    }
    if flow.tcp_flags & TCP_FIN != 0 {
        bits |= CONN_FIN << (sender & 1);
    }
    bits
}

#[inline(always)]
fn is_closed(state: u8) -> bool {
    const BOTH: u8 = CONN_FIN | CONN_FIN << 1;
    state & (CONN_RESET | CONN_ENDED) != 0 || state & BOTH == BOTH
}
