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
//!
//! Planning costs what changed: what is new among identities and block sets is a range of numbers, what is new
//! among addresses and endpoints the compiler tells. Only the first plan, and one after a write that failed,
//! looks at everything.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_ebpf::abi::{self, Endpoint, ORIGINS, Peer, PolicyWord, RuleKey};
use ipnetwork::IpNetwork;

use super::{
    crowd::{Crowded, InForce},
    image::{Image, Op, Rule, ServiceAddress},
    ledger::Ledger,
    numbers::{Mark, Numbers},
    sizes::Sizes,
};
use crate::{
    cluster::object::Key,
    policy::{
        Delta,
        model::{
            BlockSet, Compiled, Direction, Entries, EntryKey, Identity, PeerInfo, PortMatch, RulePeer,
            RuleSet, Scope, Tenancy,
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
    /// No address leads here yet: its packets would be judged elsewhere, as this pod's, before its own hooks do it.
    pub silent: bool,
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
    /// Namespaces for whose rules there is no room: see [`super::crowd`].
    pub crowded: &'a Crowded,
    /// Rules that the kernel can hold: where there are more, the plan comes to nothing, and no more are sought.
    pub room: usize,
}

/// Identities and block sets whose rules are sought at a time.
const PORTION: usize = 256;

/// A plan in the making.
pub(super) struct Draft<'a> {
    numbers: &'a mut Numbers,
    /// Endpoints as last brought to the kernel.
    placed: &'a BTreeMap<u32, Local>,
    ledger: Ledger<'a>,
    known: &'a Expanded,
    crowded: &'a Crowded,
    room: usize,
    expanded: Expanded,
    /// Numbers of what one step has met, by address of the shared value.
    met: HashMap<usize, u32>,
}

impl<'a> Draft<'a> {
    pub fn new(numbers: &'a mut Numbers, held: Held<'a>) -> Self {
        Self {
            numbers,
            placed: held.locals,
            ledger: Ledger::on(held.image, held.sizes),
            known: held.expanded,
            crowded: held.crowded,
            room: held.room,
            expanded: Expanded::new(),
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
            ops: self.ledger.ops,
            peers: self.ledger.peers.into_edits(),
            endpoints: self.ledger.endpoints,
            needed: self.ledger.needed,
            expanded: self.expanded,
            locals: locals.clone(),
            left,
        }
    }

    /// Rules, then addresses; whether any address changed its meaning or its number.
    fn follow(&mut self, compiled: &Compiled, changed: Changed<'_>, locals: &BTreeMap<u32, Local>) -> bool {
        self.met.clear();
        let addresses = self.addresses(compiled, changed, locals);
        let in_force = self.ledger.endpoints.values();
        // Those for which there is no room at all lose theirs in this very plan: until then they admit nobody new.
        let in_force = in_force.filter(|endpoint| {
            let pod = locals.get(&endpoint.ifindex).and_then(|local| local.pod.as_ref());
            pod.is_none_or(|pod| self.crowded.get(&*pod.namespace) != Some(&InForce::Isolation))
        });
        let mut rule_sets: BTreeSet<u32> = in_force.map(|endpoint| endpoint.policy.rule_set()).collect();
        for local in locals.values() {
            let Some((pod, policy)) =
                local.pod.as_ref().and_then(|pod| compiled.endpoints.get_key_value(pod))
            else {
                continue;
            };
            if self.is_as_placed(local, changed).is_none() && !self.keeps(local, pod) {
                rule_sets.insert(self.rule_set(pod, &policy.rules));
                self.identity(&policy.identity);
            }
        }
        for rule_set in rule_sets {
            self.write_rules(rule_set);
        }
        self.move_addresses(addresses)
    }

    /// Where the changed addresses and Services have to go.
    fn addresses(
        &mut self,
        compiled: &Compiled,
        changed: Changed<'_>,
        locals: &BTreeMap<u32, Local>,
    ) -> Addresses {
        let here = Interfaces::of(locals);
        let mut peers: BTreeSet<IpAddr>;
        let prefixes: Vec<IpNetwork>;
        let mut services: BTreeMap<ServiceAddress, Option<&Arc<Identity>>>;
        match changed {
            Changed::Only(delta) => {
                peers = delta.peers.iter().copied().collect();
                prefixes = delta.prefixes.iter().copied().collect();
                let class = |frontend| compiled.services.get(frontend);
                services = delta.services.iter().map(|frontend| (frontend.into(), class(frontend))).collect();
            }
            Changed::Everything => {
                peers = compiled.peers.keys().chain(self.ledger.peers.keys()).collect();
                let gone =
                    self.ledger.prefixes.keys().filter(|prefix| !compiled.prefixes.contains_key(prefix));
                prefixes = compiled.prefixes.keys().copied().chain(gone).collect();
                services = self.ledger.services.keys().map(|service| (service, None)).collect();
                services
                    .extend(compiled.services.iter().map(|(frontend, class)| (frontend.into(), Some(class))));
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
        let services =
            services.into_iter().map(|(service, class)| (service, class.map(|class| self.identity(class))));
        Addresses { peers, prefixes, services: services.collect() }
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

    fn write_rules(&mut self, number: u32) {
        // A number without a meaning is a rule set of a lost state file: it stays as it is until replaced.
        let Some(rule_set) = self.numbers.rule_sets.value(number).map(Arc::clone) else { return };
        let now = self.numbers.mark();
        let known = self.expanded.get(&number).or_else(|| self.known.get(&number)).copied();
        if known.is_some_and(|known| (known.identities, known.block_sets) == (now.identities, now.block_sets))
        {
            return;
        }
        let since = known.unwrap_or_default();
        let identities = self.numbers.identities.since(since.identities);
        let identities: Vec<_> = identities.map(|(_, identity)| Arc::clone(identity)).collect();
        let block_sets = self.numbers.block_sets.since(since.block_sets);
        let block_sets: Vec<_> = block_sets.map(|(_, blocks)| Arc::clone(blocks)).collect();
        // Some at a time, because what one rule set admits may be more than there is memory for.
        let portions = identities.len().max(block_sets.len()).div_ceil(PORTION).max(1);
        for portion in 0..portions {
            if self.ledger.needed.rules > self.room {
                return; // it does not fit: how much does not matter
            }
            let of_identities = identities.iter().skip(portion * PORTION).take(PORTION);
            let of_block_sets = block_sets.iter().skip(portion * PORTION).take(PORTION);
            for (rule, grant) in self.rules_of(number, rule_set.entries(of_identities, of_block_sets)) {
                if self.ledger.rules.get(&rule) != Some(&grant) {
                    self.ledger.push(Op::SetRule(rule, grant));
                }
            }
        }
        self.expanded.insert(number, now);
    }

    /// Nothing is ever removed: a rule is a fact about a rule set and a peer, true for as long as both exist, so removal
    /// is tidying.
    fn rules_of(&mut self, number: u32, entries: Entries) -> Vec<(Rule, u32)> {
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
        let before = self.ledger.ops.len();
        for (prefix, desired) in &addresses.prefixes {
            if let Some(peer) = desired.filter(|peer| self.ledger.prefixes.get(prefix) != Some(peer)) {
                self.ledger.push(Op::SetPrefix(*prefix, peer));
            }
        }
        for (address, desired) in &addresses.peers {
            if let Some(peer) = desired.filter(|peer| self.ledger.peers.get(address) != Some(peer)) {
                self.ledger.push(Op::SetPeer(*address, peer));
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
        for (service, desired) in addresses.services {
            match desired {
                Some(identity) if self.ledger.services.get(&service) != Some(&identity) => {
                    self.ledger.push(Op::SetService(service, identity));
                }
                None if self.ledger.services.get(&service).is_some() => {
                    self.ledger.push(Op::RemoveService(service));
                }
                _ => {} // and a frontend that is gone becomes an address like any other
            }
        }
        self.ledger.ops.len() > before
    }

    fn peer(&mut self, info: &PeerInfo) -> Peer {
        Peer {
            identity: self.identity(&info.identity),
            blocks: self.blocks(&info.blocks),
            tenant: self.numbers.tenant(&info.tenant),
            ifindex: 0,
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
        let record = self.ledger.endpoints.get(&local.ifindex).copied();
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
        let gone: Vec<u32> =
            self.ledger.endpoints.keys().filter(|i| !locals.contains_key(i)).copied().collect();
        for ifindex in gone {
            self.ledger.push(Op::RemoveEndpoint(ifindex));
        }
        for local in locals.values() {
            let actual = self.ledger.endpoints.get(&local.ifindex).copied().filter(|e| e.id == local.id);
            let mut desired = match self.is_as_placed(local, changed) {
                Some(record) => record,
                None => self.endpoint(local, compiled, actual),
            };
            if !moved && actual == Some(desired) {
                continue;
            }
            let same_verdicts =
                actual.is_some_and(|actual| Endpoint { identity: desired.identity, ..actual } == desired);
            if !moved && same_verdicts {
                self.ledger.push(Op::SetEndpoint(desired));
                continue; // the pod's own number is for the flow log: no verdict depends on it
            }
            // New rules come with a new generation: under the old one, tracked connections would pass by the
            // old rules while new ones pass by the new.
            desired.policy = PolicyWord::new(desired.policy.rule_set(), self.numbers.next_generation());
            self.ledger.push(Op::SetEndpoint(desired));
            if actual.is_some() && !same_verdicts {
                // A packet may have met the record half written and noted an old verdict under that generation:
                // the verdict ends with it.
                desired.policy = PolicyWord::new(desired.policy.rule_set(), self.numbers.next_generation());
                self.ledger.push(Op::SetEndpoint(desired));
            }
        }
    }

    /// Kept while the endpoint lives. 0: none is left.
    fn mark(&self, actual: Option<Endpoint>) -> u16 {
        let kept = actual.map(|actual| actual.mark).filter(|mark| *mark != 0);
        kept.or_else(|| self.free_mark()).unwrap_or_default()
    }

    /// The lowest number under which no endpoint's packets are marked; `None`: all are taken.
    fn free_mark(&self) -> Option<u16> {
        let taken: BTreeSet<u32> =
            self.ledger.endpoints.values().map(|endpoint| endpoint.mark.into()).collect();
        let free = (1..ORIGINS).find(|mark| !taken.contains(mark))?;
        u16::try_from(free).ok()
    }

    /// There is no room for the pod's rules, and it has others.
    fn keeps(&self, local: &Local, pod: &Key) -> bool {
        let record = self.ledger.endpoints.get(&local.ifindex).filter(|record| record.id == local.id);
        self.crowded.get(&*pod.namespace) == Some(&InForce::Before)
            && record.is_some_and(|record| record.policy.rule_set() != 0)
    }

    /// The number of what decides for the pod: its policies, or without room only that they isolate.
    fn rule_set(&mut self, pod: &Key, rules: &Arc<RuleSet>) -> u32 {
        if self.crowded.contains_key(&*pod.namespace) {
            return self.numbers.rule_sets.number(&Arc::new(rules.admitting_nothing()));
        }
        self.numbers.rule_sets.number(rules)
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
        let policy = local.pod.as_ref().and_then(|pod| compiled.endpoints.get_key_value(pod));
        if let Some((pod, policy)) = policy.filter(|(pod, _)| !self.keeps(local, pod)) {
            let rule_set = self.rule_set(pod, &policy.rules);
            endpoint.policy = PolicyWord::new(rule_set, generation);
            endpoint.identity = self.identity(&policy.identity);
            let tenancy =
                policy.tenant.as_deref().map_or(Tenancy::Shared, |tenant| Tenancy::Tenant(tenant.into()));
            endpoint.tenant = self.numbers.tenant(&tenancy);
        } else if let Some(actual) = actual {
            // The pod has left the index but not the node, or there is no room for its rules: what was enforced stays
            // (fail static).
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
struct Addresses {
    peers: Vec<(IpAddr, Option<Peer>)>,
    prefixes: Vec<(IpNetwork, Option<Peer>)>,
    services: Vec<(ServiceAddress, Option<u32>)>,
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
