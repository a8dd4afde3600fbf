//! What bulkhead costs: flannel alone against flannel with bulkhead, all up at once on one machine.
//!
//! ```text
//! cpu ─▶ mode (four clusters) ─▶ live ◀─ work      operations of real sockets, in turn
//!                                start             what ADD takes longer
//!        bpf ─▶ kernel ◀─ frames of the agent's own engine     packets in BPF_PROG_TEST_RUN
//!                          ... all ─▶ report
//! ```
//! Nothing here passes or fails by time: that a connection is allowed or denied as it should be is checked,
//! how long it takes is printed.

pub mod bpf;
pub mod compiler;
pub mod cpu;
pub mod crowd;
pub mod flood;
pub mod kernel;
pub mod latency;
pub mod live;
pub mod mode;
pub mod report;
pub mod scale;
pub mod start;
pub mod work;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::json;

use self::{cpu::Cpus, mode::Mode};
use crate::{netns::require_root, probe::Family};

/// Rules on every pod's path, per direction, in the two clusters that have agents.
pub const RULES: [usize; 2] = [1, 10_000];

#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Every operation is measured this often in every cluster, in turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Milliseconds for one operation in one cluster in one round
    #[arg(long, default_value_t = 700, value_parser = clap::value_parser!(u64).range(20..=60_000))]
    sample: u64,
    /// Pods to start and stop in each cluster with agents, for the time that ADD takes longer
    #[arg(long, default_value_t = 50)]
    starts: usize,
    /// A look instead of a measurement: 3 rounds of 120 ms, 10 starts
    #[arg(long, conflicts_with_all = ["rounds", "sample", "starts"])]
    quick: bool,
    /// Address family of the operations
    #[arg(long, value_enum, default_value_t = IpVersion::V4)]
    family: IpVersion,
    /// CPU for clients and servers; agents get the others. Default: the last
    #[arg(long)]
    cpu: Option<usize>,
    /// Parts to measure; may be repeated. Default: all
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Write every sample to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IpVersion {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Operations between pods
    Live,
    /// Packets through the programs alone
    Kernel,
    /// CNI ADD
    Start,
}

impl Options {
    fn measures(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn family(&self) -> Family {
        self.family.into()
    }
}

impl From<IpVersion> for Family {
    fn from(version: IpVersion) -> Self {
        match version {
            IpVersion::V4 => Self::V4,
            IpVersion::V6 => Self::V6,
        }
    }
}

pub fn run(mut options: Options) -> Result<()> {
    require_root()?;
    if options.quick {
        (options.rounds, options.sample, options.starts) = (3, 120, 10);
    }
    let cpus = Cpus::choose(options.cpu)?;
    let load_before = load()?;
    println!("{}", report::machine(&cpus)?);
    let mut raw = json!({"cpu": cpus.bench(), "loadBefore": load_before});

    if options.measures(Part::Kernel) {
        println!("\n== packets through the programs alone (BPF_PROG_TEST_RUN)");
        let figures = cpus.on_bench(|| kernel::measure(options.rounds.div_ceil(2)))?;
        println!("{}", report::packets(&figures));
        raw["packets"] = serde_json::to_value(&figures)?;
    }
    if options.measures(Part::Live) || options.measures(Part::Start) {
        println!("\n== raising the clusters");
        let modes = cpus.off_bench(|| mode::raise(options.family()))?;
        for mode in &modes {
            println!("   {mode}");
        }
        if options.measures(Part::Live) {
            println!("\n== {}, {} rounds of {} ms", options.family(), options.rounds, options.sample);
            let sample = Duration::from_millis(options.sample);
            let figures =
                cpus.on_bench(|| live::measure(&modes, options.family(), options.rounds, sample))?;
            println!("{}", report::operations(&names(&modes), &figures));
            raw["operations"] = serde_json::to_value(&figures)?;
        }
        if options.measures(Part::Start) {
            println!("\n== CNI ADD, {} pods", options.starts);
            let figures = cpus.off_bench(|| start::measure(&modes, options.starts))?;
            println!("{}", report::starts(&figures));
            raw["starts"] = serde_json::to_value(&figures)?;
        }
    }
    let load_after = load()?;
    println!("\nload average: {load_before} before, {load_after} after");
    raw["loadAfter"] = load_after.into();
    if let Some(path) = &options.json {
        fs::write(path, raw.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn names(modes: &[Mode]) -> Vec<String> {
    modes.iter().map(|mode| mode.name.clone()).collect()
}

/// Of the last minute. Other work on the machine is the first thing to know about a figure.
fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg").context("no /proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
