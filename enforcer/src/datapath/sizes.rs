//! How full the policy maps are, and how full they can be: a plan that does not fit is not begun.

use std::net::IpAddr;

use bulkhead_ebpf::abi::names;
use serde::Serialize;

use super::{
    DatapathError,
    image::{Image, Op},
};

/// Entries of each policy map that can fill up: what it holds, what a plan needs at most, or its capacity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sizes {
    pub peers_v4: usize,
    pub peers_v6: usize,
    pub prefixes_v4: usize,
    pub prefixes_v6: usize,
    pub services_v4: usize,
    pub services_v6: usize,
    pub rules: usize,
}

impl Sizes {
    /// Room for everything: for kernels that are none.
    pub const UNLIMITED: Self = Self {
        peers_v4: usize::MAX,
        peers_v6: usize::MAX,
        prefixes_v4: usize::MAX,
        prefixes_v6: usize::MAX,
        services_v4: usize::MAX,
        services_v6: usize::MAX,
        rules: usize::MAX,
    };

    pub fn of(image: &Image) -> Self {
        let v4_peers = image.peers.len_v4();
        let v4_prefixes = image.prefixes.keys().filter(|prefix| prefix.is_ipv4()).count();
        let v4_services = image.services.keys().filter(|service| service.address.is_ipv4()).count();
        Self {
            peers_v4: v4_peers,
            peers_v6: image.peers.len() - v4_peers,
            prefixes_v4: v4_prefixes,
            prefixes_v6: image.prefixes.len() - v4_prefixes,
            services_v4: v4_services,
            services_v6: image.services.len() - v4_services,
            rules: image.rules.len(),
        }
    }

    /// By the maps' names.
    pub fn by_map(&self) -> [(&'static str, usize); 7] {
        [
            (names::PEERS_V4, self.peers_v4),
            (names::PEERS_V6, self.peers_v6),
            (names::PREFIXES_V4, self.prefixes_v4),
            (names::PREFIXES_V6, self.prefixes_v6),
            (names::SERVICES_V4, self.services_v4),
            (names::SERVICES_V6, self.services_v6),
            (names::RULES, self.rules),
        ]
    }

    /// The count of the map that the write goes to; `None`: its map cannot fill up by policy.
    pub(super) fn of_op(&mut self, op: &Op) -> Option<&mut usize> {
        match op {
            Op::SetRule(..) | Op::RemoveRule(_) => Some(&mut self.rules),
            Op::SetPeer(IpAddr::V4(_), _) | Op::RemovePeer(IpAddr::V4(_)) => Some(&mut self.peers_v4),
            Op::SetPeer(..) | Op::RemovePeer(_) => Some(&mut self.peers_v6),
            Op::SetPrefix(prefix, _) | Op::RemovePrefix(prefix) if prefix.is_ipv4() => {
                Some(&mut self.prefixes_v4)
            }
            Op::SetPrefix(..) | Op::RemovePrefix(_) => Some(&mut self.prefixes_v6),
            Op::SetService(service, _) | Op::RemoveService(service) if service.address.is_ipv4() => {
                Some(&mut self.services_v4)
            }
            Op::SetService(..) | Op::RemoveService(_) => Some(&mut self.services_v6),
            Op::SetEndpoint(_) | Op::RemoveEndpoint(_) => None,
        }
    }

    /// To be called before `image` takes the write.
    pub(super) fn note(&mut self, op: &Op, image: &Image) {
        let (was_there, is_there) = match op {
            Op::SetRule(rule, _) => (image.rules.contains_key(rule), true),
            Op::RemoveRule(rule) => (image.rules.contains_key(rule), false),
            Op::SetPeer(address, _) => (image.peers.contains_key(address), true),
            Op::RemovePeer(address) => (image.peers.contains_key(address), false),
            Op::SetPrefix(prefix, _) => (image.prefixes.contains_key(prefix), true),
            Op::RemovePrefix(prefix) => (image.prefixes.contains_key(prefix), false),
            Op::SetService(service, _) => (image.services.contains_key(service), true),
            Op::RemoveService(service) => (image.services.contains_key(service), false),
            Op::SetEndpoint(_) | Op::RemoveEndpoint(_) => return,
        };
        if let Some(size) = self.of_op(op) {
            *size = *size + usize::from(is_there) - usize::from(was_there);
        }
    }

    /// An error that names the first map that is too small for `self`.
    pub(super) fn fit(&self, capacity: &Self) -> Result<(), DatapathError> {
        for ((map, needed), (_, capacity)) in self.by_map().into_iter().zip(capacity.by_map()) {
            if needed > capacity {
                return Err(DatapathError::Full { map, needed, capacity });
            }
        }
        Ok(())
    }
}
