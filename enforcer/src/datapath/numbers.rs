//! Numbers for what the compiler names symbolically.
//!
//! A number never changes its meaning and is never given twice, so the pinned maps of an agent that died
//! stay readable: the next agent compiles, finds the same numbers in the [`Journal`](super::journal::Journal),
//! and has nothing to write. Because numbers only grow, "what is new since" is a range.

use std::sync::Arc;

use bulkhead_ebpf::abi;
use serde::{Deserialize, Serialize};

use super::{
    image::Image,
    table::{Counter, Table, TableChanges},
};
use crate::{
    cluster::compact::Text,
    policy::model::{BlockSet, Grant, Identity, RuleSet, Scope, Tenancy},
};

/// All numbers of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    pub identities: Table<Arc<Identity>>,
    /// Untagged; [`Numbers::blocks`] adds [`abi::BLOCKS_TAG`].
    pub block_sets: Table<Arc<BlockSet>>,
    pub rule_sets: Table<Arc<RuleSet>>,
    pub grants: Table<Arc<Grant>>,
    pub tenants: Table<Text>,
    endpoints: Counter,
    /// What identities and block sets in the kernel are projected onto.
    pub scope: Scope,
    generations: Counter,
    #[serde(skip)]
    entered: Scope,
    #[serde(skip)]
    left: Scope,
}

/// What has changed since it was last asked for: one line of the journal.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Changes {
    #[serde(skip_serializing_if = "TableChanges::is_empty")]
    identities: TableChanges<Arc<Identity>>,
    #[serde(skip_serializing_if = "TableChanges::is_empty")]
    block_sets: TableChanges<Arc<BlockSet>>,
    #[serde(skip_serializing_if = "TableChanges::is_empty")]
    rule_sets: TableChanges<Arc<RuleSet>>,
    #[serde(skip_serializing_if = "TableChanges::is_empty")]
    grants: TableChanges<Arc<Grant>>,
    #[serde(skip_serializing_if = "TableChanges::is_empty")]
    tenants: TableChanges<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoints: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generations: Option<u32>,
    #[serde(skip_serializing_if = "Scope::is_empty")]
    entered: Scope,
    #[serde(skip_serializing_if = "Scope::is_empty")]
    left: Scope,
}

/// How far the numbers of peers had been given at some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    pub identities: u32,
    pub block_sets: u32,
    pub rule_sets: u32,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            identities: Table::starting_at(abi::FIRST_POD_IDENTITY),
            block_sets: Table::starting_at(1),
            rule_sets: Table::starting_at(1),
            grants: Table::starting_at(1),
            tenants: Table::starting_at(1),
            endpoints: Counter::default(),
            scope: Scope::default(),
            generations: Counter::default(),
            entered: Scope::default(),
            left: Scope::default(),
        }
    }
}

impl Numbers {
    pub fn identity(&mut self, identity: &Arc<Identity>) -> u32 {
        match **identity {
            Identity::Host => abi::IDENTITY_HOST,
            Identity::RemoteNode => abi::IDENTITY_REMOTE_NODE,
            Identity::World => abi::IDENTITY_WORLD,
            Identity::UnknownPod => abi::IDENTITY_UNKNOWN_POD,
            Identity::Tunnel => abi::IDENTITY_TUNNEL,
            Identity::Pod(_) | Identity::Service(_) => self.identities.number(identity),
        }
    }

    /// Tagged; 0 for the empty set.
    pub fn blocks(&mut self, blocks: &Arc<BlockSet>) -> u32 {
        if **blocks == BlockSet::default() { 0 } else { self.block_sets.number(blocks) | abi::BLOCKS_TAG }
    }

    pub fn tenant(&mut self, tenancy: &Tenancy) -> u32 {
        match tenancy {
            Tenancy::Shared => 0,
            Tenancy::Unknown => abi::TENANT_UNKNOWN,
            Tenancy::Tenant(name) => self.tenants.number(name),
        }
    }

    pub fn next_endpoint(&mut self) -> u32 {
        self.endpoints.next()
    }

    /// A generation that no record and no connection has ever seen.
    pub fn next_generation(&mut self) -> u32 {
        self.generations.next()
    }

    pub fn mark(&self) -> Mark {
        Mark {
            identities: self.identities.next(),
            block_sets: self.block_sets.next(),
            rule_sets: self.rule_sets.next(),
        }
    }

    /// Counts on from above every number that the kernel holds, so that a lost or older state file can never
    /// give a number in the maps a second meaning.
    pub fn stay_above(&mut self, image: &Image) {
        let addresses = || image.peers.values().chain(image.prefixes.values());
        let rules = || image.rules.keys().map(|rule| rule.key);
        let endpoints = || image.endpoints.values();
        let is_blocks = |peer: &u32| peer & abi::BLOCKS_TAG != 0;
        self.identities.stay_above(addresses().map(|a| a.identity));
        self.identities.stay_above(image.services.values().copied());
        self.identities.stay_above(rules().map(|r| r.peer).filter(|p| !is_blocks(p)));
        self.identities.stay_above(endpoints().map(|e| e.identity));
        self.block_sets.stay_above(addresses().map(|a| a.blocks & !abi::BLOCKS_TAG));
        self.block_sets.stay_above(rules().map(|r| r.peer).filter(is_blocks).map(|p| p & !abi::BLOCKS_TAG));
        self.rule_sets.stay_above(rules().map(|r| r.rule_set));
        self.rule_sets.stay_above(endpoints().map(|e| e.policy.rule_set()));
        self.grants.stay_above(image.rules.values().copied());
        let tenants = addresses().flat_map(|a| a.tenants).chain(endpoints().map(|e| e.tenant.tenant()));
        self.tenants.stay_above(tenants.filter(|t| *t != abi::TENANT_UNKNOWN));
        self.endpoints.stay_above(endpoints().map(|e| e.id));
        self.generations.stay_above(endpoints().map(|e| e.policy.generation()));
    }

    /// Forgets an identity or block set, by its number in the kernel. Grants are never forgotten: records of
    /// the recent past name them.
    pub fn forget_peer(&mut self, number: u32) {
        if number & abi::BLOCKS_TAG == 0 {
            self.identities.forget(number);
        } else {
            self.block_sets.forget(number & !abi::BLOCKS_TAG);
        }
    }

    /// Every identity and block set that has a number, as the kernel numbers them.
    pub fn peers_since(&self, mark: Mark) -> impl Iterator<Item = u32> {
        let identities = self.identities.since(mark.identities).map(|(number, _)| number);
        let block_sets = self.block_sets.since(mark.block_sets).map(|(number, _)| number | abi::BLOCKS_TAG);
        identities.chain(block_sets)
    }

    pub fn enter(&mut self, scope: &Scope) {
        let fresh = scope.minus(&self.scope);
        self.scope.extend(&fresh);
        self.left.remove(&fresh);
        self.entered.extend(&fresh);
    }

    pub fn leave(&mut self, scope: &Scope) {
        self.scope.remove(scope);
        self.entered.remove(scope);
        self.left.extend(scope);
    }

    /// What a file that held everything up to the last call lacks now; `None`: nothing.
    pub(super) fn take_changes(&mut self) -> Option<Changes> {
        let changes = Changes {
            identities: self.identities.take_changes(),
            block_sets: self.block_sets.take_changes(),
            rule_sets: self.rule_sets.take_changes(),
            grants: self.grants.take_changes(),
            tenants: self.tenants.take_changes(),
            endpoints: self.endpoints.take_change(),
            generations: self.generations.take_change(),
            entered: std::mem::take(&mut self.entered),
            left: std::mem::take(&mut self.left),
        };
        (changes != Changes::default()).then_some(changes)
    }

    pub(super) fn replay(&mut self, changes: Changes) {
        self.identities.replay(changes.identities);
        self.block_sets.replay(changes.block_sets);
        self.rule_sets.replay(changes.rule_sets);
        self.grants.replay(changes.grants);
        self.tenants.replay(changes.tenants);
        if let Some(ceiling) = changes.endpoints {
            self.endpoints = ceiling.into();
        }
        if let Some(ceiling) = changes.generations {
            self.generations = ceiling.into();
        }
        self.scope.remove(&changes.left);
        self.scope.extend(&changes.entered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::PodIdentity;

    fn pod(namespace: &str) -> Arc<Identity> {
        Arc::new(Identity::Pod(PodIdentity {
            namespace: namespace.into(),
            labels: [("app".into(), "web".into())].into(),
            namespace_labels: [].into(),
            ports: [].into(),
            tenant: None,
            door: None,
        }))
    }

    #[test]
    fn a_forgotten_number_is_never_given_again() {
        let mut numbers = Numbers::default();
        let first = numbers.identity(&pod("a"));
        numbers.forget_peer(first);
        assert_eq!(numbers.identities.get(&pod("a")), None);
        assert!(numbers.identity(&pod("b")) > first);
    }

    #[test]
    fn what_is_new_since_a_mark_is_told_once() {
        let mut numbers = Numbers::default();
        let old = numbers.identity(&pod("a"));
        let mark = numbers.mark();
        let new = numbers.identity(&pod("b"));
        assert_eq!(numbers.peers_since(mark).collect::<Vec<_>>(), [new]);
        assert_eq!(numbers.peers_since(Mark::default()).collect::<Vec<_>>(), [old, new]);
        let changes = numbers.take_changes().expect("two identities");
        assert_eq!(changes.identities.new, [(old, pod("a")), (new, pod("b"))]);
        assert_eq!(numbers.take_changes(), None);
    }

    #[test]
    fn reserved_identities_have_the_numbers_that_the_kernel_knows() {
        let mut numbers = Numbers::default();
        for (identity, want) in [
            (Identity::Host, abi::IDENTITY_HOST),
            (Identity::RemoteNode, abi::IDENTITY_REMOTE_NODE),
            (Identity::World, abi::IDENTITY_WORLD),
            (Identity::UnknownPod, abi::IDENTITY_UNKNOWN_POD),
            (Identity::Tunnel, abi::IDENTITY_TUNNEL),
        ] {
            assert_eq!(numbers.identity(&Arc::new(identity)), want);
        }
        assert_eq!(numbers.blocks(&Arc::default()), 0);
        assert_eq!(numbers.tenant(&Tenancy::Unknown), abi::TENANT_UNKNOWN);
    }
}
