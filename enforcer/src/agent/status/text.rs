//! Status for people.

use std::{collections::BTreeMap, fmt::Write};

use comfy_table::{ContentArrangement, Table, presets};

use super::{Datapath, Endpoint, Fill, Source, Status, Way};
use crate::{datapath::crowd::InForce, endpoint::adoption::Unadopted};

impl Status {
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
        if self.datapath.unlisted_services > 0 {
            let what = format!(
                "for {} addresses and ports of Services: connections there are judged by the address alone",
                self.datapath.unlisted_services
            );
            line("No room", what);
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

fn counts<N: std::fmt::Display>(counts: &BTreeMap<String, N>) -> String {
    let parts: Vec<String> = counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::readiness::readiness;

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
