//! What the kernel's policy maps hold, as plain data, and the operations that change it.

use std::{collections::BTreeMap, net::IpAddr};

use bulkhead_ebpf::abi::{Endpoint, Peer, RuleKey};
use ipnetwork::IpNetwork;

use crate::cluster::{Addresses, Frontend};

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
    pub peers: Addresses<Peer>,
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

    /// What the kernel holds for one rule set.
    pub fn rules_of(&self, rule_set: u32) -> impl Iterator<Item = &Rule> {
        let first = Rule { key: RuleKey { rule_set, ..RuleKey::default() }, bits: 0 };
        self.rules.range(first..).map(|(rule, _)| rule).take_while(move |rule| rule.key.rule_set == rule_set)
    }

    /// And in it, for one peer.
    pub fn rules_between(&self, rule_set: u32, peer: u32) -> impl Iterator<Item = &Rule> {
        let first = Rule { key: RuleKey { rule_set, peer, ..RuleKey::default() }, bits: 0 };
        let same = move |rule: &&Rule| (rule.key.rule_set, rule.key.peer) == (rule_set, peer);
        self.rules.range(first..).map(|(rule, _)| rule).take_while(same)
    }

    /// Rule sets that have a rule; costs their number, not that of the rules.
    pub fn rule_sets(&self) -> impl Iterator<Item = u32> {
        let next = |from: u32| {
            let first = Rule { key: RuleKey { rule_set: from, ..RuleKey::default() }, bits: 0 };
            self.rules.range(first..).next().map(|(rule, _)| rule.key.rule_set)
        };
        std::iter::successors(next(0), move |last| next(last.checked_add(1)?))
    }
}
