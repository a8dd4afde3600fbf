//! ICMP errors: they pass exactly when they are about a connection that this end has allowed.

use crate::{
    abi::{CONN_REPLIED, EGRESS, EndWord, INGRESS},
    decide::{At, Hook, Site},
    family::Family,
    flow::Flow,
    packet::Packet,
    reason::Reason,
    rules::{Question, allow},
    tables::{Addresses, Tables},
    track::find,
};

/// The ICMP header before the quoted packet.
const ICMP_LEN: u32 = 8;

const NO: Reason = Reason::ErrorNotTracked;

#[inline(never)]
pub fn related<F: Family, P: Packet, T: Tables + Addresses<F>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
) -> Result<Reason, Reason> {
    let mut back = Flow::<F>::empty();
    quote(packet, site, flow, &mut back).map_err(|_| NO)?;
    back.reverse();
    site.settle(&mut back);
    // An error goes to the quoted packet's sender. A pod reports only on what was sent to itself; a
    // packet of the pod's own may be reported on by anybody on the way.
    let from_receiver = site.hook() == Hook::ToPod || back.source == flow.source;
    if back.destination != flow.destination || !from_receiver {
        return Err(NO);
    }
    about(site, &back)
}

/// Whether a packet is tracked whose answer this one would be.
#[inline(never)]
fn about<F: Family, T: Tables + Addresses<F>, H: At>(
    site: &Site<T, H>,
    back: &Flow<F>,
) -> Result<Reason, Reason> {
    // Turned round, the quoted packet goes the error's way.
    let receiver = back.sender();
    let conn = find(site.tables, back).ok_or(NO)?;
    let own = site.hook().own_side(receiver);
    let sender = receiver ^ 1;
    let (opener, end) = (conn.opener(), conn.end(own));
    let sent = sender == opener || conn.state() & CONN_REPLIED != 0;
    if end.generation() == 0 || !sent {
        return Err(NO);
    }
    let generation = site.policy.generation();
    if end.generation() != generation {
        let direction = if opener == own { EGRESS } else { INGRESS };
        let question = Question::again(conn, direction, sender == opener);
        let grant = allow(site, back, question).map_err(|_| NO)?;
        conn.set_end(own, EndWord::new(generation, grant.rule));
    }
    Ok(Reason::Related)
}

/// Reads the quoted packet's headers.
#[inline(never)]
fn quote<F: Family, P: Packet, T: Addresses<F>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
    quoted: &mut Flow<F>,
) -> Result<(), Reason> {
    F::network(packet, site.tables, flow.at + ICMP_LEN, true, quoted)?;
    quoted.end = flow.end;
    site.settle(quoted);
    if quoted.is_later_fragment() {
        return Err(Reason::Truncated);
    }
    quoted.transport(packet, true)
}
