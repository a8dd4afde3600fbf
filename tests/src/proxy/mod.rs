//! kube-proxy's part on one node, and flannel's own masquerading: rules that lead from a Service to a backend.
//!
//! ```text
//! Services, EndpointSlices ─ services ─▶ ServicePort ─ iptables | nftables ─▶ text ─▶ iptables-restore | nft
//! ```
//!
//! The rules have the shape that kube-proxy gives them in either of its modes, so that packets meet on a lab's
//! node what they meet on a real one. As kube-proxy does, it also makes the kernel forget UDP conversations with
//! backends that are gone.

mod conntrack;
mod iptables;
mod nftables;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use anyhow::Result;
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::{
    kubelet,
    node::{Node, pod_network},
    probe::{Family, Transport},
    services::{self, ServicePort},
    topology::Lab,
};

/// What kube-proxy calls its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    Iptables,
    Nftables,
}

/// One node's proxy. What it wrote goes with the node's namespace.
#[derive(Debug)]
pub struct Proxy {
    node: Arc<Node>,
    mode: ProxyMode,
    /// What the last rules brought with them, to be removed when it is no longer used.
    written: Mutex<BTreeMap<Family, Written>>,
}

/// Names of chains and sets that exist for one Service or backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Written {
    chains: BTreeSet<String>,
    sets: BTreeSet<String>,
}

/// What rules depend on besides the Services: one node as one family sees it.
#[derive(Clone, Copy, Debug)]
struct Site {
    family: Family,
    /// All pods, and the pods of this node.
    pod_network: IpNetwork,
    pods: IpNetwork,
    node: IpAddr,
}

/// Rules as text for their tool, and what is new with them.
struct Rules {
    text: String,
    written: Written,
}

impl Lab {
    /// Lets every node's proxy see the Service and EndpointSlice objects as they are now.
    pub fn sync_proxies(&self) -> Result<()> {
        let objects = kubelet::read_dir(self.manifests().dir())?;
        self.proxies().iter().try_for_each(|proxy| proxy.sync(&objects))
    }
}

impl Proxy {
    /// The rules that are there before any Service is: kube-proxy's frame, flannel's masquerading.
    pub(crate) fn start(node: &Arc<Node>, mode: ProxyMode) -> Result<Self> {
        // A refusal is an ICMP error, of which the kernel sends one host only a few per second.
        for key in ["net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"] {
            node.netns().sysctl(key, "0")?;
        }
        let proxy = Self { node: Arc::clone(node), mode, written: Mutex::default() };
        for family in Family::BOTH {
            let site = proxy.site(family);
            proxy.carry_out(
                family,
                &match mode {
                    ProxyMode::Iptables => iptables::frame(&site),
                    ProxyMode::Nftables => nftables::flannel(&site),
                },
            )?;
        }
        proxy.sync(&[])?;
        Ok(proxy)
    }

    /// Replaces the rules by those of these objects, at once (with iptables: one table after the other).
    pub fn sync(&self, objects: &[Value]) -> Result<()> {
        let mut written = self.written.lock().expect("no holder panics");
        for family in Family::BOTH {
            let (site, ports) = (self.site(family), services::ports(objects, family)?);
            let before = written.entry(family).or_default();
            let rules = match self.mode {
                ProxyMode::Iptables => iptables::rules(&site, &ports, before),
                ProxyMode::Nftables => nftables::rules(&site, &ports, before),
            };
            self.carry_out(family, &rules.text)?;
            *before = rules.written;
            conntrack::forget(self.node.netns(), family, |conversation| {
                let mut udp = ports.iter().filter(|port| port.transport == Transport::Udp);
                let port = udp.find(|port| port.is_at(&site, conversation.asked));
                port.is_some_and(|port| !port.backends.contains(&conversation.answers))
            })?;
        }
        Ok(())
    }

    fn site(&self, family: Family) -> Site {
        let (pods, node) = (self.node.pods(family), self.node.ip(family));
        Site { family, pod_network: pod_network(family), pods, node }
    }

    fn carry_out(&self, family: Family, text: &str) -> Result<()> {
        match (self.mode, family) {
            (ProxyMode::Iptables, Family::V4) => {
                self.node.netns().feed("iptables-restore", &["--noflush"], text)
            }
            (ProxyMode::Iptables, Family::V6) => {
                self.node.netns().feed("ip6tables-restore", &["--noflush"], text)
            }
            (ProxyMode::Nftables, _) => self.node.netns().feed("nft", &["-f", "-"], text),
        }
    }
}

impl ServicePort {
    /// Whether this is one of the addresses that lead here, on this node.
    fn is_at(&self, site: &Site, at: SocketAddr) -> bool {
        let own = self.cluster_ip == Some(at.ip()) || self.external_ips.contains(&at.ip());
        own && self.port == at.port() || at.ip() == site.node && self.node_port == Some(at.port())
    }

    /// `tcp` or `udp`.
    fn protocol(&self) -> String {
        self.transport.to_string().to_lowercase()
    }

    /// Sixteen characters that stand for this port, and for one backend of it if given: names of chains are short.
    fn digest(&self, backend: impl Hash) -> String {
        let mut hasher = DefaultHasher::new();
        (&self.name, self.transport, backend).hash(&mut hasher);
        format!("{:016X}", hasher.finish())
    }
}
