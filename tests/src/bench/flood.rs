//! What a neighbour has of the network while one pod floods it: flannel alone against flannel with bulkhead, in turn,
//! and beside it flannel alone against another flannel alone, which says how much of a difference is chance.
//!
//! Checked, not timed: no connection of the neighbour that was left alone is lost.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;

use super::{
    IpVersion,
    cpu::Cpus,
    report,
    work::{Sample, Work},
};
use crate::{
    Family, Lab, Plan, Pod, PodSpec, Transport,
    agent::AgentOptions,
    flood::{Flood, Kind},
    netns::require_root,
};

#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Seconds for one operation in one cluster in one round
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Rounds for each kind of flood
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Kinds of flood; may be repeated. Default: all
    #[arg(long, value_enum)]
    kind: Vec<Kind>,
    /// Address family, of the flood and of the neighbour's connections
    #[arg(long, value_enum, default_value_t = IpVersion::V4)]
    family: IpVersion,
    /// The flooding pod may send nothing by policy
    #[arg(long)]
    denied: bool,
    /// The agent's `--new-connections`; default: its own
    #[arg(long)]
    new_connections: Option<u32>,
}

/// Connections of the neighbour that nothing is said on while others are measured.
const QUIET: usize = 200;
/// A flood is given this long to fill what it can.
const WARM_UP: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(20);
const ECHO: u16 = 80;

struct Cluster {
    name: &'static str,
    family: Family,
    lab: Lab,
    flooder: Arc<Pod>,
    neighbour: Arc<Pod>,
    peer: Arc<Pod>,
    quiet: Vec<TcpStream>,
}

/// What the neighbour had, and how many packets the flood sent per second.
struct Round {
    echo: Sample,
    connect: Sample,
    flood: f64,
}

pub fn run(options: &Options) -> Result<()> {
    require_root()?;
    let cpus = Cpus::choose(None)?;
    println!("{}; the flood and the agent have the others", report::machine(&cpus)?);
    let family = options.family.into();
    let clusters = cpus.off_bench(|| {
        let flat = |name| Cluster::raise(name, Plan::flat(), family, options.denied);
        let (flat, again) = (flat("flat")?, flat("flat again")?);
        let arguments = options.new_connections.map(|n| vec!["--new-connections".to_owned(), n.to_string()]);
        let agent = AgentOptions { arguments: arguments.unwrap_or_default(), ..AgentOptions::default() };
        let guarded = Cluster::raise("bulkhead", Plan::bulkhead().agent(agent), family, options.denied)?;
        Ok([flat, again, guarded])
    })?;
    let [.., guarded] = &clusters;
    let time = Duration::from_secs(options.seconds);
    let kinds = if options.kind.is_empty() { Kind::ALL.to_vec() } else { options.kind.clone() };
    println!("\n== without a flood");
    print(&measure(&clusters, None, &cpus, options.rounds, time)?);
    for kind in kinds {
        println!("\n== {kind} flood{}", if options.denied { ", denied by policy" } else { "" });
        let before = Agent::look(&guarded.lab)?;
        print(&measure(&clusters, Some(kind), &cpus, options.rounds, time)?);
        println!("{}", Agent::look(&guarded.lab)?.since(&before));
    }
    for cluster in clusters {
        let name = cluster.name;
        let lost = cluster.lost();
        println!("{name}: {lost} of {QUIET} quiet connections lost");
        ensure!(lost == 0, "{name} has lost connections");
    }
    Ok(())
}

/// By cluster, then by round.
fn measure(
    clusters: &[Cluster; 3],
    kind: Option<Kind>,
    cpus: &Cpus,
    rounds: u32,
    time: Duration,
) -> Result<[Vec<Round>; 3]> {
    let mut figures = [const { Vec::new() }; 3];
    for round in 0..rounds as usize {
        for turn in 0..clusters.len() {
            let which = (round + turn) % clusters.len();
            figures[which].push(clusters[which].round(kind, cpus, time)?);
        }
    }
    Ok(figures)
}

/// Ratios are of one round each, to the first cluster: the median, and the extremes in brackets.
fn print([flat, again, guarded]: &[Vec<Round>; 3]) {
    let line = |what: &str, of: fn(&Round) -> f64| {
        let rate = |rounds: &[Round]| report::median(rounds.iter().map(of));
        let ratio = |rounds: &[Round]| {
            let ratios: Vec<_> = flat.iter().zip(rounds).map(|(flat, other)| of(other) / of(flat)).collect();
            report::spread(&ratios)
        };
        let (ratios, flat, guarded) =
            ([again, guarded].map(|rounds| ratio(rounds)), rate(flat), rate(guarded));
        let [again, ratio] = ratios;
        println!(
            "{what:<22} flat {flat:>9.0}/s   bulkhead {guarded:>9.0}/s   ratio {ratio}   flat again {again}"
        );
    };
    line("request/response", |round| round.echo.per_second);
    line("connect + close", |round| round.connect.per_second);
    if flat.iter().any(|round| round.flood > 0.0) {
        line("packets of the flood", |round| round.flood);
    }
}

impl Cluster {
    fn raise(name: &'static str, plan: Plan, family: Family, denied: bool) -> Result<Self> {
        let lab = plan.nodes(1).raise()?;
        lab.namespace("flood", &[])?;
        let pod = |name: &str| {
            let spec = PodSpec::new(&format!("flood/{name}")).label("app", name);
            lab.start_pod(spec.serve(Transport::Tcp, ECHO))
        };
        let (flooder, neighbour, peer) = (pod("flooder")?, pod("neighbour")?, pod("peer")?);
        lab.policy(
            "flood/peer",
            "peer",
            "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: neighbour}}}]}]",
        )?;
        if denied {
            lab.policy("flood/jail", "flooder", "policyTypes: [Egress]")?;
        }
        // Where nobody is, packets end as soon as the pod's own node has judged them: more of them fit into a second.
        lab.node(1)
            .netns()
            .ip("route add blackhole 198.18.0.0/16\nroute add blackhole 2001:db8:18::/112\n")?;
        lab.settle()?;
        let to = SocketAddr::new(peer.ip(family), ECHO);
        let quiet = {
            let _inside = neighbour.netns().enter()?;
            let begin = |_| {
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                ensure!(answers(&mut stream), "no answer from {to}");
                Ok(stream)
            };
            (0..QUIET).map(begin).collect::<Result<_>>()?
        };
        Ok(Self { name, family, lab, flooder, neighbour, peer, quiet })
    }

    fn round(&self, kind: Option<Kind>, cpus: &Cpus, time: Duration) -> Result<Round> {
        let start = |kind| cpus.off_bench(|| Flood::start(&self.flooder, self.family, kind));
        let flood = kind.map(start).transpose()?;
        thread::sleep(WARM_UP);
        let (begun, sent) = (Instant::now(), flood.as_ref().map_or(0, Flood::sent));
        let work = |work: Work| {
            let (client, server) = (self.neighbour.netns(), self.peer.netns());
            cpus.on_bench(|| work.measure(client, server, self.peer.ip(self.family), time))
        };
        let (echo, connect) = (work(Work::TcpEcho)?, work(Work::TcpConnect)?);
        let sent = flood.as_ref().map_or(0, Flood::sent) - sent;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 packets")]
        let rate = sent as f64 / begun.elapsed().as_secs_f64();
        flood.map_or(Ok(0), Flood::stop)?;
        Ok(Round { echo, connect, flood: rate })
    }

    fn lost(self) -> usize {
        self.quiet.into_iter().filter_map(|mut stream| (!answers(&mut stream)).then_some(())).count()
    }
}

fn answers(stream: &mut TcpStream) -> bool {
    let mut echo = [0];
    stream.write_all(&[7]).is_ok() && stream.read_exact(&mut echo).is_ok() && echo == [7]
}

/// What the agent has used and counted so far.
struct Agent {
    at: Instant,
    cpu: Duration,
    /// Resident, and the most it ever was, in kB.
    memory: [u64; 2],
    counts: BTreeMap<String, u64>,
}

impl Agent {
    fn look(lab: &Lab) -> Result<Self> {
        let agent = lab.agent(1);
        let read = |file: &str| {
            Ok::<_, anyhow::Error>(fs::read_to_string(format!("/proc/{}/{file}", agent.pid()?))?)
        };
        let stat = read("stat")?;
        // After the name, which may hold anything: utime and stime are the 14th and 15th field (proc_pid_stat(5)).
        let (_, fields) = stat.rsplit_once(") ").context("no /proc/PID/stat")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        let memory = read("status")?;
        let kilobytes = |name: &str| {
            let line = memory.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
        };
        let status = agent.status()?;
        let datapath = &status["datapath"];
        let mut counts = BTreeMap::new();
        for (reason, count) in datapath["packets"].as_object().into_iter().flatten() {
            counts.insert(format!("packets {reason}"), count.as_u64().unwrap_or_default());
        }
        for name in ["lostEvents", "lostConnections", "lostDetail", "shedConnections", "evictedConnections"] {
            counts.insert(name.to_owned(), datapath[name].as_u64().unwrap_or_default());
        }
        for name in ["decoded", "lostInExport"] {
            counts.insert(format!("flow {name}"), status["flows"][name].as_u64().unwrap_or_default());
        }
        // Above its own budget the neighbour is held back too, and the figures say nothing of the flood.
        for endpoint in status["endpoints"].as_array().into_iter().flatten() {
            let pod = endpoint["pod"].as_str().unwrap_or_default();
            counts.insert(format!("refused {pod}"), endpoint["refused"].as_u64().unwrap_or_default());
        }
        for (map, fill) in datapath["maps"].as_object().into_iter().flatten() {
            if map.starts_with("CONNS") {
                counts.insert(
                    format!("{map} now"),
                    fill.get("entries").and_then(Value::as_u64).unwrap_or_default(),
                );
            }
        }
        Ok(Self {
            at: Instant::now(),
            cpu: Duration::from_secs(ticks) / u32::try_from(per_second)?,
            memory: [kilobytes("VmRSS:"), kilobytes("VmHWM:")],
            counts,
        })
    }

    fn since(&self, before: &Self) -> String {
        let share = self.cpu.saturating_sub(before.cpu).as_secs_f64() / (self.at - before.at).as_secs_f64();
        let [now, most] = self.memory.map(|kilobytes| kilobytes / 1024);
        let mut text = format!("agent: {:.1} % of one CPU, {now} MB, at most {most} MB", 100.0 * share);
        for (name, count) in &self.counts {
            let before = before.counts.get(name).copied().unwrap_or_default();
            let more = if name.ends_with("now") { *count } else { count - before };
            if more > 0 {
                let _ = write!(text, "; {name} {more}");
            }
        }
        text
    }
}
