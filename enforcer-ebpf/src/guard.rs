//! What a frame must be before policy is asked: a pod speaks for itself, and hears what is meant for it.

use crate::{
    abi::{FIRST_POD_IDENTITY, IDENTITY_WORLD, LET_DHCP, LET_TUNNELS},
    decide::{At, Hook, Site},
    family::Family,
    flow::Flow,
    packet::{Arp, ETHER_IPV4, ETHER_QINQ, ETHER_VLAN, ETHERNET_LEN, Ethernet, Mac, Packet, Ports, UDP},
    reason::Reason,
    tables::{Addresses, Tables},
};

const BROADCAST: Mac = Mac::new([0xff; 6]);

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

/// A pod may ask for anybody and claim its own address, or probe for it (RFC 5227). It hears what is asked of it or
/// told to it, and announcements.
#[inline(never)]
pub fn arp<P: Packet, T, H: At>(packet: &P, site: &Site<T, H>) -> Result<Reason, Reason> {
    const ETHERNET: [u8; 2] = [0, 1];
    const REQUEST: [u8; 2] = [0, 1];
    const REPLY: [u8; 2] = [0, 2];
    /// Without padding, and with as much as Ethernet wants.
    const LENGTHS: [u32; 2] = [42, 60];
    let arp: Arp = packet.read(ETHERNET_LEN as usize)?;
    let own = site.endpoint.ipv4;
    if site.hook() == Hook::ToPod {
        let heard = arp.target == own || arp.target == arp.sender;
        return Ok(if heard { Reason::Neighbour } else { Reason::Overheard });
    }
    let mac = Mac::new(site.endpoint.mac);
    let to: Mac = packet.read(0)?;
    let formed = arp.hardware == ETHERNET
        && arp.protocol == ETHER_IPV4.to_be_bytes()
        && [arp.hardware_len, arp.protocol_len] == [6, 4]
        && (arp.operation == REQUEST || arp.operation == REPLY)
        // It is not known yet, or it is whom the frame is for; anything else would be a word to somebody.
        && (arp.target_mac == Mac::NONE || arp.target_mac == BROADCAST || arp.target_mac == to || arp.target_mac == mac);
    let padded = packet.frame_len() == LENGTHS[1]
        && packet.load::<[u64; 2]>(42)? == [0; 2]
        && packet.load::<[u8; 2]>(58)? == [0; 2];
    let probe = arp.sender == [0; 4] && arp.operation == REQUEST && arp.target == own;
    if formed
        && (packet.frame_len() == LENGTHS[0] || padded)
        && arp.sender_mac == mac
        && own != [0; 4]
        && (arp.sender == own || probe)
    {
        Ok(Reason::Neighbour)
    } else {
        Err(Reason::ArpClaim)
    }
}

/// Source and destination of an IP packet that is not neighbour discovery.
#[inline(never)]
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
            if F::is_nobodys(flow.destination) {
                return Err(Reason::NobodysAddress);
            }
        }
        Hook::ToPod | Hook::ToOverlay => {
            if F::is_multicast(flow.destination) {
                return Err(Reason::Multicast);
            }
            if flow.destination != own || own == F::UNSPECIFIED {
                // A bridge floods what it does not know the port of.
                let to: [u8; 6] = packet.read(0)?;
                let flooded = site.hook() == Hook::ToPod && to != site.endpoint.mac;
                return Err(if flooded { Reason::Overheard } else { Reason::WrongDestination });
            }
            // An answer could not be sent there.
            if F::is_multicast(flow.source) || F::is_nobodys(flow.source) {
                return Err(Reason::SourceIp);
            }
        }
    }
    Ok(())
}

/// Every fragment but the last is of whole units of 8 bytes. Headers behind the fragment header could be written over
/// by a later fragment, and with them what is judged.
#[inline(never)]
pub fn first_fragment<F: Family>(flow: &Flow<F>) -> Result<(), Reason> {
    if !(flow.end - flow.at).is_multiple_of(8) {
        return Err(Reason::InvalidHeader);
    }
    if flow.protocol == flow.fragment_protocol { Ok(()) } else { Err(Reason::ExtensionHeaders) }
}

/// Protocols that are not a pod's to speak: tunnels that a node would unwrap, and DHCP in a server's part.
#[inline(never)]
pub fn services<F: Family, T: Tables + Addresses<F>, H: At>(
    site: &Site<T, H>,
    flow: &Flow<F>,
) -> Result<(), Reason> {
    /// IP in IP, IPv6 in IP, GRE, minimal encapsulation, IPIP, Ethernet in IP, encapsulation, L2TP, MPLS in IP: nothing in
    /// them proves who sent it.
    const TUNNELS: [u8; 9] = [4, 41, 47, 55, 94, 97, 98, 115, 137];
    /// ESP and AH: these need a key. They may go to the world, where a pod may have one, and not to nodes.
    const IPSEC: [u8; 2] = [50, 51];
    let config = site.tables.config();
    let mut keyed = false;
    if flow.protocol == UDP {
        let [source, destination] = flow.ports;
        if config.lets & LET_DHCP == 0 && is_of_dhcp_server::<F>(&Ports { source, destination }) {
            return Err(Reason::DhcpServer);
        }
        if config.tunnel_port_be == [0; 2] || destination != config.tunnel_port_be {
            return Ok(());
        }
    } else {
        keyed = IPSEC.contains(&flow.protocol);
        if config.lets & LET_TUNNELS != 0 || !keyed && !TUNNELS.contains(&flow.protocol) {
            return Ok(());
        }
    }
    // A node has more addresses than anybody tells us (a broadcast address is one of them), so only a known pod's is
    // not taken for one.
    match site.peer::<F>(flow.destination) {
        Some(peer) if peer.identity >= FIRST_POD_IDENTITY => Ok(()),
        Some(peer) if keyed && peer.identity == IDENTITY_WORLD => Ok(()),
        _ => Err(Reason::Tunnel),
    }
}

/// From a server's port, or to its clients'.
#[inline(always)]
pub fn is_of_dhcp_server<F: Family>(ports: &Ports) -> bool {
    let [server, client] = F::DHCP.map(u16::to_be_bytes);
    ports.source == server || ports.destination == client
}
