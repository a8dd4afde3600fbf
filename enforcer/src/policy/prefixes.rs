//! The prefixes that ipBlocks and pod networks tell apart.
//!
//! An address belongs to a block exactly if the longest prefix that holds it does: no finer prefix of that
//! block (or exception) holds the address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::cluster::object::IpBlock;

/// Why each prefix is one; edited block by block. Always holds `0.0.0.0/0` and `::/0`.
#[derive(Debug)]
pub(super) struct Prefixes {
    places: BTreeMap<IpNetwork, Place>,
    /// Prefixes of each length in use.
    v4: BTreeMap<u8, usize>,
    v6: BTreeMap<u8, usize>,
}

#[derive(Debug, Default)]
struct Place {
    everything: bool,
    pod_network: bool,
    blocks: BTreeSet<IpBlock>,
    /// Blocks that have this prefix as an exception.
    exceptions: usize,
}

/// What holds for the addresses of which a prefix is the longest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PrefixClass {
    pub blocks: BTreeSet<IpBlock>,
    pub pod_network: bool,
}

impl Default for Prefixes {
    fn default() -> Self {
        let mut prefixes = Self { places: BTreeMap::new(), v4: BTreeMap::new(), v6: BTreeMap::new() };
        for network in everything() {
            prefixes.edit(network, |place| place.everything = true);
        }
        prefixes
    }
}

impl Prefixes {
    pub fn new<'b>(
        blocks: impl IntoIterator<Item = &'b IpBlock>,
        networks: impl IntoIterator<Item = IpNetwork>,
    ) -> Self {
        let mut prefixes = Self::default();
        blocks.into_iter().for_each(|block| prefixes.add(block));
        networks.into_iter().for_each(|network| prefixes.set_pod_network(network, true));
        prefixes
    }

    pub fn add(&mut self, block: &IpBlock) {
        self.edit(block.cidr, |place| _ = place.blocks.insert(block.clone()));
        for except in &block.except {
            self.edit(*except, |place| place.exceptions += 1);
        }
    }

    /// Undoes one [`Prefixes::add`].
    pub fn remove(&mut self, block: &IpBlock) {
        self.edit(block.cidr, |place| _ = place.blocks.remove(block));
        for except in &block.except {
            self.edit(*except, |place| place.exceptions -= 1);
        }
    }

    pub fn set_pod_network(&mut self, network: IpNetwork, is_one: bool) {
        self.edit(masked(network), |place| place.pod_network = is_one);
    }

    fn edit(&mut self, prefix: IpNetwork, edit: impl FnOnce(&mut Place)) {
        let lengths = if prefix.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let place = self.places.entry(prefix).or_insert_with(|| {
            *lengths.entry(prefix.prefix()).or_default() += 1;
            Place::default()
        });
        edit(place);
        if place.is_empty() {
            self.places.remove(&prefix);
            let count = lengths.get_mut(&prefix.prefix()).expect("counted when it came");
            *count -= 1;
            if *count == 0 {
                lengths.remove(&prefix.prefix());
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = IpNetwork> {
        self.places.keys().copied()
    }

    /// Prefixes inside `network`, itself included.
    pub fn within(&self, network: IpNetwork) -> impl Iterator<Item = IpNetwork> {
        let (first, last) = bounds(network);
        let last = IpNetwork::new(last, full_length(last)).expect("a full length");
        let first = IpNetwork::new(first, network.prefix()).expect("its own length");
        let inside = move |prefix: &IpNetwork| prefix.prefix() >= network.prefix();
        self.places.range(first..=last).map(|(prefix, _)| *prefix).filter(inside)
    }

    /// Prefixes that hold `address`, of lengths up to `longest`, longest first.
    fn covering(&self, address: IpAddr, longest: u8) -> impl Iterator<Item = (IpNetwork, &Place)> {
        let lengths = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        lengths.range(..=longest).rev().filter_map(move |(length, _)| {
            let prefix = truncated(address, *length);
            self.places.get(&prefix).map(|place| (prefix, place))
        })
    }

    /// The longest prefix that holds the address.
    pub fn around(&self, address: IpAddr) -> Option<IpNetwork> {
        self.covering(address, full_length(address)).next().map(|(prefix, _)| prefix)
    }

    /// `None`: nothing needs this prefix.
    pub fn class(&self, prefix: IpNetwork) -> Option<PrefixClass> {
        self.places.get(&prefix)?;
        let covering: Vec<_> = self.covering(prefix.ip(), prefix.prefix()).collect();
        let is_out = |block: &IpBlock| covering.iter().any(|(net, _)| block.except.contains(net));
        let candidates = covering.iter().flat_map(|(_, place)| &place.blocks);
        Some(PrefixClass {
            blocks: candidates.filter(|block| !is_out(block)).cloned().collect(),
            pod_network: covering.iter().any(|(_, place)| place.pod_network),
        })
    }
}

impl Place {
    fn is_empty(&self) -> bool {
        !self.everything && !self.pod_network && self.blocks.is_empty() && self.exceptions == 0
    }
}

/// First and last address.
pub(super) fn bounds(network: IpNetwork) -> (IpAddr, IpAddr) {
    (network.network(), network.broadcast())
}

pub(super) fn full_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The network of `length` bits around `address`.
pub(super) fn truncated(address: IpAddr, length: u8) -> IpNetwork {
    let network = IpNetwork::new(address, length).expect("the length is one of this family's");
    masked(network)
}

pub(super) fn masked(network: IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).expect("the length comes from a network")
}

fn everything() -> [IpNetwork; 2] {
    let v4 = Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).expect("length 0");
    let v6 = Ipv6Network::new(Ipv6Addr::UNSPECIFIED, 0).expect("length 0");
    [v4.into(), v6.into()]
}
