//! One flannel node: its own namespace, an uplink, and the overlay devices that flanneld would set up.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde_json::{Value, json};

use crate::{chain::NETWORK, netns::Netns, probe::Family};

/// MTU of pods, `cni0` and both overlay devices.
pub const POD_MTU: u32 = 1450;
/// MTU of the underlay: an IPv6 VXLAN header (70 bytes) more than a pod's packet.
pub const UNDERLAY_MTU: u32 = POD_MTU + 70;
/// UDP port of flannel's VXLAN.
pub const TUNNEL_PORT: u16 = 8472;
/// The router of the underlay: what lies beyond it is the outside world.
pub const WORLD_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 254);
pub const WORLD_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 192, 168, 77, 0, 0, 0, 0xfe);

/// The network of all pods: flannel's `Network` or `IPv6Network`.
pub fn pod_network(family: Family) -> IpNetwork {
    match family {
        Family::V4 => Ipv4Network::new(Ipv4Addr::new(10, 244, 0, 0), 16).map(IpNetwork::V4),
        Family::V6 => {
            Ipv6Network::new(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0), 48).map(IpNetwork::V6)
        }
    }
    .expect("16 and 48 are prefix lengths")
}

/// A node, numbered from 1; every address follows from the number.
#[derive(Debug)]
pub struct Node {
    number: u8,
    /// Length of the prefix of its IPv4 pods; at most 24.
    pod_bits: u8,
    netns: Netns,
    /// Sockets, state, logs, the plugins' data.
    dir: PathBuf,
}

impl Node {
    /// Namespace, uplink and addresses; the overlay comes with [`Node::join`].
    pub(crate) fn create(number: u8, pod_bits: u8, lab: &str, dir: &Path, underlay: &Netns) -> Result<Self> {
        let netns = Netns::create(&format!("{lab}-node{number}"))?;
        let node = Self { number, pod_bits, netns, dir: dir.join(format!("node-{number}")) };
        fs::create_dir_all(&node.dir)?;
        fs::create_dir(node.cni_configurations())?;
        fs::create_dir(node.cni_plugins())?;
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/default/forwarding"]
        {
            node.netns.sysctl(key, "1")?;
        }
        let (v4, v6, netns) = (node.ipv4(), node.ipv6(), node.netns.name());
        underlay.ip(&format!(
            "link add n{number} mtu {UNDERLAY_MTU} type veth peer name eth0 mtu {UNDERLAY_MTU} netns {netns}\n\
             link set n{number} master br0 up\n"
        ))?;
        node.netns.ip(&format!(
            "addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {WORLD_V4}\n\
             route add default via {WORLD_V6}\n"
        ))?;
        node.add_overlay()?;
        let (pods4, pods6) = (node.pods_v4(), node.pods_v6());
        underlay.ip(&format!("route add {pods4} via {v4}\nroute add {pods6} via {v6}\n"))?;
        Ok(node)
    }

    fn add_overlay(&self) -> Result<()> {
        self.netns.ip(&format!(
            "link add flannel.1 mtu {POD_MTU} address {mac4} type vxlan id 1 dstport {TUNNEL_PORT} local {v4} dev eth0 nolearning\n\
             link add flannel-v6.1 mtu {POD_MTU} address {mac6} type vxlan id 1 dstport {TUNNEL_PORT} local {v6} dev eth0 nolearning\n\
             addr add {overlay4}/32 dev flannel.1\n\
             addr add {overlay6}/128 dev flannel-v6.1 nodad\n\
             link set flannel.1 up\n\
             link set flannel-v6.1 up\n",
            v4 = self.ipv4(),
            v6 = self.ipv6(),
            mac4 = self.overlay_mac(4),
            mac6 = self.overlay_mac(6),
            overlay4 = self.pods_v4().network(),
            overlay6 = self.pods_v6().network(),
        ))
    }

    /// As flanneld does when its settings change: other devices under the same names.
    pub fn renew_overlay(&self, others: &[Arc<Self>]) -> Result<()> {
        self.netns.ip("link del flannel.1\nlink del flannel-v6.1\n")?;
        self.add_overlay()?;
        self.join(others)
    }

    /// Route, neighbour and FDB entry for each other node, permanent as flanneld makes them.
    pub(crate) fn join(&self, others: &[Arc<Self>]) -> Result<()> {
        let (mut ip, mut fdb) = (String::new(), String::new());
        for other in others.iter().filter(|n| n.number != self.number) {
            for (device, pods, node, mac) in [
                ("flannel.1", IpNetwork::V4(other.pods_v4()), IpAddr::V4(other.ipv4()), other.overlay_mac(4)),
                (
                    "flannel-v6.1",
                    IpNetwork::V6(other.pods_v6()),
                    IpAddr::V6(other.ipv6()),
                    other.overlay_mac(6),
                ),
            ] {
                let gateway = pods.network();
                let _ = writeln!(ip, "route add {pods} via {gateway} dev {device} onlink");
                let _ = writeln!(ip, "neigh add {gateway} lladdr {mac} dev {device} nud permanent");
                let _ = writeln!(fdb, "fdb add {mac} dev {device} dst {node} self permanent");
            }
        }
        self.netns.ip(&ip)?;
        self.netns.bridge(&fdb)
    }

    pub fn name(&self) -> String {
        format!("node-{}", self.number)
    }

    pub fn number(&self) -> u8 {
        self.number
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The runtime's directory of CNI configurations.
    pub fn cni_configurations(&self) -> PathBuf {
        self.dir.join("net.d")
    }

    /// As flannel's init container does: written in place.
    pub fn write_cni_configuration(&self, list: &Value) -> Result<()> {
        let path = self.cni_configurations().join("10-flannel.conflist");
        Ok(fs::write(path, format!("{}\n", serde_json::to_string_pretty(list)?))?)
    }

    /// The runtime's directory of plugins that the cluster brings along; the distribution's are elsewhere.
    pub fn cni_plugins(&self) -> PathBuf {
        self.dir.join("cni-bin")
    }

    /// The node's own address on the underlay.
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 77, self.number)
    }

    pub fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 192, 168, 77, 0, 0, 0, self.number.into())
    }

    /// The part of the pod network that lives here. Its first address is flannel's own on this node.
    pub fn pods_v4(&self) -> Ipv4Network {
        let third = self.number << (24 - self.pod_bits);
        Ipv4Network::new(Ipv4Addr::new(10, 244, third, 0), self.pod_bits).expect("24 and less are lengths")
    }

    pub fn pods_v6(&self) -> Ipv6Network {
        Ipv6Network::new(Ipv6Addr::new(0xfd00, 0x10, 0x244, self.number.into(), 0, 0, 0, 0), 64)
            .expect("64 is a prefix length")
    }

    /// Its address of this family on the bridge: what pods have as gateway.
    pub fn gateway(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.pods_v4().nth(1).expect("a /24 or more has it").into(),
            Family::V6 => self.pods_v6().iter().nth(1).expect("a /64 has it").into(),
        }
    }

    /// Its address of this family on the overlay: under which its own traffic reaches other nodes' pods.
    pub fn overlay(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.pods_v4().network().into(),
            Family::V6 => self.pods_v6().network().into(),
        }
    }

    /// Its pods' network, by family.
    pub fn pods(&self, family: Family) -> IpNetwork {
        match family {
            Family::V4 => self.pods_v4().into(),
            Family::V6 => self.pods_v6().into(),
        }
    }

    /// The node's own address on the underlay, by family.
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.ipv4().into(),
            Family::V6 => self.ipv6().into(),
        }
    }

    /// The address plugin forgets which address it gave last: the next pod gets the lowest free one.
    pub fn forget_last_address(&self) -> Result<()> {
        let dir = self.dir.join("host-local").join(NETWORK);
        [0, 1]
            .into_iter()
            .try_for_each(|family| Ok(fs::remove_file(dir.join(format!("last_reserved_ip.{family}")))?))
    }

    /// Whether packets that are only bridged here pass through iptables and nftables' ip tables as well; the
    /// kernel says yes to begin with.
    pub fn bridge_nf(&self, on: bool) -> Result<()> {
        if !Path::new("/proc/sys/net/bridge").exists() {
            // A module on most distributions; whether it loaded shows in the next step.
            let _ = Command::new("modprobe").arg("br_netfilter").status();
        }
        for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
            self.netns.sysctl(key, if on { "1" } else { "0" }).context("br_netfilter is not loaded")?;
        }
        Ok(())
    }

    /// The Node object as the API server would show it.
    pub fn manifest(&self) -> Value {
        let (pods4, pods6) = (self.pods_v4(), self.pods_v6());
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name(), "labels": {"kubernetes.io/hostname": self.name()}},
            "spec": {"podCIDR": pods4, "podCIDRs": [pods4.to_string(), pods6.to_string()]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": self.ipv4()},
                {"type": "InternalIP", "address": self.ipv6()},
                {"type": "Hostname", "address": self.name()},
            ]},
        })
    }

    fn overlay_mac(&self, family: u8) -> String {
        format!("0e:00:00:00:{family:02x}:{:02x}", self.number)
    }
}
