//! What `bulkhead status` shows: one serialisable picture of the agent.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

use comfy_table::{ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};

use super::{node::Node, overlay::Way, readiness::readiness, settings::Settings};
use crate::{
    datapath::programs::Role, endpoint::adoption::Unadopted, flow::Counters, policy::model::DirectionRules,
};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub node: String,
    pub version: String,
    /// The node enforces what the API says; see [`super::readiness`].
    pub ready: bool,
    /// Why not.
    pub unready: Vec<String>,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    pub source: Source,
    pub endpoints: Vec<Endpoint>,
    pub datapath: Datapath,
    /// Where packets leave for other nodes' pods; see [`super::overlay`].
    pub ways: Vec<Way>,
    pub running: Running,
    pub chain: Chain,
    pub flows: Flows,
    /// Policies that cannot be honoured as written, and why (semantics 41).
    pub defects: BTreeMap<String, Vec<String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    pub kind: String,
    pub path: String,
    /// Everything was read once; nothing is enforced anew before.
    pub synced: bool,
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
    pub rule_set: u32,
    pub generation: u32,
    /// The kernel holds what the policies say.
    pub up_to_date: bool,
    /// The programs are on the interface.
    pub attached: bool,
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
    /// Packets by reason since the maps were created.
    pub packets: BTreeMap<String, u64>,
    /// Events that found the ring buffer full; connections that found the table full.
    pub lost_events: u64,
    pub lost_connections: u64,
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

impl Running {
    fn of(node: &Node) -> Self {
        let running = &node.running;
        Self {
            surveyed: running.surveyed,
            unadopted: running.unadopted.iter().cloned().collect(),
            unreadable: running.unreadable.clone(),
            adopted: running.adopted,
            imported: running.imported,
            adopting: node.adopting(),
            learning: node.learning(),
            took_millis: u64::try_from(running.took.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Is bulkhead in the node's CNI configuration?
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Chain {
    pub directory: String,
    /// Configuration lists that hold the plugin.
    pub chained: Vec<String>,
    /// Those that do not: pods wired by one of them are not enforced.
    pub unchained: Vec<String>,
}

/// Totals of the flow log since the agent started; see [`Counters`].
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

impl Flows {
    pub fn of(counters: &Counters) -> Self {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            decoded: read(&counters.decoded),
            malformed: read(&counters.malformed),
            exported: read(&counters.exported),
            lost_in_kernel: read(&counters.lost_in_kernel),
            lost_in_export: read(&counters.lost_in_export),
            export_errors: read(&counters.export_errors),
        }
    }
}

impl Status {
    pub fn of(node: &Node, settings: &Settings) -> Self {
        let index = &node.index;
        let objects = [
            ("Namespace", index.namespaces().count()),
            ("Node", index.nodes().count()),
            ("Pod", index.pods().count()),
            ("NetworkPolicy", index.policies().count()),
            ("Service", index.services().services().count()),
            ("EndpointSlice", index.services().slices().count()),
        ];
        let defects = index.policies().filter(|policy| !policy.defects.is_empty());
        let mut status = Self {
            node: settings.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: Source {
                synced: node.source.synced,
                objects: objects.into_iter().map(|(kind, n)| (kind.to_owned(), n)).collect(),
                problems: node.source.problems.iter().map(ToString::to_string).collect(),
                ignored: node.source.ignored.clone(),
                kind: "manifests".to_owned(),
                path: settings.manifests.display().to_string(),
            },
            chain: Chain::read(&settings.cni_conf_dir),
            endpoints: node.endpoints.iter().map(|endpoint| Endpoint::of(node, endpoint)).collect(),
            datapath: Datapath::of(node, settings.abi()),
            ways: node.ways.clone(),
            running: Running::of(node),
            defects: defects.map(|policy| (policy.key.to_string(), policy.defects.clone())).collect(),
            ..Self::default()
        };
        status.unready = readiness(&status);
        status.ready = status.unready.is_empty();
        status
    }

    /// For people; everything is in the JSON form.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            writeln!(out, "{name:<16}{value}").expect("a string takes everything");
        };
        line("Node", format!("{} (bulkhead {}, up {} s)", self.node, self.version, self.uptime_seconds));
        line("Ready", if self.ready { "yes".to_owned() } else { format!("NO: {}", self.unready.join("; ")) });
        let synced = if self.source.synced { "in sync" } else { "not read yet" };
        line("Source", format!("{} {}: {synced}", self.source.kind, self.source.path));
        line("Objects", counts(&self.source.objects));
        if !self.source.ignored.is_empty() {
            line("Ignored", counts(&self.source.ignored));
        }
        for problem in &self.source.problems {
            line("Problem", problem.clone());
        }
        for (policy, defects) in &self.defects {
            line("Defect", format!("NetworkPolicy {policy}: {}", defects.join("; ")));
        }
        let chained = if self.chain.chained.is_empty() {
            "in no list".to_owned()
        } else {
            self.chain.chained.join(", ")
        };
        line("CNI chain", format!("{}: {chained}", self.chain.directory));
        for list in &self.chain.unchained {
            line("Problem", format!("{list} does not run bulkhead-cni: its pods are not enforced"));
        }
        let kernel = match &self.datapath.error {
            None => "up to date".to_owned(),
            Some(error) => format!("NOT UP TO DATE: {error}"),
        };
        line(
            "Kernel",
            format!(
                "{kernel}; {} rules, {} addresses, {} updates, ABI {}",
                self.datapath.rules, self.datapath.addresses, self.datapath.updates, self.datapath.abi
            ),
        );
        let fill = |(map, fill): (&String, &Fill)| format!("{map} {}/{}", fill.entries, fill.capacity);
        let used = self.datapath.maps.iter().filter(|(_, fill)| fill.entries > 0);
        line("Map entries", used.map(fill).collect::<Vec<_>>().join(", "));
        for Way { interface, error } in &self.ways {
            let state = if error.is_empty() { "judged" } else { error };
            line("To other nodes", format!("{interface}: {state}"));
        }
        for Unadopted { pod, why, .. } in &self.running.unadopted {
            line("Not enforced", format!("{pod}: {why}"));
        }
        for why in &self.running.unreadable {
            line("Problem", format!("the runtime's cache: {why}"));
        }
        line(
            "Lost",
            format!("{} events, {} connections", self.datapath.lost_events, self.datapath.lost_connections),
        );
        let packets: BTreeMap<_, _> =
            self.datapath.packets.iter().filter(|(_, n)| **n > 0).map(|(k, n)| (k.clone(), *n)).collect();
        line("Packets", counts(&packets));

        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["ID", "POD", "INTERFACE", "ADDRESSES", "INGRESS", "EGRESS", "GENERATION", "STATE"]);
        for endpoint in &self.endpoints {
            let policies =
                |names: &[String]| if names.is_empty() { "open".to_owned() } else { names.join(",") };
            table.add_row([
                endpoint.id.to_string(),
                endpoint.pod.clone(),
                endpoint.interface.clone(),
                endpoint.addresses.join(","),
                policies(&endpoint.ingress),
                policies(&endpoint.egress),
                endpoint.generation.to_string(),
                if endpoint.up_to_date { "enforced" } else { "not up to date" }.to_owned(),
            ]);
        }
        format!("{out}\n{table}\n")
    }
}

impl Endpoint {
    fn of(node: &Node, endpoint: &crate::endpoint::Endpoint) -> Self {
        let pod = endpoint.pod();
        let compiled = pod.as_ref().and_then(|pod| node.compiler.compiled().endpoints.get(pod));
        let record = node.tables.actual().endpoints.get(&endpoint.sandbox.host_ifindex);
        let word = record.map(|record| record.policy).unwrap_or_default();
        let names = |rules: &DirectionRules| rules.policies.iter().map(|p| p.policy.to_string()).collect();
        let wanted = compiled.and_then(|policy| node.tables.numbers().rule_sets.get(&policy.rules));
        Self {
            id: endpoint.id,
            pod: pod.map(|pod| pod.to_string()).unwrap_or_default(),
            container: endpoint.attachment.container.clone(),
            interface: endpoint.sandbox.host_ifname.clone(),
            addresses: endpoint.sandbox.addresses.iter().map(ToString::to_string).collect(),
            ingress: compiled.map(|policy| names(&policy.rules.ingress)).unwrap_or_default(),
            egress: compiled.map(|policy| names(&policy.rules.egress)).unwrap_or_default(),
            rule_set: word.rule_set(),
            generation: word.generation(),
            up_to_date: record.is_some() && wanted == Some(word.rule_set()) && node.health.error.is_none(),
            attached: matches!(node.programs.attached(Role::Pod, &endpoint.sandbox.host_ifname), Ok(true)),
        }
    }
}

impl Datapath {
    fn of(node: &Node, abi: u32) -> Self {
        let json = |value: &_| serde_json::to_value(value).unwrap_or_default();
        let actual = node.tables.actual();
        let packets = node.tables.kernel_ref().counters().unwrap_or_default();
        let (sizes, capacity) = node.tables.fill();
        let maps = sizes.by_map().into_iter().zip(capacity.by_map());
        let maps = maps.map(|((map, entries), (_, capacity))| (map.to_owned(), Fill { entries, capacity }));
        let (lost_events, lost_connections) = node.tables.kernel_ref().lost().unwrap_or_default();
        Self {
            abi,
            updates: node.health.updates,
            adoption: serde_json::to_value(&node.programs.adoption).unwrap_or_default(),
            first_written: node.health.first_written.as_ref().map(json).unwrap_or_default(),
            last_written: json(&node.health.last_written),
            rules: actual.rules.len(),
            addresses: actual.peers.len() + actual.prefixes.len(),
            services: actual.services.len(),
            maps: maps.collect(),
            packets: packets.into_iter().map(|(reason, n)| (reason.name().to_owned(), n)).collect(),
            lost_events,
            lost_connections,
            repaired: node.health.repaired,
            pins_restored: node.health.pins_restored,
            pins_missing: node.health.pins_missing.clone(),
            predecessors: node.programs.predecessors().iter().map(|p| p.version).collect(),
            error: node.health.error.clone(),
        }
    }
}

impl Chain {
    /// Reads the directory's configuration lists; what cannot be read counts as unchained.
    pub fn read(directory: &std::path::Path) -> Self {
        let mut chain = Self { directory: directory.display().to_string(), ..Self::default() };
        let Ok(entries) = std::fs::read_dir(directory) else { return chain };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            if !path.extension().is_some_and(|e| e == "conflist" || e == "conf") {
                continue;
            }
            let list: Option<serde_json::Value> =
                std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
            let plugins = list.as_ref().and_then(|list| list["plugins"].as_array());
            let ours = plugins.is_some_and(|plugins| plugins.iter().any(|p| p["type"] == "bulkhead-cni"));
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if ours { &mut chain.chained } else { &mut chain.unchained }.push(name);
        }
        chain
    }
}

fn counts<N: std::fmt::Display>(counts: &BTreeMap<String, N>) -> String {
    let parts: Vec<String> = counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}
