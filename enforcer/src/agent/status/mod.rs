//! What `bulkhead status` shows: one serialisable picture of the agent.

mod picture;
mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::picture::Around;
use super::overlay::Way;
use crate::{
    chain, cluster::object::Kind, datapath::crowd::Crowded, endpoint::adoption::Unadopted, others,
    source::kubernetes::WatchStatus,
};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub node: String,
    pub version: String,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// The node enforces what the cluster says; otherwise why not: see [`super::readiness`].
    pub ready: bool,
    pub not_ready: Vec<String>,
    pub source: Source,
    pub endpoints: Vec<Endpoint>,
    pub datapath: Datapath,
    /// Where packets leave for other nodes' pods; see [`super::overlay`].
    pub ways: Vec<Way>,
    pub running: Running,
    pub chain: chain::Status,
    /// Who else judges packets on this node.
    pub others: Vec<others::Other>,
    pub flows: Flows,
    /// Policies that cannot be honoured as written, and why (semantics 41).
    pub defects: BTreeMap<String, Vec<String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// `manifests` or `kubernetes`.
    pub kind: String,
    /// Directory, or address of the API server.
    pub path: String,
    /// How the API server's watches do, by kind of object.
    pub watches: BTreeMap<Kind, WatchStatus>,
    /// Updates that the API server's watches have led to, and how many of them have been taken in.
    pub sent: Option<u64>,
    pub learned: u64,
    /// Everything was read once; nothing is enforced anew before.
    pub synced: bool,
    /// Seconds since then, and since the last change came in.
    pub synced_seconds: Option<u64>,
    pub age_seconds: Option<u64>,
    /// Objects in force, by kind.
    pub objects: BTreeMap<String, usize>,
    /// Files or objects that are not in force, one line each.
    pub problems: Vec<String>,
    /// Objects of kinds that bulkhead does not use, by kind.
    pub ignored: BTreeMap<String, usize>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    pub id: u32,
    pub pod: String,
    pub container: String,
    pub interface: String,
    pub addresses: Vec<String>,
    /// Policies that isolate the pod; empty: open in this direction.
    pub ingress: Vec<String>,
    pub egress: Vec<String>,
    /// `None`: shared.
    pub tenant: Option<String>,
    /// Number of what selectors in force can tell the pod by.
    pub identity: u32,
    /// As the kernel's own record has them.
    pub rule_set: u32,
    pub generation: u32,
    /// As last planned; `None`: the last plan came to nothing, and nobody knows.
    pub wanted_rule_set: Option<u32>,
    pub wanted_generation: Option<u32>,
    /// The kernel holds what the policies say.
    pub up_to_date: bool,
    /// The programs are on the interface, as of the last look at it (every two seconds).
    pub attached: bool,
    /// They are on their way there: the pod's ADD has not been answered.
    pub starting: bool,
    /// Packets that would have begun a connection, or a datagram in fragments, beyond the pod's budget.
    pub refused: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Datapath {
    pub abi: u32,
    pub updates: u64,
    /// What the start took over and what it had to make or replace.
    pub adoption: serde_json::Value,
    /// Map writes of the first update after the start, and of the last update.
    pub first_written: serde_json::Value,
    pub last_written: serde_json::Value,
    /// Entries in the policy maps.
    pub rules: usize,
    pub addresses: usize,
    /// Addresses and ports at which Services are reached from here.
    pub services: usize,
    /// How full each map that can fill up is; an update that does not fit is refused as a whole.
    pub maps: BTreeMap<String, Fill>,
    /// Namespaces whose policies are not in force here as they are written, because the rules of all do not fit into the
    /// map, and what is in force of them.
    pub without_room: Crowded,
    /// Addresses and ports of Services for which there is no room: connections there are judged by the address alone.
    pub unlisted_services: usize,
    /// Packets by reason since the maps were created.
    pub packets: BTreeMap<String, u64>,
    /// Events that found the ring buffer full; connections that found no entry in their table.
    pub lost_events: u64,
    pub lost_connections: u64,
    /// Drops that were told of together, because their pod has had more than are told of one by one.
    pub lost_detail: u64,
    /// Connections since the agent started: that made room for other pods', and that the kernel has thrown out of a full
    /// table (at least).
    pub shed_connections: u64,
    pub evicted_connections: u64,
    /// Since the agent started: interfaces on which a program was missing, and pins that were; all are back.
    pub repaired: u64,
    pub pins_restored: usize,
    /// Why pins cannot be put back, if so.
    pub pins_missing: Option<String>,
    /// Versions of the maps' layout whose programs are still on some interface.
    pub predecessors: Vec<u32>,
    /// Why the kernel is not up to date, if so.
    pub error: Option<String>,
}

/// In entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fill {
    pub entries: usize,
    pub capacity: usize,
}

/// Pods that ran before bulkhead did, and those that nobody enforces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Running {
    /// The node has been looked over since the agent started.
    pub surveyed: bool,
    /// Pods of this node that nobody enforces.
    pub unadopted: Vec<Unadopted>,
    /// Files of the runtime's cache that cannot be read, and why.
    pub unreadable: Vec<String>,
    /// Since the agent started: pods adopted, and connections imported for them.
    pub adopted: u64,
    pub imported: u64,
    /// Pods that are being adopted.
    pub adopting: usize,
    /// Adopted pods whose connections are still being learnt.
    pub learning: usize,
    /// How long the last adoption took, in milliseconds.
    pub took_millis: u64,
}

/// Totals of the flow log since the agent started; see [`crate::flow::Counters`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Flows {
    pub decoded: u64,
    pub malformed: u64,
    pub exported: u64,
    pub lost_in_kernel: u64,
    pub lost_in_export: u64,
    pub export_errors: u64,
}

impl Status {
    /// What an operator should hear of without asking.
    pub fn warnings(&self) -> Vec<chain::Warning> {
        let others = self.others.iter().map(others::Other::warning);
        self.chain.warnings().into_iter().chain(others).collect()
    }
}
