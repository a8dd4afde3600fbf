//! What the policies in force can mention: as fine as identities and block sets need to be, and no finer.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
};

use super::{
    Settings,
    model::{Direction, Scope},
};
use crate::cluster::{
    Index,
    object::{IpBlock, NetworkPolicy, Peer, Ports, Rule, Selector},
};

/// The scope of every policy in the index. Policies of namespaces without a pod here count too: a pod's
/// start must not redraw the identities of everybody else.
pub fn scope(index: &Index, _settings: &Settings) -> Scope {
    let mut scope = Scope::default();
    for policy in index.policies() {
        scope.mention_all(policy);
    }
    scope
}

impl Scope {
    pub fn of(policy: &NetworkPolicy) -> Self {
        let mut scope = Self::default();
        scope.mention_all(policy);
        scope
    }

    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        self.extend(other);
        self
    }

    pub fn extend(&mut self, other: &Self) {
        self.label_keys.extend(other.label_keys.iter().cloned());
        self.namespace_label_keys.extend(other.namespace_label_keys.iter().cloned());
        self.port_names.extend(other.port_names.iter().cloned());
        self.block_port_names.extend(other.block_port_names.iter().cloned());
        self.blocks.extend(other.blocks.iter().cloned());
    }

    /// What `other` does not have. Costs the size of `self`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let names = |own: &BTreeSet<String>, other: &BTreeSet<String>| {
            own.iter().filter(|name| !other.contains(*name)).cloned().collect()
        };
        Self {
            label_keys: names(&self.label_keys, &other.label_keys),
            namespace_label_keys: names(&self.namespace_label_keys, &other.namespace_label_keys),
            port_names: names(&self.port_names, &other.port_names),
            block_port_names: names(&self.block_port_names, &other.block_port_names),
            blocks: self.blocks.iter().filter(|b| !other.blocks.contains(b)).cloned().collect(),
        }
    }

    /// Costs the size of `other`.
    pub fn remove(&mut self, other: &Self) {
        other.label_keys.iter().for_each(|key| _ = self.label_keys.remove(key));
        other.namespace_label_keys.iter().for_each(|key| _ = self.namespace_label_keys.remove(key));
        other.port_names.iter().for_each(|name| _ = self.port_names.remove(name));
        other.block_port_names.iter().for_each(|name| _ = self.block_port_names.remove(name));
        other.blocks.iter().for_each(|block| _ = self.blocks.remove(block));
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn mention_all(&mut self, policy: &NetworkPolicy) {
        policy.ingress.iter().flatten().for_each(|rule| self.mention(Direction::Ingress, rule));
        policy.egress.iter().flatten().for_each(|rule| self.mention(Direction::Egress, rule));
    }

    fn mention(&mut self, direction: Direction, rule: &Rule) {
        for peer in &rule.peers {
            match peer {
                Peer::Pods { namespaces, pods } => {
                    self.label_keys.extend(pods.keys().map(str::to_owned));
                    let keys = namespaces.iter().flat_map(Selector::keys);
                    self.namespace_label_keys.extend(keys.map(str::to_owned));
                }
                Peer::Block(block) => {
                    self.blocks.insert(block.clone());
                }
            }
        }
        // Ingress names are the subject's ports, resolved in its own rule set.
        if direction == Direction::Egress {
            let by_block = rule.peers.is_empty() || rule.peers.iter().any(Peer::by_block);
            let by_identity = rule.peers.iter().any(|p| !p.by_block());
            for port in &rule.ports {
                let Ports::Named(name) = &port.ports else { continue };
                if by_block {
                    self.block_port_names.insert(name.clone());
                }
                if by_identity {
                    self.port_names.insert(name.clone());
                }
            }
        }
    }
}

impl Peer {
    /// Is the peer looked up by block set (ipBlocks, and every pod of the pod network) or by identity?
    pub(super) fn by_block(&self) -> bool {
        match self {
            Self::Pods { namespaces, pods } => {
                pods.requirements.is_empty() && namespaces.as_ref().is_some_and(|n| n.requirements.is_empty())
            }
            Self::Block(_) => true,
        }
    }
}

/// How many policies mention what, and what is still in scope though no policy mentions it any more.
#[derive(Debug, Default)]
pub(super) struct Mentions {
    label_keys: Counts<String>,
    namespace_label_keys: Counts<String>,
    port_names: Counts<String>,
    block_port_names: Counts<String>,
    blocks: Counts<IpBlock>,
    idle: Scope,
}

impl Mentions {
    pub fn add(&mut self, scope: &Scope) {
        self.label_keys.add(&scope.label_keys);
        self.namespace_label_keys.add(&scope.namespace_label_keys);
        self.port_names.add(&scope.port_names);
        self.block_port_names.add(&scope.block_port_names);
        self.blocks.add(&scope.blocks);
        self.idle.remove(scope);
    }

    pub fn remove(&mut self, scope: &Scope) {
        self.label_keys.remove(&scope.label_keys, &mut self.idle.label_keys);
        self.namespace_label_keys.remove(&scope.namespace_label_keys, &mut self.idle.namespace_label_keys);
        self.port_names.remove(&scope.port_names, &mut self.idle.port_names);
        self.block_port_names.remove(&scope.block_port_names, &mut self.idle.block_port_names);
        self.blocks.remove(&scope.blocks, &mut self.idle.blocks);
    }

    /// In scope for now, whether or not a policy mentions it.
    pub fn keep(&mut self, scope: &Scope) {
        self.label_keys.keep(&scope.label_keys, &mut self.idle.label_keys);
        self.namespace_label_keys.keep(&scope.namespace_label_keys, &mut self.idle.namespace_label_keys);
        self.port_names.keep(&scope.port_names, &mut self.idle.port_names);
        self.block_port_names.keep(&scope.block_port_names, &mut self.idle.block_port_names);
        self.blocks.keep(&scope.blocks, &mut self.idle.blocks);
    }

    /// What goes out of scope.
    pub fn take_idle(&mut self) -> Scope {
        std::mem::take(&mut self.idle)
    }
}

#[derive(Debug)]
struct Counts<T>(HashMap<T, usize>);

impl<T> Default for Counts<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Ord + Hash + Clone> Counts<T> {
    fn add(&mut self, items: &BTreeSet<T>) {
        for item in items {
            match self.0.get_mut(item) {
                Some(count) => *count += 1,
                None => _ = self.0.insert(item.clone(), 1),
            }
        }
    }

    fn remove(&mut self, items: &BTreeSet<T>, idle: &mut BTreeSet<T>) {
        for item in items {
            let count = self.0.get_mut(item).expect("what is removed was added");
            *count -= 1;
            if *count == 0 {
                self.0.remove(item);
                idle.insert(item.clone());
            }
        }
    }

    fn keep(&self, items: &BTreeSet<T>, idle: &mut BTreeSet<T>) {
        idle.extend(items.iter().filter(|item| !self.0.contains_key(*item)).cloned());
    }
}
