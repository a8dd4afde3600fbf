//! Numbers for what the compiler names symbolically, and the file that keeps them over a restart.
//!
//! A number never changes its meaning and is never given twice, so the pinned maps of an agent that died
//! stay readable: the next agent compiles, finds the same numbers, and has nothing to write.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bulkhead_ebpf::abi;
use serde::{Deserialize, Serialize};

use super::image::Image;
use crate::policy::model::{BlockSet, Grant, Identity, RuleSet, Scope, Tenancy};

/// How many generations and endpoint numbers are reserved in the file at a time, so that a change or a pod
/// costs no write.
const AHEAD: u32 = 1 << 12;

#[derive(Debug, thiserror::Error)]
pub enum NumbersError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} is not a table of numbers; remove it, and the pins beside it, to start afresh")]
    Decode { path: PathBuf, source: serde_json::Error },
}

/// All numbers of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    pub identities: Table<Arc<Identity>>,
    /// Untagged; [`Numbers::blocks`] adds [`abi::BLOCKS_TAG`].
    pub block_sets: Table<Arc<BlockSet>>,
    pub rule_sets: Table<Arc<RuleSet>>,
    pub grants: Table<Grant>,
    pub tenants: Table<String>,
    endpoints: Counter,
    /// What identities and block sets in the kernel are projected onto.
    pub scope: Scope,
    generations: Counter,
    #[serde(skip)]
    changed: bool,
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
            changed: true,
        }
    }
}

impl Numbers {
    /// An absent file is an empty table.
    pub fn load(path: &Path) -> Result<Self, NumbersError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(NumbersError::Read { path: path.into(), source }),
        };
        serde_json::from_slice(&text).map_err(|source| NumbersError::Decode { path: path.into(), source })
    }

    /// Must come before the first map write that uses a new number. No fsync: a crash of the machine takes
    /// the maps (bpffs is memory) along with the numbers.
    pub fn save_if_changed(&mut self, path: &Path) -> Result<(), NumbersError> {
        let tables = [
            &mut self.identities.changed,
            &mut self.block_sets.changed,
            &mut self.rule_sets.changed,
            &mut self.grants.changed,
            &mut self.tenants.changed,
            &mut self.endpoints.changed,
            &mut self.generations.changed,
            &mut self.changed,
        ];
        if !tables.iter().any(|changed| **changed) {
            return Ok(());
        }
        for changed in tables {
            *changed = false;
        }
        crate::endpoint::store::write_atomically(
            path,
            &serde_json::to_vec(self).expect("numbers are plain data"),
        )
        .map_err(|source| {
            self.changed = true;
            NumbersError::Write { path: path.into(), source }
        })
    }

    pub fn identity(&mut self, identity: &Arc<Identity>) -> u32 {
        match **identity {
            Identity::Host => abi::IDENTITY_HOST,
            Identity::RemoteNode => abi::IDENTITY_REMOTE_NODE,
            Identity::World => abi::IDENTITY_WORLD,
            Identity::UnknownPod => abi::IDENTITY_UNKNOWN_POD,
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
        let tenants = addresses().map(|a| a.tenant).chain(endpoints().map(|e| e.tenant));
        self.tenants.stay_above(tenants.filter(|t| *t != abi::TENANT_UNKNOWN));
        self.endpoints.stay_above(endpoints().map(|e| e.id));
        self.generations.stay_above(endpoints().map(|e| e.policy.generation()));
    }

    /// Forgets what the kernel does not hold any more. Grants stay: records of the recent past name them.
    pub fn forget_unused(&mut self, image: &Image) {
        let addresses = || image.peers.values().chain(image.prefixes.values());
        let peers: BTreeSet<u32> = image.rules.keys().map(|rule| rule.key.peer).collect();
        let identities: BTreeSet<u32> =
            addresses().map(|a| a.identity).chain(image.services.values().copied()).collect();
        let own: BTreeSet<u32> = image.endpoints.values().map(|e| e.identity).collect();
        let blocks: BTreeSet<u32> = addresses().map(|a| a.blocks).collect();
        let rule_sets: BTreeSet<u32> = image.endpoints.values().map(|e| e.policy.rule_set()).collect();
        self.identities.retain(|n| identities.contains(&n) || peers.contains(&n) || own.contains(&n));
        self.block_sets.retain(|n| {
            let tagged = n | abi::BLOCKS_TAG;
            blocks.contains(&tagged) || peers.contains(&tagged)
        });
        self.rule_sets.retain(|n| rule_sets.contains(&n));
    }

    pub fn set_scope(&mut self, scope: Scope) {
        if self.scope != scope {
            self.scope = scope;
            self.changed = true;
        }
    }
}

/// Counts up; over a restart it goes on from its ceiling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
struct Counter {
    last: u32,
    /// In the file: everything given so far is at most this.
    ceiling: u32,
    changed: bool,
}

impl Counter {
    fn next(&mut self) -> u32 {
        self.last += 1;
        if self.last > self.ceiling {
            self.ceiling = self.last + AHEAD;
            self.changed = true;
        }
        self.last
    }

    fn stay_above(&mut self, taken: impl Iterator<Item = u32>) {
        self.last = taken.max().unwrap_or_default().max(self.last);
    }
}

impl From<u32> for Counter {
    fn from(ceiling: u32) -> Self {
        Self { last: ceiling, ceiling, changed: false }
    }
}

impl From<Counter> for u32 {
    fn from(counter: Counter) -> Self {
        counter.ceiling
    }
}

/// Values and their numbers, counted up and never reused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Pairs<T>", into = "Pairs<T>")]
#[serde(bound(serialize = "T: Ord + Clone + Serialize", deserialize = "T: Ord + Clone + Deserialize<'de>"))]
pub struct Table<T: Ord + Clone> {
    numbers: BTreeMap<T, u32>,
    values: BTreeMap<u32, T>,
    next: u32,
    changed: bool,
}

impl<T: Ord + Clone> Table<T> {
    fn starting_at(next: u32) -> Self {
        Self { numbers: BTreeMap::new(), values: BTreeMap::new(), next, changed: false }
    }

    /// The number of this value, a new one if it has none.
    pub fn number(&mut self, value: &T) -> u32 {
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        let number = self.next;
        self.next += 1;
        self.changed = true;
        self.numbers.insert(value.clone(), number);
        self.values.insert(number, value.clone());
        number
    }

    fn stay_above(&mut self, taken: impl Iterator<Item = u32>) {
        if let Some(highest) = taken.max() {
            self.next = self.next.max(highest + 1);
        }
    }

    pub fn get(&self, value: &T) -> Option<u32> {
        self.numbers.get(value).copied()
    }

    pub fn value(&self, number: u32) -> Option<&T> {
        self.values.get(&number)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&T, u32)> {
        self.numbers.iter().map(|(value, number)| (value, *number))
    }

    /// Forgets the values whose number does not pass; their numbers stay taken.
    pub fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        let before = self.values.len();
        self.values.retain(|number, _| keep(*number));
        self.numbers.retain(|_, number| keep(*number));
        self.changed |= self.values.len() != before;
    }
}

/// JSON keeps maps with string keys only.
#[derive(Serialize, Deserialize)]
struct Pairs<T> {
    next: u32,
    pairs: Vec<(u32, T)>,
}

impl<T: Ord + Clone> From<Pairs<T>> for Table<T> {
    fn from(Pairs { next, pairs }: Pairs<T>) -> Self {
        let numbers = pairs.iter().map(|(number, value)| (value.clone(), *number)).collect();
        Self { numbers, values: pairs.into_iter().collect(), next, changed: false }
    }
}

impl<T: Ord + Clone> From<Table<T>> for Pairs<T> {
    fn from(table: Table<T>) -> Self {
        Self { next: table.next, pairs: table.values.into_iter().collect() }
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
            namespace_labels: BTreeMap::new(),
            ports: [].into(),
            tenant: None,
            door: None,
        }))
    }

    #[test]
    fn numbers_keep_their_meaning_over_a_restart() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("numbers.json");
        let mut before = Numbers::default();
        let web = before.identity(&pod("web"));
        let db = before.identity(&pod("db"));
        let grant = before.grants.number(&Grant::NotIsolated);
        let generation = before.next_generation();
        before.save_if_changed(&path).expect("saved");

        let mut after = Numbers::load(&path).expect("loaded");
        assert_eq!((after.identity(&pod("db")), after.identity(&pod("web"))), (db, web));
        assert_eq!(after.grants.number(&Grant::NotIsolated), grant);
        assert!(after.identity(&pod("new")) > db, "a new identity gets a new number");
        assert!(after.next_generation() > generation, "no generation is given twice");
    }

    #[test]
    fn a_forgotten_number_is_never_given_again() {
        let mut numbers = Numbers::default();
        let first = numbers.identity(&pod("a"));
        numbers.identities.retain(|_| false);
        assert!(numbers.identity(&pod("b")) > first);
    }

    #[test]
    fn reserved_identities_have_the_numbers_that_the_kernel_knows() {
        let mut numbers = Numbers::default();
        for (identity, want) in [
            (Identity::Host, abi::IDENTITY_HOST),
            (Identity::RemoteNode, abi::IDENTITY_REMOTE_NODE),
            (Identity::World, abi::IDENTITY_WORLD),
            (Identity::UnknownPod, abi::IDENTITY_UNKNOWN_POD),
        ] {
            assert_eq!(numbers.identity(&Arc::new(identity)), want);
        }
        assert_eq!(numbers.blocks(&Arc::default()), 0);
        assert_eq!(numbers.tenant(&Tenancy::Unknown), abi::TENANT_UNKNOWN);
    }

    #[test]
    fn a_file_that_is_no_table_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("numbers.json");
        fs::write(&path, "{]").expect("written");
        let error = Numbers::load(&path).expect_err("not a table");
        assert!(error.to_string().contains("numbers.json"), "{error}");
    }
}
