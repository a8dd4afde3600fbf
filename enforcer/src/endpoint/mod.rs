//! Which pods hang on this node: told by CNI, kept over a restart.
pub mod adoption;
pub mod cache;
pub mod sockets;
pub mod store;
pub mod survey;
pub mod translations;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_cni::protocol::{AttachmentId, Sandbox};
use serde::{Deserialize, Serialize};

use crate::{cluster::object::Key, datapath::Local};

/// One attachment of a pod to this node's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Node-local number, never reused; in status and flow records.
    pub id: u32,
    pub attachment: AttachmentId,
    pub sandbox: Sandbox,
    /// It ran before we knew of it, and its connections are still being learned (semantics 35).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
}

impl Endpoint {
    pub fn pod(&self) -> Option<Key> {
        self.sandbox.pod.as_ref().map(|pod| Key::new(&pod.namespace, &pod.name))
    }

    pub fn local(&self) -> Local {
        Local {
            id: self.id,
            ifindex: self.sandbox.host_ifindex,
            pod: self.pod(),
            mac: self.sandbox.mac,
            addresses: self.sandbox.addresses.clone(),
            adopted: self.adopted,
            silent: false,
        }
    }
}

/// The endpoints of this node, by attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints(BTreeMap<AttachmentId, Endpoint>);

impl Endpoints {
    pub fn insert(&mut self, endpoint: Endpoint) -> Option<Endpoint> {
        self.0.insert(endpoint.attachment.clone(), endpoint)
    }

    pub fn remove(&mut self, attachment: &AttachmentId) -> Option<Endpoint> {
        self.0.remove(attachment)
    }

    pub fn get(&self, attachment: &AttachmentId) -> Option<&Endpoint> {
        self.0.get(attachment)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.0.values()
    }

    /// Addresses of a pod on this node: several attachments while one sandbox replaces another.
    pub fn addresses_of(&self, pod: &Key) -> BTreeSet<IpAddr> {
        let own = self.0.values().filter(|e| e.pod().as_ref() == Some(pod));
        own.flat_map(|e| e.sandbox.addresses.iter().copied()).collect()
    }

    /// Attachments of a network that a runtime does not list any more (CNI GC).
    pub fn invalid(&self, network: &str, valid: &BTreeSet<AttachmentId>) -> Vec<AttachmentId> {
        let of_network = self.0.values().filter(|e| e.sandbox.network == network);
        of_network.map(|e| e.attachment.clone()).filter(|a| !valid.contains(a)).collect()
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_cni::protocol::PodName;

    use super::*;

    pub fn endpoint(container: &str, id: u32) -> Endpoint {
        Endpoint {
            id,
            attachment: AttachmentId { container: container.into(), ifname: "eth0".into() },
            sandbox: Sandbox {
                network: "cbr0".into(),
                netns: "/run/netns/x".into(),
                host_ifname: "veth0".into(),
                host_ifindex: id + 10,
                mac: [2, 0, 0, 0, 0, 1],
                addresses: [IpAddr::from([10, 244, 1, u8::try_from(id).expect("small")])].into(),
                pod: Some(PodName { namespace: "shop".into(), name: "cart".into(), uid: None }),
            },
            adopted: false,
        }
    }

    #[test]
    fn a_pod_whose_sandbox_is_being_replaced_has_both_addresses() {
        let mut endpoints = Endpoints::default();
        endpoints.insert(endpoint("old", 1));
        endpoints.insert(endpoint("new", 2));
        let both = [IpAddr::from([10, 244, 1, 1]), IpAddr::from([10, 244, 1, 2])].into();
        assert_eq!(endpoints.addresses_of(&Key::new("shop", "cart")), both);
        assert_eq!(endpoints.addresses_of(&Key::new("other", "cart")), [].into());
    }

    #[test]
    fn gc_names_the_attachments_of_its_own_network_only() {
        let mut endpoints = Endpoints::default();
        endpoints.insert(endpoint("kept", 1));
        endpoints.insert(endpoint("gone", 2));
        let valid = [endpoint("kept", 1).attachment].into();
        assert_eq!(endpoints.invalid("cbr0", &valid), [endpoint("gone", 2).attachment]);
        assert_eq!(endpoints.invalid("other", &valid), []);
    }
}
