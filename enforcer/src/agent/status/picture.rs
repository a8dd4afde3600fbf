//! The agent as it is: of the node's state, and of the kernel's own maps where that matters.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use bulkhead_ebpf::abi::names;

use super::{Datapath, Endpoint, Fill, Flows, Running, Source, Status};
use crate::{
    agent::{
        attaching::Purpose, connections::Table as ConnTable, node::Node, readiness::readiness,
        settings::Settings,
    },
    chain::Keeper,
    datapath::{programs::Role, ruling::Lookup},
    flow::{Counters, Pipeline},
    others::{self, Lookout},
    policy::model::DirectionRules,
    source::running,
};

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
            unlisted_services: node.tables.unlisted().len(),
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
