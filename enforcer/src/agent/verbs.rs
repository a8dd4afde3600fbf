//! CNI's verbs on this node, once nothing has to be waited for.

use std::collections::BTreeSet;

use bulkhead_cni::protocol::{AttachmentId, CniAnswer, CniRequest, Sandbox};
use nix::net::if_::if_nametoindex;

use super::{
    attaching::{Begun, Purpose},
    node::{Node, error_chain},
};
use crate::{datapath::programs::Role, endpoint::Endpoint};

/// CNI error codes of ours, as the specification's section "Error" names them.
const INVALID_ENVIRONMENT: u32 = 4;
const INVALID_CONFIGURATION: u32 = 7;
/// "unknown container": what CHECK found is not what ADD set up.
const UNKNOWN_CONTAINER: u32 = 3;

/// Why an ADD cannot be answered yet, or ever.
pub enum NotAdded {
    /// The pod, or the first complete list, may still arrive.
    Unknown(String),
    Answer(CniAnswer),
}

impl Node {
    /// ADD. When rules are in the kernel, programs may still be on their way: then the pod is not guarded yet, and
    /// [`Node::finish_add`] has the answer. `None`: there is nothing to wait for. Undoes what it did when it cannot.
    pub fn add(&mut self, attachment: &AttachmentId, sandbox: &Sandbox) -> Result<Option<Begun>, NotAdded> {
        let refuse =
            |code, message: &str| NotAdded::Answer(CniAnswer::Failed { code, message: message.to_owned() });
        let Some(name) = &sandbox.pod else {
            return Err(refuse(
                INVALID_ENVIRONMENT,
                "CNI_ARGS names no pod (K8S_POD_NAMESPACE, K8S_POD_NAME)",
            ));
        };
        if sandbox.addresses.is_empty() {
            return Err(refuse(INVALID_CONFIGURATION, "prevResult gives the pod no address"));
        }
        if !self.source.synced {
            return Err(NotAdded::Unknown("the cluster's objects are still being read".to_owned()));
        }
        let key = crate::cluster::object::Key::new(&name.namespace, &name.name);
        match self.index.pod(&key) {
            None => return Err(NotAdded::Unknown(format!("pod {key} is not known yet"))),
            Some(pod) if pod.host_network => {
                return Err(refuse(INVALID_CONFIGURATION, "a host-network pod has no interface of its own"));
            }
            // As when a StatefulSet's pod is made again under its name: what is known is the old one.
            Some(pod) if matches!((&pod.uid, &name.uid), (Some(known), Some(wanted)) if **known != **wanted) =>
            {
                return Err(NotAdded::Unknown(format!("only an earlier pod {key} is known yet")));
            }
            Some(_) => {}
        }
        if if_nametoindex(sandbox.host_ifname.as_str()) != Ok(sandbox.host_ifindex) {
            return Err(refuse(
                INVALID_CONFIGURATION,
                &format!("there is no interface {} with index {}", sandbox.host_ifname, sandbox.host_ifindex),
            ));
        }
        let ifindex = sandbox.host_ifindex;
        if self.attacher.purpose(ifindex) == Some(Purpose::Adoption) {
            return Err(NotAdded::Unknown(format!("pod {key} is being adopted")));
        }
        if let Some(known) = self.endpoints.get(attachment).filter(|known| known.sandbox == *sandbox) {
            // Asked twice.
            if self.programs.is_being_fitted(ifindex) {
                return Ok(Some(Begun { ifindex, id: known.id, before: None }));
            }
            if self.check(attachment, sandbox).is_ok() {
                return Ok(None);
            }
        }

        let id = self.tables.next_endpoint();
        let endpoint =
            Endpoint { id, attachment: attachment.clone(), sandbox: sandbox.clone(), adopted: false };
        let begun = Begun { ifindex, id, before: self.endpoints.insert(endpoint.clone()) };
        self.orphans.remove(&ifindex);
        self.follow_pod(&endpoint);
        let result = self.store.save(&endpoint).map_err(|e| error_chain(&e)).and_then(|()| {
            self.enforce();
            match &self.health.error {
                Some(error) => Err(error.clone()),
                // For somebody else; they will do for this one as well.
                None if self.programs.is_being_fitted(ifindex) => Ok(()),
                None => self.begin_attaching(Role::Pod, sandbox, Purpose::Start).map_err(|e| error_chain(&e)),
            }
        });
        match result {
            Ok(()) => Ok(Some(begun)),
            Err(error) => Err(NotAdded::Answer(self.finish_add(attachment, begun, &Err(error)))),
        }
    }

    /// The answer to an ADD, now that programs have been put on the interface, or not.
    pub fn finish_add(
        &mut self,
        attachment: &AttachmentId,
        begun: Begun,
        result: &Result<(), String>,
    ) -> CniAnswer {
        let again = |message| CniAnswer::TryAgain { message };
        let Some(endpoint) = self.endpoints.get(attachment).filter(|known| known.id == begun.id) else {
            return again("the attachment has been changed meanwhile".to_owned());
        };
        let Err(error) = result else { return CniAnswer::Ok };
        let pod = endpoint.pod().map(|pod| pod.to_string()).unwrap_or_default();
        tracing::error!(pod, error, "pod not admitted");
        self.forget(attachment);
        if let Some(before) = begun.before {
            self.follow_pod(&before);
            self.endpoints.insert(before);
        }
        self.enforce();
        again(format!("pod {pod} cannot be enforced: {error}"))
    }

    /// DEL: the record goes, so that the interface drops everything until it is gone itself.
    pub fn del(&mut self, attachment: &AttachmentId) {
        self.note_departure(attachment);
        if self.endpoints.get(attachment).is_some() {
            self.forget(attachment);
            self.enforce();
        }
    }

    pub(super) fn forget(&mut self, attachment: &AttachmentId) {
        let endpoint = self.endpoints.remove(attachment);
        if let Err(error) = self.store.remove(attachment) {
            // The next start finds that the interface is gone and removes it then.
            tracing::warn!(%error, "endpoint file stays");
        }
        if let Some(endpoint) = endpoint {
            self.follow_pod(&endpoint);
        }
    }

    /// Tells the index which addresses the endpoint's pod has here.
    pub(super) fn follow_pod(&mut self, endpoint: &Endpoint) {
        let Some(pod) = endpoint.pod() else { return };
        let addresses = self.endpoints.addresses_of(&pod);
        if addresses.is_empty() {
            self.index.detach(&pod);
        } else {
            self.index.attach(pod, addresses);
        }
    }

    /// CHECK: is the attachment as ADD left it, and enforced?
    pub fn check(&self, attachment: &AttachmentId, sandbox: &Sandbox) -> Result<(), CniAnswer> {
        let failed = |message: String| CniAnswer::Failed { code: UNKNOWN_CONTAINER, message };
        let Some(endpoint) = self.endpoints.get(attachment) else {
            return Err(failed("bulkhead does not know this attachment".to_owned()));
        };
        let (have, want) = (&endpoint.sandbox, sandbox);
        if (have.host_ifindex, have.mac, &have.addresses) != (want.host_ifindex, want.mac, &want.addresses) {
            return Err(failed(format!(
                "the attachment is enforced on {} for {:?}, not on {} for {:?}",
                have.host_ifname, have.addresses, want.host_ifname, want.addresses
            )));
        }
        let Some(record) = self.tables.actual().endpoints.get(&have.host_ifindex) else {
            return Err(failed("the kernel holds no record of the endpoint".to_owned()));
        };
        if record.id != endpoint.id {
            return Err(failed("the kernel's record is another endpoint's".to_owned()));
        }
        match self.programs.attached(Role::Pod, &have.host_ifname) {
            Ok(true) => Ok(()),
            Ok(false) => Err(failed(format!("a program is missing on {}", have.host_ifname))),
            Err(error) => Err(failed(error_chain(&error))),
        }
    }

    /// GC: endpoints of the network that the runtime does not list any more go.
    pub fn gc(&mut self, network: &str, valid: &BTreeSet<AttachmentId>) {
        for attachment in self.endpoints.invalid(network, valid) {
            tracing::info!(container = attachment.container, "removed by GC");
            self.del(&attachment);
        }
    }

    /// Every request but ADD, which may have to wait.
    pub fn answer(&mut self, request: CniRequest) -> CniAnswer {
        match request {
            CniRequest::Add { .. } => unreachable!("ADD goes through `add`"),
            CniRequest::Del { attachment } => self.del(&attachment),
            CniRequest::Check { attachment, sandbox } => {
                return self.check(&attachment, &sandbox).err().unwrap_or(CniAnswer::Ok);
            }
            CniRequest::Gc { network, valid } => self.gc(&network, &valid),
            CniRequest::Status if !self.source.synced => {
                return CniAnswer::TryAgain {
                    message: "the cluster's objects are still being read".to_owned(),
                };
            }
            CniRequest::Status => {
                if let Some(error) = &self.health.error {
                    return CniAnswer::TryAgain { message: error.clone() };
                }
            }
        }
        CniAnswer::Ok
    }
}
