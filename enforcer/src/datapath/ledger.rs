//! Writes in the making, and what the maps will hold after them.

use std::collections::BTreeMap;

use bulkhead_ebpf::abi::{Endpoint, Peer};
use ipnetwork::IpNetwork;

use super::{
    image::{Image, Op, Rule, ServiceAddress},
    overlay::Overlay,
    sizes::Sizes,
};
use crate::cluster::Addresses;

/// Reads as if the writes so far had been carried out.
pub(super) struct Ledger<'a> {
    pub peers: Overlay<'a, Addresses<Peer>>,
    pub prefixes: Overlay<'a, BTreeMap<IpNetwork, Peer>>,
    pub services: Overlay<'a, BTreeMap<ServiceAddress, u32>>,
    pub rules: Overlay<'a, BTreeMap<Rule, u32>>,
    /// Few: copied.
    pub endpoints: BTreeMap<u32, Endpoint>,
    pub ops: Vec<Op>,
    sizes: Sizes,
    /// The most that each map holds on the way.
    pub needed: Sizes,
}

impl<'a> Ledger<'a> {
    /// `sizes`: the image's.
    pub fn on(image: &'a Image, sizes: Sizes) -> Self {
        Self {
            peers: Overlay::on(&image.peers),
            prefixes: Overlay::on(&image.prefixes),
            services: Overlay::on(&image.services),
            rules: Overlay::on(&image.rules),
            endpoints: image.endpoints.clone(),
            ops: Vec::new(),
            sizes,
            needed: sizes,
        }
    }

    /// Frontends of a family that can still be entered.
    pub fn room_for_services(&self, capacity: Sizes, ipv4: bool) -> usize {
        let (held, capacity) = if ipv4 {
            (self.sizes.services_v4, capacity.services_v4)
        } else {
            (self.sizes.services_v6, capacity.services_v6)
        };
        capacity.saturating_sub(held)
    }

    pub fn push(&mut self, op: Op) {
        let (was_there, is_there) = match op {
            Op::SetRule(rule, grant) => (self.rules.edit(rule, Some(grant)), true),
            Op::RemoveRule(rule) => (self.rules.edit(rule, None), false),
            Op::SetPeer(address, peer) => (self.peers.edit(address, Some(peer)), true),
            Op::RemovePeer(address) => (self.peers.edit(address, None), false),
            Op::SetPrefix(prefix, peer) => (self.prefixes.edit(prefix, Some(peer)), true),
            Op::RemovePrefix(prefix) => (self.prefixes.edit(prefix, None), false),
            Op::SetService(service, identity) => (self.services.edit(service, Some(identity)), true),
            Op::RemoveService(service) => (self.services.edit(service, None), false),
            Op::SetEndpoint(endpoint) => (self.endpoints.insert(endpoint.ifindex, endpoint).is_some(), true),
            Op::RemoveEndpoint(ifindex) => (self.endpoints.remove(&ifindex).is_some(), false),
        };
        if let (Some(size), Some(needed)) = (self.sizes.of_op(&op), self.needed.of_op(&op)) {
            *size = *size + usize::from(is_there) - usize::from(was_there);
            *needed = (*needed).max(*size);
        }
        self.ops.push(op);
    }
}
