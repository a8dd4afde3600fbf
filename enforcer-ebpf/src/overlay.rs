//! What leaves for another node. A pod's packet has been judged at the pod's own interface, unless it went to a Service
//! there: then it is judged here, by the backend that it got.

use crate::{
    abi::{CONN_FIN, CONN_RESET, CONN_TRANSLATED, Conn, EndWord},
    decide::{Denial, Site, ToOverlay, later_fragment, remember_fragment},
    family::{Family, V4, V6},
    fast::Plain,
    flow::{Flow, key},
    origin::{answer, denied, is_current, is_endpoint, is_opener, late, origin},
    packet::{ETHER_IPV4, ETHER_IPV6, ETHERNET_LEN, Ethernet, Packet, TCP, TCP_FIN, TCP_RST, TCP_SYN, UDP},
    reason::Reason,
    tables::{Addresses, Inserted, Tables, tick},
    track::{find, insert},
};

#[inline(always)]
pub fn frame<P: Packet, T: Tables>(packet: &P, tables: &T) -> Reason {
    match packet.read::<Ethernet>(0).map(|ethernet| u16::from_be_bytes(ethernet.ether_type)) {
        Ok(ETHER_IPV4) => family::<V4, P, T>(packet, tables),
        Ok(ETHER_IPV6) => family::<V6, P, T>(packet, tables),
        // No pod's: `from_pod` lets nothing else through that would be routed.
        _ => Reason::Foreign,
    }
}

#[inline(never)]
fn family<F: Family, P: Packet, T: Tables + Addresses<F>>(packet: &P, tables: &T) -> Reason {
    if is_judged::<F, P, T>(packet, tables) {
        return Reason::Tracked;
    }
    let mut flow = Flow::<F>::empty();
    // As above: what a pod sent could be read when it was sent.
    if F::network(packet, tables, ETHERNET_LEN, false, &mut flow).is_err() {
        return Reason::Foreign;
    }
    tables.settle(&mut flow);
    let origin = origin(packet, tables, &flow);
    if !is_endpoint(origin) {
        return Reason::Foreign;
    }
    match judge(packet, tables, &mut flow, origin) {
        Ok(reason) => reason,
        Err(denial) => denied(packet, tables, &flow, denial),
    }
}

/// The short way for most packets: of a connection that the pod's own hook follows, or that was judged here under
/// the rules in force.
#[inline(always)]
fn is_judged<F: Family, P: Packet, T: Tables + Addresses<F>>(packet: &P, tables: &T) -> bool {
    let Some(Plain { source, destination, protocol, ports, .. }) = F::plain(packet) else { return false };
    let flags = match protocol {
        TCP => match packet.read::<[u8; 1]>(F::TRANSPORT + 13) {
            Ok([flags]) => flags,
            Err(_) => return false,
        },
        UDP => 0,
        _ => return false,
    };
    let (key, sender) = key::<F>(source, destination, [ports.source, ports.destination], protocol);
    let Some(conn) = Addresses::<F>::conn(tables, &key) else { return false };
    if sender == conn.opener() && conn.state() & CONN_TRANSLATED != 0 {
        if flags & (TCP_SYN | TCP_FIN | TCP_RST) != 0 {
            return false;
        }
        conn.seen(tables.tick());
        return is_current::<F, P, T>(packet, tables, conn, source);
    }
    // Through a Service a packet may come to an entry that the pod's hook does not ask about.
    let generation = conn.end(sender).generation();
    tables
        .endpoint_ending(conn.origin())
        .is_some_and(|endpoint| generation != 0 && endpoint.policy.generation() == generation)
}

#[inline(always)]
fn judge<F: Family, P: Packet, T: Tables + Addresses<F>>(
    packet: &P,
    tables: &T,
    flow: &mut Flow<F>,
    origin: u32,
) -> Result<Reason, Denial> {
    if flow.is_later_fragment() {
        let endpoint = tables.endpoint(origin).ok_or(Reason::FragmentNotTracked)?;
        return Ok(later_fragment(&Site::<T, ToOverlay>::of(tables, endpoint, origin), flow)?);
    }
    flow.transport(packet, false)?;
    tables.settle(flow);
    if flow.is_error() {
        return Ok(Reason::Related); // judged by what it quotes, where the pod sent it
    }
    let reason = follow(packet, tables, flow, origin)?;
    if flow.is_first_fragment()
        && let Some(endpoint) = tables.endpoint(origin)
    {
        remember_fragment(&Site::<T, ToOverlay>::of(tables, endpoint, origin), flow);
    }
    Ok(reason)
}

#[inline(always)]
fn follow<F: Family, P: Packet, T: Tables + Addresses<F>>(
    packet: &P,
    tables: &T,
    flow: &Flow<F>,
    origin: u32,
) -> Result<Reason, Denial> {
    let (key, sender) = flow.key();
    let Some(conn) = Addresses::<F>::conn(tables, &key) else {
        let word = late(packet, tables, flow, (origin, true))?;
        enter::<F, T>(tables, flow, origin, word);
        return Ok(Reason::Allowed);
    };
    let state = conn.state();
    if sender != conn.opener() {
        return answer(packet, tables, flow, conn, origin).result();
    }
    if state & CONN_TRANSLATED == 0 {
        let generation = conn.end(sender).generation();
        let current = tables.endpoint(origin).is_some_and(|pod| pod.policy.generation() == generation);
        if generation == 0 || !current {
            conn.set_end(sender, late(packet, tables, flow, (origin, false))?);
        }
        return Ok(Reason::Tracked);
    }
    if !is_opener(conn, origin) {
        let word = late(packet, tables, flow, (origin, true))?;
        enter::<F, T>(tables, flow, origin, word);
        return Ok(Reason::Allowed);
    }
    let again = flow.is_syn() && state & (CONN_RESET | CONN_FIN | CONN_FIN << 1) != 0;
    if again || !is_current::<F, P, T>(packet, tables, conn, flow.source) {
        conn.set_end(sender, late(packet, tables, flow, (origin, again))?);
    }
    let mut now = if again { CONN_TRANSLATED } else { state };
    if flow.tcp_flags & TCP_RST != 0 {
        now |= CONN_RESET;
    }
    if flow.tcp_flags & TCP_FIN != 0 {
        now |= CONN_FIN << (sender & 1);
    }
    conn.seen(tables.tick());
    conn.set_state(state, now);
    Ok(Reason::Tracked)
}

/// Only to remember the verdict: answers come back translated, so nothing is counted here. Another pod's entry, which
/// was masqueraded to the same port, is over.
#[inline(never)]
fn enter<F: Family, T: Tables + Addresses<F>>(tables: &T, flow: &Flow<F>, origin: u32, word: EndWord) {
    let sender = flow.sender();
    let now = tables.now();
    let none = EndWord(0);
    let conn = Conn {
        ends: if sender == 0 { [word, none] } else { [none, word] },
        started: now,
        last_seen: tick(now),
        sides: (sender as u8) | (sender as u8) << 1,
        state: CONN_TRANSLATED,
        origin: origin as u16,
        ..Conn::default()
    };
    match insert(tables, flow, &conn) {
        Inserted::Done => {}
        Inserted::Exists => {
            if let Some(old) = find(tables, flow) {
                old.replace(&conn);
            }
        }
        Inserted::Full => tables.lost_conn(),
    }
}
