//! The short way for what most packets are: plain TCP or UDP of a connection that this end has allowed
//! under the policy in force, with nothing to begin, to end or to report. Everything else takes the long
//! way ([`crate::decide`]) from the start, which comes to the same verdict for these packets too.

use crate::{
    abi::{CONN_ENDED, CONN_MARKED, CONN_REPLIED, CONN_TRANSLATED, ConnKey},
    decide::{At, Hook, Site},
    family::Family,
    flow::key,
    guard::is_of_dhcp_server,
    origin::{is_current, is_unjudged, mark},
    packet::{Packet, Ports, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP},
    reason::Reason,
    tables::{Addresses, Tables},
    track::{closing, is_closed},
};

/// A packet of TCP or UDP without options, extension headers or fragments.
pub struct Plain<F: Family> {
    pub source: F::Addr,
    pub destination: F::Addr,
    pub protocol: u8,
    pub ports: Ports,
    /// What UDP says of its own length.
    pub length: [u8; 2],
    /// Bytes from the transport header to the packet's end.
    pub payload: u32,
}

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
    let mut flags = 0;
    match plain.protocol {
        TCP if plain.payload >= 20 => {
            let [offset, read] = packet.read(F::TRANSPORT + 12).ok()?;
            if offset < 5 << 4
                || u32::from(offset >> 4) * 4 > plain.payload
                || read & (TCP_RST | TCP_ACK) != TCP_ACK
                || read & (TCP_SYN | TCP_FIN) == TCP_SYN | TCP_FIN
            {
                return None;
            }
            flags = read;
        }
        UDP if plain.payload >= 8 && u32::from(u16::from_be_bytes(plain.length)) == plain.payload => {
            if site.hook() == Hook::FromPod
                && (ports.destination == site.tables.config().tunnel_port_be
                    || is_of_dhcp_server::<F>(&ports))
            {
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
    let was = conn.state();
    let state = was | closing(flags, sender);
    if conn.end(own).generation() != generation || generation == 0 {
        return None;
    }
    if is_closed(state) && state & CONN_ENDED == 0 && conn.counter() == own {
        return None; // to be reported
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
    } else {
        match site.hook() {
            Hook::ToPod if is_unjudged(packet, site.tables) => return None,
            Hook::FromPod if state & CONN_MARKED != 0 => return None,
            _ => {}
        }
    }
    conn.seen(site.tables.tick());
    if conn.counter() == own {
        conn.add(sender, packet.frame_len());
    }
    let replied = if sender == conn.opener() { 0 } else { CONN_REPLIED };
    conn.set_state(was, state | replied);
    Some(Reason::Tracked)
}
