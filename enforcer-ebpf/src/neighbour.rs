//! Neighbour and listener discovery, and group membership: what a pod may say of itself on its link without being asked
//! by policy, and what of others it hears. Each message is of a known form to the last byte, because pods that may
//! not talk must not talk by it either.

use crate::{
    abi::IDENTITY_HOST,
    decide::{At, Hook, Site},
    family::{Family, V4, V6},
    flow::Flow,
    packet::{LinkLayerOption, Mac, Packet},
    reason::Reason,
    tables::Addresses,
};

const MLD_QUERY: u8 = 130;
const MLD_REPORT: u8 = 131;
const MLD_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const MLD_REPORT_2: u8 = 143;

const ALL_NODES: [u64; 2] = group(1);
const ALL_ROUTERS: [u64; 2] = group(2);
/// Listens to reports of MLD's second version (RFC 3810, 5.2.14).
const REPORTS_TO: [u64; 2] = group(0x16);

/// A group on the link with a number.
const fn group(number: u64) -> [u64; 2] {
    [0xff02_0000_0000_0000_u64.to_be(), number.to_be()]
}

/// The address that Linux makes itself from the MAC (RFC 4291, appendix A). A pod that has made itself another one may
/// not claim it: nobody could tell it from another pod's or the bridge's. Its own address is unaffected.
#[inline(always)]
fn link_local(mac: [u8; 6]) -> [u64; 2] {
    let [a, b, c, d, e, f] = mac;
    [0xfe80_0000_0000_0000_u64.to_be(), u64::from_ne_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f])]
}

/// A verdict of its own, or none if the packet is no discovery.
#[inline(never)]
pub fn discovery<P: Packet, T: Addresses<V6>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<V6>,
) -> Result<Option<Reason>, Reason> {
    let own = V6::own(site.endpoint);
    let local = link_local(site.endpoint.mac);
    let mine = |address: [u64; 2]| address == local || address == own && own != V6::UNSPECIFIED;
    let [kind, code] = flow.icmp;
    if site.hook() == Hook::ToPod {
        let heard = match kind {
            SOLICITATION => mine(target(packet, flow)?),
            ADVERTISEMENT => V6::is_multicast(flow.destination) || mine(flow.destination),
            MLD_REPORT | MLD_DONE | MLD_REPORT_2 | ROUTER_SOLICITATION => false,
            MLD_QUERY | ROUTER_ADVERTISEMENT | REDIRECT => true,
            _ => return Ok(None),
        };
        return Ok(Some(if heard { Reason::Neighbour } else { Reason::Overheard }));
    }
    let nobody = flow.source == V6::UNSPECIFIED;
    match kind {
        ROUTER_ADVERTISEMENT | REDIRECT => Err(Reason::ForbiddenIcmp6),
        MLD_REPORT | MLD_DONE | MLD_REPORT_2 if nobody || flow.source == local => report(packet, flow),
        ROUTER_SOLICITATION | SOLICITATION | ADVERTISEMENT => {
            if code != 0 || !(nobody || mine(flow.source)) {
                return Err(Reason::NeighbourClaim);
            }
            if kind == ROUTER_SOLICITATION {
                ask_routers(packet, site, flow)
            } else {
                // Asking from no address is a claim too: it is how an address is taken (RFC 4862, 5.4).
                let claims = nobody || kind == ADVERTISEMENT;
                if claims && !mine(target(packet, flow)?) || nobody && kind == ADVERTISEMENT {
                    return Err(Reason::NeighbourClaim);
                }
                neighbours(packet, site, flow)
            }
        }
        _ => Ok(None),
    }
}

/// The address that a message is about.
#[inline(always)]
fn target<P: Packet>(packet: &P, flow: &Flow<V6>) -> Result<[u64; 2], Reason> {
    if flow.at + 24 > flow.end { Err(Reason::Truncated) } else { packet.load(flow.at + 8) }
}

/// Nothing stands before the message and nothing behind it, and no router has passed it on (RFC 4861, 7.1; RFC 6980
/// forbids fragments of it, even of one piece).
#[inline(always)]
fn is_bare<P: Packet>(packet: &P, flow: &Flow<V6>) -> bool {
    let [hops]: [u8; 1] = packet.read(21).unwrap_or([0]);
    flow.is_plain() && flow.fragment_header == 0 && hops == 255 && packet.frame_len() == flow.end
}

#[inline(always)]
fn ask_routers<P: Packet, T, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<V6>,
) -> Result<Option<Reason>, Reason> {
    let reserved: [u8; 4] = packet.load(flow.at + 4)?;
    if !is_bare(packet, flow) || flow.destination != ALL_ROUTERS || reserved != [0; 4] {
        return Err(Reason::NeighbourClaim);
    }
    options(packet, site, flow, 8)
}

/// Of a neighbour is asked where only that neighbour listens, and it is told to everybody or to one on this node.
#[inline(always)]
fn neighbours<P: Packet, T: Addresses<V6>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<V6>,
) -> Result<Option<Reason>, Reason> {
    const FLAGS: u32 = 0xe000_0000_u32.to_be();
    if !is_bare(packet, flow) {
        return Err(Reason::NeighbourClaim);
    }
    let flags = u32::from_ne_bytes(packet.load(flow.at + 4)?);
    let target = target(packet, flow)?;
    let said = if flow.icmp[0] == ADVERTISEMENT {
        flags & !FLAGS == 0 && (flow.destination == ALL_NODES || !V6::is_multicast(flow.destination))
    } else {
        flags == 0 && (flow.destination == target || flow.destination == solicited(target))
    };
    if !said || !V6::is_multicast(flow.destination) && !is_here(site, flow.destination) {
        return Err(Reason::NeighbourClaim);
    }
    options(packet, site, flow, 24)
}

/// RFC 4291, 2.7.1.
#[inline(always)]
fn solicited(target: [u64; 2]) -> [u64; 2] {
    let low = u64::from_be(target[1]) & 0xff_ffff;
    [0xff02_0000_0000_0000_u64.to_be(), (0x0000_0001_ff00_0000 | low).to_be()]
}

/// Somebody on the link: what goes further would be a packet past policy.
#[inline(always)]
fn is_here<T: Addresses<V6>, H: At>(site: &Site<T, H>, address: [u64; 2]) -> bool {
    if u64::from_be(address[0]) >> 54 == 0x3fa {
        return true;
    }
    site.peer::<V6>(address).is_some_and(|peer| peer.identity == IDENTITY_HOST || peer.ifindex != 0)
}

/// At most two, and no other than: the pod's own link-layer address, and the number by which who asks for a free
/// address knows its own question (RFC 7527).
#[inline(always)]
fn options<P: Packet, T, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<V6>,
    offset: u32,
) -> Result<Option<Reason>, Reason> {
    const SOURCE: u8 = 1;
    const TARGET: u8 = 2;
    const NONCE: u8 = 14;
    let mut at = flow.at + offset;
    for _ in 0..2 {
        if at >= flow.end {
            break;
        }
        if at + 8 > flow.end {
            return Err(Reason::NeighbourClaim);
        }
        let option: LinkLayerOption = packet.load(at)?;
        let fits = match option.kind {
            SOURCE | TARGET => option.address == Mac::new(site.endpoint.mac),
            NONCE => flow.source == V6::UNSPECIFIED,
            _ => false,
        };
        if option.len != 1 || !fits {
            return Err(Reason::NeighbourClaim);
        }
        at += 8;
    }
    if at == flow.end { Ok(Some(Reason::Neighbour)) } else { Err(Reason::NeighbourClaim) }
}

/// Which groups a pod listens to (RFC 2710, 3810): of the form that Linux gives it, and heard by the bridge alone.
#[inline(always)]
fn report<P: Packet>(packet: &P, flow: &Flow<V6>) -> Result<Option<Reason>, Reason> {
    /// Hop-by-hop options that hold a router alert and padding, before ICMPv6.
    const ALERT: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];
    let [hops]: [u8; 1] = packet.read(21)?;
    if flow.at != V6::TRANSPORT as u32 + 8
        || flow.fragment_header != 0
        || hops != 1
        || packet.frame_len() != flow.end
        || packet.load::<[u8; 8]>(V6::TRANSPORT as u32)? != ALERT
    {
        return Err(Reason::NeighbourClaim);
    }
    let fits = if flow.icmp[0] == MLD_REPORT_2 {
        flow.destination == REPORTS_TO
    } else {
        let group = target(packet, flow)?;
        flow.end == flow.at + 24
            && flow.destination == if flow.icmp[0] == MLD_DONE { ALL_ROUTERS } else { group }
    };
    if fits { Ok(Some(Reason::Neighbour)) } else { Err(Reason::NeighbourClaim) }
}

/// IGMP does for IPv4 what listener discovery does for IPv6: a pod reports its own memberships, and hears the
/// bridge's queries. From no address (RFC 3376, 4.2.13) only hosts report that have none yet; a pod has one.
#[inline(never)]
pub fn membership<F: Family, P: Packet, T, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
) -> Result<Reason, Reason> {
    const QUERY: u8 = 0x11;
    const REPORT_1: u8 = 0x12;
    const REPORT_2: u8 = 0x16;
    const LEAVE: u8 = 0x17;
    const REPORT_3: u8 = 0x22;
    const ROUTERS: [u8; 4] = [224, 0, 0, 2];
    const REPORTS_TO: [u8; 4] = [224, 0, 0, 22];
    /// RFC 2113.
    const ALERT: [u8; 4] = [0x94, 4, 0, 0];
    if flow.at + 8 > flow.end {
        return Err(Reason::Truncated);
    }
    let [kind, _, _, _, group @ ..]: [u8; 8] = packet.load(flow.at)?;
    if H::HOOK == Hook::ToPod {
        return Ok(if kind == QUERY { Reason::Neighbour } else { Reason::Overheard });
    }
    let own = F::own(site.endpoint);
    if flow.source != own || own == F::UNSPECIFIED {
        return Err(Reason::SourceIp);
    }
    let to: [u8; 4] = packet.read(30)?;
    let [ttl]: [u8; 1] = packet.read(22)?;
    let whole = flow.end == flow.at + 8;
    let fits = match kind {
        REPORT_1 | REPORT_2 => whole && to == group,
        LEAVE => whole && to == ROUTERS,
        REPORT_3 => to == REPORTS_TO,
        _ => false,
    };
    let formed = ttl == 1
        && flow.fragment == 0
        && flow.at == V4::TRANSPORT as u32 + 4
        && packet.load::<[u8; 4]>(V4::TRANSPORT as u32)? == ALERT
        && packet.frame_len() == flow.end;
    if fits && formed { Ok(Reason::Neighbour) } else { Err(Reason::Multicast) }
}
