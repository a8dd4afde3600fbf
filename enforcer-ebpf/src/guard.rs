//! What a frame must be before policy is asked: a pod speaks for itself, and hears what is meant for it.

use crate::{
    abi::FIRST_POD_IDENTITY,
    decide::{At, Hook, Site},
    family::{Family, V6},
    flow::Flow,
    packet::{
        Arp, ETHER_IPV4, ETHER_QINQ, ETHER_VLAN, ETHERNET_LEN, Ethernet, LinkLayerOption, Mac, Packet, UDP,
    },
    reason::Reason,
    tables::{Addresses, Tables},
};

/// The Ethernet header; gives the type of what it carries.
#[inline(always)]
pub fn frame<P: Packet, T, H: At>(packet: &P, site: &Site<T, H>) -> Result<u16, Reason> {
    let ethernet: Ethernet = packet.read(0)?;
    let ether_type = u16::from_be_bytes(ethernet.ether_type);
    if packet.vlan_tagged() || ether_type == ETHER_VLAN || ether_type == ETHER_QINQ {
        return Err(Reason::Vlan);
    }
    if site.hook() == Hook::FromPod && ethernet.source != Mac::new(site.endpoint.mac) {
        return Err(Reason::SourceMac);
    }
    Ok(ether_type)
}

/// A pod may ask for anybody and claim its own address, or probe for it (RFC 5227).
#[inline(never)]
pub fn arp<P: Packet, T, H: At>(packet: &P, site: &Site<T, H>) -> Result<Reason, Reason> {
    const ETHERNET: [u8; 2] = [0, 1];
    const REQUEST: [u8; 2] = [0, 1];
    const REPLY: [u8; 2] = [0, 2];
    if site.hook() == Hook::ToPod {
        return Ok(Reason::Neighbour);
    }
    let arp: Arp = packet.read(ETHERNET_LEN as usize)?;
    let own = site.endpoint.ipv4;
    let formed = arp.hardware == ETHERNET
        && arp.protocol == ETHER_IPV4.to_be_bytes()
        && [arp.hardware_len, arp.protocol_len] == [6, 4]
        && (arp.operation == REQUEST || arp.operation == REPLY);
    let probe = arp.sender == [0; 4] && arp.operation == REQUEST && arp.target == own;
    if formed
        && arp.sender_mac == Mac::new(site.endpoint.mac)
        && own != [0; 4]
        && (arp.sender == own || probe)
    {
        Ok(Reason::Neighbour)
    } else {
        Err(Reason::ArpClaim)
    }
}

/// Source and destination of an IP packet that is not neighbour discovery.
#[inline(always)]
pub fn addresses<F: Family, P: Packet, T, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
) -> Result<(), Reason> {
    let own = F::own(site.endpoint);
    match site.hook() {
        Hook::FromPod => {
            if flow.source != own || own == F::UNSPECIFIED {
                return Err(Reason::SourceIp);
            }
            let [first, ..]: [u8; 6] = packet.read(0)?;
            if first & 1 != 0 || F::is_multicast(flow.destination) {
                return Err(Reason::Multicast);
            }
        }
        Hook::ToPod | Hook::ToOverlay => {
            if F::is_multicast(flow.destination) {
                return Err(Reason::Multicast);
            }
            if flow.destination != own || own == F::UNSPECIFIED {
                return Err(Reason::WrongDestination);
            }
        }
    }
    Ok(())
}

/// A pod that could speak to a node's tunnel port would put frames of its own making on the overlay. A node has more
/// addresses than anybody tells us (a broadcast address is one of them), so only a known pod's is not taken for one.
#[inline(always)]
pub fn tunnel<F: Family, T: Tables + Addresses<F>, H: At>(
    site: &Site<T, H>,
    flow: &Flow<F>,
) -> Result<(), Reason> {
    if site.hook() == Hook::ToPod || flow.protocol != UDP {
        return Ok(());
    }
    let port = site.tables.config().tunnel_port_be;
    if port == [0; 2] || flow.ports[1] != port {
        return Ok(());
    }
    match site.peer::<F>(flow.destination) {
        Some(peer) if peer.identity >= FIRST_POD_IDENTITY => Ok(()),
        _ => Err(Reason::Tunnel),
    }
}

/// IGMP does for IPv4 what listener discovery does for IPv6: a pod reports its own memberships, and hears the
/// bridge's queries. From no address (RFC 3376, 4.2.13) only hosts report that have none yet; a pod has one.
#[inline(always)]
pub fn membership<F: Family, P: Packet, T, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<F>,
) -> Result<Reason, Reason> {
    // Reports of all versions, and leaving (RFC 2236, 3376). A router's messages are not a pod's.
    const REPORTS: [u8; 4] = [0x12, 0x16, 0x17, 0x22];
    if H::HOOK == Hook::ToPod {
        return Ok(Reason::Neighbour);
    }
    let own = F::own(site.endpoint);
    if flow.source != own || own == F::UNSPECIFIED {
        return Err(Reason::SourceIp);
    }
    if flow.at + 8 > flow.end {
        return Err(Reason::Truncated);
    }
    let [kind]: [u8; 1] = packet.load(flow.at)?;
    if kind == REPORTS[0] || kind == REPORTS[1] || kind == REPORTS[2] || kind == REPORTS[3] {
        Ok(Reason::Neighbour)
    } else {
        Err(Reason::Multicast)
    }
}

const MLD_REPORT: u8 = 131;
const MLD_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const MLD_REPORT_2: u8 = 143;

/// Neighbour and listener discovery: a verdict of its own, or none if the packet is something else.
///
/// To the pod everything passes: whoever sent it was judged where it came from, or is the node's.
#[inline(never)]
pub fn discovery<P: Packet, T, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &Flow<V6>,
) -> Result<Option<Reason>, Reason> {
    let [icmp_type, code] = flow.icmp;
    if site.hook() == Hook::ToPod {
        return Ok(matches!(icmp_type, 130..=137 | MLD_REPORT_2).then_some(Reason::Neighbour));
    }
    let own = V6::own(site.endpoint);
    let nobody = flow.source == V6::UNSPECIFIED;
    let options_at = match icmp_type {
        ROUTER_ADVERTISEMENT | REDIRECT => return Err(Reason::ForbiddenIcmp6),
        MLD_REPORT | MLD_DONE | MLD_REPORT_2 if nobody || is_link_local(flow.source) => {
            let to_group = V6::is_multicast(flow.destination);
            return if to_group { Ok(Some(Reason::Neighbour)) } else { Err(Reason::NeighbourClaim) };
        }
        ROUTER_SOLICITATION => 8,
        NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => 24,
        _ => return Ok(None),
    };
    let mine = |address: [u64; 2]| is_link_local(address) || address == own && own != V6::UNSPECIFIED;
    // Receivers do not look into fragments of discovery either (RFC 6980).
    if code != 0 || flow.fragment != 0 || !(nobody || mine(flow.source)) {
        return Err(Reason::NeighbourClaim);
    }
    if icmp_type != ROUTER_SOLICITATION {
        if flow.at + options_at > flow.end {
            return Err(Reason::Truncated);
        }
        let target: [u64; 2] = packet.load(flow.at + 8)?;
        // Asking from no address is a claim too: it is how an address is taken (RFC 4862, 5.4).
        let claims = icmp_type == NEIGHBOUR_ADVERTISEMENT || nobody;
        if claims && !mine(target) || nobody && icmp_type == NEIGHBOUR_ADVERTISEMENT {
            return Err(Reason::NeighbourClaim);
        }
    }
    link_layer_options(packet, flow, options_at, Mac::new(site.endpoint.mac))?;
    Ok(Some(Reason::Neighbour))
}

/// Every option that names a link-layer address names the pod's own.
#[inline(always)]
fn link_layer_options<P: Packet>(packet: &P, flow: &Flow<V6>, offset: u32, mac: Mac) -> Result<(), Reason> {
    const MAX_OPTIONS: usize = 4;
    const SOURCE: u8 = 1;
    const TARGET: u8 = 2;
    let mut at = flow.at + offset;
    for _ in 0..MAX_OPTIONS {
        if at == flow.end {
            return Ok(());
        }
        if at + 8 > flow.end {
            return Err(Reason::NeighbourClaim);
        }
        let option: LinkLayerOption = packet.load(at)?;
        let names = option.kind == SOURCE || option.kind == TARGET;
        if option.len == 0 || names && (option.len != 1 || option.address != mac) {
            return Err(Reason::NeighbourClaim);
        }
        at += u32::from(option.len) * 8;
    }
    if at == flow.end { Ok(()) } else { Err(Reason::NeighbourClaim) }
}

#[inline(always)]
fn is_link_local(address: [u64; 2]) -> bool {
    let [first, second, ..] = address[0].to_ne_bytes();
    first == 0xfe && second & 0xc0 == 0x80
}
