//! The rules of kube-proxy's nftables mode, as one transaction for `nft -f`.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use super::{Rules, Site, Written};
use crate::{probe::Family, services::ServicePort};

/// How `nft` spells a family.
struct Words {
    /// The table's family, and the keyword for its addresses.
    ip: &'static str,
    address: &'static str,
    flannel: &'static str,
    multicast: &'static str,
}

impl Words {
    fn of(family: Family) -> Self {
        match family {
            Family::V4 => {
                Self { ip: "ip", address: "ipv4_addr", flannel: "flannel-ipv4", multicast: "224.0.0.0/4" }
            }
            Family::V6 => {
                Self { ip: "ip6", address: "ipv6_addr", flannel: "flannel-ipv6", multicast: "ff00::/8" }
            }
        }
    }
}

/// flannel's masquerading of what leaves the pod network.
pub fn flannel(site: &Site) -> String {
    let Words { ip, flannel, multicast, .. } = Words::of(site.family);
    // In a table a family's keyword is the same for addresses.
    let (table, Site { pod_network: all, pods: own, .. }) = (ip, site);
    format!(
        "table {table} {flannel} {{\n\
           chain postrtg {{\n\
             type nat hook postrouting priority 100;\n\
             meta mark 0x4000 return\n\
             {ip} saddr {own} {ip} daddr {all} return\n\
             {ip} saddr {all} {ip} daddr {own} return\n\
             {ip} saddr != {own} {ip} daddr {all} return\n\
             {ip} saddr {all} {ip} daddr != {multicast} masquerade fully-random\n\
             {ip} saddr != {all} {ip} daddr {all} masquerade fully-random\n\
           }}\n\
         }}\n"
    )
}

/// kube-proxy's whole table, in place of the one that was there; what a client has been told to keep stays.
pub fn rules(site: &Site, ports: &[ServicePort], before: &Written) -> Rules {
    let ip = Words::of(site.family).ip;
    let mut table =
        Table { site, words: Words::of(site.family), text: frame(site), written: Written::default() };
    for port in ports {
        table.add(port);
    }
    let Table { mut text, written, .. } = table;
    for chain in before.chains.difference(&written.chains) {
        let _ = writeln!(text, "delete chain {ip} kube-proxy {chain}");
    }
    for set in before.sets.difference(&written.sets) {
        let _ = writeln!(text, "delete set {ip} kube-proxy {set}");
    }
    Rules { text, written }
}

/// All that is there without any Service; declares what may be there already, then empties it.
fn frame(site: &Site) -> String {
    let Words { ip, address, .. } = Words::of(site.family);
    let node = site.node;
    format!(
        "table {ip} kube-proxy {{\n\
           set cluster-ips {{ type {address}; }}\n\
           set nodeport-ips {{ type {address}; }}\n\
           map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}\n\
           map no-endpoint-services {{ type {address} . inet_proto . inet_service : verdict; }}\n\
           map service-ips {{ type {address} . inet_proto . inet_service : verdict; }}\n\
           map service-nodeports {{ type inet_proto . inet_service : verdict; }}\n\
         }}\n\
         flush table {ip} kube-proxy\n\
         flush set {ip} kube-proxy cluster-ips\n\
         flush set {ip} kube-proxy nodeport-ips\n\
         flush map {ip} kube-proxy no-endpoint-nodeports\n\
         flush map {ip} kube-proxy no-endpoint-services\n\
         flush map {ip} kube-proxy service-ips\n\
         flush map {ip} kube-proxy service-nodeports\n\
         add element {ip} kube-proxy nodeport-ips {{ {node} }}\n\
         table {ip} kube-proxy {{\n\
           chain cluster-ips-check {{ {ip} daddr @cluster-ips reject; }}\n\
           chain service-endpoints-check {{ {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}\n\
           chain nodeport-endpoints-check {{\n\
             {ip} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports\n\
           }}\n\
           chain reject-chain {{ reject; }}\n\
           chain filter-forward {{\n\
             type filter hook forward priority 0;\n\
             ct state new jump service-endpoints-check\n\
             ct state new jump cluster-ips-check\n\
           }}\n\
           chain filter-input {{\n\
             type filter hook input priority 0;\n\
             ct state new jump nodeport-endpoints-check\n\
             ct state new jump service-endpoints-check\n\
           }}\n\
           chain filter-output {{\n\
             type filter hook output priority 0;\n\
             ct state new jump service-endpoints-check\n\
             ct state new jump cluster-ips-check\n\
           }}\n\
           chain mark-for-masquerade {{ mark set mark or 0x4000; }}\n\
           chain masquerading {{\n\
             mark and 0x4000 == 0 return\n\
             mark set mark xor 0x4000\n\
             masquerade fully-random\n\
           }}\n\
           chain services {{\n\
             {ip} daddr . meta l4proto . th dport vmap @service-ips\n\
             {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports\n\
           }}\n\
           chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}\n\
           chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
           chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}\n\
         }}\n"
    )
}

struct Table<'a> {
    site: &'a Site,
    words: Words,
    text: String,
    written: Written,
}

impl Table<'_> {
    fn add(&mut self, port: &ServicePort) {
        let ip = self.words.ip;
        if let Some(address) = port.cluster_ip {
            let _ = writeln!(self.text, "add element {ip} kube-proxy cluster-ips {{ {address} }}");
        }
        if port.backends.is_empty() {
            self.lead(port, ["no-endpoint-services", "no-endpoint-nodeports"], ["reject-chain"; 2]);
            return;
        }
        let [service, external] = [self.chain("service", port, ()), self.chain("external", port, ())];
        self.rule(&external, "jump mark-for-masquerade");
        self.rule(&external, &format!("goto {service}"));
        self.lead(port, ["service-ips", "service-nodeports"], [&service, &external]);
        if let Some(address) = port.cluster_ip {
            let all = self.site.pod_network;
            self.rule(
                &service,
                &format!(
                    "{ip} daddr {address} {} dport {} {ip} saddr != {all} jump mark-for-masquerade",
                    port.protocol(),
                    port.port
                ),
            );
        }
        let ends: Vec<_> = port.backends.iter().map(|backend| self.backend(port, *backend)).collect();
        if port.affinity.is_some() {
            for end in &ends {
                self.rule(&service, &format!("{ip} saddr @affinity-{end} goto {end}"));
            }
        }
        let choice: Vec<_> = ends.iter().enumerate().map(|(n, end)| format!("{n} : goto {end}")).collect();
        self.rule(&service, &format!("numgen random mod {} vmap {{ {} }}", ends.len(), choice.join(", ")));
    }

    /// From the addresses of the Service into these maps: to the first chain for the cluster IP, else to the second.
    fn lead(&mut self, port: &ServicePort, [ips, node_ports]: [&str; 2], [inside, outside]: [&str; 2]) {
        let (ip, protocol, number) = (self.words.ip, port.protocol(), port.port);
        let inside = port.cluster_ip.into_iter().map(|address| (address, inside));
        let addresses: Vec<(IpAddr, &str)> =
            inside.chain(port.external_ips.iter().map(|address| (*address, outside))).collect();
        for (address, chain) in addresses {
            let element = format!("{address} . {protocol} . {number} : goto {chain}");
            let _ = writeln!(self.text, "add element {ip} kube-proxy {ips} {{ {element} }}");
        }
        if let Some(node_port) = port.node_port {
            let element = format!("{protocol} . {node_port} : goto {outside}");
            let _ = writeln!(self.text, "add element {ip} kube-proxy {node_ports} {{ {element} }}");
        }
    }

    /// The chain that ends at this backend.
    fn backend(&mut self, port: &ServicePort, backend: SocketAddr) -> String {
        let Words { ip, address, .. } = self.words;
        let end = self.chain("endpoint", port, backend);
        self.rule(&end, &format!("{ip} saddr {} jump mark-for-masquerade", backend.ip()));
        if let Some(seconds) = port.affinity {
            let set = format!("affinity-{end}");
            let kind = format!("type {address}; flags dynamic,timeout; timeout {seconds}s;");
            let _ = writeln!(self.text, "add set {ip} kube-proxy {set} {{ {kind} }}");
            self.rule(&end, &format!("update @{set} {{ {ip} saddr }}"));
            self.written.sets.insert(set);
        }
        self.rule(&end, &format!("meta l4proto {} dnat to {backend}", port.protocol()));
        end
    }

    /// A chain of this port, named as kube-proxy names it.
    fn chain(&mut self, role: &str, port: &ServicePort, backend: impl std::hash::Hash) -> String {
        let name = format!("{role}-{}-{}", port.digest(backend), port.name.replace(':', "/"));
        let _ = writeln!(self.text, "add chain {} kube-proxy {name}", self.words.ip);
        self.written.chains.insert(name.clone());
        name
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        let _ = writeln!(self.text, "add rule {} kube-proxy {chain} {rule}", self.words.ip);
    }
}
