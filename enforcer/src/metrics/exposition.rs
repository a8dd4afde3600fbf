//! Everything that Prometheus is told, as `OpenMetrics` text: names and labels are few, whatever the cluster's size.

use std::time::Duration;

use bulkhead_ebpf::reason::Reason;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        info::Info,
    },
    registry::Registry,
};

use super::meters::Meters;
use crate::agent::status::Status;

/// `Content-Type` of [`text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PacketLabels {
    verdict: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MapLabels {
    map: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaceLabels {
    place: &'static str,
}

/// One answer to a scrape.
pub fn text(status: &Status, meters: &Meters) -> String {
    let mut registry = Registry::with_prefix("bulkhead");
    about_the_agent(&mut registry, status, meters);
    about_packets(&mut registry, status);
    about_policy(&mut registry, status, meters);
    about_the_source(&mut registry, status);
    about_flows(&mut registry, status);
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes everything");
    text
}

fn about_the_agent(registry: &mut Registry, status: &Status, meters: &Meters) {
    let build = [("version", status.version.clone()), ("abi", status.datapath.abi.to_string())];
    registry.register("build", "Version and ABI of the agent", Info::new(build.to_vec()));
    gauge(registry, "ready", "1: the node enforces what the cluster says", u64::from(status.ready));
    gauge(registry, "uptime_seconds", "Since the agent started", status.uptime_seconds);
    registry.register(
        "start_seconds",
        "From the agent's start until the kernel first held what the cluster says; 0: not yet",
        meters.start.clone(),
    );
    let endpoints = Family::<StateLabels, Gauge>::default();
    for (state, up_to_date) in [("enforced", true), ("not_up_to_date", false)] {
        let count = status.endpoints.iter().filter(|endpoint| endpoint.up_to_date == up_to_date).count();
        set(&endpoints, &StateLabels { state }, count as u64);
    }
    registry.register(
        "endpoints",
        "Pods of this node that hang on an interface that bulkhead guards",
        endpoints,
    );
    registry.register(
        "cni_add_seconds",
        "From a CNI ADD's arrival to its answer, by CNI error code (0: done)",
        meters.adds.clone(),
    );
    registry.register(
        "repairs",
        "Programs put back that somebody had taken off a pod's interface",
        meters.repairs.clone(),
    );
    counter(
        registry,
        "pins_restored",
        "Pins put back that were missing",
        status.datapath.pins_restored as u64,
    );
    registry.register("events", "Kubernetes Events by what became of them", meters.events.clone());
    let ways = Family::<StateLabels, Gauge>::default();
    for (state, judged) in [("judged", true), ("unjudged", false)] {
        let count = status.ways.iter().filter(|way| way.error.is_empty() == judged).count();
        set(&ways, &StateLabels { state }, count as u64);
    }
    registry.register("ways", "Interfaces that lead to other nodes' pods", ways);
}

fn about_packets(registry: &mut Registry, status: &Status) {
    let packets = Family::<PacketLabels, Counter>::default();
    for reason in Reason::ALL {
        let verdict = if reason.is_drop() { "dropped" } else { "passed" };
        let count = status.datapath.packets.get(reason.name()).copied().unwrap_or_default();
        let labels = PacketLabels { verdict, reason: reason.name() };
        packets.get_or_create(&labels).inc_by(count);
    }
    registry.register("packets", "Packets decided since the maps were created, by reason", packets);
    counter(
        registry,
        "lost_connections",
        "Allowed connections that found the table full",
        status.datapath.lost_connections,
    );
    counter(
        registry,
        "shed_connections",
        "Connections whose pod had most, removed so that others' find room",
        status.datapath.shed_connections,
    );
    counter(
        registry,
        "evicted_connections",
        "Connections that the kernel has thrown out of a full table, at least",
        status.datapath.evicted_connections,
    );
}

fn about_policy(registry: &mut Registry, status: &Status, meters: &Meters) {
    registry.register(
        "policy_to_kernel_seconds",
        "From the arrival of a change until the kernel holds it",
        meters.policy_to_kernel.clone(),
    );
    registry.register("plan_seconds", "Compiling and planning one update", meters.plan.clone());
    registry.register("write_seconds", "Writing one update to the kernel's maps", meters.write.clone());
    counter(registry, "updates", "Attempts to bring the kernel up to date", status.datapath.updates);
    registry.register(
        "update_errors",
        "Attempts that failed: the kernel kept its last complete state",
        meters.update_errors.clone(),
    );
    let in_force = u64::from(status.source.synced && status.datapath.error.is_none());
    gauge(registry, "kernel_up_to_date", "1: the kernel holds what the policies say", in_force);
    gauge(
        registry,
        "policies_not_honoured",
        "NetworkPolicies that cannot be honoured as written",
        status.defects.len() as u64,
    );
    gauge(
        registry,
        "namespaces_without_room",
        "Namespaces whose policies are not in force here as written, because the rules of all do not fit",
        status.datapath.without_room.len() as u64,
    );
    gauge(
        registry,
        "unlisted_services",
        "Addresses and ports of Services for which the kernel has no room",
        status.datapath.unlisted_services as u64,
    );
    let (entries, capacity) = (Family::<MapLabels, Gauge>::default(), Family::<MapLabels, Gauge>::default());
    for (map, fill) in &status.datapath.maps {
        set(&entries, &MapLabels { map: map.clone() }, fill.entries as u64);
        set(&capacity, &MapLabels { map: map.clone() }, fill.capacity as u64);
    }
    registry.register("map_entries", "Entries in each map that can fill up", entries);
    registry.register("map_capacity", "Entries that each map can hold", capacity);
}

fn about_the_source(registry: &mut Registry, status: &Status) {
    let source = &status.source;
    gauge(registry, "source_synced", "1: everything was read once", u64::from(source.synced));
    if let Some(age) = source.age_seconds {
        gauge(registry, "source_age_seconds", "Since the last change came in", age);
    }
    gauge(
        registry,
        "source_problems",
        "Files or objects that cannot be read or honoured as they are",
        source.problems.len() as u64,
    );
    let objects = Family::<KindLabels, Gauge>::default();
    for (kind, count) in &source.objects {
        set(&objects, &KindLabels { kind: kind.clone() }, *count as u64);
    }
    registry.register("source_objects", "Objects in force, by kind", objects);
    let synced = Family::<KindLabels, Gauge>::default();
    let connected = Family::<KindLabels, Gauge>::default();
    let ages = Family::<KindLabels, Gauge>::default();
    let relists = Family::<KindLabels, Counter>::default();
    let errors = Family::<KindLabels, Counter>::default();
    for (kind, watch) in &source.watches {
        let kind = KindLabels { kind: kind.to_string() };
        set(&synced, &kind, u64::from(watch.synced));
        set(&connected, &kind, u64::from(watch.connected));
        if let Some(heard) = watch.heard_seconds_ago {
            set(&ages, &kind, Duration::from_secs_f64(heard).as_secs());
        }
        relists.get_or_create(&kind).inc_by(watch.relists);
        errors.get_or_create(&kind).inc_by(watch.errors);
    }
    registry.register("watch_synced", "1: a complete list of this kind was read", synced);
    registry.register("watch_connected", "1: changes of this kind arrive as they happen", connected);
    registry.register("watch_age_seconds", "Since the API server last said something of this kind", ages);
    registry.register("watch_relists", "Complete lists of this kind after the first one", relists);
    registry.register("watch_errors", "Failures of the watch on this kind", errors);
}

fn about_flows(registry: &mut Registry, status: &Status) {
    let flows = &status.flows;
    counter(registry, "flow_events", "Events from the kernel that were read", flows.decoded);
    counter(registry, "flow_records_exported", "Lines written to the flow log", flows.exported);
    counter(registry, "flow_export_errors", "Writes and rotations that failed", flows.export_errors);
    let lost = Family::<PlaceLabels, Counter>::default();
    for (place, count) in [
        ("kernel", flows.lost_in_kernel),
        ("unreadable", flows.malformed),
        ("export", flows.lost_in_export),
        ("detail", status.datapath.lost_detail),
    ] {
        lost.get_or_create(&PlaceLabels { place }).inc_by(count);
    }
    registry.register("flow_lost", "Flow events and records that were lost, by place", lost);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstCounter::new(value));
}

fn set<S: Clone + std::hash::Hash + Eq>(family: &Family<S, Gauge>, labels: &S, value: u64) {
    family.get_or_create(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
}
