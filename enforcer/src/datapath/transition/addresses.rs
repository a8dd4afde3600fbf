//! What addresses and Services have to be, and in which order they become it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_ebpf::abi::Peer;
use ipnetwork::IpNetwork;

use super::{Changed, Draft, Local, services::Services};
use crate::{
    datapath::{image::Op, views},
    policy::model::{Compiled, Identity, PeerInfo},
};

impl Draft<'_> {
    /// Where the changed addresses and Services have to go.
    pub(super) fn addresses(
        &mut self,
        compiled: &Compiled,
        changed: Changed<'_>,
        locals: &BTreeMap<u32, Local>,
    ) -> Addresses {
        let here = Interfaces::of(locals);
        let mut peers: BTreeSet<IpAddr>;
        let prefixes: Vec<IpNetwork>;
        match changed {
            Changed::Only(delta) => {
                peers = delta.peers.iter().copied().collect();
                prefixes = delta.prefixes.iter().copied().collect();
            }
            Changed::Everything => {
                peers = compiled.peers.keys().chain(self.ledger.peers.keys()).collect();
                let gone =
                    self.ledger.prefixes.keys().filter(|prefix| !compiled.prefixes.contains_key(prefix));
                prefixes = compiled.prefixes.keys().copied().chain(gone).collect();
            }
        }
        // An interface may have come or gone, or what holds for its address may be its prefix' business.
        peers.extend(here.0.keys());
        peers.extend(self.placed.values().flat_map(|local| &local.addresses));
        let peers = peers.into_iter().map(|address| (address, self.desired_peer(compiled, &here, address)));
        let peers = peers.collect();
        let prefixes = prefixes.into_iter().map(|prefix| {
            let desired = compiled.prefixes.get(&prefix).map(|info| self.peer(info));
            (prefix, desired)
        });
        let prefixes = prefixes.collect();
        Addresses { peers, prefixes, services: self.services(compiled, changed) }
    }

    /// Of the addresses of this node's pods it also says on which interface they are: there the egress of what
    /// comes translated is looked up. Also for a pod that has left the index but not the node.
    fn desired_peer(&mut self, compiled: &Compiled, here: &Interfaces, address: IpAddr) -> Option<Peer> {
        if let Some(ifindex) = here.0.get(&address)
            && let Some(info) = compiled.peer(address).filter(|info| *info.identity != Identity::Host)
        {
            return Some(Peer { ifindex: *ifindex, ..self.peer(info) });
        }
        compiled.peers.get(&address).map(|info| self.peer(info))
    }

    /// New and changed addresses first, then those that are gone; a more specific prefix before a wider one
    /// changes, so that no address falls through to a prefix that does not speak for it.
    pub(super) fn move_addresses(&mut self, mut addresses: Addresses) -> Moved {
        addresses.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix()));
        let before = self.ledger.ops.len();
        let view = self.next_view(&addresses);
        let mut settled = Vec::new();
        for (prefix, desired) in &addresses.prefixes {
            let held = self.ledger.prefixes.get(prefix);
            if let Some(peer) = desired.filter(|peer| held != Some(peer)) {
                let on_the_way = views::on_the_way(held, peer, view);
                self.ledger.push(Op::SetPrefix(*prefix, on_the_way));
                settled.extend((on_the_way != peer).then_some(Op::SetPrefix(*prefix, peer)));
            }
        }
        for (address, desired) in &addresses.peers {
            let held = self.ledger.peers.get(address);
            if let Some(peer) = desired.filter(|peer| held != Some(peer)) {
                let on_the_way = views::on_the_way(held, peer, view);
                self.ledger.push(Op::SetPeer(*address, on_the_way));
                settled.extend((on_the_way != peer).then_some(Op::SetPeer(*address, peer)));
            }
        }
        for (address, desired) in addresses.peers {
            if desired.is_none() && self.ledger.peers.get(&address).is_some() {
                self.ledger.push(Op::RemovePeer(address));
            }
        }
        for (prefix, desired) in addresses.prefixes {
            if desired.is_none() && self.ledger.prefixes.get(&prefix).is_some() {
                self.ledger.push(Op::RemovePrefix(prefix));
            }
        }
        self.move_services(addresses.services);
        Moved { any: self.ledger.ops.len() > before, view, settled }
    }

    fn next_view(&self, addresses: &Addresses) -> u32 {
        let peers = addresses.peers.iter();
        let peers =
            peers.filter_map(|(address, desired)| self.ledger.peers.get(address).zip(desired.as_ref()));
        let prefixes = addresses.prefixes.iter();
        let prefixes =
            prefixes.filter_map(|(prefix, desired)| self.ledger.prefixes.get(prefix).zip(desired.as_ref()));
        views::next(self.ledger.endpoints.values().map(|endpoint| endpoint.tenant), peers.chain(prefixes))
    }

    fn peer(&mut self, info: &PeerInfo) -> Peer {
        Peer {
            identity: self.identity(&info.identity),
            blocks: self.blocks(&info.blocks),
            tenants: [self.numbers.tenant(&info.tenant); 2],
            ifindex: 0,
        }
    }
}

/// Changed addresses and what they have to be; `None`: nothing of their own.
pub(super) struct Addresses {
    peers: Vec<(IpAddr, Option<Peer>)>,
    prefixes: Vec<(IpNetwork, Option<Peer>)>,
    services: Services,
}

/// What has become of addresses.
pub(super) struct Moved {
    /// An address has changed its meaning or its number.
    pub any: bool,
    /// In which endpoints see what tenants are now.
    pub view: u32,
    /// To be written when all endpoints have come to it.
    pub settled: Vec<Op>,
}

/// On which interface an address of this node's pods is.
struct Interfaces(BTreeMap<IpAddr, u32>);

impl Interfaces {
    /// An address that was given anew is the younger pod's.
    fn of(locals: &BTreeMap<u32, Local>) -> Self {
        let mut by_age: Vec<_> = locals.values().filter(|local| !local.silent).collect();
        by_age.sort_by_key(|local| local.id);
        let all = by_age.into_iter().flat_map(|local| local.addresses.iter().map(|a| (*a, local.ifindex)));
        Self(all.collect())
    }
}
