//! `bulkhead simulate`: what policy says about connections, from manifests alone.
//!
//! ```text
//! manifests ─▶ index ─▶ engine ◀─ probes
//!                         └─▶ answers, as a table or JSON
//! ```

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use comfy_table::{Cell, Table, presets};
use serde::Serialize;

use super::manifests;
use crate::{
    agent::settings::PolicySettings,
    cluster::Index,
    datapath::engine::{EngineError, KernelEngine},
    policy::{
        Answer, Probe, Settings, Simulator,
        probe::{EndpointRef, Family, ProbeProtocol, Verdict},
    },
};

/// Answers from manifests alone whether connections would be allowed, and by which rule.
///
/// A destination that is a Service's address and port, or the source's own node and a node port, is answered for
/// every backend in full: allowed if all of them are; denied if there are none, or not all are, and then it is said
/// how many are.
///
/// Exit status: 0 all probes are answered, 1 some cannot be answered, 2 nothing could be asked.
#[derive(Clone, Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("question").required(true).args(["probes", "from", "matrix"])))]
pub struct Args {
    /// Manifests: a YAML or JSON file, or a directory of them (not its subdirectories); repeatable.
    #[arg(short, long = "filename", value_name = "PATH", required = true)]
    pub filenames: Vec<PathBuf>,
    /// Questions: a JSON array, or one JSON object per line; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    pub probes: Option<PathBuf>,
    /// One question: its source, as `namespace/pod`, `ip:ADDRESS` or `node:NAME`.
    #[arg(long, value_name = "END", requires = "to")]
    pub from: Option<EndpointRef>,
    /// Its destination.
    #[arg(long, value_name = "END", requires = "from")]
    pub to: Option<EndpointRef>,
    /// Ask for every pair of pods that have an address.
    #[arg(long)]
    pub matrix: bool,
    /// Destination port of the one question, or of the matrix [default for a matrix: 80].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), conflicts_with = "probes")]
    pub port: Option<u16>,
    /// TCP, UDP, SCTP or ICMP [default: TCP].
    #[arg(long, conflicts_with = "probes")]
    pub protocol: Option<ProbeProtocol>,
    /// IPv4 or IPv6 [default: IPv4 if both ends have it].
    #[arg(long, conflicts_with = "probes")]
    pub family: Option<Family>,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Who answers: the policy compiler, or the kernel's own programs (as root).
    #[arg(long, value_enum, default_value_t)]
    pub engine: EngineKind,
    #[command(flatten)]
    pub policy: PolicySettings,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Json,
    #[default]
    Table,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineKind {
    #[default]
    Compiler,
    Kernel,
}

/// Whoever can answer probes about one cluster.
pub trait Engine {
    fn answer(&mut self, probe: &Probe) -> Result<Answer, EngineError>;
}

impl Engine for Simulator {
    fn answer(&mut self, probe: &Probe) -> Result<Answer, EngineError> {
        Ok(Self::answer(self, probe)?)
    }
}

impl Engine for KernelEngine {
    fn answer(&mut self, probe: &Probe) -> Result<Answer, EngineError> {
        Self::answer(self, probe)
    }
}

/// One line of the result, with the probe as it was asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Outcome {
    probe: serde_json::Value,
    #[serde(flatten)]
    reply: Reply,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum Reply {
    Answer(Answer),
    Error { error: String },
}

/// A question as it was asked, and what it means or why it means nothing.
struct Question {
    asked: serde_json::Value,
    probe: Result<Probe, String>,
}

/// Answers on `out`; what is wrong with the manifests, and what of them is not used, on `err`. An error means
/// that nothing could be asked: exit status 2.
pub fn run(args: &Args, out: &mut impl Write, err: &mut impl Write) -> anyhow::Result<ExitCode> {
    let index = manifests::index(&args.filenames, err)?;
    let questions = questions(args, &index)?;
    let mut engine = engine(args.engine, index, args.settings());
    let outcomes: Vec<Outcome> = questions.into_iter().map(|q| q.put_to(engine.as_mut())).collect();
    match (args.output, args.matrix) {
        (Output::Json, _) if args.from.is_some() => {
            outcomes.iter().try_for_each(|outcome| json(out, outcome))?;
        }
        (Output::Json, _) => json(out, &outcomes)?,
        (Output::Table, true) => writeln!(out, "{}", matrix_table(&outcomes))?,
        (Output::Table, false) => writeln!(out, "{}", table(&outcomes))?,
    }
    let failed = outcomes.iter().any(|outcome| matches!(outcome.reply, Reply::Error { .. }));
    Ok(ExitCode::from(u8::from(failed)))
}

impl Args {
    pub fn settings(&self) -> Settings {
        Settings::from(&self.policy)
    }
}

/// The place to plug further engines in.
fn engine(kind: EngineKind, index: Index, settings: Settings) -> Box<dyn Engine> {
    match kind {
        EngineKind::Compiler => Box::new(Simulator::new(index, settings)),
        EngineKind::Kernel => Box::new(KernelEngine::new(Simulator::new(index, settings))),
    }
}

fn questions(args: &Args, index: &Index) -> anyhow::Result<Vec<Question>> {
    let protocol = args.protocol.unwrap_or(ProbeProtocol::Tcp);
    let probe = |src: &EndpointRef, dst: &EndpointRef, port| {
        let (src, dst) = (src.clone(), dst.clone());
        Question::from(Probe { src, dst, protocol, port, family: args.family })
    };
    if let Some(file) = &args.probes {
        return read_probes(&probes_text(file)?).with_context(|| format!("probes in {}", file.display()));
    }
    if let (Some(from), Some(to)) = (&args.from, &args.to) {
        if args.port.is_none() && protocol != ProbeProtocol::Icmp {
            bail!("--port is missing, which {protocol} needs");
        }
        return Ok(vec![probe(from, to, args.port)]);
    }
    let pods = pods(index);
    let port = args.port.or((protocol != ProbeProtocol::Icmp).then_some(80));
    let pairs = pods.iter().flat_map(|src| pods.iter().map(move |dst| (src, dst)));
    Ok(pairs.map(|(src, dst)| probe(src, dst, port)).collect())
}

/// Whom a matrix shows.
fn pods(index: &Index) -> Vec<EndpointRef> {
    let reachable = index.pods().filter(|pod| !pod.finished && !index.addresses(pod).is_empty());
    reachable.map(|pod| EndpointRef::Pod(pod.key.clone())).collect::<BTreeSet<_>>().into_iter().collect()
}

fn probes_text(file: &Path) -> io::Result<String> {
    if file != Path::new("-") {
        return fs::read_to_string(file);
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// A JSON array, or objects that follow one another (one a line). Text that is no JSON is an error; a
/// value that is no probe fails alone, in its place.
fn read_probes(text: &str) -> anyhow::Result<Vec<Question>> {
    let values: Vec<serde_json::Value> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text)?
    } else {
        serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>()?
    };
    Ok(values
        .into_iter()
        .map(|asked| {
            let probe = serde_path_to_error::deserialize(&asked).map_err(|error| error.to_string());
            Question { asked, probe }
        })
        .collect())
}

impl Question {
    fn put_to(self, engine: &mut dyn Engine) -> Outcome {
        let answer = self.probe.and_then(|probe| engine.answer(&probe).map_err(|e| e.to_string()));
        let reply = answer.map_or_else(|error| Reply::Error { error }, Reply::Answer);
        Outcome { probe: self.asked, reply }
    }
}

impl From<Probe> for Question {
    fn from(probe: Probe) -> Self {
        Self { asked: serde_json::json!(probe), probe: Ok(probe) }
    }
}

fn json(out: &mut impl Write, value: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    Ok(writeln!(out)?)
}

fn table(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["FROM", "TO", "PORT", "VERDICT", "EGRESS", "INGRESS"]);
    for Outcome { probe, reply } in outcomes {
        let text = |field: &str| match &probe[field] {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Null => String::new(),
            other => other.to_string(),
        };
        let port = match text("port") {
            port if port.is_empty() => text("protocol"),
            port => format!("{}/{port}", text("protocol")),
        };
        let row = match reply {
            Reply::Answer(answer) => {
                let side = |side: &crate::policy::probe::Side| format!("{}: {}", side.verdict, side.by);
                [answer.verdict.to_string(), side(&answer.egress), side(&answer.ingress)]
            }
            Reply::Error { error } => ["error".to_owned(), error.clone(), String::new()],
        };
        table.add_row([text("src"), text("dst"), port].into_iter().chain(row));
    }
    table
}

/// Sources down, destinations across.
fn matrix_table(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let end = |outcome: &Outcome, field: &str| outcome.probe[field].as_str().unwrap_or_default().to_owned();
    let rows: Vec<&[Outcome]> = outcomes.chunk_by(|a, b| a.probe["src"] == b.probe["src"]).collect();
    let destinations = rows.first().map_or(&[][..], |row| row);
    let header = ["FROM \\ TO".to_owned()].into_iter().chain(destinations.iter().map(|o| end(o, "dst")));
    table.set_header(header);
    for row in &rows {
        let verdicts = row.iter().map(|outcome| match &outcome.reply {
            Reply::Answer(Answer { verdict: Verdict::Allow, .. }) => Cell::new("allow"),
            Reply::Answer(_) => Cell::new("-"),
            Reply::Error { .. } => Cell::new("?"),
        });
        table.add_row([Cell::new(end(&row[0], "src"))].into_iter().chain(verdicts));
    }
    table
}

#[cfg(test)]
mod tests;
