//! [`Flow`] to [`Record`]: the shape of the line, field by field.

use std::net::IpAddr;

use super::{
    enrich::{Decided, Flow},
    event::{Hook, ICMP, ICMP6, Kind, Packet},
    hubble,
    names::{Party, PolicyInfo, Who},
    record::{
        Connection, Emitter, Endpoint, Ethernet, EventType, Extensions, Granted, Icmp, Interface, Ip,
        IpVersion, Layer4, ObservationPoint, Policy, Ports, Record, Rule, Service, TcpFlags, Tenants,
        TrafficDirection, Verdict, Workload,
    },
};
use crate::{
    cluster::object::{Key, Labels},
    policy::model::{Direction, Grant},
};
use bulkhead_ebpf::reason::Reason;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

impl Flow {
    pub fn record(&self, node_name: &str) -> Record {
        let seen = &self.seen;
        let mut record = Record {
            time: self.time,
            uuid: self.uuid.to_string(),
            emitter: Emitter { name: "bulkhead".into(), version: env!("CARGO_PKG_VERSION").into() },
            verdict: if self.dropped() { Verdict::Dropped } else { Verdict::Forwarded },
            drop_reason_desc: hubble::drop_reason(seen.reason).map(|reason| reason.name.to_owned()),
            ethernet: seen
                .macs
                .map(|[source, destination]| Ethernet { source: mac(source), destination: mac(destination) }),
            ip: seen.packet.as_ref().map(ip),
            l4: seen.packet.as_ref().and_then(layer4),
            source: endpoint(&self.source),
            destination: endpoint(&self.destination),
            source_service: self.services[0].as_deref().map(service),
            destination_service: self.services[1].as_deref().map(service),
            layer: "L3_L4".into(),
            node_name: node_name.into(),
            event_type: self.event_type(),
            traffic_direction: match seen.direction {
                Direction::Ingress => TrafficDirection::Ingress,
                Direction::Egress => TrafficDirection::Egress,
            },
            policy_match_type: if seen.kind == Kind::New { self.decided.matched as u32 } else { 0 },
            trace_observation_point: self.trace_observation_point(),
            is_reply: seen.is_reply,
            interface: (seen.ifindex != 0).then(|| Interface {
                index: seen.ifindex,
                name: self.local.as_ref().map(|pod| pod.ifname.clone()).unwrap_or_default(),
            }),
            egress_allowed_by: Vec::new(),
            ingress_allowed_by: Vec::new(),
            egress_denied_by: Vec::new(),
            ingress_denied_by: Vec::new(),
            summary: self.summary(),
            extensions: self.extensions().into(),
        };
        *match (seen.direction, self.dropped()) {
            (Direction::Ingress, false) => &mut record.ingress_allowed_by,
            (Direction::Egress, false) => &mut record.egress_allowed_by,
            (Direction::Ingress, true) => &mut record.ingress_denied_by,
            (Direction::Egress, true) => &mut record.egress_denied_by,
        } = self.decided.policies.iter().map(policy).collect();
        record
    }

    fn event_type(&self) -> EventType {
        let reason = self.seen.reason;
        match (self.seen.kind, hubble::drop_reason(reason)) {
            (Kind::End(_), _) => EventType { kind: hubble::EVENT_TRACE, sub_type: 0 },
            (Kind::Drop, Some(drop)) if !matches!(reason, Reason::PolicyDenied | Reason::TenantBoundary) => {
                EventType { kind: hubble::EVENT_DROP, sub_type: drop.number }
            }
            _ => EventType { kind: hubble::EVENT_VERDICT, sub_type: 0 },
        }
    }

    fn trace_observation_point(&self) -> Option<ObservationPoint> {
        let Kind::End(_) = self.seen.kind else { return None };
        let from_pod = match self.seen.hook {
            Some(hook) => hook != Hook::ToPod,
            None => self.seen.direction == Direction::Egress,
        };
        Some(if from_pod { ObservationPoint::FromEndpoint } else { ObservationPoint::ToEndpoint })
    }

    fn summary(&self) -> String {
        match &self.seen.packet {
            None => "neither IPv4 nor IPv6".into(),
            Some(packet) => match packet.protocol {
                TCP if packet.tcp_flags != 0 => {
                    format!("TCP Flags: {}", TcpFlags::from_byte(packet.tcp_flags).words())
                }
                TCP => "TCP".into(),
                UDP => "UDP".into(),
                SCTP => "SCTP".into(),
                ICMP | ICMP6 => {
                    let [kind, code] = packet.ports[1].to_be_bytes();
                    let version = if packet.protocol == ICMP { 4 } else { 6 };
                    format!("ICMPv{version} type {kind} code {code}")
                }
                number => format!("IP protocol {number}"),
            },
        }
    }

    fn extensions(&self) -> Extensions {
        Extensions {
            reason: self.seen.reason.name().into(),
            granted: self.decided.grant.as_deref().map(|grant| match grant {
                Grant::NotIsolated => Granted::NotIsolated,
                Grant::LocalNode => Granted::LocalNode,
                Grant::Door => Granted::Door,
                Grant::Rules(_) => Granted::Rules,
            }),
            rules: rules(&self.decided),
            tenant: Tenants {
                source: self.source.tenant.as_deref().map(str::to_owned),
                destination: self.destination.tenant.as_deref().map(str::to_owned),
            },
            connection: match (self.seen.kind, self.started) {
                (Kind::New, _) => Some(Connection::New),
                (Kind::End(totals), Some(started)) => Some(Connection::End {
                    started,
                    packets_from_source: totals.packets[0],
                    packets_to_source: totals.packets[1],
                    bytes_from_source: totals.bytes[0],
                    bytes_to_source: totals.bytes[1],
                    duration_ms: totals.duration_ns / 1_000_000,
                }),
                _ => None,
            },
            aggregated: self.seen.aggregated,
            suppressed: self.dropped() && self.seen.hook.is_none(),
            mixed: self.seen.mixed,
        }
    }
}

fn rules(decided: &Decided) -> Vec<Rule> {
    let place =
        |key: &Key| decided.policies.iter().find(|(k, _)| k == key).and_then(|(_, info)| info.place.clone());
    let rule = |key: &Key, index| {
        let (file, line) = place(key).map(|p| (p.file, p.line)).unzip();
        Rule { policy: key.to_string(), index, file, line }
    };
    match decided.grant.as_deref() {
        Some(Grant::Rules(rules)) => rules.iter().map(|r| rule(&r.policy, Some(r.rule))).collect(),
        Some(Grant::NotIsolated | Grant::LocalNode | Grant::Door) => Vec::new(),
        None => decided.policies.iter().map(|(key, _)| rule(key, None)).collect(),
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

fn ip(packet: &Packet) -> Ip {
    let [source, destination] = packet.addresses;
    let version = match source {
        IpAddr::V4(_) => IpVersion::IPv4,
        IpAddr::V6(_) => IpVersion::IPv6,
    };
    Ip { source, destination, version }
}

fn layer4(packet: &Packet) -> Option<Layer4> {
    let [source_port, destination_port] = packet.ports.map(u32::from);
    let ports = Ports { source_port, destination_port };
    let [kind, code] = packet.ports[1].to_be_bytes().map(u32::from);
    match packet.protocol {
        TCP => {
            let flags = (packet.tcp_flags != 0).then(|| TcpFlags::from_byte(packet.tcp_flags));
            Some(Layer4::Tcp { ports, flags })
        }
        UDP => Some(Layer4::Udp(ports)),
        SCTP => Some(Layer4::Sctp(ports)),
        ICMP => Some(Layer4::Icmp4(Icmp { kind, code })),
        ICMP6 => Some(Layer4::Icmp6(Icmp { kind, code })),
        _ => None,
    }
}

fn endpoint(party: &Party) -> Endpoint {
    let reserved = |label: &str| Endpoint {
        identity: party.identity,
        labels: vec![format!("reserved:{label}")],
        ..Endpoint::default()
    };
    match &party.who {
        Who::Pod { pod, endpoint } => Endpoint {
            id: *endpoint,
            identity: party.identity,
            namespace: pod.key.namespace.to_string(),
            labels: pod_labels(&pod.labels, &pod.key.namespace),
            pod_name: pod.key.name.to_string(),
            workloads: pod
                .workload
                .iter()
                .map(|w| Workload { name: w.name.to_string(), kind: w.kind.to_string() })
                .collect(),
        },
        Who::Host => reserved("host"),
        Who::RemoteNode => reserved("remote-node"),
        Who::World => reserved("world"),
        Who::Service(_) => Endpoint { identity: party.identity, ..Endpoint::default() },
        Who::Unmanaged => reserved("unmanaged"),
        Who::Unknown => Endpoint::default(),
    }
}

fn service(key: &Key) -> Service {
    Service { name: key.name.to_string(), namespace: key.namespace.to_string() }
}

/// Sorted, with the namespace among them as Cilium has it.
fn pod_labels(labels: &Labels, namespace: &str) -> Vec<String> {
    let mut all = k8s(labels);
    all.push(format!("k8s:io.kubernetes.pod.namespace={namespace}"));
    all.sort_unstable();
    all
}

fn k8s(labels: &Labels) -> Vec<String> {
    labels.iter().map(|(key, value)| format!("k8s:{key}={value}")).collect()
}

fn policy((key, info): &(Key, std::sync::Arc<PolicyInfo>)) -> Policy {
    Policy {
        name: key.name.to_string(),
        namespace: key.namespace.to_string(),
        labels: k8s(&info.labels),
        kind: "NetworkPolicy".into(),
    }
}
