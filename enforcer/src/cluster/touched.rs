//! What changed in the index since somebody looked: work that follows is in proportion to this.

use std::{collections::BTreeSet, net::IpAddr};

use super::object::Key;

/// Names only: what they are now is in the index, and what they were is with whoever looked before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Their owner, or something about it, may be another.
    pub addresses: BTreeSet<IpAddr>,
    /// Upserted or deleted pods, and those whose attachment changed.
    pub pods: BTreeSet<Key>,
    pub namespaces: BTreeSet<String>,
    pub policies: BTreeSet<Key>,
    /// Services that changed, or whose slices did.
    pub services: BTreeSet<Key>,
    /// The set of pod networks may have changed.
    pub pod_networks: bool,
}

impl Touched {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Both, in whatever order they happened.
    pub fn extend(&mut self, other: Self) {
        self.addresses.extend(other.addresses);
        self.pods.extend(other.pods);
        self.namespaces.extend(other.namespaces);
        self.policies.extend(other.policies);
        self.services.extend(other.services);
        self.pod_networks |= other.pod_networks;
    }
}
