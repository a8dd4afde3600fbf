//! What the kernel's policy maps hold, as plain data, and the operations that change it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_ebpf::abi::{Endpoint, ORIGINS, Peer, RuleKey};
use ipnetwork::IpNetwork;

use crate::cluster::Frontend;

/// Key of the rule trie with its prefix length in bits (72, 80 to 96).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub key: RuleKey,
    pub bits: u32,
}

/// Where a Service is reached: address, port, and protocol by its IANA number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceAddress {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: u8,
}

impl From<&Frontend> for ServiceAddress {
    fn from(frontend: &Frontend) -> Self {
        let Frontend { address, protocol, port } = *frontend;
        Self { address, port, protocol: protocol.number() }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub peers: BTreeMap<IpAddr, Peer>,
    pub prefixes: BTreeMap<IpNetwork, Peer>,
    /// To the identity number that stands for the backends.
    pub services: BTreeMap<ServiceAddress, u32>,
    pub rules: BTreeMap<Rule, u32>,
    /// By host-side interface index.
    pub endpoints: BTreeMap<u32, Endpoint>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    SetRule(Rule, u32),
    RemoveRule(Rule),
    SetPeer(IpAddr, Peer),
    RemovePeer(IpAddr),
    SetPrefix(IpNetwork, Peer),
    RemovePrefix(IpNetwork),
    SetService(ServiceAddress, u32),
    RemoveService(ServiceAddress),
    SetEndpoint(Endpoint),
    RemoveEndpoint(u32),
}

impl Image {
    /// Does to this image what the kernel does to its maps.
    pub fn apply(&mut self, op: Op) {
        match op {
            Op::SetRule(rule, grant) => drop(self.rules.insert(rule, grant)),
            Op::RemoveRule(rule) => drop(self.rules.remove(&rule)),
            Op::SetPeer(address, peer) => drop(self.peers.insert(address, peer)),
            Op::RemovePeer(address) => drop(self.peers.remove(&address)),
            Op::SetPrefix(prefix, peer) => drop(self.prefixes.insert(prefix, peer)),
            Op::RemovePrefix(prefix) => drop(self.prefixes.remove(&prefix)),
            Op::SetService(address, identity) => drop(self.services.insert(address, identity)),
            Op::RemoveService(address) => drop(self.services.remove(&address)),
            Op::SetEndpoint(endpoint) => drop(self.endpoints.insert(endpoint.ifindex, endpoint)),
            Op::RemoveEndpoint(ifindex) => drop(self.endpoints.remove(&ifindex)),
        }
    }

    /// Rules of `desired` that are not there yet. Nothing is removed: a rule is a fact about a rule set and
    /// an identity, true for as long as both exist, so removal is tidying.
    pub fn missing_rules(&self, desired: &BTreeMap<Rule, u32>) -> Vec<Op> {
        let missing = desired.iter().filter(|(rule, grant)| self.rules.get(rule) != Some(grant));
        missing.map(|(rule, grant)| Op::SetRule(*rule, *grant)).collect()
    }

    /// New and changed addresses first, then those that are gone; a more specific prefix before a wider one
    /// changes, so that no address falls through to a prefix that does not speak for it.
    pub fn moved_addresses(
        &self,
        peers: &BTreeMap<IpAddr, Peer>,
        prefixes: &BTreeMap<IpNetwork, Peer>,
    ) -> Vec<Op> {
        let set_peers = peers
            .iter()
            .filter(|(address, peer)| self.peers.get(address) != Some(peer))
            .map(|(address, peer)| Op::SetPeer(*address, *peer));
        let mut set_prefixes: Vec<_> =
            prefixes.iter().filter(|(prefix, peer)| self.prefixes.get(prefix) != Some(peer)).collect();
        set_prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix()));
        let set_prefixes = set_prefixes.into_iter().map(|(prefix, peer)| Op::SetPrefix(*prefix, *peer));
        let gone_peers = self.peers.keys().filter(|a| !peers.contains_key(a)).map(|a| Op::RemovePeer(*a));
        let gone_prefixes =
            self.prefixes.keys().filter(|p| !prefixes.contains_key(p)).map(|p| Op::RemovePrefix(*p));
        set_prefixes.chain(set_peers).chain(gone_peers).chain(gone_prefixes).collect()
    }

    /// A frontend that is gone becomes an address like any other.
    pub fn moved_services(&self, services: &BTreeMap<ServiceAddress, u32>) -> Vec<Op> {
        let set = services.iter().filter(|(address, identity)| self.services.get(address) != Some(identity));
        let set = set.map(|(address, identity)| Op::SetService(*address, *identity));
        let gone = self.services.keys().filter(|address| !services.contains_key(address));
        set.chain(gone.map(|address| Op::RemoveService(*address))).collect()
    }

    /// The lowest number under which no endpoint's packets are marked; `None`: all are taken.
    pub fn free_mark(&self) -> Option<u16> {
        let taken: BTreeSet<u32> = self.endpoints.values().map(|endpoint| endpoint.mark.into()).collect();
        let free = (1..ORIGINS).find(|mark| !taken.contains(mark))?;
        u16::try_from(free).ok()
    }
}
