//! Who says to own an address.

use std::{cmp::Ordering, sync::Arc};

use super::{
    compact::Set,
    object::{Key, Node, Pod},
};

/// Somebody's statement to own an address. Finished pods make none. One claimant has one claim, whatever state of it
/// the claim shows.
#[derive(Clone, Debug)]
pub(super) enum Claim {
    Node(Arc<Node>),
    /// A host-network pod: the address is its node's.
    HostPod(Arc<Pod>),
    Pod(Arc<Pod>),
}

impl Claim {
    pub fn is_node(&self) -> bool {
        matches!(self, Self::Node(_) | Self::HostPod(_))
    }

    pub fn node_name(&self) -> Option<&str> {
        match self {
            Self::Node(node) => Some(&node.name),
            Self::HostPod(pod) => pod.node.as_deref(),
            Self::Pod(_) => None,
        }
    }

    pub fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            Self::Pod(pod) => Some(pod),
            Self::Node(_) | Self::HostPod(_) => None,
        }
    }

    /// Nodes before host-network pods before others.
    fn claimant(&self) -> (u8, Option<&str>, Option<&Key>) {
        match self {
            Self::Node(node) => (0, Some(&node.name), None),
            Self::HostPod(pod) => (1, pod.node.as_deref(), Some(&pod.key)),
            Self::Pod(pod) => (2, None, Some(&pod.key)),
        }
    }
}

impl Ord for Claim {
    fn cmp(&self, other: &Self) -> Ordering {
        self.claimant().cmp(&other.claimant())
    }
}

impl PartialOrd for Claim {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Claim {
    fn eq(&self, other: &Self) -> bool {
        self.claimant() == other.claimant()
    }
}

impl Eq for Claim {}

/// All that is claimed of one address; nearly always by one.
#[derive(Clone, Debug)]
pub(super) enum Claims {
    One(Claim),
    Several(Box<Set<Claim>>),
}

const _: () = assert!(size_of::<Claims>() == 16, "there is one for every address of the cluster");

impl Claims {
    pub fn as_slice(&self) -> &[Claim] {
        match self {
            Self::One(claim) => std::slice::from_ref(claim),
            Self::Several(claims) => claims,
        }
    }

    pub fn insert(&mut self, claim: Claim) {
        let all = self.as_slice().iter().filter(|known| **known != claim).chain([&claim]);
        *self = Self::of(all.cloned().collect()).unwrap_or(Self::One(claim));
    }

    /// What is left; `None`: nothing.
    pub fn without(&self, claim: &Claim) -> Option<Self> {
        Self::of(self.as_slice().iter().filter(|known| *known != claim).cloned().collect())
    }

    fn of(claims: Set<Claim>) -> Option<Self> {
        match &*claims {
            [] => None,
            [only] => Some(Self::One(only.clone())),
            _ => Some(Self::Several(Box::new(claims))),
        }
    }
}
