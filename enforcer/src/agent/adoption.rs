//! Pods that ran before bulkhead did, or that were let start without it: enforced without a restart, once their
//! connections are known.
//!
//! ```text
//! survey (another thread) ─▶ recognise ─▶ sockets ─▶ records and rules ─▶ connections ─▶ programs
//!                                            addresses that lead to the records ◀───────────┘
//!                                            sockets and connections once more  ◀───────────┘
//! ```
//! Until the programs are on its interface such a pod is as it was, unenforced, and status names it; from then on
//! nothing passes that its policies do not allow. A pod that cannot be adopted now is tried again with every survey.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use bulkhead_cni::protocol::{AttachmentId, Sandbox};
use nix::net::if_::if_nametoindex;

use super::{
    attaching::Purpose,
    node::{Node, PACKET_UNDER_WAY, error_chain},
};
use crate::{
    cluster::object::Key,
    datapath::programs::Role,
    endpoint::{
        Endpoint,
        adoption::{Expected, Recognised, Unadopted, is_here, recognise},
        cache::file_name,
        sockets::Sockets,
        survey::Survey,
    },
    flow::clock,
};

/// For how long a TCP packet from the middle of a connection that no reading of the sockets has shown may still be
/// judged as the first of one (semantics 35): longer than a lost segment takes to be sent again for the third time.
const LEARNING: Duration = Duration::from_secs(5);

/// What is known of pods that are not, or not yet for long, endpoints.
#[derive(Debug, Default)]
pub struct Running {
    /// The node has been looked over since the start.
    pub surveyed: bool,
    pub unadopted: BTreeSet<Unadopted>,
    /// Why the runtime's cache, or files of it, cannot be read.
    pub unreadable: Vec<String>,
    /// Pods adopted since the start, connections imported for them, and how long the last adoption took.
    pub adopted: u64,
    pub imported: u64,
    pub took: Duration,
    /// Attachments whose DEL has come and which the runtime still remembers.
    departed: BTreeSet<AttachmentId>,
    /// Pods whose DEL has come and which the API still has.
    ended: BTreeSet<Key>,
    /// Until when adopted pods are learnt about.
    learning: BTreeMap<AttachmentId, Instant>,
    /// Being adopted: programs are not on their interfaces yet.
    silent: BTreeSet<AttachmentId>,
    adopting: Option<Adopting>,
    /// Endpoints of before whose interfaces nothing of ours holds any more: to be adopted anew.
    returning: BTreeMap<AttachmentId, Sandbox>,
}

/// On so many interfaces at once. Each takes the kernel a grace period during which nobody else changes the network: more
/// would only leave pods that start meanwhile a smaller share.
const AT_ONCE: usize = 4;

/// Pods whose programs are being put on their interfaces.
#[derive(Debug)]
struct Adopting {
    pods: Vec<Endpoint>,
    role: Role,
    next: usize,
    /// Interfaces of the pods before `next` that are not done.
    under_way: BTreeSet<u32>,
    start: Instant,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    began: u64,
}

impl Running {
    pub fn is_silent(&self, attachment: &AttachmentId) -> bool {
        self.silent.contains(attachment)
    }
}

impl Node {
    /// Names of the runtime's files for our endpoints, and attachments whose DEL has come.
    pub(super) fn known_attachments(&self) -> (BTreeSet<String>, BTreeSet<AttachmentId>) {
        let files = self.endpoints.iter().map(|e| file_name(&e.sandbox.network, &e.attachment));
        (files.collect(), self.running.departed.clone())
    }

    /// A DEL has come: what the runtime still remembers of it is not to be adopted.
    pub(super) fn note_departure(&mut self, attachment: &AttachmentId) {
        self.running.ended.extend(self.endpoints.get(attachment).and_then(Endpoint::pod));
        self.running.learning.remove(attachment);
        self.running.departed.insert(attachment.clone());
        if self.running.returning.remove(attachment).is_some()
            && let Err(error) = self.store.remove(attachment)
        {
            tracing::warn!(error = error_chain(&error), "endpoint file stays");
        }
    }

    /// An endpoint of before that nothing of ours holds: its connections are unknown, and so it waits.
    pub(super) fn await_return(&mut self, endpoint: &Endpoint) {
        self.running.returning.insert(endpoint.attachment.clone(), endpoint.sandbox.clone());
    }

    /// Adopts what a survey has found.
    pub fn take_in(&mut self, survey: io::Result<Survey>) {
        if !self.source.synced || self.is_adopting() {
            return; // the next survey is asked again
        }
        let mut survey = survey.unwrap_or_else(|error| {
            tracing::warn!(%error, "the node cannot be looked over");
            Survey { unreadable: vec![error.to_string()], ..Survey::default() }
        });
        self.running.departed.retain(|attachment| survey.remembered.contains(attachment));
        self.running.ended.retain(|pod| self.index.pod(pod).is_some());
        let (departed, endpoints) = (&self.running.departed, &self.endpoints);
        // Some may have come or gone while the survey was taken.
        survey.sightings.retain(|sighting| {
            let attachment = &sighting.remembered.attachment;
            !departed.contains(attachment) && endpoints.get(attachment).is_none()
        });
        let Recognised { mut pods, mut unadopted } =
            recognise(&survey.sightings, &survey.bridges, &self.expected());
        // Of these we have been told by ADD.
        self.running.returning.retain(|_, sandbox| !is_gone(sandbox));
        pods.extend(self.running.returning.clone());
        unadopted.retain(|one| !pods.keys().any(|attachment| attachment.container == one.container));
        unadopted.extend(match self.health.error.clone() {
            None if pods.is_empty() => Vec::new(),
            None => self.adopt_running(pods),
            Some(error) => {
                pods.iter().map(|(attachment, sandbox)| not_adopted(attachment, sandbox, &error)).collect()
            }
        });
        let endpoints = &self.endpoints;
        self.running.returning.retain(|attachment, _| endpoints.get(attachment).is_none());
        for news in unadopted.difference(&self.running.unadopted) {
            tracing::error!(
                pod = news.pod,
                container = news.container,
                why = news.why,
                "pod is not enforced"
            );
        }
        self.running.unadopted = unadopted;
        self.running.unreadable = survey.unreadable;
        self.running.surveyed = true;
    }

    fn expected(&self) -> Expected<'_> {
        let here = self.index.pods().filter(|pod| is_here(pod, self.index.node_name()));
        let ended = self.running.ended.iter().cloned();
        Expected {
            pods: here.map(|pod| (pod.key.clone(), pod)).collect(),
            served: self.endpoints.iter().filter_map(Endpoint::pod).chain(ended).collect(),
            interfaces: self.endpoints.iter().map(|endpoint| endpoint.sandbox.host_ifindex).collect(),
            addresses: self.addresses_of_endpoints().into_keys().collect(),
        }
    }

    pub(super) fn addresses_of_endpoints(&self) -> BTreeMap<IpAddr, u32> {
        let endpoints = self.endpoints.iter().map(|endpoint| &endpoint.sandbox);
        endpoints.flat_map(|s| s.addresses.iter().map(|address| (*address, s.host_ifindex))).collect()
    }

    /// All at once: one plan for all of them, and connections between them known from both ends. Returns those that
    /// stay as they are, and why.
    fn adopt_running(&mut self, pods: BTreeMap<AttachmentId, Sandbox>) -> Vec<Unadopted> {
        let (start, began) = (Instant::now(), clock::monotonic());
        let mut left = Vec::new();
        let mut read = Vec::new();
        for (attachment, sandbox) in pods {
            match Sockets::of(&sandbox.netns) {
                Ok(sockets) => read.push((attachment, sandbox, sockets)),
                Err(error) => {
                    left.push(not_adopted(
                        &attachment,
                        &sandbox,
                        &format!("its sockets cannot be read: {error}"),
                    ));
                }
            }
        }
        let (mut adopted, mut conversations) = (Vec::new(), Vec::new());
        for (attachment, sandbox, sockets) in read {
            let ifindex = sandbox.host_ifindex;
            let endpoint = Endpoint { id: self.tables.next_endpoint(), attachment, sandbox, adopted: true };
            if let Err(error) = self.store.save(&endpoint) {
                left.push(not_adopted(&endpoint.attachment, &endpoint.sandbox, &error_chain(&error)));
                continue;
            }
            conversations.extend(sockets.conversations().map(|conversation| (ifindex, conversation)));
            self.orphans.remove(&ifindex);
            self.endpoints.insert(endpoint.clone());
            self.follow_pod(&endpoint);
            adopted.push(endpoint);
        }
        self.running.silent = adopted.iter().map(|endpoint| endpoint.attachment.clone()).collect();
        self.enforce();
        if let Some(error) = self.health.error.clone() {
            self.running.silent.clear();
            for endpoint in adopted {
                self.forget(&endpoint.attachment);
                left.push(not_adopted(&endpoint.attachment, &endpoint.sandbox, &error));
            }
            self.enforce();
            return left;
        }
        self.import(&adopted, &conversations, None);
        if !adopted.is_empty() {
            // What comes to a pod masqueraded is known by the mark that its sender's hook has put on it.
            let role = Role::Sender;
            self.running.adopting =
                Some(Adopting { pods: adopted, role, next: 0, under_way: BTreeSet::new(), start, began });
            self.go_on_adopting();
        }
        left
    }

    pub fn is_adopting(&self) -> bool {
        self.running.adopting.is_some()
    }

    /// Programs have been put on the interface, or not.
    pub(super) fn adoption_attached(&mut self, ifindex: u32) {
        if let Some(work) = &mut self.running.adopting {
            work.under_way.remove(&ifindex);
            self.go_on_adopting();
        }
    }

    fn go_on_adopting(&mut self) {
        let Some(mut work) = self.running.adopting.take() else { return };
        loop {
            while work.under_way.len() < AT_ONCE
                && let Some(endpoint) = work.pods.get(work.next)
            {
                work.next += 1;
                let ifindex = endpoint.sandbox.host_ifindex;
                // It may have gone since.
                let is_here = self.endpoints.get(&endpoint.attachment).is_some_and(|e| e.id == endpoint.id);
                if is_here && self.begin_attaching(work.role, &endpoint.sandbox, Purpose::Adoption).is_ok() {
                    work.under_way.insert(ifindex);
                }
            }
            if !work.under_way.is_empty() {
                self.running.adopting = Some(work);
                return;
            }
            if work.role != Role::Sender {
                return self.finish_adopting(&work);
            }
            thread::sleep(PACKET_UNDER_WAY);
            (work.role, work.next) = (Role::Receiver, 0);
        }
    }

    fn finish_adopting(&mut self, Adopting { pods, start, began, .. }: &Adopting) {
        // Only now: where packets leave for other nodes, and at other pods, what such a pod sends would be judged as its
        // question although it is an answer that its own hooks know.
        self.running.silent.clear();
        self.enforce();
        // What was opened since the sockets were read for the first time; and a hook may have met an answer first and
        // taken it for a question.
        let adopted: Vec<Endpoint> =
            pods.iter().filter(|pod| self.endpoints.get(&pod.attachment).is_some()).cloned().collect();
        self.read_sockets(&adopted, Some(*began));
        let until = Instant::now() + LEARNING;
        self.running.learning.extend(adopted.iter().map(|endpoint| (endpoint.attachment.clone(), until)));
        self.running.adopted += u64::try_from(adopted.len()).unwrap_or_default();
        self.running.took = start.elapsed();
        let (pods, imported) = (adopted.len(), self.running.imported);
        tracing::info!(pods, imported, took = ?self.running.took, "running pods adopted");
    }

    pub(super) fn attach_all(&mut self, role: Role, adopted: &[Endpoint]) {
        for Sandbox { host_ifname, host_ifindex, .. } in adopted.iter().map(|endpoint| &endpoint.sandbox) {
            if let Err(error) = self.programs.attach(role, host_ifname, *host_ifindex) {
                // Its rules are in place; `repair` tries again.
                tracing::error!(ifname = host_ifname, error = error_chain(&error), "pod is not enforced");
            }
        }
    }

    /// Ends learning when its time is over, and forgets endpoints whose interface is gone without a DEL.
    pub(super) fn tend_running(&mut self) {
        let now = Instant::now();
        let learnt: Vec<_> = self
            .running
            .learning
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(a, _)| a.clone())
            .collect();
        let gone: Vec<_> = self.endpoints.iter().filter(|e| is_gone(&e.sandbox)).cloned().collect();
        if learnt.is_empty() && gone.is_empty() {
            return;
        }
        for attachment in learnt {
            self.running.learning.remove(&attachment);
            let Some(endpoint) = self.endpoints.get(&attachment) else { continue };
            let endpoint = Endpoint { adopted: false, ..endpoint.clone() };
            if let Err(error) = self.store.save(&endpoint) {
                tracing::warn!(
                    error = error_chain(&error),
                    "an endpoint's file says that it is still learnt about"
                );
            }
            self.endpoints.insert(endpoint);
        }
        for endpoint in gone {
            let container = &endpoint.attachment.container;
            tracing::info!(container, ifname = endpoint.sandbox.host_ifname, "pod is gone without a DEL");
            self.note_departure(&endpoint.attachment);
            self.forget(&endpoint.attachment);
        }
        self.enforce();
    }

    /// An endpoint of before that was still being learnt about.
    pub(super) fn go_on_learning(&mut self, endpoint: &Endpoint) {
        if endpoint.adopted {
            self.running.learning.insert(endpoint.attachment.clone(), Instant::now() + LEARNING);
        }
    }

    /// Pods that are being adopted.
    pub(super) fn adopting(&self) -> usize {
        self.running.silent.len()
    }

    /// Adopted pods that are still being learnt about.
    pub(super) fn learning(&self) -> usize {
        self.running.learning.len()
    }
}

/// Another interface may have the number by now.
pub fn is_gone(sandbox: &Sandbox) -> bool {
    if_nametoindex(sandbox.host_ifname.as_str()) != Ok(sandbox.host_ifindex)
}

fn not_adopted(attachment: &AttachmentId, sandbox: &Sandbox, why: &str) -> Unadopted {
    let pod = sandbox.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default();
    Unadopted { pod, container: attachment.container.clone(), why: why.to_owned() }
}
