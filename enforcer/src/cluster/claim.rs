//! Who says to own an address.

use super::{compact::Text, object::Key};

/// Somebody's statement to own an address. Finished pods make none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    Node(Text),
    /// A host-network pod: the address is its node's.
    HostPod {
        node: Option<Text>,
        pod: Key,
    },
    Pod(Key),
}

impl Claim {
    pub fn is_node(&self) -> bool {
        matches!(self, Self::Node(_) | Self::HostPod { .. })
    }

    pub fn node_name(&self) -> Option<&str> {
        match self {
            Self::Node(name) => Some(name),
            Self::HostPod { node, .. } => node.as_deref(),
            Self::Pod(_) => None,
        }
    }

    pub fn pod(&self) -> Option<&Key> {
        match self {
            Self::Pod(key) => Some(key),
            Self::Node(_) | Self::HostPod { .. } => None,
        }
    }
}
