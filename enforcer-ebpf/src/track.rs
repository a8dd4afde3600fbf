//! Connection tracking: which packets belong to what this end has allowed.

use crate::{
    abi::{
        CONN_ENDED, CONN_FIN, CONN_MARKED, CONN_REPLIED, CONN_RESET, CONN_STRANGER, CONN_TRANSLATED, Conn,
        ConnKey, EGRESS, EndWord, INGRESS, ServiceKey,
    },
    budget,
    decide::{At, Denial, Hook, Outcome, Site},
    family::Family,
    flow::Flow,
    origin::{
        NOBODY, STRANGER, answer, is_current, is_endpoint, is_opener, is_unjudged, late, mark, origin, tell,
    },
    packet::{Packet, TCP, TCP_FIN, TCP_RST},
    reason::Reason,
    report,
    rules::{Question, allow},
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
) -> Outcome {
    let (key, sender) = flow.key();
    let Some(conn) = site.conn::<F>(&key) else {
        return if flow.opens(site.adopted()) {
            Outcome::first(false)
        } else {
            Outcome::new(Err(Reason::NotTracked.into()))
        };
    };
    // A SYN is nobody's reply. Only the opener's own, before any answer, is a retransmission.
    if flow.is_syn() && (sender != conn.opener() || conn.state() & !KINDS != 0) {
        return Outcome::first(true);
    }
    if site.hook() == Hook::FromPod
        && sender != conn.opener()
        && flow.protocol != TCP
        && flow.opens(false)
        && (conn.state() & CONN_MARKED != 0 || is_stale(site, conn, sender))
        && is_frontend(site, flow)
    {
        return Outcome::first(true);
    }
    if site.hook() == Hook::ToPod {
        if sender != conn.opener() {
            // An answer that the node has translated back may bear a mark: it comes from a frontend.
            if is_unjudged(packet, site.tables) && !is_frontend(site, flow) {
                let origin = origin(packet, site.tables, flow);
                // The node's answers may reflect the pod's own mark (`fwmark_reflect`, `tcp_fwmark_accept`).
                if is_endpoint(origin) && origin != site.ifindex {
                    let outcome = answer(packet, site.tables, flow, conn, origin);
                    if outcome.result().is_err() {
                        return outcome;
                    }
                }
            }
        } else if conn.state() & CONN_TRANSLATED != 0
            && !is_current::<F, P, T>(packet, site.tables, conn, flow.source)
        {
            let origin = origin(packet, site.tables, flow);
            if !is_opener(conn, origin) {
                // Somebody else's, masqueraded to the same port or at an address given anew.
                return if flow.opens(site.adopted()) {
                    Outcome::first(true)
                } else {
                    Outcome::new(Err(Reason::NotTracked.into()))
                };
            }
            match late(packet, site.tables, flow, (origin, false)) {
                Ok(word) => conn.set_end(sender, word),
                Err(denial) => return Outcome::new(Err(denial)),
            }
        }
    }
    match follow(packet, site, flow, conn, sender) {
        // The other pod has spoken first and was not heard: the pod is free to begin by itself.
        Err(Denial { against: true, .. })
            if site.hook() == Hook::FromPod
                && conn.end(sender).generation() == 0
                && flow.protocol != TCP
                && flow.opens(false) =>
        {
            Outcome::first(true)
        }
        result => Outcome::new(result),
    }
}

/// The end was judged under other rules, or not at all.
#[inline(always)]
fn is_stale<T, H: At>(site: &Site<T, H>, conn: ConnRef, own: usize) -> bool {
    conn.end(own).generation() != site.policy.generation()
}

/// The other end is where a Service is reached. Nobody calls from there: only masquerading has its ports to give, and
/// what the pod sends there the node translates.
#[inline(never)]
fn is_frontend<F: Family, T: Tables + Addresses<F>, H: At>(site: &Site<T, H>, flow: &Flow<F>) -> bool {
    let port_be = if site.hook() == Hook::ToPod { flow.ports[0] } else { flow.ports[1] };
    let key = ServiceKey { address: site.hook().remote(flow), port_be, protocol: flow.protocol, pad: 0 };
    Addresses::<F>::service(site.tables, &key).is_some()
}

#[inline(always)]
fn follow<F: Family, P: Packet, T: Tables + Addresses<F>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
    conn: ConnRef,
    sender: usize,
) -> Result<Reason, Denial> {
    let (mut state, opener) = (conn.state(), conn.opener());
    let own = site.hook().own_side(sender);
    let end = conn.end(own);
    let generation = site.policy.generation();
    let mut reason = Reason::Tracked;
    if end.generation() != generation || generation == 0 {
        let against = sender != opener;
        let direction = if opener == own { EGRESS } else { INGRESS };
        let grant = allow(site, flow, Question::again(conn, direction, against))
            .map_err(|reason| Denial { reason, against, late: false })?;
        conn.set_end(own, EndWord::new(generation, grant.rule));
        let marked = if opener == own { grant.marked != 0 } else { is_frontend(site, flow) };
        if marked && state & CONN_MARKED == 0 {
            // The address was no Service's before.
            conn.set_state(state, state | CONN_MARKED);
            state |= CONN_MARKED;
        }
        if end.generation() == 0 {
            report::new(packet, site, flow, &grant, against);
            reason = Reason::Allowed;
        }
    }
    if sender == opener && site.hook() == Hook::FromPod && state & CONN_MARKED != 0 {
        mark(packet, site);
    }
    account(packet, site, flow, conn, Sides { sender, own, opener }, state);
    Ok(reason)
}

/// What an entry is besides the packets that it has seen.
const KINDS: u8 = CONN_MARKED | CONN_TRANSLATED;

/// What a connection's entry begins with.
#[derive(Clone, Copy)]
struct Birth {
    /// The verdict at the other end, if it was given here too.
    opener: EndWord,
    rule: u32,
    origin: u16,
    sides: u8,
    state: u8,
}

/// Judges a connection by the first packet of it: at this end and, if the packet was translated on its way here
/// from another pod of this node, at that end too. Then enters it, room or not.
#[inline(never)]
pub fn begin<F: Family, P: Packet, T: Tables + Addresses<F>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
    over: bool,
) -> Outcome {
    let mut birth = Birth { opener: EndWord(0), rule: 0, origin: site.ifindex as u16, sides: 0, state: 0 };
    let mut from = NOBODY;
    if site.hook() == Hook::ToPod {
        from = origin(packet, site.tables, flow);
        if is_endpoint(from) {
            match late(packet, site.tables, flow, (from, false)) {
                Ok(word) => birth.opener = word,
                Err(denial) => return Outcome::new(Err(denial)),
            }
            birth.origin = from as u16;
            birth.state = CONN_TRANSLATED;
            if site.tables.endpoint_ending(from as u16).is_none_or(|endpoint| endpoint.ifindex != from) {
                // The entry would name another endpoint, which has the slot: judged again, it is nobody.
                birth.sides = CONN_STRANGER;
            }
        } else if from == STRANGER {
            birth.sides = CONN_STRANGER;
        }
        if is_frontend(site, flow) {
            birth.state |= CONN_MARKED;
        }
    }
    // Not taken out of the result: the stack is too small for two of it.
    let judged = allow(site, flow, Question::first(site.hook().direction(), from));
    let grant = match &judged {
        Ok(grant) => grant,
        Err(reason) => return Outcome::new(Err((*reason).into())),
    };
    if budget::is_charged(site.hook(), from, grant.identity) && !budget::may_enter(site) {
        return Outcome::new(Err(Reason::OverBudget.into()));
    }
    birth.rule = grant.rule;
    if site.hook() == Hook::FromPod && grant.marked != 0 {
        birth.state |= CONN_MARKED;
        mark(packet, site);
    }
    let told = if over { restart(packet, site, flow, &birth) } else { enter(packet, site, flow, &birth) };
    if told {
        if birth.state & CONN_TRANSLATED != 0 {
            tell(packet, site.tables, flow, from, birth.opener.rule());
        }
        report::new(packet, site, flow, grant, false);
    }
    Outcome::new(Ok(Reason::Allowed))
}

/// A connection's entry after its first packet.
#[inline(always)]
fn opened<F: Family, P: Packet, T: Tables, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
    birth: &Birth,
) -> Conn {
    let now = site.tables.now();
    let sender = flow.sender();
    let own = site.hook().own_side(sender);
    let end = EndWord::new(site.policy.generation(), birth.rule);
    let bytes = u64::from(packet.frame_len());
    let on = |side: usize| side == 0;
    Conn {
        ends: if on(own) { [end, birth.opener] } else { [birth.opener, end] },
        packets: if on(sender) { [1, 0] } else { [0, 1] },
        bytes: if on(sender) { [bytes, 0] } else { [0, bytes] },
        started: now,
        last_seen: tick(now),
        sides: sender as u8 | (own as u8) << 1 | birth.sides,
        state: closing(flow.tcp_flags, sender) | birth.state,
        origin: birth.origin,
    }
}

/// Whether this packet is the first to enter the connection.
#[inline(never)]
fn enter<F: Family, P: Packet, T: Tables + Addresses<F>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
    birth: &Birth,
) -> bool {
    match insert::<F, T>(site.tables, flow, &opened(packet, site, flow, birth)) {
        // The faster packet has told of the connection; this end's word is added with the next one.
        Inserted::Exists => return false,
        Inserted::Done => {}
        Inserted::Full => site.tables.lost_conn(),
    }
    true
}

/// The connection's entry; the key has a stack of its own.
#[inline(never)]
pub fn find<'t, F: Family, T: Addresses<F>>(tables: &'t T, flow: &Flow<F>) -> Option<ConnRef<'t>> {
    tables.conn(&flow.key().0)
}

/// Enters it; the key has a stack of its own.
#[inline(never)]
pub fn insert<F: Family, T: Addresses<F>>(tables: &T, flow: &Flow<F>, conn: &Conn) -> Inserted {
    let turned = flow.sender() != 0;
    let (a, b) = if turned { (flow.destination, flow.source) } else { (flow.source, flow.destination) };
    let (p, q) = if turned { (flow.ports[1], flow.ports[0]) } else { (flow.ports[0], flow.ports[1]) };
    let key = ConnKey { addresses: [a, b], ports_be: [p, q], protocol: flow.protocol, pad: [0; 3] };
    tables.insert_conn(&key, conn)
}

/// A new connection under the key of an old one.
#[inline(never)]
fn restart<F: Family, P: Packet, T: Tables + Addresses<F>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
    birth: &Birth,
) -> bool {
    let sender = flow.sender();
    let own = site.hook().own_side(sender);
    let Some(conn) = find(site.tables, flow) else { return true };
    // Both sides began at once, or a port is in use: the older connection keeps the entry. But what this end has not
    // let in is none, and must not be in the way of what it begins itself.
    if flow.protocol == TCP
        && sender != conn.opener()
        && !is_closed(conn.state())
        && conn.end(own).generation() != 0
    {
        return true;
    }
    if flow.protocol == TCP && conn.state() & CONN_ENDED == 0 && conn.counter() == own {
        report::end(packet, site, flow, conn, sender);
    }
    renew(packet, site, flow, birth, conn);
    true
}

/// The entry has a stack of its own.
#[inline(never)]
fn renew<F: Family, P: Packet, T: Tables, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
    birth: &Birth,
    conn: ConnRef,
) {
    conn.replace(&opened(packet, site, flow, birth));
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
    let mut state = was | closing(flow.tcp_flags, sender);
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
pub fn closing(tcp_flags: u8, sender: usize) -> u8 {
    let mut bits = 0;
    if tcp_flags & TCP_RST != 0 {
        bits |= CONN_RESET;
    }
    if tcp_flags & TCP_FIN != 0 {
        bits |= CONN_FIN << (sender & 1);
    }
    bits
}

#[inline(always)]
pub fn is_closed(state: u8) -> bool {
    const BOTH: u8 = CONN_FIN | CONN_FIN << 1;
    state & (CONN_RESET | CONN_ENDED) != 0 || state & BOTH == BOTH
}
