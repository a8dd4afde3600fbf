//! `NetworkPolicy`: every part is read by itself, and what cannot be read admits nothing (semantics 41).

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    fields::{At, Fault, Fields, or_note},
    syntax,
};
use crate::cluster::object::{
    IpBlock, Key, Labels, NetworkPolicy, Operator, Peer, Port, Ports, Protocol, Requirement, Rule, Selector,
};

/// Reads the `spec` of `root`. Each fault becomes a defect of the policy; `faults` may already hold what was
/// wrong with its metadata.
pub(super) fn read(root: &Fields, key: Key, labels: Labels, faults: &mut Vec<Fault>) -> NetworkPolicy {
    let nothing = &Map::new();
    let mut policy = NetworkPolicy {
        key,
        labels,
        subjects: Selector::default(),
        ingress: Some(Vec::new()),
        egress: Some(Vec::new()),
        defects: Vec::new(),
    };
    let mut unknown = root.unknown(&["apiVersion", "kind", "metadata", "spec", "status"]);
    let spec = match root.get("spec") {
        // As the API server reads it: every pod of the namespace, ingress.
        None => Some(Fields { map: nothing, path: root.path.key("spec") }),
        Some(at) => or_note(at.object(), faults),
    };
    if let Some(spec) = spec {
        policy.subjects = subjects(&spec, faults);
        unknown.extend(spec.unknown(&["podSelector", "policyTypes", "ingress", "egress"]));
        // An unknown field may be a mistyped direction, or peers that slipped out of their rule, which
        // without them would admit anyone.
        let all_known = unknown.is_empty();
        let directions = directions(&spec, all_known, faults);
        let mut rules = |direction, peers| {
            let rules = rules(&spec, direction, peers, faults);
            if all_known { rules } else { Vec::new() }
        };
        let (ingress, egress) = (rules("ingress", "from"), rules("egress", "to"));
        policy.ingress = directions.ingress.then_some(ingress);
        policy.egress = directions.egress.then_some(egress);
    }
    faults.extend(unknown);
    policy.defects = faults.iter().map(describe).collect();
    policy
}

fn describe(fault: &Fault) -> String {
    if fault.path.is_empty() { fault.message.clone() } else { format!("{}: {}", fault.path, fault.message) }
}

/// An unreadable selector stands for every pod of the namespace: too many isolated, never too few.
fn subjects(spec: &Fields, faults: &mut Vec<Fault>) -> Selector {
    spec.get("podSelector").and_then(|at| or_note(selector(&at), faults)).unwrap_or_default()
}

struct Directions {
    ingress: bool,
    egress: bool,
}

/// Semantics 9. When it cannot be read what the policy names, it is both.
fn directions(spec: &Fields, all_known: bool, faults: &mut Vec<Fault>) -> Directions {
    let both = Directions { ingress: true, egress: true };
    let Some(types) = or_note(spec.list("policyTypes"), faults) else { return both };
    if types.is_empty() {
        // A mistyped `policyTypes` or `egress` may be among the unknown fields.
        let egress = !all_known || spec.list("egress").map_or(true, |rules| !rules.is_empty());
        return Directions { ingress: true, egress };
    }
    if types.len() > 2 {
        faults.push(Fault::new(&spec.path.key("policyTypes"), "more than two policy types"));
        return both;
    }
    let (mut named, mut readable) = (Directions { ingress: false, egress: false }, true);
    for at in types {
        match at.value.as_str() {
            Some("Ingress") => named.ingress = true,
            Some("Egress") => named.egress = true,
            _ => {
                faults.push(at.fault(format!("{} is neither Ingress nor Egress", at.value)));
                readable = false;
            }
        }
    }
    if readable { named } else { both }
}

/// Rules that can be read, at least in part; each knows its place in the list.
fn rules(spec: &Fields, direction: &str, peers_key: &str, faults: &mut Vec<Fault>) -> Vec<Rule> {
    let items = or_note(spec.list(direction), faults).unwrap_or_default();
    let mut rules: Vec<Rule> =
        items.iter().enumerate().filter_map(|(index, at)| rule(index, at, peers_key, faults)).collect();
    // A list of peers that slipped out of its rule leaves a rule behind that would admit everybody.
    for (index, pair) in items.windows(2).enumerate() {
        let is_left_empty = pair[0].value.get(peers_key).is_some_and(Value::is_null);
        if is_left_empty && PEER_FIELDS.iter().any(|field| pair[1].value.get(field).is_some()) {
            rules.retain(|rule| rule.index != index);
            faults
                .push(pair[0].fault(format!("{peers_key} is empty, and what follows looks like its peers")));
        }
    }
    rules.shrink_to_fit(); // there are many policies, and most have one rule
    rules
}

const PEER_FIELDS: [&str; 3] = ["podSelector", "namespaceSelector", "ipBlock"];

fn rule(index: usize, at: &At, peers_key: &str, faults: &mut Vec<Fault>) -> Option<Rule> {
    if at.value.is_null() {
        // The API server reads a null item as an empty one, which admits all.
        return Some(Rule { index, peers: Vec::new(), ports: Vec::new() });
    }
    let fields = or_note(at.object(), faults)?;
    let unknown = fields.unknown(&[peers_key, "ports"]);
    let all_known = unknown.is_empty();
    faults.extend(unknown);
    // Both are read before giving up, so that all faults are told at once.
    let peers = some_of(&fields, peers_key, peer, faults);
    let ports = some_of(&fields, "ports", port, faults);
    all_known.then_some(Rule { index, peers: peers?, ports: ports? })
}

/// The readable items of a list. `None`: there were some, but none can be read. An empty list would mean
/// "no restriction" (semantics 7) and must not come of it.
fn some_of<T>(
    rule: &Fields,
    key: &str,
    read: impl Fn(&At) -> Result<T, Fault>,
    faults: &mut Vec<Fault>,
) -> Option<Vec<T>> {
    let items = or_note(rule.list(key), faults)?;
    let mut readable: Vec<T> = items.iter().filter_map(|at| or_note(read(at), faults)).collect();
    readable.shrink_to_fit();
    (items.is_empty() || !readable.is_empty()).then_some(readable)
}

fn peer(at: &At) -> Result<Peer, Fault> {
    let fields = at.object()?;
    if let Some(unknown) = fields.unknown(&PEER_FIELDS).pop() {
        return Err(unknown);
    }
    let namespaces = fields.get("namespaceSelector").map(|at| selector(&at)).transpose()?;
    let pods = fields.get("podSelector").map(|at| selector(&at)).transpose()?;
    let block = fields.get("ipBlock").map(|at| ip_block(&at)).transpose()?;
    match (block, namespaces, pods) {
        (Some(block), None, None) => Ok(Peer::Block(block)),
        (Some(_), _, _) => Err(at.fault("ipBlock cannot be combined with selectors")),
        (None, None, None) => Err(at.fault("a peer needs a podSelector, namespaceSelector or ipBlock")),
        (None, namespaces, pods) => Ok(Peer::Pods { namespaces, pods: pods.unwrap_or_default() }),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBlock {
    cidr: String,
    except: Option<Vec<String>>,
}

fn ip_block(at: &At) -> Result<IpBlock, Fault> {
    let raw: RawBlock = at.decode()?;
    let outer = cidr(&raw.cidr).map_err(|e| Fault::new(&at.path.key("cidr"), e))?;
    let inside = |except: &IpNetwork| {
        except.is_ipv4() == outer.is_ipv4()
            && except.prefix() > outer.prefix()
            && outer.contains(except.network())
    };
    let texts = raw.except.unwrap_or_default();
    let except = texts.iter().enumerate().map(|(i, text)| {
        let path = at.path.key("except").index(i);
        let except = cidr(text).map_err(|e| Fault::new(&path, e))?;
        inside(&except)
            .then_some(except)
            .ok_or_else(|| Fault::new(&path, format!("{text} is not strictly inside {}", raw.cidr)))
    });
    Ok(IpBlock { cidr: outer, except: except.collect::<Result<_, _>>()? })
}

/// An address prefix, masked. Bare addresses and netmasks are not accepted, as by the API server.
pub(super) fn cidr(text: &str) -> Result<IpNetwork, String> {
    let read = || {
        let (address, length) = text.split_once('/')?;
        let digits = length.len() <= 3 && length.bytes().all(|b| b.is_ascii_digit());
        let prefix =
            IpNetwork::new(address.parse::<IpAddr>().ok()?, length.parse().ok().filter(|_| digits)?).ok()?;
        IpNetwork::new(prefix.network(), prefix.prefix()).ok()
    };
    read().ok_or_else(|| format!("{text:?} is not an address prefix such as 10.0.0.0/8"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawPort {
    protocol: Option<String>,
    port: Option<Value>,
    end_port: Option<Value>,
}

fn port(at: &At) -> Result<Port, Fault> {
    if at.value.is_null() {
        return Ok(Port { protocol: Protocol::Tcp, ports: Ports::All });
    }
    let raw: RawPort = at.decode()?;
    let protocol = match &raw.protocol {
        None => Protocol::Tcp,
        Some(name) => protocol(name).map_err(|e| Fault::new(&at.path.key("protocol"), e))?,
    };
    let number = |value: &Value, key: &str| {
        let number = value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
        number.ok_or_else(|| Fault::new(&at.path.key(key), format!("{value} is not a port from 1 to 65535")))
    };
    let ports = match (&raw.port, &raw.end_port) {
        (None, None) => Ports::All,
        (Some(Value::String(name)), None) => {
            syntax::port_name(name).map_err(|e| Fault::new(&at.path.key("port"), e))?;
            Ports::Named(name.clone())
        }
        (Some(first), None) => {
            let first = number(first, "port")?;
            Ports::Range(first, first)
        }
        (Some(first @ Value::Number(_)), Some(last)) => {
            let (first, last) = (number(first, "port")?, number(last, "endPort")?);
            if last < first {
                return Err(Fault::new(&at.path.key("endPort"), format!("{last} is below port {first}")));
            }
            Ports::Range(first, last)
        }
        (_, Some(_)) => return Err(Fault::new(&at.path.key("endPort"), "needs a numeric port")),
    };
    Ok(Port { protocol, ports })
}

pub(super) fn protocol(name: &str) -> Result<Protocol, String> {
    match name {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        _ => Err(format!("{name:?} is none of TCP, UDP, SCTP")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRequirement {
    key: String,
    operator: String,
    values: Option<Vec<String>>,
}

fn selector(at: &At) -> Result<Selector, Fault> {
    let fields = at.object()?;
    if let Some(unknown) = fields.unknown(&["matchLabels", "matchExpressions"]).pop() {
        return Err(unknown);
    }
    let (labels, faulty) = fields.labels("matchLabels")?;
    if let Some((_, fault)) = faulty.into_iter().next() {
        return Err(fault);
    }
    let equal = labels
        .into_iter()
        .map(|(key, value)| Ok(Requirement { key, operator: Operator::In([value].into()) }));
    let expressions = fields.list("matchExpressions")?;
    let requirements = equal.chain(expressions.iter().map(requirement)).collect::<Result<_, _>>()?;
    Ok(Selector { requirements })
}

fn requirement(at: &At) -> Result<Requirement, Fault> {
    let raw: RawRequirement = at.decode()?;
    syntax::label_key(&raw.key).map_err(|e| Fault::new(&at.path.key("key"), e))?;
    let values = raw.values.unwrap_or_default();
    for (i, value) in values.iter().enumerate() {
        syntax::label_value(value).map_err(|e| Fault::new(&at.path.key("values").index(i), e))?;
    }
    let operator = match (raw.operator.as_str(), values.is_empty()) {
        ("In", false) => Operator::In(values.into_iter().collect()),
        ("NotIn", false) => Operator::NotIn(values.into_iter().collect()),
        ("Exists", true) => Operator::Exists,
        ("DoesNotExist", true) => Operator::DoesNotExist,
        ("In" | "NotIn", true) => return Err(Fault::new(&at.path.key("values"), "In and NotIn need values")),
        ("Exists" | "DoesNotExist", false) => {
            return Err(Fault::new(&at.path.key("values"), "Exists and DoesNotExist take no values"));
        }
        (other, _) => {
            let message = format!("{other:?} is none of In, NotIn, Exists, DoesNotExist");
            return Err(Fault::new(&at.path.key("operator"), message));
        }
    };
    Ok(Requirement { key: raw.key.into(), operator })
}
