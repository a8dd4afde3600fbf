//! Who sent a packet that kube-proxy has translated on this node: its destination is a backend by now, and its
//! source may have become an address of the node.
//!
//! A pod's packets to Services and to the node carry the endpoint's mark from `from_pod` on. No pod can set a mark: it
//! is taken off a packet that leaves a network namespace.

use crate::{
    abi::{EGRESS, EndWord, Endpoint, IDENTITY_HOST, INGRESS},
    decide::{Denial, Outcome, Site, ToOverlay},
    family::Family,
    flow::Flow,
    packet::Packet,
    reason::Reason,
    report,
    rules::{Question, allow},
    tables::{Addresses, ConnRef, Tables},
};

/// Nobody of this node's endpoints: the source is who it says.
pub const NOBODY: u32 = 0;
/// Somebody from elsewhere under an address of this node, as masquerading makes it.
pub const STRANGER: u32 = u32::MAX;

/// The interface index of the endpoint that sent the packet, [`NOBODY`] or [`STRANGER`].
#[inline(never)]
pub fn origin<F: Family, P: Packet, T: Tables + Addresses<F>>(packet: &P, tables: &T, flow: &Flow<F>) -> u32 {
    let Some(peer) = Addresses::<F>::peer(tables, flow.source) else { return NOBODY };
    if peer.ifindex != 0 {
        return peer.ifindex;
    }
    if peer.identity != IDENTITY_HOST {
        return NOBODY;
    }
    let mask = tables.config().mark_mask;
    let number = (packet.mark() & mask).checked_div(lowest(mask)).unwrap_or(0);
    // What the node itself sends has come in nowhere and bears no mark. The mark is asked first: a packet that is
    // cut into fragments on its way keeps it, but in IPv6 forgets where it came in (`ip6_copy_metadata`).
    if number == 0 && packet.came_in_by() == 0 {
        return NOBODY;
    }
    let ifindex = if number == 0 { None } else { tables.origin(number) };
    match ifindex {
        Some(ifindex) if is_marked(tables, ifindex, number) => ifindex,
        _ => STRANGER,
    }
}

#[inline(always)]
fn is_marked<T: Tables>(tables: &T, ifindex: u32, number: u32) -> bool {
    tables.endpoint(ifindex).is_some_and(|endpoint| u32::from(endpoint.mark) == number)
}

pub fn is_endpoint(origin: u32) -> bool {
    origin != NOBODY && origin != STRANGER
}

/// The lowest bit of the mask: one unit of a number in it.
#[inline(always)]
const fn lowest(mask: u32) -> u32 {
    mask & mask.wrapping_neg()
}

/// Puts the endpoint's mark on the packet, beside what others have marked there.
#[inline(always)]
pub fn mark<P: Packet, T: Tables, H>(packet: &P, site: &Site<T, H>) {
    let mask = site.tables.config().mark_mask;
    packet.set_mark(packet.mark() & !mask | bits(mask, site.endpoint));
}

/// An endpoint's mark within the mask.
#[inline(always)]
fn bits(mask: u32, endpoint: &Endpoint) -> u32 {
    u32::from(endpoint.mark).wrapping_mul(lowest(mask)) & mask
}

/// Nothing but this endpoint can have sent the packet: the address is its own, or masquerading left its mark.
#[inline(always)]
fn is_from<F: Family, P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    endpoint: &Endpoint,
    source: F::Addr,
) -> bool {
    if source == F::own(endpoint) {
        return true;
    }
    let mask = tables.config().mark_mask;
    let own = bits(mask, endpoint);
    own != 0 && packet.mark() & mask == own
}

/// The opener's egress, of a connection under [`crate::abi::CONN_TRANSLATED`], was judged under the rules that its
/// endpoint has now, and the packet is that endpoint's: a masqueraded port is anybody's after a while.
#[inline(always)]
pub fn is_current<F: Family, P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    conn: ConnRef,
    source: F::Addr,
) -> bool {
    let generation = conn.end(conn.opener()).generation();
    // No two endpoints ever have the same generation.
    tables.endpoint_ending(conn.origin()).is_some_and(|endpoint| {
        generation != 0
            && endpoint.policy.generation() == generation
            && is_from::<F, P, T>(packet, tables, endpoint, source)
    })
}

/// The endpoint that opened a connection under [`crate::abi::CONN_TRANSLATED`], as far as its entry says.
#[inline(always)]
pub fn is_opener(conn: ConnRef, origin: u32) -> bool {
    is_endpoint(origin) && origin as u16 == conn.origin()
}

/// The packet bears an endpoint's mark: at the endpoint's own interface it was not judged by this destination.
#[inline(always)]
pub fn is_unjudged<P: Packet, T: Tables>(packet: &P, tables: &T) -> bool {
    // Most packets bear no mark at all.
    packet.mark() != 0 && packet.mark() & tables.config().mark_mask != 0
}

/// Judges what an endpoint sends to a Service when it falls to a connection that the backend has opened. As an answer
/// it passes while the endpoint lets that connection in, and otherwise if its egress lets it begin one.
///
/// That verdict is about another connection than the entry's, and is not entered.
#[inline(never)]
pub fn answer<F: Family, P: Packet, T: Tables + Addresses<F>>(
    packet: &P,
    tables: &T,
    flow: &Flow<F>,
    conn: ConnRef,
    origin: u32,
) -> Outcome {
    let Some(endpoint) = tables.endpoint(origin) else { return Outcome::new(Err(Reason::NotTracked.into())) };
    let site = Site::<T, ToOverlay>::of(tables, endpoint, origin);
    let (sender, generation) = (flow.sender(), site.policy.generation());
    let known = conn.end(sender).generation();
    if known != 0 {
        if known == generation {
            return Outcome::new(Ok(Reason::Tracked));
        }
        if let Ok(grant) = allow(&site, flow, Question::again(conn, INGRESS, true)) {
            conn.set_end(sender, EndWord::new(generation, grant.rule));
            return Outcome::new(Ok(Reason::Tracked));
        }
    }
    Outcome::new(late(packet, tables, flow, (origin, false)).map(|_| Reason::Tracked))
}

/// Judges the egress of the endpoint that sent the packet, now that its destination is the real one. `first`: a
/// verdict that allows is reported in that endpoint's name; one that does not is left to [`denied`].
#[inline(always)]
pub fn late<F: Family, P: Packet, T: Tables + Addresses<F>>(
    packet: &P,
    tables: &T,
    flow: &Flow<F>,
    (origin, first): (u32, bool),
) -> Result<EndWord, Denial> {
    let word = if first {
        late_word::<F, P, T, true>(packet, tables, flow, origin)
    } else {
        late_word::<F, P, T, false>(packet, tables, flow, origin)
    };
    if word.generation() != 0 {
        return Ok(word);
    }
    Err(Denial { reason: Reason::of(word.rule() as u8), against: false, late: true })
}

/// A word without generation has the reason of the denial in place of the rule: BPF returns one register.
#[inline(never)]
fn late_word<F: Family, P: Packet, T: Tables + Addresses<F>, const FIRST: bool>(
    packet: &P,
    tables: &T,
    flow: &Flow<F>,
    origin: u32,
) -> EndWord {
    let endpoint = if is_endpoint(origin) { tables.endpoint(origin) } else { None };
    // The pod has gone, or its mark has: nobody to judge.
    let Some(endpoint) = endpoint else { return EndWord::new(0, Reason::NotTracked as u32) };
    let site = Site::<T, ToOverlay>::of(tables, endpoint, origin);
    match allow(&site, flow, Question::first(EGRESS, NOBODY)) {
        Ok(grant) => {
            if FIRST {
                report::new(packet, &site, flow, &grant, false);
            }
            EndWord::new(site.policy.generation(), grant.rule)
        }
        Err(reason) => EndWord::new(0, reason as u32),
    }
}

/// Reports a drop in the name of the endpoint that sent the packet.
#[inline(never)]
pub fn denied<F: Family, P: Packet, T: Tables + Addresses<F>>(
    packet: &P,
    tables: &T,
    flow: &Flow<F>,
    denial: Denial,
) -> Reason {
    let ifindex = origin(packet, tables, flow);
    let endpoint = if is_endpoint(ifindex) { tables.endpoint(ifindex) } else { None };
    match endpoint {
        Some(endpoint) => {
            report::denied(packet, &Site::<T, ToOverlay>::of(tables, endpoint, ifindex), flow, denial)
        }
        None => denial.reason,
    }
}
