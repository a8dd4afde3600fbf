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
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use bulkhead_cni::protocol::{AttachmentId, Sandbox};
use bulkhead_ebpf::abi::ConnKey;
use nix::net::if_::if_nametoindex;
use tokio::sync::mpsc;

use super::{
    local,
    node::{Node, PACKET_UNDER_WAY, error_chain},
};
use crate::{
    cluster::object::Key,
    datapath::{imports::Known, programs::Role},
    endpoint::{
        Endpoint,
        adoption::{Expected, Recognised, Unadopted, is_here, recognise},
        sockets::{Conversation, Sockets},
        survey::Survey,
        translations,
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
    departed: BTreeMap<AttachmentId, Option<Key>>,
    /// Until when adopted pods are learnt about.
    learning: BTreeMap<AttachmentId, Instant>,
    /// Being adopted: programs are not on their interfaces yet.
    silent: BTreeSet<AttachmentId>,
}

impl Running {
    pub fn is_silent(&self, attachment: &AttachmentId) -> bool {
        self.silent.contains(attachment)
    }
}

/// Looks the node over now and then, on a thread that may block.
pub struct Surveyor {
    cache: PathBuf,
    results: mpsc::Sender<io::Result<Survey>>,
    busy: bool,
}

impl Surveyor {
    /// Results come out of the channel; each must be told to [`Surveyor::done`].
    pub fn new(cache: PathBuf) -> (Self, mpsc::Receiver<io::Result<Survey>>) {
        let (results, received) = mpsc::channel(1);
        (Self { cache, results, busy: false }, received)
    }

    /// Begins a survey unless one is under way, or the cluster is not known yet.
    pub fn look(&mut self, node: &Node) {
        if self.busy || !node.source.synced {
            return;
        }
        self.busy = true;
        let (cache, known, results) = (self.cache.clone(), node.known_attachments(), self.results.clone());
        // Nobody receives when the agent stops.
        tokio::task::spawn_blocking(move || _ = results.blocking_send(Survey::take(&cache, &known)));
    }

    /// As [`Surveyor::look`], if nobody has looked yet.
    pub fn look_first(&mut self, node: &Node) {
        if !node.running.surveyed {
            self.look(node);
        }
    }

    pub fn done(&mut self) {
        self.busy = false;
    }
}

impl Node {
    fn known_attachments(&self) -> BTreeSet<AttachmentId> {
        let endpoints = self.endpoints.iter().map(|endpoint| &endpoint.attachment);
        endpoints.chain(self.running.departed.keys()).cloned().collect()
    }

    /// A DEL has come: what the runtime still remembers of it is not to be adopted.
    pub(super) fn note_departure(&mut self, attachment: &AttachmentId) {
        let pod = self.endpoints.get(attachment).and_then(Endpoint::pod);
        self.running.learning.remove(attachment);
        self.running.departed.insert(attachment.clone(), pod);
    }

    /// Adopts what a survey has found.
    pub fn take_in(&mut self, survey: io::Result<Survey>) {
        if !self.source.synced {
            return; // the next survey is asked again
        }
        let mut survey = match survey {
            Ok(survey) => survey,
            Err(error) => {
                tracing::warn!(%error, "the node cannot be looked over");
                self.running.unreadable = vec![error.to_string()];
                return;
            }
        };
        self.running.departed.retain(|attachment, _| survey.remembered.contains(attachment));
        let (departed, endpoints) = (&self.running.departed, &self.endpoints);
        // Some may have come or gone while the survey was taken.
        survey.sightings.retain(|sighting| {
            let attachment = &sighting.remembered.attachment;
            !departed.contains_key(attachment) && endpoints.get(attachment).is_none()
        });
        let Recognised { pods, mut unadopted } =
            recognise(&survey.sightings, &survey.bridges, &self.expected());
        if !pods.is_empty() {
            unadopted.extend(self.adopt_running(pods));
        }
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
        let departed = self.running.departed.values().flatten().cloned();
        Expected {
            pods: here.map(|pod| (pod.key.clone(), pod)).collect(),
            served: self.endpoints.iter().filter_map(Endpoint::pod).chain(departed).collect(),
            interfaces: self.endpoints.iter().map(|endpoint| endpoint.sandbox.host_ifindex).collect(),
            addresses: self.addresses_of_endpoints().into_keys().collect(),
        }
    }

    fn addresses_of_endpoints(&self) -> BTreeMap<IpAddr, u32> {
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
                    left.push(unadopted(
                        &attachment,
                        &sandbox,
                        format!("its sockets cannot be read: {error}"),
                    ));
                }
            }
        }
        let (mut adopted, mut conversations) = (Vec::new(), Vec::new());
        for (attachment, sandbox, sockets) in read {
            let ifindex = sandbox.host_ifindex;
            let endpoint = Endpoint { id: self.tables.next_endpoint(), attachment, sandbox, adopted: true };
            if let Err(error) = self.store.save(&endpoint) {
                left.push(unadopted(&endpoint.attachment, &endpoint.sandbox, error_chain(&error)));
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
                left.push(unadopted(&endpoint.attachment, &endpoint.sandbox, error.clone()));
            }
            self.enforce();
            return left;
        }
        self.import(&adopted, &conversations, None);
        // What comes to a pod masqueraded is known by the mark that its sender's hook has put on it.
        self.attach_all(Role::Sender, &adopted);
        thread::sleep(PACKET_UNDER_WAY);
        self.attach_all(Role::Pod, &adopted);
        // Only now: where packets leave for other nodes, and at other pods, what this pod sends would be judged as its
        // question although it is an answer that its own hooks know.
        self.running.silent.clear();
        self.enforce();
        // What was opened since the sockets were read for the first time; and a hook may have met an answer first and
        // taken it for a question.
        self.read_sockets(&adopted, Some(began));
        let until = Instant::now() + LEARNING;
        self.running.learning.extend(adopted.iter().map(|endpoint| (endpoint.attachment.clone(), until)));
        self.running.adopted += u64::try_from(adopted.len()).unwrap_or_default();
        self.running.took = start.elapsed();
        let (pods, imported) = (adopted.len(), self.running.imported);
        tracing::info!(pods, imported, took = ?self.running.took, "running pods adopted");
        left
    }

    pub(super) fn attach_all(&mut self, role: Role, adopted: &[Endpoint]) {
        for Sandbox { host_ifname, host_ifindex, .. } in adopted.iter().map(|endpoint| &endpoint.sandbox) {
            if let Err(error) = self.programs.attach(role, host_ifname, *host_ifindex) {
                // Its rules are in place; `repair` tries again.
                tracing::error!(ifname = host_ifname, error = error_chain(&error), "pod is not enforced");
            }
        }
    }

    /// Imports whatever conversations these endpoints are in; `replace` as for `import`.
    pub(super) fn read_sockets(&mut self, adopted: &[Endpoint], replace: Option<u64>) {
        let mut conversations = Vec::new();
        for endpoint in adopted {
            let sandbox = &endpoint.sandbox;
            match Sockets::of(&sandbox.netns) {
                Ok(sockets) => {
                    conversations.extend(sockets.conversations().map(|c| (sandbox.host_ifindex, c)));
                }
                // The pod may be gone; otherwise the hooks judge what they meet as they meet it.
                Err(error) => {
                    tracing::warn!(%error, ifname = sandbox.host_ifname, "sockets cannot be read");
                }
            }
        }
        self.import(adopted, &conversations, replace);
    }

    /// Enters connections that are not known yet; those that the hooks have entered since `replace` give way if they
    /// say otherwise who began.
    fn import(&mut self, adopted: &[Endpoint], conversations: &[(u32, Conversation)], replace: Option<u64>) {
        let tracked = translations::tracked()
            .inspect_err(|error| tracing::warn!(%error, "what the node translates cannot be read"));
        let known = Known {
            endpoints: self.addresses_of_endpoints(),
            adopted: adopted.iter().map(|endpoint| endpoint.sandbox.host_ifindex).collect(),
            node: local::addresses().unwrap_or_default(),
            tracked: tracked.ok(),
            now: clock::monotonic(),
        };
        let maps = self.tables.kernel();
        for (key, conn) in known.entries(conversations) {
            let entered = match key.addresses {
                [IpAddr::V4(a), IpAddr::V4(b)] => {
                    maps.conns_v4().learn(&with(&key, [a.octets(), b.octets()]), &conn, replace)
                }
                [IpAddr::V6(a), IpAddr::V6(b)] => {
                    maps.conns_v6().learn(&with(&key, [a.octets(), b.octets()]), &conn, replace)
                }
                _ => continue, // no socket has such ends
            };
            match entered {
                Ok(entered) => self.running.imported += u64::from(entered),
                // Judged as the hooks meet it.
                Err(error) => tracing::warn!(error = error_chain(&error), "a connection is not imported"),
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

    /// Adopted pods that are still being learnt about.
    pub(super) fn learning(&self) -> usize {
        self.running.learning.len()
    }
}

/// Another interface may have the number by now.
pub fn is_gone(sandbox: &Sandbox) -> bool {
    if_nametoindex(sandbox.host_ifname.as_str()) != Ok(sandbox.host_ifindex)
}

fn unadopted(attachment: &AttachmentId, sandbox: &Sandbox, why: String) -> Unadopted {
    let pod = sandbox.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default();
    Unadopted { pod, container: attachment.container.clone(), why }
}

fn with<A>(key: &ConnKey<IpAddr>, addresses: [A; 2]) -> ConnKey<A> {
    let ConnKey { ports_be, protocol, pad, .. } = *key;
    ConnKey { addresses, ports_be, protocol, pad }
}
