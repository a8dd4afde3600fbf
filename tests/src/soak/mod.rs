//! How long it holds: a cluster under churn, load and chaos, asked all the time, and every answer judged.
//!
//! ```text
//! edits, churn ─▶ API server ─▶ history ┐
//! chaos ─▶ agents ─▶ standing ──────────┴▶ judge ◀─ probes        was any verdict wrong?
//!                       └▶ growth ◀─ kernel_maps, needs           does anything grow?
//! ```
//! While everything changes, a probe is judged against the states that each node may have been in (see `judge`): from
//! where its agent was known to be when the probe began (its own word, asked for ten times a second, that watches and kernel
//! have come to these versions), to what was written when it ended. Usually that is a few hundred milliseconds; while an
//! agent is dead or cut off it lasts as long as that. So that nothing hides in such a span, everything pauses now and then:
//! the agents must come to the present state in time, everybody asks everybody, and exactly one outcome of each is right.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Mutex, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, bail, ensure};
use clap::Args;
use nix::sys::resource::{Resource as Limit, setrlimit};

use crate::{
    agent::AgentOptions,
    netns::require_root,
    plan::Plan,
    probe::Family,
    topology::Lab,
    traffic::{Stream, StreamReport},
};

mod chaos;
mod churn;
pub mod clock;
mod edits;
mod growth;
mod history;
mod judge;
mod kernel_maps;
mod load;
mod needs;
mod neighbours;
mod probes;
mod quiet;
mod stage;
mod standing;
mod tally;

pub use chaos::Chaos;
pub use growth::{Growth, Line, Sample, Tolerance};
pub use tally::Tally;

use chaos::Excuses;
use history::History;
use probes::Asked;
use standing::Standing;

#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How long it lasts, without start and end
    #[arg(long, default_value_t = 5.0)]
    pub minutes: f64,
    /// All that is random follows from it; default: another one each time, which is printed
    #[arg(long)]
    pub seed: Option<u64>,
    /// What it found, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// What goes wrong meanwhile; default: everything
    #[arg(long, value_enum, value_delimiter = ',',
          default_values_t = [Chaos::Kill, Chaos::Api, Chaos::Clock, Chaos::Detach, Chaos::Pins, Chaos::Chain])]
    pub chaos: Vec<Chaos>,
    /// Changes of policies, labels and tenants per second
    #[arg(long, default_value_t = 10.0)]
    pub policy_rate: f64,
    /// Pods that start, and stop, per second
    #[arg(long, default_value_t = 5.0)]
    pub pod_rate: f64,
    /// Connections per second, of pairs that are always allowed
    #[arg(long, default_value_t = 2_000.0)]
    pub connection_rate: f64,
    /// Pods of each of the four namespaces whose policies change
    #[arg(long, default_value_t = 5)]
    pub actors: usize,
    /// Threads that ask random pairs
    #[arg(long, default_value_t = 2)]
    pub askers: u64,
    /// One more argument for each agent; may be repeated
    #[arg(long, allow_hyphen_values = true)]
    pub agent_arg: Vec<String>,
    /// Seconds from one quiet moment to the next
    #[arg(long, default_value_t = 25)]
    pub quiet_every: u64,
}

impl Default for Options {
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Defaults {
            #[command(flatten)]
            options: Options,
        }
        <Defaults as clap::Parser>::parse_from(["soak"]).options
    }
}

/// How fast streams talk: messages are small, what counts is that none is lost.
const STREAM_PACE: Duration = Duration::from_millis(10);
/// Open files that the soak may have: the sockets of both ends of all exchanges are its own.
const DESCRIPTORS: u64 = 20_000;

/// What all threads of a soak share.
struct Soak<'l> {
    lab: &'l Lab,
    options: &'l Options,
    seed: u64,
    history: History,
    standing: Standing,
    /// Held by everybody who changes, breaks or asks; taken alone for a quiet moment.
    gate: RwLock<()>,
    /// Held while pods start and stop.
    starts: RwLock<()>,
    excuses: Excuses,
    tally: Tally,
    /// The file of each node's wall clock.
    clocks: Vec<PathBuf>,
    notes: Mutex<Vec<(Duration, String)>>,
    /// When a pair, by its name, was asked at random.
    asked: Mutex<BTreeMap<String, Instant>>,
    /// Time in which everybody changes, breaks and asks.
    busy: Mutex<Duration>,
    began: Instant,
    over: AtomicBool,
    watched: AtomicBool,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub lasted: Duration,
    /// Without the quiet moments: what rates refer to.
    pub busy: Duration,
    pub counts: BTreeMap<&'static str, u64>,
    /// Wrong verdicts and states that were not reached: how many, and the first few.
    pub wrongs: u64,
    pub wrong: Vec<String>,
    pub streams: Vec<(String, StreamReport)>,
    pub growth: Growth,
}

/// Raises a lab, soaks it, and removes it.
pub fn run(options: &Options) -> Result<Report> {
    require_root()?;
    setrlimit(Limit::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS)?;
    let _neighbours = neighbours::Room::make()?;
    let random_seed = || SystemTime::UNIX_EPOCH.elapsed().map_or(1, |since| u64::from(since.subsec_nanos()));
    let seed = options.seed.unwrap_or_else(random_seed);
    println!("seed {seed}: lab soak --seed {seed} repeats what is drawn, not how threads meet");
    let directory = tempfile::tempdir()?;
    let clocks: Vec<_> = (1..=2).map(|node| directory.path().join(format!("clock-{node}"))).collect();
    let mut agent = AgentOptions { keeps_chain: true, ..AgentOptions::default() };
    agent.arguments.extend(["--flow-log-max-bytes", "8388608", "--flow-log-files", "2"].map(String::from));
    agent.arguments.extend(options.agent_arg.iter().cloned());
    if options.chaos.contains(&Chaos::Clock) {
        for (node, file) in (1..).zip(&clocks) {
            clock::set(file, 0)?;
            agent.environment.insert(node, clock::environment(file)?);
        }
    }
    let lab = Plan::bulkhead().agent(agent).api_server().raise()?;
    let Some(store) = lab.api().store().cloned() else {
        bail!("the soak reads every version of every object: it needs the lab's own API server");
    };
    stage::set(&lab, options.actors)?;
    let soak = Soak {
        lab: &lab,
        options,
        seed,
        history: History::of(store),
        standing: Standing::of(lab.agents().len()),
        gate: RwLock::new(()),
        starts: RwLock::new(()),
        excuses: Excuses::default(),
        tally: Tally::default(),
        clocks,
        notes: Mutex::default(),
        asked: Mutex::default(),
        busy: Mutex::default(),
        began: Instant::now(),
        over: AtomicBool::new(false),
        watched: AtomicBool::new(false),
    };
    soak.history.catch_up()?;
    let report = soak.run()?;
    if let Some(file) = &options.report {
        fs::write(file, serde_json::to_string_pretty(&report.json())?)?;
    }
    Ok(report)
}

impl Soak<'_> {
    fn run(&self) -> Result<Report> {
        let samples = Mutex::new(Vec::new());
        let turns = churn::Turns::new(self.options.pod_rate);
        let length = Duration::from_secs_f64(self.options.minutes * 60.0);
        let streams = thread::scope(|scope| {
            let mut watchers = Vec::new();
            for node in 0..self.lab.agents().len() {
                watchers.push(scope.spawn(move || self.standing.follow(self.lab, node, &self.watched)));
            }
            let whole = || -> Result<_> {
                samples.lock().expect("nobody panics").extend(quiet::moment(self)?);
                let streams = self.streams()?;
                let mut workers = Vec::new();
                workers.push(scope.spawn(|| self.work(|| churn::edit(self, self.seed ^ 1))));
                workers.push(scope.spawn(|| self.work(|| chaos::reign(self, self.seed ^ 2))));
                for number in 0..self.options.askers {
                    let seed = self.seed ^ (100 + number);
                    workers.push(scope.spawn(move || self.work(|| probes::roam(self, seed))));
                }
                for number in 0..churn::HOSTS {
                    let turns = &turns;
                    workers.push(scope.spawn(move || self.work(|| churn::host(self, turns, number))));
                }
                for namespace in stage::NAMESPACES {
                    workers.push(scope.spawn(move || {
                        load::bear(self, namespace);
                        Ok(())
                    }));
                }
                let ended = self.conduct(length, &samples);
                self.over.store(true, Ordering::Relaxed);
                let worked: Vec<_> =
                    workers.into_iter().map(|worker| worker.join().expect("no worker panics")).collect();
                worked.into_iter().collect::<Result<Vec<_>>>()?;
                ended?;
                samples.lock().expect("nobody panics").extend(quiet::moment(self)?);
                Ok(self.end(streams))
            };
            let streams = whole();
            self.over.store(true, Ordering::Relaxed);
            self.watched.store(true, Ordering::Relaxed);
            for watcher in watchers {
                watcher.join().expect("no watcher panics")?;
            }
            streams
        })?;
        let (wrongs, wrong) = self.tally.wrongs();
        let samples = samples.into_inner().expect("nobody panics");
        Ok(Report {
            seed: self.seed,
            lasted: self.began.elapsed(),
            busy: *self.busy.lock().expect("no holder panics"),
            counts: self.tally.counts(),
            wrongs,
            wrong,
            streams,
            growth: Growth::of(&samples, quiet::tolerance),
        })
    }

    /// Ends everybody's work when one cannot go on.
    fn work(&self, work: impl Fn() -> Result<()>) -> Result<()> {
        work().inspect_err(|error| {
            eprintln!("the soak cannot go on: {error:#}");
            self.over.store(true, Ordering::Relaxed);
        })
    }

    fn conduct(&self, length: Duration, samples: &Mutex<Vec<Sample>>) -> Result<()> {
        let begin = Instant::now();
        let every = Duration::from_secs(self.options.quiet_every.max(1));
        while begin.elapsed() < length && !self.is_over() {
            let busy = Instant::now();
            while busy.elapsed() < every && begin.elapsed() < length && !self.is_over() {
                thread::sleep(Duration::from_millis(50));
            }
            *self.busy.lock().expect("no holder panics") += busy.elapsed();
            if begin.elapsed() < length {
                samples.lock().expect("nobody panics").extend(quiet::moment(self)?);
                println!("{:5} s: {}", self.began.elapsed().as_secs(), self.tally);
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Conversations in each namespace: on one node and across, in both families.
    fn streams(&self) -> Result<Vec<(String, Stream)>> {
        let mut streams = Vec::new();
        for namespace in stage::NAMESPACES {
            for (from, to, family) in
                [(0, 1, Family::V4), (0, 2, Family::V6), (1, 0, Family::V6), (2, 0, Family::V4)]
            {
                let (from, to) =
                    (stage::talker(self.lab, namespace, from), stage::talker(self.lab, namespace, to));
                let at = std::net::SocketAddr::new(to.ip(family), 80);
                let stream = Stream::start(from.netns(), at, STREAM_PACE)?;
                streams.push((format!("{} -> {} {family}", from.key(), to.key()), stream));
            }
        }
        Ok(streams)
    }

    fn end(&self, streams: Vec<(String, Stream)>) -> Vec<(String, StreamReport)> {
        let ended = streams.into_iter().map(|(name, stream)| (name, stream.stop()));
        ended
            .inspect(|(name, report)| {
                // What was dropped by mistake TCP would hide by sending it again.
                if (report.echoed, report.retransmitted, &report.broken) != (report.sent, 0, &None) {
                    self.tally.wrong(|| format!("stream {name}: {report:?}"));
                }
            })
            .collect()
    }

    /// Something that happened, for whoever has to understand a wrong verdict.
    fn note(&self, what: String) {
        println!("{:5} s: {what}", self.began.elapsed().as_secs());
        self.notes.lock().expect("no holder panics").push((self.began.elapsed(), what));
    }

    /// What else is known about a pair.
    fn circumstances(&self, asked: &Asked) -> String {
        let mut parts = Vec::new();
        for event in self.history.last(15) {
            let what = if event.object.is_some() { "written" } else { "deleted" };
            parts.push(format!("version {}: {} {what}", event.version, event.reference));
        }
        let notes = self.notes.lock().expect("no holder panics");
        parts.extend(
            notes.iter().rev().take(6).rev().map(|(at, what)| format!("{:.1} s: {what}", at.as_secs_f64())),
        );
        drop(notes);
        let question = &asked.question;
        let (from, to) = (question.from.key.to_string(), format!("{}:{}", question.to.key, question.port));
        let protocol = question.transport.to_string();
        for agent in [question.from.node, question.to.node].map(|node| &self.lab.agents()[node]) {
            let explained = agent.output("explain", &[&from, &to, "--protocol", &protocol]);
            parts.push(match explained {
                Ok(output) => {
                    let (out, err) =
                        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
                    format!("explain now:\n{out}{err}")
                }
                Err(error) => format!("explain: {error:#}"),
            });
            parts.push(
                match agent.flows(&[
                    "-o",
                    "compact",
                    "--last",
                    "8",
                    "--pod",
                    &from,
                    "--port",
                    &question.port.to_string(),
                ]) {
                    Ok(flows) => format!("flows:\n{flows}"),
                    Err(error) => format!("flows: {error:#}"),
                },
            );
        }
        format!("{:.1} s\n{}", self.began.elapsed().as_secs_f64(), parts.join("\n"))
    }
}

impl Report {
    /// Fails if anything was wrong, lost or growing.
    pub fn verdict(&self) -> Result<()> {
        ensure!(self.wrongs == 0, "{} wrong:\n{}", self.wrongs, self.wrong.join("\n\n"));
        let growing: Vec<_> = self
            .growth
            .growing()
            .iter()
            .map(|line| format!("node-{} {}", line.node + 1, line.figure))
            .collect();
        ensure!(growing.is_empty(), "grows: {growing:?}\n{}", self.growth);
        Ok(())
    }

    pub fn retransmitted(&self) -> u32 {
        self.streams.iter().map(|(_, report)| report.retransmitted).sum()
    }

    pub fn print(&self) {
        println!("\nseed {}, {} s, {} of them busy", self.seed, self.lasted.as_secs(), self.busy.as_secs());
        for (what, number) in &self.counts {
            println!("{number:>10} {what}");
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        for (what, rate) in [("changes", "changes"), ("pods started", "pods"), ("connections", "connections")]
        {
            let number = self.counts.get(what).copied().unwrap_or(0) as f64;
            println!("{:>10.1} {rate} per second", number / self.busy.as_secs_f64());
        }
        let (sent, echoed) = self
            .streams
            .iter()
            .fold((0, 0), |(sent, echoed), (_, report)| (sent + report.sent, echoed + report.echoed));
        let longest = self.streams.iter().map(|(_, report)| report.longest_wait).max().unwrap_or_default();
        println!(
            "{} streams: {sent} messages, {} lost, {} segments sent twice, longest wait {} ms",
            self.streams.len(),
            sent - echoed,
            self.retransmitted(),
            longest.as_millis()
        );
        println!("{}", self.growth);
        println!("{} wrong", self.wrongs);
    }

    fn json(&self) -> serde_json::Value {
        let lines = self.growth.0.iter().map(|line| {
            serde_json::json!({
                "node": line.node + 1, "what": line.figure, "firstThird": line.first, "lastThird": line.last,
                "least": line.least, "most": line.most, "perHour": line.slope, "grows": line.grows(),
            })
        });
        serde_json::json!({
            "seed": self.seed, "seconds": self.lasted.as_secs(), "busySeconds": self.busy.as_secs(), "counts": self.counts, "wrongs": self.wrongs,
            "wrong": self.wrong, "retransmitted": self.retransmitted(), "growth": lines.collect::<Vec<_>>(),
        })
    }
}
