//! Who sent a packet that kube-proxy has translated on this node: its destination is a backend by now, and its
//! source may have become an address of the node.
//!
//! A pod's packets to Services and to the node carry the endpoint's mark from `from_pod` on. No pod can set a mark: it
//! is taken off a packet that leaves a network namespace.

use crate::{
    abi::{EGRESS, EndWord, IDENTITY_HOST},
    decide::{Denial, Site, ToOverlay},
    family::Family,
    flow::Flow,
    packet::Packet,
    reason::Reason,
    report,
    rules::{Question, allow},
    tables::{Addresses, Tables},
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
    let own = u32::from(site.endpoint.mark).wrapping_mul(lowest(mask)) & mask;
    packet.set_mark(packet.mark() & !mask | own);
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
