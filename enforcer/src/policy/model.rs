//! The compiler's output: symbolic, comparable, free of kernel numbers.
//!
//! [`Compiled`] says what every address *is* and which [`RuleSet`] each local pod has. What a rule set
//! admits is found by [`RuleSet::entries`] for the identities and block sets that occur; numbers are given
//! to identities, block sets, rule sets and rules by `datapath`, which also orders the writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::cluster::{
    Addresses, Frontend,
    compact::Text,
    object::{ContainerPort, IpBlock, Key, Labels, Protocol, Rule},
};

/// Everything the kernel of one node must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Pods and nodes, by exact address.
    pub peers: Addresses<Arc<PeerInfo>>,
    /// Everybody else, by longest prefix: pod networks, ipBlocks, and always `0.0.0.0/0` and `::/0`.
    pub prefixes: BTreeMap<IpNetwork, PeerInfo>,
    /// Where this node's pods reach Services, always as [`Identity::Service`].
    pub services: BTreeMap<Frontend, Arc<Identity>>,
    /// Pods of this node that are subjects (not host-network, not finished), whether isolated or not.
    pub endpoints: BTreeMap<Key, EndpointPolicy>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPolicy {
    pub rules: Arc<RuleSet>,
    pub identity: Arc<Identity>,
    pub tenant: Option<String>,
}

/// What an address is to policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerInfo {
    pub identity: Arc<Identity>,
    pub blocks: Arc<BlockSet>,
    pub tenant: Tenancy,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tenancy {
    /// No tenant: `NetworkPolicy` alone decides.
    #[default]
    Shared,
    Tenant(Text),
    /// An unknown address of the pod network: another tenant than any tenant (semantics 40).
    Unknown,
}

/// Pods that no selector in force can tell apart share an identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Identity {
    /// This node, by any of its addresses.
    Host,
    RemoteNode,
    World,
    UnknownPod,
    Pod(PodIdentity),
    /// An address that kube-proxy translates. Only destinations are one.
    Service(ServiceClass),
    /// A Service behind which is the overlay's tunnel port of something that is no pod. What got there would be put
    /// on the overlay in any pod's name, so nobody does.
    Tunnel,
}

/// What stands behind a frontend, as far as policy can tell it apart: a rollout that keeps the labels changes
/// nothing, and Services with like backends share an identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceClass {
    pub protocol: Protocol,
    /// Judged after translation, where the chosen one is known. Unknown addresses of the pod network are
    /// among them: they are judged there as well.
    pub pods: BTreeSet<BackendClass>,
    /// Nodes and what is outside: nobody sees the choice but the source, before it is made.
    pub others: BTreeSet<BackendClass>,
    /// There may be further backends, which cannot be read: nothing is admitted (semantics 41).
    pub defective: bool,
    /// By another node's port: translated where nobody knows the source, and asked about only for tenants.
    pub elsewhere: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendClass {
    pub peer: PeerInfo,
    /// After translation (semantics 18).
    pub port: u16,
}

/// Labels and ports are projected onto what the selectors and named ports of [`Scope`] mention.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodIdentity {
    pub namespace: Text,
    pub labels: Labels,
    pub namespace_labels: Labels,
    pub ports: BTreeSet<ContainerPort>,
    pub tenant: Option<String>,
    /// Tenants that the pod's namespace lets in (`None`: any); nobody's, so empty, without a tenant.
    pub door: Option<BTreeSet<String>>,
}

/// Which ipBlocks in scope hold an address, and whether it is a known pod's: the class by which
/// prefix rules are looked up, because one pod identity may lie in many blocks. Empty: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockSet {
    /// A pod of the pod network: what an all-pods peer (`namespaceSelector: {}`) admits, in one entry.
    pub pod: bool,
    pub blocks: BTreeSet<IpBlock>,
    /// The pod's container ports named by [`Scope::block_port_names`]: a named port behind an ipBlock, an
    /// all-pods peer or no peer at all must know block and port together (semantics 19, 24).
    pub ports: BTreeSet<ContainerPort>,
}

/// What the policies in force can mention. Identities and block sets are only as fine as their scope; while
/// policies change, both the old and the new policies' scope holds, so that old and new rule sets agree on
/// what an address is (see `datapath::transition`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    pub label_keys: BTreeSet<String>,
    pub namespace_label_keys: BTreeSet<String>,
    /// Named ports that egress rules combine with selectors.
    pub port_names: BTreeSet<String>,
    /// Named ports that egress rules combine with ipBlocks, all pods or anyone.
    pub block_port_names: BTreeSet<String>,
    pub blocks: BTreeSet<IpBlock>,
}

/// All that decides for one pod: shared by the pods for which it is equal, whatever the order of policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleSet {
    pub ingress: DirectionRules,
    pub egress: DirectionRules,
    /// The subject's container ports that named ports of its ingress rules refer to.
    pub ports: BTreeSet<ContainerPort>,
    /// Setting `localNodeEgress: allow` (semantics 30).
    pub local_node_egress: bool,
    /// The subject's tenant and door, for [`RuleSet::entries`]' door entries; `None`: shared.
    pub tenant: Option<String>,
    pub door: Option<BTreeSet<String>>,
}

impl RuleSet {
    /// The same isolation, and nothing of what the policies allow.
    #[must_use]
    pub fn admitting_nothing(&self) -> Self {
        let shut = |rules: &DirectionRules| DirectionRules {
            policies: rules
                .policies
                .iter()
                .map(|part| Arc::new(PolicyRules { rules: Vec::new(), ..PolicyRules::clone(part) }))
                .collect(),
        };
        Self {
            ingress: shut(&self.ingress),
            egress: shut(&self.egress),
            ports: BTreeSet::new(),
            ..self.clone()
        }
    }
}

/// Policies that isolate the pod in one direction, sorted by key; empty: the direction is open.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DirectionRules {
    pub policies: Vec<Arc<PolicyRules>>,
}

/// One direction of one policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PolicyRules {
    pub policy: Key,
    pub labels: Labels,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Direction {
    Ingress,
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// The other end of a rule entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RulePeer {
    Any,
    Identity(Arc<Identity>),
    Blocks(Arc<BlockSet>),
}

/// Destination ports as one prefix of the 16-bit port number, or coarser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// Every protocol.
    All,
    /// Every port of a protocol (IANA number).
    Protocol(u8),
    /// Ports of `protocol` whose leading `bits` (1 to 16) equal those of `port`; the other bits of `port` are zero.
    Prefix { protocol: u8, port: u16, bits: u8 },
}

/// One entry of the kernel's rule trie, before numbering.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryKey {
    pub direction: Direction,
    /// A tenant-boundary door instead of a policy rule (then `ports` is `All`).
    pub door: bool,
    pub peer: RulePeer,
    pub ports: PortMatch,
}

/// Why an entry admits: every rule that does. What the flow log and `simulate` name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Grant {
    /// No policy isolates the pod in this direction.
    NotIsolated,
    /// The pod's own node (semantics 29, 30).
    LocalNode,
    /// The destination's namespace lets the tenant in.
    Door,
    /// These rules, sorted: at least one, and of very many the first 32.
    Rules(BTreeSet<RuleRef>),
}

/// Policy and place of the rule in its `ingress` or `egress` list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleRef {
    pub policy: Key,
    pub rule: usize,
}

pub type Entries = BTreeMap<EntryKey, Grant>;
