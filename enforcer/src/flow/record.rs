//! The line that goes out: Hubble's exported flow JSON, with what is ours in `extensions`.
//!
//! proto3 JSON: names as in `flow.proto`, absent and zero fields omitted, 64-bit integers as strings.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::clock::Timestamp;

/// One line of the flow log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    #[serde(flatten)]
    pub content: Content,
    pub node_name: String,
    pub time: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    Flow(Box<Record>),
    LostEvents(Lost),
}

/// That something was not recorded: never silent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub source: LostSource,
    #[serde(with = "as_string")]
    pub num_events_lost: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LostSource {
    /// The kernel's ring buffer was full, or held what cannot be read.
    #[serde(rename = "PERF_EVENT_RING_BUFFER")]
    Kernel,
    /// The exporter could not keep up.
    #[serde(rename = "OBSERVER_EVENTS_QUEUE")]
    Exporter,
    /// This follower could not keep up.
    #[serde(rename = "HUBBLE_RING_BUFFER")]
    Follower,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub time: Timestamp,
    pub uuid: String,
    pub emitter: Emitter,
    pub verdict: Verdict,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_reason_desc: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ethernet: Option<Ethernet>,
    #[serde(default, rename = "IP", skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ip>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l4: Option<Layer4>,
    #[serde(default, skip_serializing_if = "Endpoint::is_empty")]
    pub source: Endpoint,
    #[serde(default, skip_serializing_if = "Endpoint::is_empty")]
    pub destination: Endpoint,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_service: Option<Service>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_service: Option<Service>,
    #[serde(rename = "Type")]
    pub layer: String,
    pub node_name: String,
    pub event_type: EventType,
    pub traffic_direction: TrafficDirection,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub policy_match_type: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_observation_point: Option<ObservationPoint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_reply: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress_allowed_by: Vec<Policy>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress_allowed_by: Vec<Policy>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress_denied_by: Vec<Policy>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress_denied_by: Vec<Policy>,
    #[serde(rename = "Summary")]
    pub summary: String,
    pub extensions: Any,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Emitter {
    pub name: String,
    pub version: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    Forwarded,
    Dropped,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ethernet {
    pub source: String,
    pub destination: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    pub source: IpAddr,
    pub destination: IpAddr,
    #[serde(rename = "ipVersion")]
    pub version: IpVersion,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpVersion {
    IPv4,
    IPv6,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layer4 {
    #[serde(rename = "TCP")]
    Tcp {
        #[serde(flatten)]
        ports: Ports,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        flags: Option<TcpFlags>,
    },
    #[serde(rename = "UDP")]
    Udp(Ports),
    #[serde(rename = "SCTP")]
    Sctp(Ports),
    #[serde(rename = "ICMPv4")]
    Icmp4(Icmp),
    #[serde(rename = "ICMPv6")]
    Icmp6(Icmp),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    #[serde(default, skip_serializing_if = "is_zero")]
    pub source_port: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub destination_port: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Icmp {
    #[serde(default, rename = "type", skip_serializing_if = "is_zero")]
    pub kind: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub code: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE", default)]
#[expect(clippy::struct_excessive_bools, reason = "the schema's shape")]
pub struct TcpFlags {
    #[serde(skip_serializing_if = "is_false")]
    pub fin: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub syn: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub rst: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub psh: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub ack: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub urg: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub ece: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub cwr: bool,
}

impl TcpFlags {
    /// From byte 13 of the header.
    pub const fn from_byte(byte: u8) -> Self {
        Self {
            fin: byte & 1 != 0,
            syn: byte & 2 != 0,
            rst: byte & 4 != 0,
            psh: byte & 8 != 0,
            ack: byte & 16 != 0,
            urg: byte & 32 != 0,
            ece: byte & 64 != 0,
            cwr: byte & 128 != 0,
        }
    }

    /// In the order and form of Hubble's summaries: `SYN, ACK`.
    pub fn words(self) -> String {
        let all = [
            (self.syn, "SYN"),
            (self.ack, "ACK"),
            (self.rst, "RST"),
            (self.fin, "FIN"),
            (self.psh, "PSH"),
            (self.urg, "URG"),
            (self.ece, "ECE"),
            (self.cwr, "CWR"),
        ];
        all.iter().filter(|(set, _)| *set).map(|(_, word)| *word).collect::<Vec<_>>().join(", ")
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    #[serde(rename = "ID", skip_serializing_if = "is_zero")]
    pub id: u32,
    #[serde(skip_serializing_if = "is_zero")]
    pub identity: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod_name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<Workload>,
}

impl Endpoint {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    pub namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    pub name: String,
    pub kind: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventType {
    #[serde(rename = "type")]
    pub kind: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sub_type: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TrafficDirection {
    Ingress,
    Egress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ObservationPoint {
    FromEndpoint,
    ToEndpoint,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub index: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub name: String,
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    pub kind: String,
}

/// A `google.protobuf.Any` that holds a `Struct`: where the schema foresees additions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Any {
    #[serde(rename = "@type")]
    pub type_url: String,
    pub value: Extensions,
}

impl From<Extensions> for Any {
    fn from(value: Extensions) -> Self {
        Self { type_url: "type.googleapis.com/google.protobuf.Struct".into(), value }
    }
}

/// A `Struct` knows no 64-bit integers: counts are strings here as everywhere else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Extensions {
    /// [`bulkhead_ebpf::reason::Reason::name`].
    pub reason: String,
    /// Why it was allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granted: Option<Granted>,
    /// The rules that allow, or the policies that isolate.
    #[serde(rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    #[serde(skip_serializing_if = "Tenants::is_empty")]
    pub tenant: Tenants,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<Connection>,
    /// How many like events this record stands for.
    pub aggregated: u32,
    /// This record was not sent when it happened, but when its count was collected.
    #[serde(skip_serializing_if = "is_false")]
    pub suppressed: bool,
    /// The events that this record stands for were at other addresses and ports too: the pod has had more drops than are
    /// told of one by one.
    #[serde(skip_serializing_if = "is_false")]
    pub mixed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Granted {
    NotIsolated,
    LocalNode,
    Door,
    Rules,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `namespace/name`.
    pub policy: String,
    /// Place in the policy's `ingress` or `egress` list, counted from 0; absent: the whole policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tenants {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
}

impl Tenants {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Connection {
    New,
    End {
        started: Timestamp,
        #[serde(with = "as_string")]
        packets_from_source: u64,
        #[serde(with = "as_string")]
        packets_to_source: u64,
        #[serde(with = "as_string")]
        bytes_from_source: u64,
        #[serde(with = "as_string")]
        bytes_to_source: u64,
        #[serde(with = "as_string")]
        duration_ms: u64,
    },
}

mod as_string {
    use serde::{Deserialize, Deserializer, Serializer, de};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !*value
}
