//! What the policies in force can mention: as fine as identities and block sets need to be, and no finer.

use super::{
    Settings,
    model::{Direction, Scope},
};
use crate::cluster::{
    Index,
    object::{Peer, Ports, Rule, Selector},
};

/// The scope of every policy in the index. Policies of namespaces without a pod here count too: a pod's
/// start must not redraw the identities of everybody else.
pub fn scope(index: &Index, _settings: &Settings) -> Scope {
    let mut scope = Scope::default();
    for policy in index.policies() {
        policy.ingress.iter().flatten().for_each(|rule| scope.mention(Direction::Ingress, rule));
        policy.egress.iter().flatten().for_each(|rule| scope.mention(Direction::Egress, rule));
    }
    scope
}

impl Scope {
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        self.label_keys.extend(other.label_keys.iter().cloned());
        self.namespace_label_keys.extend(other.namespace_label_keys.iter().cloned());
        self.port_names.extend(other.port_names.iter().cloned());
        self.block_port_names.extend(other.block_port_names.iter().cloned());
        self.blocks.extend(other.blocks.iter().cloned());
        self
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
