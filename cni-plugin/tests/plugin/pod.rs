//! A host and a pod, each a network namespace of its own, wired by a veth pair.

use std::{
    net::IpAddr,
    path::PathBuf,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::{Value, json};

pub const MAC: &str = "02:00:00:00:00:05";

/// Removes its namespaces (and with them the pair) when dropped, also by a panic.
pub struct Pod {
    pub host: String,
    pub pod: String,
}

impl Pod {
    /// `eth0` in the pod, `veth1` on the host.
    pub fn wired() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("bhcni-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let pod = Self { host: format!("{id}-host"), pod: format!("{id}-pod") };
        ip(&["netns", "add", &pod.host]);
        ip(&["netns", "add", &pod.pod]);
        // Moves the numbering on, so that the two ends do not have the same index by chance.
        ip(&["-n", &pod.host, "link", "add", "cni0", "type", "bridge"]);
        ip(&[
            "-n", &pod.host, "link", "add", "veth1", "type", "veth", "peer", "name", "eth0", "address", MAC,
            "netns", &pod.pod,
        ]);
        pod
    }

    pub fn netns(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.pod)
    }

    /// Index of the host end, as `ip` tells it.
    pub fn host_ifindex(&self) -> u64 {
        let output = Command::new("ip")
            .args(["-n", &self.host, "-j", "link", "show", "dev", "veth1"])
            .output()
            .unwrap();
        let links: Value = serde_json::from_slice(&output.stdout).unwrap();
        links[0]["ifindex"].as_u64().unwrap()
    }

    /// A result as the bridge plugin writes it, for these addresses on `eth0`.
    pub fn result(&self, version: &str, addresses: &[&str]) -> Value {
        let ip = |address: &&str| {
            let mut ip = json!({"address": address, "interface": 2});
            if matches!(version, "0.3.1" | "0.4.0") {
                let host: IpAddr = address.split('/').next().unwrap().parse().unwrap();
                ip["version"] = if host.is_ipv4() { json!("4") } else { json!("6") };
            }
            ip
        };
        json!({
            "cniVersion": version,
            "interfaces": [
                {"name": "cni0", "mac": "02:00:00:00:00:01"},
                {"name": "veth1", "mac": "02:00:00:00:00:02"},
                {"name": "eth0", "mac": MAC, "sandbox": self.netns(), "mtu": 1450},
            ],
            "ips": addresses.iter().map(ip).collect::<Vec<_>>(),
            "routes": [{"dst": "0.0.0.0/0", "priority": 18_446_744_073_709_551_615_u64}],
            "dns": {},
            "fromTheFuture": {"kept": [1.50, null, "\u{e4}"]},
        })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for netns in [&self.pod, &self.host] {
            // Deleting what a test has deleted already is no failure.
            let _ = Command::new("ip").args(["netns", "del", netns]).output();
        }
    }
}

pub fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
