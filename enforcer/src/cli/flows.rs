//! `bulkhead flows`: the agent's recent flow records, as a table or as lines.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use comfy_table::{Table, presets};
use serde_json::Value;

use crate::flow::{
    clock::Timestamp,
    filter::{Filter, Query},
    record::{Connection, Content, Endpoint, Granted, Layer4, Line, Record, Rule, TrafficDirection, Verdict},
};

#[derive(Clone, Debug, Parser)]
pub struct Args {
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Show at most this many of the newest records.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub last: usize,
    /// Go on with records as they come.
    #[arg(short, long)]
    pub follow: bool,
    /// One end is a pod of this namespace.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// One end is this pod: NAME or NAMESPACE/NAME.
    #[arg(long)]
    pub pod: Option<String>,
    #[arg(long, value_enum, ignore_case = true)]
    pub verdict: Option<VerdictArg>,
    /// Source or destination port.
    #[arg(long)]
    pub port: Option<u16>,
    /// TCP, UDP, SCTP, ICMP, ICMPv6 or an IP protocol number.
    #[arg(long, value_parser = protocol)]
    pub protocol: Option<u8>,
    /// Not before this time: RFC 3339, or an age such as 30s, 5m or 2h.
    #[arg(long, value_parser = since)]
    pub since: Option<Timestamp>,
    /// The agent's socket.
    #[arg(long, env = "BULKHEAD_SOCKET", default_value = "/run/bulkhead/agent.sock")]
    pub socket: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One table; with --follow, one line each.
    #[default]
    Table,
    /// One line each, without alignment.
    Compact,
    /// One JSON object a line.
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VerdictArg {
    Forwarded,
    Dropped,
}

impl Args {
    pub fn query(&self) -> Query {
        Query {
            filter: Filter {
                namespace: self.namespace.clone(),
                pod: self.pod.clone(),
                verdict: self.verdict.map(|verdict| match verdict {
                    VerdictArg::Forwarded => Verdict::Forwarded,
                    VerdictArg::Dropped => Verdict::Dropped,
                }),
                port: self.port,
                protocol: self.protocol,
                since: self.since,
            },
            last: self.last,
            follow: self.follow,
        }
    }
}

fn protocol(text: &str) -> Result<u8, String> {
    match text.to_ascii_uppercase().as_str() {
        "ICMP" | "ICMPV4" => Ok(1),
        "TCP" => Ok(6),
        "UDP" => Ok(17),
        "ICMPV6" => Ok(58),
        "SCTP" => Ok(132),
        number => number.parse().map_err(|_| "not a protocol's name or number".into()),
    }
}

fn since(text: &str) -> Result<Timestamp, String> {
    age(text).map_or_else(
        || Timestamp::parse(text).map_err(|error| error.to_string()),
        |age| {
            let nanoseconds = i64::try_from(age.as_nanos()).map_err(|_| "too long ago".to_owned())?;
            Ok(Timestamp(Timestamp::now().0.saturating_sub(nanoseconds)))
        },
    )
}

fn age(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// Records with aligned columns and a heading.
pub fn render_table<'a>(lines: impl IntoIterator<Item = &'a Value>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(HEADING);
    for line in lines {
        table.add_row(row(line));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// One record in one line, without a newline.
pub fn render_compact(line: &Value) -> String {
    let cells = row(line);
    cells.iter().map(String::as_str).filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join(" ")
}

const HEADING: [&str; 8] =
    ["TIME", "SOURCE", "", "DESTINATION", "DIRECTION", "VERDICT", "PROTOCOL", "DECIDED BY"];

fn row(line: &Value) -> [String; 8] {
    // A newer agent's record still shows, as it came.
    let Ok(line) = serde_json::from_value::<Line>(line.clone()) else {
        return [
            line.to_string(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
        ];
    };
    let time = line.time.to_string();
    match line.content {
        Content::LostEvents(lost) => {
            let what = format!("{} records lost", lost.num_events_lost);
            [
                time,
                what,
                String::new(),
                String::new(),
                String::new(),
                "LOST".into(),
                String::new(),
                serde_json::to_string(&lost.source).expect("a name").replace('"', ""),
            ]
        }
        Content::Flow(record) => [
            time,
            end(&record, &record.source, 0),
            if record.verdict == Verdict::Dropped { "-x" } else { "->" }.into(),
            end(&record, &record.destination, 1),
            match record.traffic_direction {
                TrafficDirection::Ingress => "INGRESS",
                TrafficDirection::Egress => "EGRESS",
            }
            .into(),
            verdict(&record),
            record.summary.replacen("TCP Flags: ", "TCP ", 1),
            decided_by(&record),
        ],
    }
}

/// `namespace/pod:port`, or the reserved name and the address.
fn end(record: &Record, endpoint: &Endpoint, side: usize) -> String {
    let address = record.ip.as_ref().map(|ip| [ip.source, ip.destination][side].to_string());
    let mut name = if endpoint.pod_name.is_empty() {
        let reserved = endpoint.labels.iter().find(|label| label.starts_with("reserved:"));
        match (reserved, address) {
            (Some(reserved), Some(address)) => format!("{reserved} {address}"),
            (Some(name), None) => name.clone(),
            (None, Some(address)) => address,
            (None, None) => "unknown".into(),
        }
    } else {
        format!("{}/{}", endpoint.namespace, endpoint.pod_name)
    };
    let ports = match &record.l4 {
        Some(Layer4::Tcp { ports, .. } | Layer4::Udp(ports) | Layer4::Sctp(ports)) => {
            [ports.source_port, ports.destination_port]
        }
        _ => [0, 0],
    };
    if ports[side] != 0 {
        write!(name, ":{}", ports[side]).expect("a string takes everything");
    }
    name
}

fn verdict(record: &Record) -> String {
    let ours = &record.extensions.value;
    match (record.verdict, &ours.connection) {
        (Verdict::Dropped, _) if ours.aggregated > 1 => format!("DROPPED x{}", ours.aggregated),
        (Verdict::Dropped, _) => "DROPPED".into(),
        (
            Verdict::Forwarded,
            Some(Connection::End { bytes_from_source, bytes_to_source, duration_ms, .. }),
        ) => {
            format!("ENDED {bytes_from_source}B/{bytes_to_source}B {duration_ms}ms")
        }
        (Verdict::Forwarded, _) => "FORWARDED".into(),
    }
}

/// Reason and policies: `policy-denied shop/db`, `allowed shop/cart#0`.
fn decided_by(record: &Record) -> String {
    let ours = &record.extensions.value;
    let granted = match ours.granted {
        Some(Granted::NotIsolated) => Some("not-isolated"),
        Some(Granted::LocalNode) => Some("local-node"),
        Some(Granted::Door) => Some("door"),
        Some(Granted::Rules) | None => None,
    };
    let tenants = match (&ours.tenant.source, &ours.tenant.destination) {
        (Some(source), Some(destination)) if source != destination => Some(format!("{source}|{destination}")),
        _ => None,
    };
    let rules = ours.rules.iter().map(rule);
    let words =
        std::iter::once(ours.reason.clone()).chain(granted.map(str::to_owned)).chain(tenants).chain(rules);
    words.collect::<Vec<_>>().join(" ")
}

fn rule(rule: &Rule) -> String {
    let mut text = rule.policy.clone();
    if let Some(index) = rule.index {
        write!(text, "#{index}").expect("a string takes everything");
    }
    if let (Some(file), Some(line)) = (&rule.file, rule.line) {
        write!(text, " ({file}:{line})").expect("a string takes everything");
    }
    text
}
