//! What we keep of a Kubernetes object: only what can change an outcome or names an end in the flow log.
//!
//! One spelling per meaning: prefixes are masked, sets are sorted, defaults are filled in, so that `==`
//! tells whether anything changed.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

pub use super::compact::Labels;
use super::compact::{Few, Set, SharedSet, Text};

/// Label that the API server puts on every namespace.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Namespace and name of a namespaced object; prints as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub namespace: Text,
    pub name: Text,
}

impl Key {
    pub fn new(namespace: impl AsRef<str>, name: impl AsRef<str>) -> Self {
        Self { namespace: namespace.as_ref().into(), name: name.as_ref().into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    Namespace(Namespace),
    Pod(Pod),
    Node(Node),
    NetworkPolicy(NetworkPolicy),
    Service(Service),
    EndpointSlice(EndpointSlice),
}

/// Kind and name of an [`Object`]. Cluster-scoped objects have an empty namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    Namespace,
    Pod,
    Node,
    NetworkPolicy,
    Service,
    EndpointSlice,
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Namespace, Self::Pod, Self::Node, Self::NetworkPolicy, Self::Service, Self::EndpointSlice];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    pub kind: Kind,
    pub key: Key,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.namespace.as_ref() {
            "" => write!(f, "{} {}", self.kind, self.key.name),
            _ => write!(f, "{} {}", self.kind, self.key),
        }
    }
}

impl Object {
    pub fn reference(&self) -> ObjectRef {
        let (kind, key) = match self {
            Self::Namespace(n) => (Kind::Namespace, Key::new("", &n.name)),
            Self::Pod(p) => (Kind::Pod, p.key.clone()),
            Self::Node(n) => (Kind::Node, Key::new("", &n.name)),
            Self::NetworkPolicy(p) => (Kind::NetworkPolicy, p.key.clone()),
            Self::Service(s) => (Kind::Service, s.key.clone()),
            Self::EndpointSlice(s) => (Kind::EndpointSlice, s.key.clone()),
        };
        ObjectRef { kind, key }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Namespace {
    pub name: String,
    /// Always with [`NAMESPACE_NAME_LABEL`].
    pub labels: Labels,
    pub annotations: Labels,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    pub key: Key,
    /// What tells a pod from an earlier one of the same name, as the kubelet tells CNI. A source may leave it out
    /// for pods of other nodes.
    pub uid: Option<Text>,
    pub labels: Labels,
    /// `spec.nodeName`; `None`: not scheduled.
    pub node: Option<Text>,
    pub host_network: bool,
    /// `status.phase` is Succeeded or Failed: neither subject nor peer (semantics 32).
    pub finished: bool,
    /// `status.podIPs`, or `podIP`.
    pub ips: Few<IpAddr>,
    /// Of all containers and restartable init containers.
    pub ports: SharedSet<ContainerPort>,
    /// The controller that owns the pod (a `ReplicaSet` of a Deployment is told as the Deployment).
    pub workload: Option<Arc<Workload>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Workload {
    pub kind: Text,
    pub name: Text,
}

/// A named container port; unnamed ones cannot be referred to and are not kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerPort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Node {
    pub name: String,
    /// `status.addresses` of types `InternalIP` and `ExternalIP`, and flannel's public-ip annotations.
    pub addresses: BTreeSet<IpAddr>,
    /// `spec.podCIDRs`, or `podCIDR`; masked.
    pub pod_cidrs: BTreeSet<IpNetwork>,
}

/// A protocol that a `NetworkPolicy` port can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "UDP")]
    Udp,
    #[serde(rename = "SCTP")]
    Sctp,
}

impl Protocol {
    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// `None`: not one of these.
    pub fn of_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| protocol.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A Service that kube-proxy translates. One without a cluster address (headless, `ExternalName`) has no
/// addresses here: kube-proxy leaves it alone, and so do we.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    pub key: Key,
    /// `spec.clusterIPs`, `spec.externalIPs` and those of `status.loadBalancer` that nodes translate themselves.
    pub addresses: Few<IpAddr>,
    pub ports: Set<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePort {
    /// Joins the port with those of endpoint slices that bear the same name and protocol; may be empty.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    /// On every address of every node.
    pub node_port: Option<u16>,
}

/// Some of the backends of one Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointSlice {
    pub key: Key,
    /// Name of the Service, in the slice's own namespace.
    pub service: String,
    /// Of endpoints to which kube-proxy may send: ready ones, and while there are none, those that still serve.
    pub addresses: Set<IpAddr>,
    /// Of the other endpoints: no new connection goes there, but old ones may still live.
    pub draining: Set<IpAddr>,
    pub ports: Set<SlicePort>,
    /// Part of it cannot be read: there are backends that nobody knows (semantics 41).
    pub defective: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetworkPolicy {
    pub key: Key,
    pub labels: Labels,
    pub subjects: Selector,
    /// `None`: the policy does not isolate in this direction. `Some([])`: it isolates and admits nothing.
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
    /// Why the policy, or part of it, cannot be honoured (semantics 41). Such a policy isolates its subjects
    /// in the directions it names, and its unreadable rules admit nothing.
    pub defects: Vec<String>,
}

/// One item of `ingress` or `egress`: peers AND ports must match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// Place in the manifest's list: rule numbers in status and flow log count unreadable rules too.
    pub index: usize,
    /// Empty: anyone (semantics 7).
    pub peers: Vec<Peer>,
    /// Empty: every protocol and port.
    pub ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Peer {
    /// Pods of the policy's own namespace (`namespaces: None`) or of the selected ones.
    Pods {
        namespaces: Option<Selector>,
        pods: Selector,
    },
    Block(IpBlock),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IpBlock {
    /// Masked.
    pub cidr: IpNetwork,
    /// Masked, inside `cidr`. Shared by all the classes of addresses that the block makes.
    pub except: SharedSet<IpNetwork>,
}

impl IpBlock {
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(address) && !self.except.iter().any(|e| e.contains(address))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Port {
    pub protocol: Protocol,
    pub ports: Ports,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Ports {
    All,
    /// Inclusive.
    Range(u16, u16),
    /// A container port's name, resolved on each destination pod (semantics 19 to 21).
    Named(String),
}

/// A label selector; all requirements hold together. Empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Selector {
    pub requirements: SharedSet<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Requirement {
    pub key: Text,
    pub operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Operator {
    /// The key exists and its value is one of these (`matchLabels` is a set of one).
    In(Set<Text>),
    /// The key is absent or its value is none of these (semantics 1).
    NotIn(Set<Text>),
    Exists,
    DoesNotExist,
}

impl Selector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| {
            let value = labels.get(&r.key);
            match &r.operator {
                Operator::In(values) => value.is_some_and(|v| values.contains(v)),
                Operator::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.requirements.iter().map(|r| r.key.as_ref())
    }
}
