//! The short way for what most packets are: plain TCP or UDP of a connection that this end has allowed
//! under the policy in force, with nothing to begin, to end or to report. Everything else takes the long
//! way ([`crate::decide`]) from the start, which comes to the same verdict for these packets too.

use crate::{
    abi::{CONN_MARKED, CONN_REPLIED, CONN_TRANSLATED, ConnKey},
    decide::{At, Hook, Site},
    family::Family,
    flow::key,
    origin::{is_current, is_unjudged, mark},
    packet::{Packet, Ports, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP},
    reason::Reason,
    tables::{Addresses, Tables},
};

/// A packet of TCP or UDP without options, extension headers or fragments.
pub struct Plain<F: Family> {
    pub source: F::Addr,
    pub destination: F::Addr,
    pub protocol: u8,
    pub ports: Ports,
    /// Bytes from the transport header to the packet's end.
    pub payload: u32,
}

/// What the state of such a connection may say.
const PLAIN: u8 = CONN_REPLIED | CONN_MARKED | CONN_TRANSLATED;

#[inline(always)]
pub fn tracked<F: Family, P: Packet, T: Tables + Addresses<F>, H: At>(
    packet: &P,
    site: &Site<T, H>,
) -> Option<Reason> {
    let plain = F::plain(packet)?;
    // An entry exists only for addresses that the long way has let through; but whose they are is checked
    // here again, because it is not this pod's packets alone that make entries.
    let own = F::own(site.endpoint);
    let mine = match site.hook() {
        Hook::FromPod => plain.source,
        Hook::ToPod | Hook::ToOverlay => plain.destination,
    };
    if mine != own || own == F::UNSPECIFIED {
        return None;
    }
    let ports = plain.ports;
    match plain.protocol {
        TCP if plain.payload >= 20 => {
            let [offset, flags]: [u8; 2] = packet.read(F::TRANSPORT + 12).ok()?;
            if offset < 5 << 4 || flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK) != TCP_ACK {
                return None;
            }
        }
        UDP if plain.payload >= 8 => {
            if site.hook() == Hook::FromPod && ports.destination == site.tables.config().tunnel_port_be {
                return None;
            }
        }
        _ => return None,
    }
    let (key, sender): (ConnKey<F::Addr>, usize) =
        key::<F>(plain.source, plain.destination, [ports.source, ports.destination], plain.protocol);
    let conn = site.conn::<F>(&key)?;
    let own = site.hook().own_side(sender);
    let generation = site.policy.generation();
    let state = conn.state();
    if conn.end(own).generation() != generation || generation == 0 || state & !PLAIN != 0 {
        return None;
    }
    if sender == conn.opener() {
        match site.hook() {
            Hook::ToPod
                if state & CONN_TRANSLATED != 0
                    && !is_current::<F, P, T>(packet, site.tables, conn, plain.source) =>
            {
                return None;
            }
            Hook::FromPod if state & CONN_MARKED != 0 => mark(packet, site),
            _ => {}
        }
    } else if site.hook() == Hook::ToPod && is_unjudged(packet, site.tables) {
        return None;
    }
    conn.seen(site.tables.tick());
    if conn.counter() == own {
        conn.add(sender, packet.frame_len());
    }
    if sender != conn.opener() {
        conn.set_state(state, state | CONN_REPLIED);
    }
    Some(Reason::Tracked)
}
