//! The way from what the kernel holds to what it must hold, as a list of writes of which every prefix is safe.
//!
//! ```text
//! scope = old ∪ new:  rules of old and new rule sets ─▶ addresses ─▶ endpoints (rule set, then generation)
//! scope = new:        rules of the rule sets in force ─▶ addresses
//! ```
//! A rule is written before any address or endpoint can lead to it, and an address means the same to the
//! rule set in force before and after it moves: the scope that both rule sets share sees to that. So a packet
//! is judged by the whole old policy or by the whole new one, and if a write fails the plan stops there: every
//! endpoint keeps its last complete rule set (semantics 42).
//!
//! Planning costs what changed: what is new among identities and block sets is a range of numbers, what is new
//! among addresses and endpoints the compiler tells. Only the first plan, and one after a write that failed,
//! looks at everything.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_ebpf::abi::{self, Endpoint, Peer, PolicyWord, RuleKey};
use ipnetwork::IpNetwork;

use super::{
    image::{Image, Op, Rule},
    numbers::{Mark, Numbers},
    overlay::Overlay,
    sizes::Sizes,
};
use crate::{
    cluster::object::Key,
    policy::{
        Delta,
        model::{
            BlockSet, Compiled, Direction, EntryKey, Identity, PeerInfo, PortMatch, RulePeer, RuleSet, Scope,
            Tenancy,
        },
    },
};

/// An interface to be enforced: what is known of a pod besides its policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    pub id: u32,
    pub ifindex: u32,
    /// `None`: only its record is known, which then stays as it is (its state file was lost).
    pub pod: Option<Key>,
    pub mac: [u8; 6],
    /// At most one per family.
    pub addresses: BTreeSet<IpAddr>,
    /// The pod ran before bulkhead did.
    pub adopted: bool,
}

/// Writes to carry out in order, and what holds when all of them have succeeded.
#[derive(Debug)]
pub struct Plan {
    pub ops: Vec<Op>,
    /// Addresses that will be something else; `None`: nothing of their own.
    pub peers: BTreeMap<IpAddr, Option<Peer>>,
    /// All records, by interface index.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// The most that each map has to hold on the way.
    pub(super) needed: Sizes,
    pub(super) expanded: Expanded,
    pub(super) locals: BTreeMap<u32, Local>,
    /// Nothing is projected onto these any more.
    pub(super) left: Scope,
}

/// Which rules are in the kernel: of each rule set, those for the identities and block sets below a mark.
/// What a rule set admits from a peer never changes, so only new pairs need looking at, however many rules
/// there are.
pub(super) type Expanded = BTreeMap<u32, Mark>;

/// What may differ from what the kernel holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Changed<'d> {
    Everything,
    Only(&'d Delta),
}

/// What the kernel holds, as planning needs to know it.
#[derive(Clone, Copy)]
pub(super) struct Held<'a> {
    pub image: &'a Image,
    pub sizes: Sizes,
    pub expanded: &'a Expanded,
    pub locals: &'a BTreeMap<u32, Local>,
}

/// A plan in the making.
pub(super) struct Draft<'a> {
    numbers: &'a mut Numbers,
    /// Endpoints as last brought to the kernel.
    placed: &'a BTreeMap<u32, Local>,
    peers: Overlay<'a, IpAddr, Peer>,
    prefixes: Overlay<'a, IpNetwork, Peer>,
    rules: Overlay<'a, Rule, u32>,
    endpoints: BTreeMap<u32, Endpoint>,
    known: &'a Expanded,
    expanded: Expanded,
    ops: Vec<Op>,
    sizes: Sizes,
    needed: Sizes,
    /// Numbers of what one step has met, by address of the shared value.
    met: HashMap<usize, u32>,
}

impl<'a> Draft<'a> {
    pub fn new(numbers: &'a mut Numbers, held: Held<'a>) -> Self {
        Self {
            numbers,
            placed: held.locals,
            peers: Overlay::on(&held.image.peers),
            prefixes: Overlay::on(&held.image.prefixes),
            rules: Overlay::on(&held.image.rules),
            endpoints: held.image.endpoints.clone(),
            known: held.expanded,
            expanded: Expanded::new(),
            ops: Vec::new(),
            sizes: held.sizes,
            needed: held.sizes,
            met: HashMap::new(),
        }
    }

    /// From the policies in force to others, in a scope that both understand.
    pub fn change(&mut self, compiled: &Compiled, changed: Changed<'_>, locals: &BTreeMap<u32, Local>) {
        let moved = self.follow(compiled, changed, locals);
        self.switch_endpoints(compiled, changed, locals, moved);
    }

    /// To another scope under the same policies: numbers change, and no verdict.
    pub fn rescope(&mut self, compiled: &Compiled, changed: Changed<'_>, locals: &BTreeMap<u32, Local>) {
        self.follow(compiled, changed, locals);
        self.switch_endpoints(compiled, changed, locals, false);
    }

    pub fn finish(self, locals: &BTreeMap<u32, Local>, left: Scope) -> Plan {
        Plan {
            ops: self.ops,
            peers: self.peers.into_edits(),
            endpoints: self.endpoints,
            needed: self.needed,
            expanded: self.expanded,
            locals: locals.clone(),
            left,
        }
    }

    fn push(&mut self, op: Op) {
        let (was_there, is_there) = match op {
            Op::SetRule(rule, grant) => (self.rules.edit(rule, Some(grant)), true),
            Op::RemoveRule(rule) => (self.rules.edit(rule, None), false),
            Op::SetPeer(address, peer) => (self.peers.edit(address, Some(peer)), true),
            Op::RemovePeer(address) => (self.peers.edit(address, None), false),
            Op::SetPrefix(prefix, peer) => (self.prefixes.edit(prefix, Some(peer)), true),
            Op::RemovePrefix(prefix) => (self.prefixes.edit(prefix, None), false),
            Op::SetEndpoint(endpoint) => (self.endpoints.insert(endpoint.ifindex, endpoint).is_some(), true),
            Op::RemoveEndpoint(ifindex) => (self.endpoints.remove(&ifindex).is_some(), false),
        };
        if let (Some(size), Some(needed)) = (self.sizes.of_op(&op), self.needed.of_op(&op)) {
            *size = *size + usize::from(is_there) - usize::from(was_there);
            *needed = (*needed).max(*size);
        }
        self.ops.push(op);
    }

    /// Rules, then addresses; whether any address changed its meaning or its number.
    fn follow(&mut self, compiled: &Compiled, changed: Changed<'_>, locals: &BTreeMap<u32, Local>) -> bool {
        self.met.clear();
        let addresses = self.addresses(compiled, changed);
        let mut rule_sets: BTreeSet<u32> =
            self.endpoints.values().map(|endpoint| endpoint.policy.rule_set()).collect();
        for local in locals.values() {
            let Some(policy) = local.pod.as_ref().and_then(|pod| compiled.endpoints.get(pod)) else {
                continue;
            };
            if self.is_as_placed(local, changed).is_none() {
                rule_sets.insert(self.numbers.rule_sets.number(&policy.rules));
                self.identity(&policy.identity);
            }
        }
        rule_sets.into_iter().for_each(|rule_set| self.write_rules(rule_set));
        self.move_addresses(addresses)
    }

    /// Where the changed addresses have to go.
    fn addresses(&mut self, compiled: &Compiled, changed: Changed<'_>) -> Addresses {
        let mut addresses = Addresses::default();
        let (peers, prefixes): (Vec<IpAddr>, Vec<IpNetwork>) = match changed {
            Changed::Only(delta) => {
                (delta.peers.iter().copied().collect(), delta.prefixes.iter().copied().collect())
            }
            Changed::Everything => {
                let gone_peers = self.peers.base_keys().filter(|a| !compiled.peers.contains_key(a));
                let gone_prefixes = self.prefixes.base_keys().filter(|p| !compiled.prefixes.contains_key(p));
                (
                    compiled.peers.keys().chain(gone_peers).copied().collect(),
                    compiled.prefixes.keys().chain(gone_prefixes).copied().collect(),
                )
            }
        };
        for address in peers {
            let desired = compiled.peers.get(&address).map(|info| self.peer(info));
            addresses.peers.push((address, desired));
        }
        for prefix in prefixes {
            let desired = compiled.prefixes.get(&prefix).map(|info| self.peer(info));
            addresses.prefixes.push((prefix, desired));
        }
        addresses
    }

    fn write_rules(&mut self, number: u32) {
        // A number without a meaning is a rule set of a lost state file: it stays as it is until replaced.
        let Some(rule_set) = self.numbers.rule_sets.value(number).map(Arc::clone) else { return };
        let now = self.numbers.mark();
        let known = self.expanded.get(&number).or_else(|| self.known.get(&number)).copied();
        if known.is_some_and(|known| (known.identities, known.block_sets) == (now.identities, now.block_sets))
        {
            return;
        }
        for (rule, grant) in self.rules_of(number, &rule_set, known.unwrap_or_default()) {
            if self.rules.get(&rule) != Some(&grant) {
                self.push(Op::SetRule(rule, grant));
            }
        }
        self.expanded.insert(number, now);
    }

    /// For every peer since the mark. Nothing is ever removed: a rule is a fact about a rule set and a peer,
    /// true for as long as both exist, so removal is tidying.
    fn rules_of(&mut self, number: u32, rule_set: &RuleSet, since: Mark) -> Vec<(Rule, u32)> {
        let identities = self.numbers.identities.since(since.identities).map(|(_, identity)| identity);
        let block_sets = self.numbers.block_sets.since(since.block_sets).map(|(_, blocks)| blocks);
        let entries = rule_set.entries(identities, block_sets);
        let numbered = entries.into_iter().map(|(entry, grant)| {
            let rule = self.rule(number, &entry);
            (rule, self.numbers.grants.number_of(grant))
        });
        numbered.collect()
    }

    fn rule(&mut self, rule_set: u32, entry: &EntryKey) -> Rule {
        let peer = match &entry.peer {
            RulePeer::Any => abi::PEER_ANY,
            RulePeer::Identity(identity) => self.numbers.identity(identity),
            RulePeer::Blocks(blocks) => self.numbers.blocks(blocks),
        };
        let direction = match entry.direction {
            Direction::Ingress => abi::INGRESS,
            Direction::Egress => abi::EGRESS,
        } + if entry.door { abi::DOOR } else { 0 };
        let (protocol, port, bits) = match entry.ports {
            PortMatch::All => (0, 0, abi::RULE_BITS_ALL),
            PortMatch::Protocol(protocol) => (protocol, 0, abi::RULE_BITS_PROTOCOL),
            PortMatch::Prefix { protocol, port, bits } => {
                (protocol, port, abi::RULE_BITS_PROTOCOL + u32::from(bits))
            }
        };
        Rule { key: RuleKey { rule_set, peer, direction, protocol, port_be: port.to_be_bytes() }, bits }
    }

    /// New and changed addresses first, then those that are gone; a more specific prefix before a wider one
    /// changes, so that no address falls through to a prefix that does not speak for it.
    fn move_addresses(&mut self, mut addresses: Addresses) -> bool {
        addresses.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix()));
        let before = self.ops.len();
        for (prefix, desired) in &addresses.prefixes {
            if let Some(peer) = desired.filter(|peer| self.prefixes.get(prefix) != Some(peer)) {
                self.push(Op::SetPrefix(*prefix, peer));
            }
        }
        for (address, desired) in &addresses.peers {
            if let Some(peer) = desired.filter(|peer| self.peers.get(address) != Some(peer)) {
                self.push(Op::SetPeer(*address, peer));
            }
        }
        for (address, desired) in addresses.peers {
            if desired.is_none() && self.peers.get(&address).is_some() {
                self.push(Op::RemovePeer(address));
            }
        }
        for (prefix, desired) in addresses.prefixes {
            if desired.is_none() && self.prefixes.get(&prefix).is_some() {
                self.push(Op::RemovePrefix(prefix));
            }
        }
        self.ops.len() > before
    }

    fn peer(&mut self, info: &PeerInfo) -> Peer {
        Peer {
            identity: self.identity(&info.identity),
            blocks: self.blocks(&info.blocks),
            tenant: self.numbers.tenant(&info.tenant),
            pad: 0,
        }
    }

    /// The compiler shares equal values, so that few are looked up by what they hold.
    fn identity(&mut self, identity: &Arc<Identity>) -> u32 {
        let numbers = &mut *self.numbers;
        *self.met.entry(Arc::as_ptr(identity).addr()).or_insert_with(|| numbers.identity(identity))
    }

    fn blocks(&mut self, blocks: &Arc<BlockSet>) -> u32 {
        let numbers = &mut *self.numbers;
        *self.met.entry(Arc::as_ptr(blocks).addr()).or_insert_with(|| numbers.blocks(blocks))
    }

    /// The record, if nothing about it can have changed since it was written.
    fn is_as_placed(&self, local: &Local, changed: Changed<'_>) -> Option<Endpoint> {
        let Changed::Only(delta) = changed else { return None };
        let is_same = self.placed.get(&local.ifindex) == Some(local)
            && local.pod.as_ref().is_none_or(|pod| !delta.endpoints.contains(pod));
        let record = self.endpoints.get(&local.ifindex).copied();
        record.filter(|record| is_same && record.id == local.id)
    }

    /// `moved`: connections must be judged again, because an address is not what it was.
    fn switch_endpoints(
        &mut self,
        compiled: &Compiled,
        changed: Changed<'_>,
        locals: &BTreeMap<u32, Local>,
        moved: bool,
    ) {
        let gone: Vec<u32> = self.endpoints.keys().filter(|i| !locals.contains_key(i)).copied().collect();
        gone.into_iter().for_each(|ifindex| self.push(Op::RemoveEndpoint(ifindex)));
        for local in locals.values() {
            let actual = self.endpoints.get(&local.ifindex).copied().filter(|e| e.id == local.id);
            let mut desired = match self.is_as_placed(local, changed) {
                Some(record) => record,
                None => self.endpoint(local, compiled, actual),
            };
            if !moved && actual == Some(desired) {
                continue;
            }
            if actual.is_some_and(|actual| actual != desired) {
                // New rules under the old generation first: never old rules under the new one.
                self.push(Op::SetEndpoint(desired));
            }
            if !moved
                && actual.is_some_and(|actual| Endpoint { identity: desired.identity, ..actual } == desired)
            {
                continue; // the pod's own number is for the flow log: no verdict depends on it
            }
            desired.policy = PolicyWord::new(desired.policy.rule_set(), self.numbers.next_generation());
            self.push(Op::SetEndpoint(desired));
        }
    }

    /// The record, still under its present generation.
    fn endpoint(&mut self, local: &Local, compiled: &Compiled, actual: Option<Endpoint>) -> Endpoint {
        let generation = actual.map_or(0, |actual| actual.policy.generation());
        let mut endpoint = Endpoint {
            ifindex: local.ifindex,
            id: local.id,
            mac: local.mac,
            flags: if local.adopted { abi::ENDPOINT_ADOPTED } else { 0 },
            ..Endpoint::default()
        };
        for address in &local.addresses {
            match address {
                IpAddr::V4(v4) => endpoint.ipv4 = v4.octets(),
                IpAddr::V6(v6) => endpoint.ipv6 = v6.octets(),
            }
        }
        if let Some(policy) = local.pod.as_ref().and_then(|pod| compiled.endpoints.get(pod)) {
            let rule_set = self.numbers.rule_sets.number(&policy.rules);
            endpoint.policy = PolicyWord::new(rule_set, generation);
            endpoint.identity = self.identity(&policy.identity);
            let tenancy = policy.tenant.clone().map_or(Tenancy::Shared, Tenancy::Tenant);
            endpoint.tenant = self.numbers.tenant(&tenancy);
        } else if let Some(actual) = actual {
            // The pod has left the index but not the node: what was enforced stays (fail static).
            (endpoint.policy, endpoint.identity, endpoint.tenant) =
                (actual.policy, actual.identity, actual.tenant);
        } else {
            // Unknown to the index: rule set 0 admits nothing (fail closed).
            endpoint.policy = PolicyWord::new(0, generation);
        }
        endpoint
    }
}

/// Changed addresses and what they have to be; `None`: nothing of their own.
#[derive(Default)]
struct Addresses {
    peers: Vec<(IpAddr, Option<Peer>)>,
    prefixes: Vec<(IpNetwork, Option<Peer>)>,
}
