//! The rules of kube-proxy's iptables mode, as `iptables-restore --noflush` reads them.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use super::{Rules, Site, Written};
use crate::{probe::Family, services::ServicePort};

/// Chains that kube-proxy fills anew each time, by table.
const FILTER: [&str; 3] = ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD"];
const NAT: [&str; 4] = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"];

/// Jumps into kube-proxy's chains, and flannel's masquerading of what leaves the pod network.
pub fn frame(site: &Site) -> String {
    let Site { pod_network: all, pods: own, .. } = site;
    let multicast = match site.family {
        Family::V4 => "224.0.0.0/4",
        Family::V6 => "ff00::/8",
    };
    format!(
        "*filter\n\
         {filter}\
         -A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
         -A FORWARD -j KUBE-FORWARD\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
         -A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         COMMIT\n\
         *nat\n\
         {nat}\
         :FLANNEL-POSTRTG - [0:0]\n\
         -A PREROUTING -j KUBE-SERVICES\n\
         -A OUTPUT -j KUBE-SERVICES\n\
         -A POSTROUTING -j KUBE-POSTROUTING\n\
         -A POSTROUTING -j FLANNEL-POSTRTG\n\
         -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN\n\
         -A FLANNEL-POSTRTG -s {own} -d {all} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {all} -d {own} -j RETURN\n\
         -A FLANNEL-POSTRTG ! -s {all} -d {own} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {all} ! -d {multicast} -j MASQUERADE --random-fully\n\
         -A FLANNEL-POSTRTG ! -s {all} -d {all} -j MASQUERADE --random-fully\n\
         COMMIT\n",
        filter = declared(&FILTER),
        nat = declared(&NAT),
    )
}

/// Everything that Services bring; `before` tells which chains of earlier rules have to go.
pub fn rules(site: &Site, ports: &[ServicePort], before: &Written) -> Rules {
    let (mut rejects, mut nat, mut written) = (String::new(), String::new(), Written::default());
    for port in ports {
        if port.backends.is_empty() {
            reject(&mut rejects, port);
        } else {
            translate(&mut nat, &mut written, site, port);
        }
    }
    let chains = written.chains.iter().map(String::as_str);
    let stale = before.chains.difference(&written.chains);
    // Declared once more they are empty, and nothing jumps there any longer.
    let (gone, removed) = stale.fold((String::new(), String::new()), |(gone, removed), chain| {
        (format!("{gone}:{chain} - [0:0]\n"), format!("{removed}-X {chain}\n"))
    });
    let text = format!(
        "*filter\n\
         {filter}\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         {rejects}\
         COMMIT\n\
         *nat\n\
         {base}{own}{gone}\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {nat}\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         {removed}\
         COMMIT\n",
        filter = declared(&FILTER),
        base = declared(&NAT),
        own = declared(&chains.collect::<Vec<_>>()),
    );
    Rules { text, written }
}

/// A Service without backends refuses.
fn reject(rules: &mut String, port: &ServicePort) {
    let comment = format!("-m comment --comment \"{} has no endpoints\"", port.name);
    let mut line = |chain: &str, at: &str| {
        let _ = writeln!(rules, "-A {chain} {comment} {at} -j REJECT");
    };
    if let Some(ip) = port.cluster_ip {
        line("KUBE-SERVICES", &to(port, ip));
    }
    for ip in &port.external_ips {
        line("KUBE-EXTERNAL-SERVICES", &to(port, *ip));
    }
    if let Some(node_port) = port.node_port {
        line("KUBE-EXTERNAL-SERVICES", &format!("-m addrtype --dst-type LOCAL {}", at(port, node_port)));
    }
}

/// From each address of the Service to one of its backends.
fn translate(rules: &mut String, written: &mut Written, site: &Site, port: &ServicePort) {
    let (service, external) =
        (format!("KUBE-SVC-{}", port.digest(())), format!("KUBE-EXT-{}", port.digest(())));
    let end = |backend: &SocketAddr| (format!("KUBE-SEP-{}", port.digest(backend)), *backend);
    let ends: Vec<_> = port.backends.iter().map(end).collect();
    written.chains.extend(ends.iter().map(|(end, _)| end.clone()).chain([service.clone(), external.clone()]));

    let comment = format!("-m comment --comment \"{}\"", port.name);
    let mut line = |chain: &str, rule: &str| {
        let _ = writeln!(rules, "-A {chain} {comment} {rule}");
    };
    if let Some(ip) = port.cluster_ip {
        line("KUBE-SERVICES", &format!("{} -j {service}", to(port, ip)));
        line(&service, &format!("! -s {} {} -j KUBE-MARK-MASQ", site.pod_network, to(port, ip)));
    }
    for ip in &port.external_ips {
        line("KUBE-SERVICES", &format!("{} -j {external}", to(port, *ip)));
    }
    if let Some(node_port) = port.node_port {
        line("KUBE-NODEPORTS", &format!("{} -j {external}", at(port, node_port)));
    }
    line(&external, "-j KUBE-MARK-MASQ");
    line(&external, &format!("-j {service}"));
    for (end, _) in &ends {
        if let Some(seconds) = port.affinity {
            let recent = format!("-m recent --name {end} --rcheck --seconds {seconds} --reap");
            line(&service, &format!("{recent} -j {end}"));
        }
    }
    let (protocol, mut left) = (port.protocol(), f64::from(u32::try_from(ends.len()).unwrap_or(u32::MAX)));
    for (end, backend) in &ends {
        // Each of those that are left is as likely; the last one takes what has come so far.
        let chance = format!("-m statistic --mode random --probability {:.10} ", 1.0 / left);
        line(&service, &format!("{}-j {end}", if left > 1.0 { &chance } else { "" }));
        left -= 1.0;
        line(end, &format!("-s {} -j KUBE-MARK-MASQ", backend.ip()));
        let remember = port.affinity.map_or(String::new(), |_| format!("-m recent --name {end} --set "));
        line(end, &format!("{remember}-p {protocol} -m {protocol} -j DNAT --to-destination {backend}"));
    }
}

fn to(port: &ServicePort, ip: IpAddr) -> String {
    format!("-d {ip} {}", at(port, port.port))
}

fn at(port: &ServicePort, number: u16) -> String {
    let protocol = port.protocol();
    format!("-p {protocol} -m {protocol} --dport {number}")
}

fn declared(chains: &[&str]) -> String {
    chains.iter().fold(String::new(), |text, chain| text + &format!(":{chain} - [0:0]\n"))
}
