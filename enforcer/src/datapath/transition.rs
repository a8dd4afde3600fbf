//! The way from what the kernel holds to what it must hold, as a list of writes of which every prefix is safe.
//!
//! ```text
//! scope = old ∪ new:  rules of old and new rule sets ─▶ addresses ─▶ endpoints (rule set and generation)
//! scope = new:        rules of the rule sets in force ─▶ addresses
//! ```
//! A rule is written before any address or endpoint can lead to it, and an address means the same to the
//! rule set in force before and after it moves: the scope that both rule sets share sees to that. So a packet
//! is judged by the whole old policy or by the whole new one, and if a write fails the plan stops there: every
//! endpoint keeps its last complete rule set (semantics 42).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_ebpf::abi::{self, Endpoint, PolicyWord, RuleKey};
use ipnetwork::IpNetwork;

use super::{
    image::{Image, Op, Rule},
    numbers::Numbers,
};
use crate::{
    cluster::object::Key,
    policy::model::{
        BlockSet, Compiled, Direction, EntryKey, Identity, PeerInfo, PortMatch, RulePeer, Scope, Tenancy,
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
    /// What the maps hold.
    pub target: Image,
    /// The cluster as it is, in its own scope.
    pub compiled: Compiled,
    pub scope: Scope,
    pub expanded: Expanded,
}

/// Which rules are in the kernel: of each rule set, those for these identities and block sets, by number.
/// What a rule set admits from a peer never changes, so only new pairs need looking at, however many rules
/// there are.
pub type Expanded = BTreeMap<u32, BTreeSet<u32>>;

/// `compile` is the policy compiler over the index as it is now; `scope` the scope of the policies in it.
pub fn plan(
    numbers: &mut Numbers,
    actual: &Image,
    expanded: &Expanded,
    compile: impl Fn(&Scope) -> Compiled,
    scope: Scope,
    locals: &BTreeMap<u32, Local>,
) -> Plan {
    let both = numbers.scope.clone().union(&scope);
    numbers.set_scope(both.clone());
    let mut draft = Draft { numbers, image: actual.clone(), ops: Vec::new(), expanded: expanded.clone() };

    let mut compiled = compile(&both);
    let wanted = draft.rule_sets_of(&compiled, locals);
    let in_force = draft.rule_sets_in_force();
    draft.write_rules(&compiled, in_force.union(&wanted));
    let moved = draft.move_addresses(&compiled, locals);
    draft.switch_endpoints(&compiled, locals, moved);

    if both != scope {
        compiled = compile(&scope);
        draft.write_rules(&compiled, wanted.iter());
        draft.move_addresses(&compiled, locals);
        draft.switch_endpoints(&compiled, locals, false);
    }
    Plan { ops: draft.ops, target: draft.image, compiled, scope, expanded: draft.expanded }
}

/// Rules that nothing in force can reach any more: removed a while after the plan, when no packet that
/// looked up an old number can still be under way. Forgets them in `expanded` too.
///
/// Judged by what the maps hold, not by what they should hold: after a write that failed, addresses still
/// have the numbers of before, and their rules must stay.
pub fn stale_rules(image: &Image, expanded: &mut Expanded) -> Vec<Op> {
    let endpoints = || image.endpoints.values();
    let rule_sets: BTreeSet<u32> = endpoints().map(|endpoint| endpoint.policy.rule_set()).collect();
    let addresses = image.peers.values().chain(image.prefixes.values());
    let mut peers: BTreeSet<u32> = addresses.flat_map(|peer| [peer.identity, peer.blocks]).collect();
    peers.extend(image.services.values());
    peers.extend(endpoints().map(|endpoint| endpoint.identity));
    peers.extend([abi::PEER_ANY, abi::IDENTITY_HOST]); // every rule set has entries for these
    expanded.retain(|rule_set, _| rule_sets.contains(rule_set));
    for known in expanded.values_mut() {
        known.retain(|peer| peers.contains(peer));
    }
    let stale = |rule: &&Rule| !rule_sets.contains(&rule.key.rule_set) || !peers.contains(&rule.key.peer);
    image.rules.keys().filter(stale).map(|rule| Op::RemoveRule(*rule)).collect()
}

struct Draft<'a> {
    numbers: &'a mut Numbers,
    image: Image,
    ops: Vec<Op>,
    expanded: Expanded,
}

impl Draft<'_> {
    fn push(&mut self, ops: Vec<Op>) {
        for op in &ops {
            self.image.apply(*op);
        }
        self.ops.extend(ops);
    }

    fn rule_sets_of(&mut self, compiled: &Compiled, locals: &BTreeMap<u32, Local>) -> BTreeSet<u32> {
        let pods = locals
            .values()
            .filter_map(|local| local.pod.as_ref().and_then(|pod| compiled.endpoints.get(pod)));
        pods.map(|endpoint| self.numbers.rule_sets.number(&endpoint.rules)).collect()
    }

    fn rule_sets_in_force(&self) -> BTreeSet<u32> {
        self.image.endpoints.values().map(|endpoint| endpoint.policy.rule_set()).collect()
    }

    fn write_rules<'s>(&mut self, compiled: &Compiled, rule_sets: impl Iterator<Item = &'s u32>) {
        let classes = Classes::of(compiled, self.numbers);
        for number in rule_sets {
            // A number without a meaning is a rule set of a lost state file: it stays as it is until replaced.
            let Some(rule_set) = self.numbers.rule_sets.value(*number).map(Arc::clone) else { continue };
            let fresh = match self.expanded.get(number) {
                Some(known) => classes.without(known),
                None => classes.clone(),
            };
            if self.expanded.contains_key(number) && fresh.is_empty() {
                continue;
            }
            let entries =
                rule_set.entries(fresh.identities.values().copied(), fresh.block_sets.values().copied());
            let rules: BTreeMap<Rule, u32> = entries
                .iter()
                .map(|(entry, grant)| (self.rule(*number, entry), self.numbers.grants.number(grant)))
                .collect();
            let missing = self.image.missing_rules(&rules);
            self.push(missing);
            self.expanded.entry(*number).or_default().extend(fresh.numbers());
        }
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

    /// Tells whether any address changed its meaning or its number.
    fn move_addresses(&mut self, compiled: &Compiled, locals: &BTreeMap<u32, Local>) -> bool {
        let mut peers: BTreeMap<IpAddr, _> =
            compiled.peers.iter().map(|(a, info)| (*a, self.peer(info))).collect();
        self.find_locals(compiled, locals, &mut peers);
        let prefixes: BTreeMap<IpNetwork, _> =
            compiled.prefixes.iter().map(|(p, info)| (*p, self.peer(info))).collect();
        let services = compiled.services.iter();
        let services = services.map(|(f, class)| (f.into(), self.numbers.identity(class))).collect();
        let mut writes = self.image.moved_addresses(&peers, &prefixes);
        writes.extend(self.image.moved_services(&services));
        let moved = !writes.is_empty();
        self.push(writes);
        moved
    }

    /// Says of the addresses of this node's pods on which interface they are: there the egress of what comes
    /// translated is looked up. Also for a pod that has left the index but not the node.
    fn find_locals(
        &mut self,
        compiled: &Compiled,
        locals: &BTreeMap<u32, Local>,
        peers: &mut BTreeMap<IpAddr, abi::Peer>,
    ) {
        let mut by_age: Vec<_> = locals.values().collect();
        by_age.sort_by_key(|local| local.id); // an address that was given anew is the younger pod's
        for local in by_age {
            for address in &local.addresses {
                let Some(info) = compiled.peer(*address) else { continue };
                if *info.identity != Identity::Host {
                    peers.insert(*address, abi::Peer { ifindex: local.ifindex, ..self.peer(info) });
                }
            }
        }
    }

    fn peer(&mut self, info: &PeerInfo) -> abi::Peer {
        abi::Peer {
            identity: self.numbers.identity(&info.identity),
            blocks: self.numbers.blocks(&info.blocks),
            tenant: self.numbers.tenant(&info.tenant),
            ifindex: 0,
        }
    }

    /// `moved`: connections must be judged again, because an address is not what it was.
    fn switch_endpoints(&mut self, compiled: &Compiled, locals: &BTreeMap<u32, Local>, moved: bool) {
        let gone = self.image.endpoints.keys().filter(|i| !locals.contains_key(i));
        let gone = gone.map(|ifindex| Op::RemoveEndpoint(*ifindex)).collect();
        self.push(gone);
        for local in locals.values() {
            let actual = self.image.endpoints.get(&local.ifindex).copied().filter(|e| e.id == local.id);
            let mut desired = self.endpoint(local, compiled, actual);
            if !moved && actual == Some(desired) {
                continue;
            }
            let same_verdicts =
                actual.is_some_and(|actual| Endpoint { identity: desired.identity, ..actual } == desired);
            if !moved && same_verdicts {
                self.push(vec![Op::SetEndpoint(desired)]);
                continue; // the pod's own number is for the flow log: no verdict depends on it
            }
            // New rules come with a new generation: under the old one, tracked connections would pass by the
            // old rules while new ones pass by the new.
            desired.policy = PolicyWord::new(desired.policy.rule_set(), self.numbers.next_generation());
            self.push(vec![Op::SetEndpoint(desired)]);
            if actual.is_some() && !same_verdicts {
                // A packet may have met the record half written and noted an old verdict under that generation:
                // the verdict ends with it.
                desired.policy = PolicyWord::new(desired.policy.rule_set(), self.numbers.next_generation());
                self.push(vec![Op::SetEndpoint(desired)]);
            }
        }
    }

    /// Kept while the endpoint lives. 0: none is left.
    fn mark(&self, actual: Option<Endpoint>) -> u16 {
        let kept = actual.map(|actual| actual.mark).filter(|mark| *mark != 0);
        kept.or_else(|| self.image.free_mark()).unwrap_or_default()
    }

    /// The record, still under its present generation.
    fn endpoint(&mut self, local: &Local, compiled: &Compiled, actual: Option<Endpoint>) -> Endpoint {
        let generation = actual.map_or(0, |actual| actual.policy.generation());
        let mut endpoint = Endpoint {
            ifindex: local.ifindex,
            id: local.id,
            mac: local.mac,
            mark: self.mark(actual),
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
            endpoint.identity = self.numbers.identity(&policy.identity);
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

/// Every identity and block set that an address or a Service can have, by number.
#[derive(Clone)]
struct Classes<'c> {
    identities: BTreeMap<u32, &'c Arc<Identity>>,
    block_sets: BTreeMap<u32, &'c Arc<BlockSet>>,
}

impl<'c> Classes<'c> {
    fn of(compiled: &'c Compiled, numbers: &mut Numbers) -> Self {
        // The compiler shares equal ones, so that few are compared in full.
        let infos = || compiled.peers.values().chain(compiled.prefixes.values());
        let subjects = compiled.endpoints.values().map(|endpoint| &endpoint.identity);
        let services = compiled.services.values();
        let identities: BTreeMap<_, _> = infos()
            .map(|info| &info.identity)
            .chain(subjects)
            .chain(services)
            .map(|i| (Arc::as_ptr(i), i))
            .collect();
        let block_sets: BTreeMap<_, _> =
            infos().map(|info| &info.blocks).map(|b| (Arc::as_ptr(b), b)).collect();
        Self {
            identities: identities.into_values().map(|i| (numbers.identity(i), i)).collect(),
            block_sets: block_sets.into_values().map(|b| (numbers.blocks(b), b)).collect(),
        }
    }

    fn without(&self, known: &BTreeSet<u32>) -> Self {
        let mut fresh = self.clone();
        fresh.identities.retain(|number, _| !known.contains(number));
        fresh.block_sets.retain(|number, _| !known.contains(number));
        fresh
    }

    fn is_empty(&self) -> bool {
        self.identities.is_empty() && self.block_sets.is_empty()
    }

    /// Block sets' numbers are tagged: the two never meet. The empty block set's 0 is "any".
    fn numbers(&self) -> impl Iterator<Item = u32> {
        self.identities.keys().chain(self.block_sets.keys()).copied()
    }
}
