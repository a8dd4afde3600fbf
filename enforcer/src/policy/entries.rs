//! What a rule set admits, as entries of the rule trie for the identities and block sets that occur.
//!
//! An entry for one identity (or block set) depends on nothing but the rule set and that identity: entries
//! can be added for new identities while the old ones are in force.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    model::{
        BlockSet, Direction, DirectionRules, Entries, EntryKey, Grant, Identity, PodIdentity, PortMatch,
        RulePeer, RuleRef, RuleSet,
    },
    tenant,
};
use crate::cluster::object::{ContainerPort, IpBlock, Key, Peer, Port, Ports, Rule, Selector};

impl RuleSet {
    /// All rules add up and none denies, so any matching entry admits; a finer entry's grant names the
    /// rules of the coarser ones too, because the longest match is the one that gets reported.
    pub fn entries<'a>(
        &self,
        identities: impl Iterator<Item = &'a Arc<Identity>>,
        blocks: impl Iterator<Item = &'a Arc<BlockSet>>,
    ) -> Entries {
        let (identities, blocks): (Vec<_>, Vec<_>) = (identities.collect(), blocks.collect());
        let mut entries = Entries::new();
        for direction in [Direction::Ingress, Direction::Egress] {
            let rules = match direction {
                Direction::Ingress => &self.ingress,
                Direction::Egress => &self.egress,
            };
            if rules.policies.is_empty() {
                entries.insert(EntryKey::everything(direction, RulePeer::Any), Grant::NotIsolated);
            } else {
                Expansion::new(direction, rules, &self.ports).write(&identities, &blocks, &mut entries);
            }
            self.doors(direction, &identities, &mut entries);
        }
        self.local_node(&mut entries);
        entries.extend(self.services(&identities));
        entries
    }

    /// The pod's own node reaches it always, and is reached unless the setting says otherwise.
    fn local_node(&self, entries: &mut Entries) {
        let host = RulePeer::Identity(Arc::new(Identity::Host));
        entries.insert(EntryKey::everything(Direction::Ingress, host.clone()), Grant::LocalNode);
        if self.local_node_egress {
            entries.insert(EntryKey::everything(Direction::Egress, host), Grant::LocalNode);
        }
    }

    /// Doors belong to the destination: for ingress the subject's, for egress the peer's.
    fn doors(&self, direction: Direction, identities: &[&Arc<Identity>], entries: &mut Entries) {
        let Some(own) = &self.tenant else { return };
        for identity in identities {
            let Identity::Pod(PodIdentity { tenant: Some(theirs), door, .. }) = identity.as_ref() else {
                continue;
            };
            let open = match direction {
                Direction::Ingress => tenant::admits(&self.door, theirs),
                Direction::Egress => tenant::admits(door, own),
            };
            if own != theirs && open {
                let key = EntryKey::everything(direction, RulePeer::Identity(Arc::clone(identity)));
                entries.insert(EntryKey { door: true, ..key }, Grant::Door);
            }
        }
    }
}

impl EntryKey {
    pub(super) fn everything(direction: Direction, peer: RulePeer) -> Self {
        Self { direction, door: false, peer, ports: PortMatch::All }
    }
}

/// One rule's reach to one kind of peer.
struct Term<'a> {
    rule: RuleRef,
    reach: Reach<'a>,
    /// `None`: every protocol and port.
    ports: Option<Vec<&'a Port>>,
}

enum Reach<'a> {
    Anyone,
    /// Every pod of the pod network.
    AnyPod,
    Selected {
        own_namespace: &'a str,
        namespaces: Option<&'a Selector>,
        pods: &'a Selector,
    },
    Block(&'a IpBlock),
}

impl<'a> Term<'a> {
    fn of(direction: Direction, policy: &'a Key, rule: &'a Rule) -> Vec<Self> {
        let reference = RuleRef { policy: policy.clone(), rule: rule.index };
        let term = |reach, ports| Self { rule: reference.clone(), reach, ports };
        let listed = |ports: &[&'a Port]| (!ports.is_empty()).then(|| ports.to_vec());
        let ports: Vec<&Port> = rule.ports.iter().collect();
        if !rule.peers.is_empty() {
            return rule.peers.iter().map(|peer| term(Reach::of(policy, peer), listed(&ports))).collect();
        }
        if direction == Direction::Ingress || ports.is_empty() {
            return vec![term(Reach::Anyone, listed(&ports))];
        }
        // To anyone by a named port: only pods have names for ports.
        let (named, numbered): (Vec<_>, Vec<_>) =
            ports.into_iter().partition(|port| matches!(port.ports, Ports::Named(_)));
        vec![term(Reach::Anyone, Some(numbered)), term(Reach::AnyPod, Some(named))]
    }

    /// The matches it admits towards a destination with these container ports.
    fn matches(&self, destination: &BTreeSet<ContainerPort>) -> Vec<PortMatch> {
        let Some(ports) = &self.ports else { return vec![PortMatch::All] };
        let mut matches = Vec::new();
        for Port { protocol, ports } in ports {
            match ports {
                Ports::All => matches.push(PortMatch::Protocol(protocol.number())),
                Ports::Range(first, last) => {
                    matches.extend(PortMatch::range(protocol.number(), *first, *last));
                }
                Ports::Named(name) => {
                    let named = |port| ContainerPort { name: name.clone(), protocol: *protocol, port };
                    let same = destination.range(named(0)..=named(u16::MAX));
                    matches.extend(same.map(|c| PortMatch::port(protocol.number(), c.port)));
                }
            }
        }
        matches
    }
}

impl<'a> Reach<'a> {
    fn of(policy: &'a Key, peer: &'a Peer) -> Self {
        match peer {
            Peer::Block(block) => Self::Block(block),
            Peer::Pods { .. } if peer.by_block() => Self::AnyPod,
            Peer::Pods { namespaces, pods } => {
                Self::Selected { own_namespace: &policy.namespace, namespaces: namespaces.as_ref(), pods }
            }
        }
    }

    fn holds_identity(&self, identity: &PodIdentity) -> bool {
        let Self::Selected { own_namespace, namespaces, pods } = self else { return false };
        let in_namespace = match namespaces {
            Some(selector) => selector.matches(&identity.namespace_labels),
            None => *identity.namespace == **own_namespace,
        };
        in_namespace && pods.matches(&identity.labels)
    }
}

/// Which rules admit which ports.
type PortRules = BTreeMap<PortMatch, BTreeSet<RuleRef>>;
/// Terms that match a peer, by number, and its ports where they matter: peers alike in both have like entries.
type Matched<'e> = (Vec<usize>, &'e BTreeSet<ContainerPort>);

/// Expands the rules of one direction.
struct Expansion<'a> {
    direction: Direction,
    terms: Vec<Term<'a>>,
    /// Numbers of the terms that reach each block, and every pod: of ten thousand blocks an address is in a few.
    by_block: HashMap<&'a IpBlock, Vec<usize>>,
    by_any_pod: Vec<usize>,
    /// For ingress, the destination of named ports is the subject itself.
    subject_ports: &'a BTreeSet<ContainerPort>,
    /// What the rules admit for anyone.
    anyone: PortRules,
}

static NO_PORTS: BTreeSet<ContainerPort> = BTreeSet::new();

impl<'a> Expansion<'a> {
    fn new(
        direction: Direction,
        rules: &'a DirectionRules,
        subject_ports: &'a BTreeSet<ContainerPort>,
    ) -> Self {
        let rules = rules.policies.iter().flat_map(|part| part.rules.iter().map(|rule| (&part.policy, rule)));
        let terms: Vec<Term> = rules.flat_map(|(policy, rule)| Term::of(direction, policy, rule)).collect();
        let (mut by_block, mut by_any_pod) = (HashMap::<_, Vec<_>>::new(), Vec::new());
        for (number, term) in terms.iter().enumerate() {
            match term.reach {
                Reach::Block(block) => by_block.entry(block).or_default().push(number),
                Reach::AnyPod => by_any_pod.push(number),
                Reach::Anyone | Reach::Selected { .. } => {}
            }
        }
        let anyone = PortRules::new();
        let mut expansion = Self { direction, terms, by_block, by_any_pod, subject_ports, anyone };
        let anyone = expansion.matching(|reach| matches!(reach, Reach::Anyone));
        expansion.anyone = expansion.admitted(&(anyone, expansion.destination_ports(&NO_PORTS)));
        expansion
    }

    fn write(&self, identities: &[&Arc<Identity>], blocks: &[&Arc<BlockSet>], entries: &mut Entries) {
        let mut put = |peer: RulePeer, grants: &[(PortMatch, Grant)]| {
            for (ports, grant) in grants {
                let key =
                    EntryKey { direction: self.direction, door: false, peer: peer.clone(), ports: *ports };
                entries.insert(key, grant.clone());
            }
        };
        put(RulePeer::Any, &self.grants(&self.anyone));
        let mut known: HashMap<Matched<'_>, Vec<(PortMatch, Grant)>> = HashMap::new();
        for identity in identities {
            let Identity::Pod(pod) = identity.as_ref() else { continue };
            let matched =
                (self.matching(|reach| reach.holds_identity(pod)), self.destination_ports(&pod.ports));
            let grants =
                known.entry(matched.clone()).or_insert_with(|| self.grants(&self.admitted(&matched)));
            put(RulePeer::Identity(Arc::clone(identity)), grants);
        }
        for set in blocks {
            let matched = (self.holding(set), self.destination_ports(&set.ports));
            let grants =
                known.entry(matched.clone()).or_insert_with(|| self.grants(&self.admitted(&matched)));
            put(RulePeer::Blocks(Arc::clone(set)), grants);
        }
    }

    fn matching(&self, is_held: impl Fn(&Reach<'a>) -> bool) -> Vec<usize> {
        (0..self.terms.len()).filter(|i| is_held(&self.terms[*i].reach)).collect()
    }

    /// Terms that reach the addresses of a block set.
    fn holding(&self, set: &BlockSet) -> Vec<usize> {
        let by_block = set.blocks.iter().filter_map(|block| self.by_block.get(block)).flatten();
        let by_any_pod = self.by_any_pod.iter().filter(|_| set.pod);
        let mut terms: Vec<usize> = by_block.chain(by_any_pod).copied().collect();
        terms.sort_unstable();
        terms
    }

    fn destination_ports<'e>(
        &'e self,
        peer_ports: &'e BTreeSet<ContainerPort>,
    ) -> &'e BTreeSet<ContainerPort> {
        match self.direction {
            Direction::Ingress => self.subject_ports,
            Direction::Egress => peer_ports,
        }
    }

    fn admitted(&self, (terms, destination): &Matched<'_>) -> PortRules {
        let mut admitted = PortRules::new();
        for term in terms.iter().map(|i| &self.terms[*i]) {
            for ports in term.matches(destination) {
                name(admitted.entry(ports).or_default(), &term.rule);
            }
        }
        admitted
    }

    fn grants(&self, admitted: &PortRules) -> Vec<(PortMatch, Grant)> {
        let rules = |ports: PortMatch| {
            let coarser = ports.widening().flat_map(|wider| [admitted.get(&wider), self.anyone.get(&wider)]);
            let mut named = BTreeSet::new();
            coarser.flatten().flatten().for_each(|rule| name(&mut named, rule));
            Grant::Rules(named)
        };
        admitted.keys().map(|ports| (*ports, rules(*ports))).collect()
    }
}

/// Rules that one entry names at most, the first by policy and place: ten thousand rules that all admit the same would
/// be named ten thousand times.
const MOST_NAMED: usize = 32;

fn name(named: &mut BTreeSet<RuleRef>, rule: &RuleRef) {
    if named.len() < MOST_NAMED || named.last().is_some_and(|last| rule < last) {
        named.insert(rule.clone());
    }
    if named.len() > MOST_NAMED {
        named.pop_last();
    }
}
