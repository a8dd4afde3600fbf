//! Rules and selectors in a few words, as `kubectl describe` would have them.

use crate::{
    cluster::object::{IpBlock, Operator, Peer, Port, Ports, Rule, Selector},
    policy::model::Tenancy,
};

/// Whom and what a rule admits.
pub(super) fn rule(rule: &Rule) -> String {
    let peers =
        if rule.peers.is_empty() { "anyone".to_owned() } else { join(rule.peers.iter().map(peer), " or ") };
    let ports =
        if rule.ports.is_empty() { "any port".to_owned() } else { join(rule.ports.iter().map(port), ", ") };
    format!("{peers}, {ports}")
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Block(cidr) => block(cidr),
        Peer::Pods { namespaces: None, pods } => format!("pods {} of its namespace", selector(pods)),
        Peer::Pods { namespaces: Some(namespaces), pods } => {
            format!("pods {} of namespaces {}", selector(pods), selector(namespaces))
        }
    }
}

fn port(port: &Port) -> String {
    match &port.ports {
        Ports::All => port.protocol.to_string(),
        Ports::Range(first, last) if first == last => format!("{}/{first}", port.protocol),
        Ports::Range(first, last) => format!("{}/{first}-{last}", port.protocol),
        Ports::Named(name) => format!("{}/{name}", port.protocol),
    }
}

pub(super) fn block(block: &IpBlock) -> String {
    if block.except.is_empty() {
        return block.cidr.to_string();
    }
    format!("{} except {}", block.cidr, join(block.except.iter().map(ToString::to_string), ", "))
}

/// As on `kubectl`'s command line; everything is `*`.
fn selector(selector: &Selector) -> String {
    if selector.requirements.is_empty() {
        return "*".to_owned();
    }
    let values = |values: &[crate::cluster::compact::Text]| join(values.iter().map(ToString::to_string), ",");
    let requirements = selector.requirements.iter().map(|requirement| {
        let key = &requirement.key;
        match &requirement.operator {
            Operator::In(set) if set.len() == 1 => format!("{key}={}", values(set)),
            Operator::In(set) => format!("{key} in ({})", values(set)),
            Operator::NotIn(set) => format!("{key} notin ({})", values(set)),
            Operator::Exists => key.to_string(),
            Operator::DoesNotExist => format!("!{key}"),
        }
    });
    join(requirements, ",")
}

pub(super) fn tenancy(tenancy: &Tenancy) -> String {
    match tenancy {
        Tenancy::Shared => "shared".to_owned(),
        Tenancy::Unknown => "unknown".to_owned(),
        Tenancy::Tenant(name) => format!("tenant {name}"),
    }
}

fn join(parts: impl Iterator<Item = String>, by: &str) -> String {
    parts.collect::<Vec<_>>().join(by)
}
