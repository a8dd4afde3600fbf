//! `bulkhead flows`: the agent's recent flow records, as a table or as lines.

use std::{
    fmt::Write as _,
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use comfy_table::{Table, presets};
use futures::TryStreamExt;
use serde_json::Value;

use crate::{
    api::{self, ClientError, FlowQuery},
    cli::terminal::Visible,
    flow::{
        clock::Timestamp,
        filter::Filter,
        record::{
            Connection, Content, Endpoint, Granted, Layer4, Line, LostSource, Record, Rule, TrafficDirection,
            Verdict,
        },
    },
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
    /// The protocol's name or IP number.
    #[arg(long, value_parser = protocol, help = "TCP, UDP, SCTP, ICMP, ICMPv6 or an IP protocol number")]
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
    pub fn query(&self) -> FlowQuery {
        FlowQuery {
            last: Some(self.last),
            follow: self.follow,
            filter: serde_json::to_value(self.filter()).expect("strings and numbers"),
        }
    }

    fn filter(&self) -> Filter {
        Filter {
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            verdict: self.verdict.map(|verdict| match verdict {
                VerdictArg::Forwarded => Verdict::Forwarded,
                VerdictArg::Dropped => Verdict::Dropped,
            }),
            port: self.port,
            protocol: self.protocol,
            since: self.since,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    #[error(transparent)]
    Agent(#[from] ClientError),
    #[error("cannot write the answer")]
    Output(#[from] io::Error),
}

/// Asks the agent and prints the answer. A reader that has seen enough (`| head`) is not an error.
pub async fn run(args: &Args) -> Result<(), FlowsError> {
    match print(args, &mut Visible::new(io::stdout())).await {
        Err(FlowsError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

async fn print(args: &Args, output: &mut impl Write) -> Result<(), FlowsError> {
    let mut records = api::flows(&args.socket, args.query()).await?;
    if args.output == Output::Table && !args.follow {
        let records: Vec<Value> = records.try_collect().await?;
        output.write_all(render_table(&records).as_bytes())?;
        return Ok(());
    }
    while let Some(record) = records.try_next().await? {
        match args.output {
            Output::Json => writeln!(output, "{record}")?,
            Output::Table | Output::Compact => writeln!(output, "{}", render_compact(&record))?,
        }
        output.flush()?;
    }
    Ok(())
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
        text.push_str(line.trim());
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
    let cells = |first: String, rest: [&str; 7]| {
        let mut cells: [String; 8] = Default::default();
        cells[0] = first;
        cells[1..].clone_from_slice(&rest.map(str::to_owned));
        cells
    };
    // A newer agent's record still shows, as it came.
    let Ok(line) = serde_json::from_value::<Line>(line.clone()) else {
        return cells(line.to_string(), [""; 7]);
    };
    let time = line.time.to_string();
    match &line.content {
        Content::LostEvents(lost) => {
            let what = format!("{} records lost", lost.num_events_lost);
            let who = match lost.source {
                LostSource::Kernel => "the kernel's ring buffer was full",
                LostSource::Exporter => "the exporter was too slow",
                LostSource::Follower => "this command was too slow",
            };
            cells(time, [&what, "", "", "", "LOST", "", who])
        }
        Content::Flow(record) => cells(
            time,
            [
                &end(record, &record.source, 0),
                if record.verdict == Verdict::Dropped { "-x" } else { "->" },
                &end(record, &record.destination, 1),
                match record.traffic_direction {
                    TrafficDirection::Ingress => "INGRESS",
                    TrafficDirection::Egress => "EGRESS",
                },
                &verdict(record),
                &record.summary.replacen("TCP Flags: ", "TCP ", 1),
                &decided_by(record),
            ],
        ),
    }
}

/// `namespace/pod:port`, or the reserved name or the Service, and the address.
fn end(record: &Record, endpoint: &Endpoint, side: usize) -> String {
    let address = record.ip.as_ref().map(|ip| [ip.source, ip.destination][side].to_string());
    let service = [&record.source_service, &record.destination_service][side];
    let mut name = if endpoint.pod_name.is_empty() {
        let reserved = endpoint.labels.iter().find(|label| label.starts_with("reserved:")).cloned();
        let service = service.as_ref().map(|s| format!("service {}/{}", s.namespace, s.name));
        match (reserved.or(service), address) {
            (Some(reserved), Some(address)) => format!("{reserved} {address}"),
            (Some(name), None) => name,
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    fn records() -> [Value; 3] {
        let ends = json!({
            "emitter": {"name": "bulkhead", "version": "0"}, "uuid": "", "Type": "L3_L4", "node_name": "a",
            "time": "2026-01-02T03:04:05.000000006Z",
            "IP": {"source": "10.244.2.9", "destination": "10.244.1.3", "ipVersion": "IPv4"},
            "l4": {"TCP": {"source_port": 40000, "destination_port": 80, "flags": {"SYN": true}}},
            "destination": {"namespace": "shop", "pod_name": "cart-0"},
            "event_type": {"type": 5}, "traffic_direction": "INGRESS", "Summary": "TCP Flags: SYN",
        });
        let flow = |more: Value, ours: Value| {
            let mut flow = ends.clone();
            flow.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            flow["extensions"] =
                json!({"@type": "type.googleapis.com/google.protobuf.Struct", "value": ours});
            json!({"flow": flow, "node_name": "a", "time": "2026-01-02T03:04:05.000000006Z"})
        };
        let rule = json!([{"policy": "shop/cart-in", "file": "cart.yaml", "line": 14}]);
        [
            flow(
                json!({"verdict": "DROPPED", "source": {"labels": ["reserved:world"]}}),
                json!({"reason": "policy-denied", "rule": rule, "aggregated": 3}),
            ),
            flow(
                json!({"verdict": "FORWARDED", "source": {"namespace": "shop", "pod_name": "front-0"}}),
                json!({
                    "reason": "allowed", "granted": "rules", "aggregated": 1,
                    "rule": [{"policy": "shop/cart-in", "index": 2}], "connection": {"state": "new"},
                }),
            ),
            json!({
                "lost_events": {"source": "HUBBLE_RING_BUFFER", "num_events_lost": "5"},
                "node_name": "a", "time": "2026-01-02T03:04:06Z",
            }),
        ]
    }

    #[test]
    fn a_table_shows_who_was_stopped_by_which_policy() {
        let want = "\
TIME                            SOURCE                               DESTINATION     DIRECTION  VERDICT     PROTOCOL  DECIDED BY
2026-01-02T03:04:05.000000006Z  reserved:world 10.244.2.9:40000  -x  shop/cart-0:80  INGRESS    DROPPED x3  TCP SYN   policy-denied shop/cart-in (cart.yaml:14)
2026-01-02T03:04:05.000000006Z  shop/front-0:40000               ->  shop/cart-0:80  INGRESS    FORWARDED   TCP SYN   allowed shop/cart-in#2
2026-01-02T03:04:06.000000000Z  5 records lost                                                  LOST                  this command was too slow
";
        assert_eq!(render_table(&records()), want);
    }

    #[test]
    fn an_address_of_a_service_is_shown_as_the_service() {
        let [mut flow, ..] = records();
        flow["flow"]["destination"] = json!({"identity": 400});
        flow["flow"]["destination_service"] = json!({"name": "cart", "namespace": "shop"});
        let compact = render_compact(&flow);
        assert!(compact.contains(" -x service shop/cart 10.244.1.3:80 "), "{compact}");
    }

    #[test]
    fn compact_lines_say_the_same_without_alignment() {
        let lines: Vec<_> = records().iter().map(render_compact).collect();
        assert_eq!(
            lines,
            [
                "2026-01-02T03:04:05.000000006Z reserved:world 10.244.2.9:40000 -x shop/cart-0:80 \
                 INGRESS DROPPED x3 TCP SYN policy-denied shop/cart-in (cart.yaml:14)",
                "2026-01-02T03:04:05.000000006Z shop/front-0:40000 -> shop/cart-0:80 \
                 INGRESS FORWARDED TCP SYN allowed shop/cart-in#2",
                "2026-01-02T03:04:06.000000000Z 5 records lost LOST this command was too slow",
            ]
        );
        assert_eq!(
            render_compact(&json!({"new": 1})),
            r#"{"new":1}"#,
            "what we cannot read is shown as it is"
        );
    }

    #[test]
    fn arguments_become_a_query() {
        let args = Args::try_parse_from([
            "flows",
            "--last",
            "5",
            "-f",
            "-n",
            "shop",
            "--pod",
            "cart-0",
            "--verdict",
            "DROPPED",
            "--port",
            "80",
            "--protocol",
            "tcp",
            "--since",
            "2026-01-02T03:04:05Z",
        ]);
        let query = args.unwrap().query();
        let filter = json!({
            "namespace": "shop", "pod": "cart-0", "verdict": "DROPPED", "port": 80, "protocol": 6,
            "since": "2026-01-02T03:04:05.000000000Z",
        });
        assert_eq!(query, FlowQuery { last: Some(5), follow: true, filter });

        let plain = Args::try_parse_from(["flows"]).unwrap().query();
        assert_eq!(plain, FlowQuery { last: Some(20), follow: false, filter: json!({}) });
        for wrong in [["--since", "yesterday"], ["--protocol", "carrier-pigeon"], ["--verdict", "maybe"]] {
            assert!(Args::try_parse_from(["flows"].iter().chain(&wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_age_is_counted_back_from_now() {
        let asked = since("2m").unwrap().0;
        let age = Timestamp::now().0 - asked;
        assert!((120_000_000_000..130_000_000_000).contains(&age), "{age}");
        assert!(since("99999999999999999999d").is_err());
    }
}
