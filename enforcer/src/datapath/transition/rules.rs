//! Rules of a rule set: only ever added, for peers that it has not met.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bulkhead_ebpf::abi::{self, RuleKey};

use super::{Changed, Draft, Local};
use crate::{
    datapath::{
        crowd::InForce,
        image::{Op, Rule},
    },
    policy::model::{Compiled, Direction, Entries, EntryKey, PortMatch, RulePeer},
};

/// Identities and block sets whose rules are sought at a time.
const PORTION: usize = 256;

impl Draft<'_> {
    /// Of the rule sets in force, and of those to come.
    pub(super) fn write_all_rules(
        &mut self,
        compiled: &Compiled,
        changed: Changed<'_>,
        locals: &BTreeMap<u32, Local>,
    ) {
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
            if self.ledger.needed.rules > self.room.rules {
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
}
