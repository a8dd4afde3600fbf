//! What `bulkhead status` shows: one serialisable picture of the agent.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use bulkhead_ebpf::abi::names;
use comfy_table::{ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};

use super::{
    attaching::Purpose, connections::Table as ConnTable, node::Node, overlay::Way, readiness::readiness,
    settings::Settings,
};
use crate::{
    chain::{self, Keeper},
    cluster::object::Kind,
    datapath::{
        crowd::{Crowded, InForce},
        programs::Role,
        ruling::Lookup,
    },
    endpoint::adoption::Unadopted,
    flow::{Counters, Pipeline},
    others::{self, Lookout},
    policy::model::DirectionRules,
    source::{kubernetes::WatchStatus, running},
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

/// What the agent has running beside the node itself.
pub struct Around {
    pub started: Instant,
    pub source: running::Source,
    pub chain: Keeper,
    pub lookout: Lookout,
    pub flows: Arc<Pipeline>,
}

impl Status {
    pub fn of(node: &Node, settings: &Settings, around: &Around) -> Self {
        let mut status = Self::as_it_is(node, settings, around);
        status.not_ready = readiness(&status);
        status.ready = status.not_ready.is_empty();
        status
    }

    fn as_it_is(node: &Node, settings: &Settings, around: &Around) -> Self {
        let Around { source, chain, lookout, .. } = around;
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
        Self {
            node: settings.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: Source {
                kind: source.name().to_owned(),
                path: source.place(),
                watches: source.watches(),
                sent: source.sent(), // read last: all that these versions stand for is in it
                synced: node.source.synced,
                synced_seconds: node.source.synced_at.map(seconds_since),
                age_seconds: node.source.updated.map(seconds_since),
                objects: objects.into_iter().map(|(kind, n)| (kind.to_owned(), n)).collect(),
                learned: node.source.learned,
                problems: node.source.problems.iter().map(ToString::to_string).collect(),
                ignored: node.source.ignored.clone(),
            },
            endpoints: node.endpoints.iter().map(|endpoint| Endpoint::of(node, endpoint)).collect(),
            datapath: Datapath::of(node, settings.abi()),
            ways: node.ways.clone(),
            chain: chain.status(),
            others: others::judge(&lookout.signs().of_pods(node.pods_here(&settings.node_name))),
            uptime_seconds: around.started.elapsed().as_secs(),
            flows: Flows::of(around.flows.counters()),
            running: Running::of(node),
            defects: defects.map(|policy| (policy.key.to_string(), policy.defects.clone())).collect(),
            ..Self::default()
        }
    }

    /// What an operator should hear of without asking.
    pub fn warnings(&self) -> Vec<chain::Warning> {
        let others = self.others.iter().map(others::Other::warning);
        self.chain.warnings().into_iter().chain(others).collect()
    }

    /// For people; everything is in the JSON form.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            writeln!(out, "{name:<16}{value}").expect("a string takes everything");
        };
        line("Node", format!("{} (bulkhead {}, up {} s)", self.node, self.version, self.uptime_seconds));
        line("Ready", if self.ready { "yes" } else { "NO" }.to_owned());
        for reason in &self.not_ready {
            line("Not ready", reason.clone());
        }
        line("Source", format!("{} {}: {}", self.source.kind, self.source.path, self.source.age()));
        for (kind, watch) in &self.source.watches {
            line("Watch", format!("{kind}: {}", watch.summary()));
        }
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
        for (name, value) in self.chain.lines() {
            line(name, value);
        }
        for other in &self.others {
            line("Warning", other.warning().message);
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
        for (namespace, in_force) in &self.datapath.without_room {
            let in_force = match in_force {
                InForce::Before => {
                    "pods keep the rules that they had, new ones are isolated and admit nothing"
                }
                InForce::Isolation => "pods are isolated and admit nothing",
            };
            line("No room", format!("for the rules of namespace {namespace}: its {in_force}"));
        }
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
            format!(
                "{} events, {} connections, detail of {} drops",
                self.datapath.lost_events, self.datapath.lost_connections, self.datapath.lost_detail
            ),
        );
        let Datapath { shed_connections, evicted_connections, .. } = self.datapath;
        if shed_connections + evicted_connections > 0 {
            let what =
                format!("{shed_connections} connections made room, {evicted_connections} were evicted");
            line("Full tables", what);
        }
        for Endpoint { pod, refused, .. } in self.endpoints.iter().filter(|endpoint| endpoint.refused > 0) {
            line("Over budget", format!("{pod}: {refused} packets of new connections dropped"));
        }
        if self.datapath.repaired > 0 {
            line(
                "Repairs",
                format!("{} interfaces got back a program that was missing", self.datapath.repaired),
            );
        }
        let packets: BTreeMap<_, _> =
            self.datapath.packets.iter().filter(|(_, n)| **n > 0).map(|(k, n)| (k.clone(), *n)).collect();
        line("Packets", counts(&packets));

        format!("{out}\n{}\n", Endpoint::table(&self.endpoints))
    }
}

impl Source {
    /// For people.
    fn age(&self) -> String {
        match (self.synced, self.synced_seconds, self.age_seconds) {
            (false, ..) => "not read yet".to_owned(),
            (true, Some(synced), Some(age)) => {
                format!("in sync for {synced} s, last change {age} s ago")
            }
            (true, ..) => "in sync".to_owned(),
        }
    }
}

impl Endpoint {
    fn of(node: &Node, endpoint: &crate::endpoint::Endpoint) -> Self {
        let pod = endpoint.pod();
        let ifindex = endpoint.sandbox.host_ifindex;
        let compiled = pod.as_ref().and_then(|pod| node.compiler.compiled().endpoints.get(pod));
        // Asked of the kernel itself, not of our mirror.
        let record = node.tables.kernel_ref().endpoint(ifindex).ok().flatten();
        let word = record.map(|record| record.policy).unwrap_or_default();
        let names = |rules: &DirectionRules| rules.policies.iter().map(|p| p.policy.to_string()).collect();
        let rule_set = compiled.and_then(|policy| node.tables.numbers().rule_sets.get(&policy.rules));
        let wanted = node.wanted.get(&ifindex);
        Self {
            id: endpoint.id,
            pod: pod.map(|pod| pod.to_string()).unwrap_or_default(),
            container: endpoint.attachment.container.clone(),
            interface: endpoint.sandbox.host_ifname.clone(),
            addresses: endpoint.sandbox.addresses.iter().map(ToString::to_string).collect(),
            ingress: compiled.map(|policy| names(&policy.rules.ingress)).unwrap_or_default(),
            egress: compiled.map(|policy| names(&policy.rules.egress)).unwrap_or_default(),
            tenant: compiled.and_then(|policy| policy.tenant.clone()),
            identity: record.map(|record| record.identity).unwrap_or_default(),
            rule_set: word.rule_set(),
            generation: word.generation(),
            wanted_rule_set: wanted.map(|word| word.rule_set()),
            wanted_generation: wanted.map(|word| word.generation()),
            up_to_date: record.is_some()
                && rule_set == Some(word.rule_set())
                && wanted == Some(&word)
                && node.health.error.is_none(),
            refused: record
                .and_then(|record| node.tables.kernel_ref().refused(record.mark).ok())
                .unwrap_or_default(),
            attached: node.programs.keeps(Role::Pod, ifindex) && !node.bare.contains(&ifindex),
            starting: node.attacher.purpose(ifindex) == Some(Purpose::Start),
        }
    }

    /// For people.
    pub fn table<'a>(endpoints: impl IntoIterator<Item = &'a Self>) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header([
            "ID",
            "POD",
            "INTERFACE",
            "ADDRESSES",
            "IDENTITY",
            "TENANT",
            "INGRESS",
            "EGRESS",
            "GENERATION",
            "STATE",
        ]);
        for endpoint in endpoints {
            let policies = |names: &[String]| match names {
                [] => "open".to_owned(),
                names => format!("isolated: {}", names.join(",")),
            };
            let generation = match endpoint.wanted_generation {
                Some(wanted) if wanted == endpoint.generation => wanted.to_string(),
                Some(wanted) => format!("{} (wanted {wanted})", endpoint.generation),
                None => format!("{} (wanted ?)", endpoint.generation),
            };
            table.add_row([
                endpoint.id.to_string(),
                endpoint.pod.clone(),
                endpoint.interface.clone(),
                endpoint.addresses.join(","),
                endpoint.identity.to_string(),
                endpoint.tenant.clone().unwrap_or_else(|| "-".to_owned()),
                policies(&endpoint.ingress),
                policies(&endpoint.egress),
                generation,
                if endpoint.up_to_date { "enforced" } else { "NOT UP TO DATE" }.to_owned(),
            ]);
        }
        table
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
        let tally = node.tables.kernel_ref().tally().unwrap_or_default();
        let tracked = [(names::CONNS_V4, node.tracked.v4), (names::CONNS_V6, node.tracked.v6)];
        let conns = tracked
            .map(|(map, ConnTable { entries, capacity, .. })| (map.to_owned(), Fill { entries, capacity }));
        Self {
            abi,
            updates: node.health.updates,
            adoption: serde_json::to_value(&node.programs.adoption).unwrap_or_default(),
            first_written: node.health.first_written.as_ref().map(json).unwrap_or_default(),
            last_written: json(&node.health.last_written),
            rules: actual.rules.len(),
            addresses: actual.peers.len() + actual.prefixes.len(),
            services: actual.services.len(),
            maps: maps.chain(conns).collect(),
            without_room: node.tables.crowded().clone(),
            packets: packets.into_iter().map(|(reason, n)| (reason.name().to_owned(), n)).collect(),
            lost_events: tally.lost_events,
            lost_connections: tally.lost_connections,
            lost_detail: tally.lost_detail,
            shed_connections: node.tracked.v4.shed + node.tracked.v6.shed,
            evicted_connections: node.tracked.v4.evicted + node.tracked.v6.evicted,
            repaired: node.meters.repairs(),
            pins_restored: node.health.pins_restored,
            pins_missing: node.health.pins_missing.clone(),
            predecessors: node.programs.predecessors().iter().map(|p| p.version).collect(),
            error: node.health.error.clone(),
        }
    }
}

fn seconds_since(at: Instant) -> u64 {
    at.elapsed().as_secs()
}

fn counts<N: std::fmt::Display>(counts: &BTreeMap<String, N>) -> String {
    let parts: Vec<String> = counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_whether_the_node_is_ready_and_how_old_its_knowledge_is() {
        let mut status = Status { node: "n1".into(), version: "1".into(), ready: true, ..Status::default() };
        status.source = Source {
            kind: "manifests".into(),
            path: "/m".into(),
            synced: true,
            synced_seconds: Some(90),
            age_seconds: Some(3),
            ..Source::default()
        };
        let line = |status: &Status, name: &str| {
            let text = status.render();
            let lines = text.lines().filter(|line| line.split("  ").next() == Some(name));
            lines.map(|line| line[name.len()..].trim().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(line(&status, "Ready"), ["yes"]);
        assert_eq!(line(&status, "Source"), ["manifests /m: in sync for 90 s, last change 3 s ago"]);
        assert_eq!(line(&status, "Repairs"), [""; 0]);

        status.source = Source { synced: false, ..status.source };
        status.datapath.error = Some("map RULES is too small".into());
        status.datapath.repaired = 2;
        status.not_ready = readiness(&status);
        status.ready = false;
        assert_eq!(line(&status, "Ready"), ["NO"]);
        assert_eq!(line(&status, "Not ready").len(), 4, "{}", status.render());
        assert_eq!(line(&status, "Source"), ["manifests /m: not read yet"]);
        assert_eq!(line(&status, "Repairs"), ["2 interfaces got back a program that was missing"]);
    }
}
