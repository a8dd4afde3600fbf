//! What the policies of one namespace may cost every node: whoever may write policies in a namespace must not be able to
//! use up the agents of the whole cluster, nor their kernels' maps.
//!
//! A policy is counted as it is written, whoever it selects, so that all nodes come to the same end. Policies are admitted
//! in the order of their names, as long as there is room; one that finds none isolates its pods and admits nothing
//! (semantics 41), and says so like any other that cannot be honoured.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::Arc,
};

use super::{
    compact::Text,
    object::{IpBlock, Key, NetworkPolicy, Peer, Port, Ports, Rule, Selector},
};

/// Peers of all rules (each with the requirements of its selectors), and rules without any.
pub const MAX_PEERS: usize = 1 << 15;
/// Of each rule the peers times the ports: what there is to look at for an address that all of them match.
pub const MAX_COMBINATIONS: usize = 1 << 17;
/// Distinct ports, a range counted as the prefixes that it may take: combinations in the kernel's rule map for each kind of
/// peer that may use all of them.
pub const MAX_PORTS: usize = 1 << 12;
/// Prefixes of distinct ipBlocks, exceptions included: of 65,536 in each family's map.
pub const MAX_PREFIXES: usize = 1 << 14;
/// Of ipBlocks with exceptions: prefixes of the one times prefixes of the others. Every address must know all the blocks
/// that hold it, and blocks over the same addresses that differ in their exceptions multiply.
pub const MAX_CROSSINGS: usize = 1 << 22;
/// A range of ports is at most so many prefixes.
const RANGE: usize = 30;

/// What the namespaces' policies come to.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    /// Of all that is written.
    written: HashMap<Text, Share>,
    /// What was written of policies that found no room.
    refused: BTreeMap<Key, Arc<NetworkPolicy>>,
}

impl Shares {
    /// The policy as it was written; `None`: it is in force as it was.
    pub fn refused(&self, key: &Key) -> Option<&Arc<NetworkPolicy>> {
        self.refused.get(key)
    }

    /// Counts a policy in and another out; whether the namespace's policies have to be looked at together, because
    /// there is, or was, no room for all.
    pub fn replace(&mut self, old: Option<&NetworkPolicy>, new: Option<&NetworkPolicy>) -> bool {
        let Some(key) = new.or(old).map(|policy| policy.key.clone()) else { return false };
        let share = self.written.entry(key.namespace.clone()).or_default();
        let was_over = share.over().is_some();
        if let Some(new) = new {
            share.add(new);
        }
        if let Some(old) = old {
            share.remove(old);
        }
        let is_over = share.over().is_some();
        if share.policies == 0 {
            self.written.remove(&key.namespace);
        }
        self.refused.remove(&key);
        was_over || is_over
    }

    /// What is in force of a namespace's policies, given as they were written and in the order of their names.
    pub fn deal(&mut self, written: Vec<Arc<NetworkPolicy>>) -> Vec<Arc<NetworkPolicy>> {
        let mut share = Share::default();
        let mut deal = |policy: Arc<NetworkPolicy>| {
            share.add(&policy);
            let Some(why) = share.over() else {
                self.refused.remove(&policy.key);
                return policy;
            };
            share.remove(&policy);
            let nothing = |rules: &Option<Vec<Rule>>| rules.as_ref().map(|_| Vec::new());
            let mut in_force = NetworkPolicy {
                ingress: nothing(&policy.ingress),
                egress: nothing(&policy.egress),
                ..NetworkPolicy::clone(&policy)
            };
            in_force.defects.push(why);
            self.refused.insert(policy.key.clone(), policy);
            Arc::new(in_force)
        };
        written.into_iter().map(&mut deal).collect()
    }
}

#[derive(Clone, Debug, Default)]
struct Share {
    policies: usize,
    peers: usize,
    combinations: usize,
    /// Policies and rules that name each port, and each block.
    ports: HashMap<Port, usize>,
    port_prefixes: usize,
    blocks: HashMap<IpBlock, usize>,
    prefixes: usize,
    /// Of the blocks with exceptions: prefixes, and the sum of their squares.
    excepted: usize,
    squares: usize,
}

impl Share {
    fn add(&mut self, policy: &NetworkPolicy) {
        let cost = Cost::of(policy);
        self.policies += 1;
        self.peers += cost.peers;
        self.combinations += cost.combinations;
        for port in cost.ports {
            if one_more(&mut self.ports, port) {
                self.port_prefixes += prefixes(port);
            }
        }
        for block in cost.blocks {
            if one_more(&mut self.blocks, block) {
                self.count(block, usize::checked_add);
            }
        }
    }

    fn remove(&mut self, policy: &NetworkPolicy) {
        let cost = Cost::of(policy);
        self.policies -= 1;
        self.peers -= cost.peers;
        self.combinations -= cost.combinations;
        for port in cost.ports {
            if one_less(&mut self.ports, port) {
                self.port_prefixes -= prefixes(port);
            }
        }
        for block in cost.blocks {
            if one_less(&mut self.blocks, block) {
                self.count(block, usize::checked_sub);
            }
        }
    }

    fn count(&mut self, block: &IpBlock, by: fn(usize, usize) -> Option<usize>) {
        let prefixes = 1 + block.except.len();
        let count = |sum: &mut usize, part| *sum = by(*sum, part).expect("objects are bounded in size");
        count(&mut self.prefixes, prefixes);
        if prefixes > 1 {
            count(&mut self.excepted, prefixes);
            count(&mut self.squares, prefixes * prefixes);
        }
    }

    /// What there is too much of.
    fn over(&self) -> Option<String> {
        let crossings = self.prefixes.saturating_mul(self.excepted) - self.squares;
        let (what, limit) = [
            (self.peers, MAX_PEERS, "peers"),
            (self.combinations, MAX_COMBINATIONS, "peers times ports"),
            (self.port_prefixes, MAX_PORTS, "ports"),
            (self.prefixes, MAX_PREFIXES, "address prefixes"),
            (crossings, MAX_CROSSINGS, "addresses in several ipBlocks with exceptions"),
        ]
        .into_iter()
        .find_map(|(count, limit, what)| (count > limit).then_some((what, limit)))?;
        Some(format!(
            "no room: with it the policies of the namespace would have more than {limit} {what}; nothing that it allows \
             is in force"
        ))
    }
}

struct Cost<'p> {
    peers: usize,
    combinations: usize,
    ports: Vec<&'p Port>,
    blocks: Vec<&'p IpBlock>,
}

impl<'p> Cost<'p> {
    fn of(policy: &'p NetworkPolicy) -> Self {
        let peers = policy.subjects.requirements.len();
        let mut cost = Self { peers, combinations: 0, ports: Vec::new(), blocks: Vec::new() };
        for rule in policy.ingress.iter().chain(&policy.egress).flatten() {
            let ports: usize = rule.ports.iter().map(prefixes).sum();
            cost.combinations += rule.peers.len().max(1) * ports.max(1);
            cost.ports.extend(&rule.ports);
            cost.peers += rule.peers.iter().map(requirements).sum::<usize>().max(1);
            cost.blocks.extend(rule.peers.iter().filter_map(|peer| match peer {
                Peer::Block(block) => Some(block),
                Peer::Pods { .. } => None,
            }));
        }
        cost
    }
}

/// Whether it is the first.
fn one_more<T: Clone + Eq + Hash>(counts: &mut HashMap<T, usize>, item: &T) -> bool {
    if let Some(count) = counts.get_mut(item) {
        *count += 1;
        return false;
    }
    counts.insert(item.clone(), 1);
    true
}

/// Whether it was the last.
fn one_less<T: Eq + Hash>(counts: &mut HashMap<T, usize>, item: &T) -> bool {
    let count = counts.get_mut(item).expect("what is removed was added");
    *count -= 1;
    let was_last = *count == 0;
    if was_last {
        counts.remove(item);
    }
    was_last
}

/// At most, of one port or range.
fn prefixes(port: &Port) -> usize {
    match port.ports {
        Ports::Range(first, last) if first != last => RANGE,
        _ => 1,
    }
}

fn requirements(peer: &Peer) -> usize {
    let of = |selector: &Selector| selector.requirements.len();
    match peer {
        Peer::Pods { namespaces, pods } => (namespaces.as_ref().map_or(0, of) + of(pods)).max(1),
        Peer::Block(_) => 1,
    }
}

#[cfg(test)]
mod tests;
