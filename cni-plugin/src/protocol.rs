//! What the plugin and the agent say to each other: one JSON object per line over the agent's Unix
//! socket, one answer line per request (flow queries with `follow` keep answering).

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Longest line either side accepts, in bytes.
pub const MAX_LINE: usize = 1 << 20;

/// A CNI request. Other requests (status, flows) share the socket; see `bulkhead`'s `api` module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cni", rename_all = "UPPERCASE", deny_unknown_fields)]
pub enum CniRequest {
    /// Enforce this attachment; answered when programs and rules are in the kernel.
    Add { attachment: AttachmentId, sandbox: Sandbox },
    /// The attachment goes away; unknown ones are no error.
    Del { attachment: AttachmentId },
    /// Is this attachment enforced right now, on this interface and with these addresses?
    Check { attachment: AttachmentId, sandbox: Sandbox },
    /// These attachments of this network exist; drop every other.
    Gc { network: String, valid: BTreeSet<AttachmentId> },
    /// Can an ADD be served?
    Status,
}

/// CNI's key of an attachment: container and interface name inside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentId {
    pub container: String,
    pub ifname: String,
}

/// Where a pod hangs on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Name of the network configuration list.
    pub network: String,
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
    /// Host side of the veth pair.
    pub host_ifname: String,
    pub host_ifindex: u32,
    /// MAC address of the container side.
    pub mac: [u8; 6],
    /// Addresses of the container side from prevResult; at most one per family.
    pub addresses: BTreeSet<IpAddr>,
    pub pod: Option<PodName>,
}

/// From `CNI_ARGS`: `K8S_POD_NAMESPACE`, `K8S_POD_NAME`, `K8S_POD_UID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    pub uid: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase", deny_unknown_fields)]
pub enum CniAnswer {
    /// Done, or (STATUS) ready.
    Ok,
    /// Not now: the pod or a part of the agent's knowledge is still missing. CNI code 11; `failurePolicy` decides.
    TryAgain { message: String },
    /// The request can never succeed as it is. CNI code as in the specification, section "Error".
    Failed { code: u32, message: String },
}
