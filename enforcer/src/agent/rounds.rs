//! What the kernel is asked now and then, because nobody tells: routes, addresses, and whether programs are where they
//! should be. Much of that waits for the lock of all network configuration, which every pod's start holds for long: the
//! owner does not.

use std::{collections::BTreeSet, io, net::IpAddr};

use tokio::sync::mpsc;

use super::{
    attaching::Purpose,
    local,
    node::{Node, error_chain},
    overlay::{Links, Netlink},
};
use crate::datapath::programs::{Role, Running};

/// What a round has found.
pub struct Round {
    links: Result<Links, rtnetlink::Error>,
    addresses: io::Result<BTreeSet<IpAddr>>,
    /// Interfaces on which a program of ours is missing.
    bare: BTreeSet<u32>,
}

/// Makes rounds, one at a time.
pub struct Rounds {
    netlink: Netlink,
    results: mpsc::Sender<Round>,
    busy: bool,
}

/// An interface, and what should be running there.
pub struct Post {
    ifname: String,
    ifindex: u32,
    wanted: Running,
}

impl Rounds {
    /// Results come out of the channel; each must be told to [`Rounds::done`].
    pub fn new(netlink: Netlink) -> (Self, mpsc::Receiver<Round>) {
        let (results, received) = mpsc::channel(1);
        (Self { netlink, results, busy: false }, received)
    }

    /// Begins a round unless one is under way.
    pub fn begin(&mut self, node: &Node) {
        if std::mem::replace(&mut self.busy, true) {
            return;
        }
        let (netlink, results, posts) = (self.netlink.clone(), self.results.clone(), node.posts());
        tokio::spawn(async move {
            let links = netlink.links().await;
            let look = move || (local::addresses().map_err(io::Error::from), bare(&posts));
            let (addresses, bare) = tokio::task::spawn_blocking(look)
                .await
                .unwrap_or_else(|panic| (Err(io::Error::other(panic)), BTreeSet::new()));
            // Nobody receives when the agent stops.
            let _ = results.send(Round { links, addresses, bare }).await;
        });
    }

    pub fn done(&mut self) {
        self.busy = false;
    }
}

fn bare(posts: &[Post]) -> BTreeSet<u32> {
    let is_bare =
        |post: &&Post| !matches!(post.wanted.on(&post.ifname), Ok(true)) && local::exists(post.ifindex);
    posts.iter().filter(is_bare).map(|post| post.ifindex).collect()
}

impl Node {
    /// Where programs of ours should be by now.
    fn posts(&self) -> Vec<Post> {
        if self.is_succeeding() {
            return Vec::new(); // a predecessor's are on the interfaces
        }
        let (pod, way) = match (self.programs.running(Role::Pod), self.programs.running(Role::Overlay)) {
            (Ok(pod), Ok(way)) => (pod, way),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(error = error_chain(&error), "the kernel does not tell of our programs");
                return Vec::new();
            }
        };
        let pods = self
            .endpoints
            .iter()
            .filter(|endpoint| !self.running.is_silent(&endpoint.attachment))
            .map(|endpoint| &endpoint.sandbox)
            .filter(|sandbox| !self.programs.is_being_fitted(sandbox.host_ifindex))
            .map(|sandbox| (sandbox.host_ifindex, &sandbox.host_ifname, &pod));
        let ways = self
            .links
            .interfaces
            .iter()
            .filter(|(index, _)| self.programs.keeps(Role::Overlay, **index))
            .map(|(index, interface)| (*index, &interface.name, &way));
        pods.chain(ways)
            .map(|(ifindex, ifname, wanted)| Post { ifname: ifname.clone(), ifindex, wanted: wanted.clone() })
            .collect()
    }

    /// Takes in a round; the kernel follows at once if it changes what must hold.
    pub fn take_round(&mut self, round: Round) {
        self.bare = round.bare;
        self.repair();
        match round.links {
            Ok(links) => self.follow_links(links),
            Err(error) => tracing::warn!(%error, "routes cannot be read"),
        }
        match round.addresses {
            Ok(addresses) => {
                if self.index.set_local_addresses(addresses) {
                    self.enforce();
                }
            }
            Err(error) => tracing::warn!(%error, "this node's addresses cannot be read"),
        }
    }

    /// Begins to put programs back that somebody has taken off pods' interfaces.
    fn repair(&mut self) {
        let sandboxes: Vec<_> = self
            .endpoints
            .iter()
            .map(|endpoint| &endpoint.sandbox)
            .filter(|sandbox| self.bare.contains(&sandbox.host_ifindex))
            .filter(|sandbox| !self.programs.is_being_fitted(sandbox.host_ifindex))
            .cloned()
            .collect();
        for sandbox in sandboxes {
            if let Err(error) = self.begin_attaching(Role::Pod, &sandbox, Purpose::Repair) {
                let (ifname, error) = (&sandbox.host_ifname, error_chain(&error));
                tracing::error!(ifname, error, "a program is missing on a pod's interface");
            }
        }
    }
}
