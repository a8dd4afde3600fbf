//! `lab`: raises scenarios by hand, the demo, and the bench.

use std::{
    env,
    fs::File,
    io::{self, Write},
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser};
use lab::{
    AgentOptions, Plan, Transport, bench,
    demo::{self, Scenario},
    image,
    netns::require_root,
    probe, soak, topology,
};
use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::{dup2_stderr, dup2_stdout, setsid},
};

/// Set for the process that keeps a lab after the command has returned.
const KEEPER: &str = "LAB_KEEPER";

#[derive(Parser)]
#[command(about = "Flannel-shaped clusters in network namespaces of this machine")]
enum Lab {
    /// Show a scenario before and after its policies
    Demo(Stage),
    /// Raise a scenario, with its policies if given, and leave it running
    Up(Stage),
    /// End labs that were left running
    Down {
        /// Default: all of them
        names: Vec<String>,
    },
    /// Labs on this machine
    List,
    /// Remove what killed processes left behind
    Sweep,
    /// One exchange from the namespace this runs in; prints JSON, fails unless the echo came back
    Probe(Question),
    /// What bulkhead costs: ratios to flannel alone, nanoseconds per packet, time added to ADD
    Bench(bench::Options),
    /// A full node: the time to adopt its pods, and what ADD takes longer at a steady rate of starts
    Crowd(bench::crowd::Options),
    /// What a neighbour has of the network while one pod floods it, with and without bulkhead
    Flood(bench::flood::Options),
    /// What a change of the cluster costs the agent, and its memory; needs no privilege
    Compiler(bench::compiler::Options),
    /// A large cluster by way of an API server: start, memory, cost of a change
    ApiserverScale(bench::scale::Options),
    /// From a policy's write at the API server to the first packet that meets it
    ApiserverLatency(bench::latency::Options),
    /// Churn, load and chaos for as long as you like: no verdict may be wrong, and nothing may grow
    Soak(soak::Options),
    /// Make the container image from static binaries
    Image(Image),
}

#[derive(Args)]
struct Image {
    /// Directory of an architecture's binaries; may be repeated
    #[arg(long, required = true, value_name = "amd64|arm64=DIR")]
    binaries: Vec<image::Binaries>,
    /// Name and tag
    #[arg(long, default_value = concat!("bulkhead/bulkhead:", env!("CARGO_PKG_VERSION")))]
    reference: String,
    /// The archive to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Args)]
struct Stage {
    /// Directory of manifests: pods (with nodeName) are started, everything else is stored
    #[arg(long)]
    manifests: PathBuf,
    /// Directory of network policies
    #[arg(long)]
    policies: Option<PathBuf>,
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// Flannel alone, without agents
    #[arg(long)]
    flat: bool,
    /// Leave it running
    #[arg(long)]
    keep: bool,
    /// One more argument for each agent; may be repeated
    #[arg(long, allow_hyphen_values = true)]
    agent_arg: Vec<String>,
}

#[derive(Args)]
struct Question {
    to: SocketAddr,
    #[arg(long)]
    udp: bool,
    /// Milliseconds
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
}

fn main() -> ExitCode {
    match run(Lab::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Lab) -> Result<ExitCode> {
    match command {
        Lab::Demo(stage) => staged(&stage, stage.keep, true),
        Lab::Up(stage) => staged(&stage, true, false),
        Lab::Down { names } => down(names),
        Lab::List => {
            for name in topology::labs()? {
                let owner =
                    topology::owner(&name).map_or("no owner".to_owned(), |pid| format!("process {pid}"));
                println!("{name}  {owner}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Lab::Sweep => {
            require_root()?;
            for name in topology::sweep() {
                println!("removed {name}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Lab::Bench(options) => {
            leave_nothing_when_told_to_end(130)?;
            bench::run(options)?;
            Ok(ExitCode::SUCCESS)
        }
        Lab::Crowd(options) => {
            leave_nothing_when_told_to_end(130)?;
            bench::crowd::run(&options)?;
            Ok(ExitCode::SUCCESS)
        }
        Lab::Flood(options) => {
            leave_nothing_when_told_to_end(130)?;
            bench::flood::run(&options)?;
            Ok(ExitCode::SUCCESS)
        }
        Lab::Compiler(options) => {
            bench::compiler::run(&options)?;
            Ok(ExitCode::SUCCESS)
        }
        Lab::ApiserverScale(options) => {
            leave_nothing_when_told_to_end(130)?;
            bench::scale::run(&options)?;
            Ok(ExitCode::SUCCESS)
        }
        Lab::ApiserverLatency(options) => {
            leave_nothing_when_told_to_end(130)?;
            bench::latency::run(&options)?;
            Ok(ExitCode::SUCCESS)
        }
        Lab::Soak(options) => {
            leave_nothing_when_told_to_end(130)?;
            let report = soak::run(&options)?;
            report.print();
            report.verdict()?;
            Ok(ExitCode::SUCCESS)
        }
        Lab::Image(options) => {
            image::write(&options.binaries, &options.reference, &options.output)?;
            Ok(ExitCode::SUCCESS)
        }
        Lab::Probe(question) => {
            let transport = if question.udp { Transport::Udp } else { Transport::Tcp };
            let outcome =
                probe::attempt_here(question.to, transport, Duration::from_millis(question.timeout))?;
            println!(
                "{}",
                serde_json::json!({"to": question.to, "transport": transport, "outcome": outcome})
            );
            Ok(if outcome == lab::Outcome::Reached { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

fn staged(stage: &Stage, keep: bool, show: bool) -> Result<ExitCode> {
    require_root()?;
    let keeper = env::var_os(KEEPER).is_some();
    if keep && !keeper {
        return hand_to_keeper();
    }
    leave_nothing_when_told_to_end(if keeper { 0 } else { 130 })?;
    let scenario = Scenario { manifests: stage.manifests.clone(), policies: stage.policies.clone() };
    let plan = if stage.flat {
        Plan::flat()
    } else {
        Plan::bulkhead().agent(AgentOptions { arguments: stage.agent_arg.clone(), ..AgentOptions::default() })
    };
    let lab = demo::raise(plan.nodes(stage.nodes), &scenario)?;
    match &stage.policies {
        _ if show => demo::show(&lab, &scenario)?,
        Some(policies) => demo::apply(&lab, policies)?,
        None => {}
    }
    if keeper {
        demo::guide(&lab, &env::current_exe()?);
        lab.keep()?;
        fall_silent()?;
        loop {
            thread::park(); // until a signal
        }
    }
    println!("\n== cleaning up");
    drop(lab);
    Ok(ExitCode::SUCCESS)
}

/// Starts this command again as a process of its own that stays with the lab, and shows what it says until
/// the lab stands.
fn hand_to_keeper() -> Result<ExitCode> {
    let mut command = Command::new(env::current_exe()?);
    command.args(env::args_os().skip(1)).env(KEEPER, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    // SAFETY: between fork and exec only `setsid` runs: one system call, no allocation, no lock.
    unsafe {
        command.pre_exec(|| Ok(setsid().map(drop)?));
    }
    let mut keeper = command.spawn()?;
    let mut said = keeper.stdout.take().expect("stdout is piped");
    io::copy(&mut said, &mut io::stdout())?;
    // It has fallen silent: because the lab stands, or because it ended.
    for _ in 0..50 {
        if let Some(status) = keeper.try_wait()? {
            ensure!(status.success(), "the lab could not be raised");
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(ExitCode::SUCCESS)
}

fn fall_silent() -> Result<()> {
    io::stdout().flush()?;
    let nowhere = File::options().write(true).open("/dev/null")?;
    dup2_stdout(&nowhere)?;
    dup2_stderr(&nowhere)?;
    Ok(())
}

/// SIGINT and SIGTERM remove this process's labs before they end it. Called before any thread starts.
fn leave_nothing_when_told_to_end(code: i32) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    signals.thread_block()?; // inherited by threads, undone by std for the programs it starts
    thread::spawn(move || {
        if signals.wait().is_ok() {
            topology::remove_own();
            std::process::exit(code);
        }
    });
    Ok(())
}

fn down(names: Vec<String>) -> Result<ExitCode> {
    require_root()?;
    let names = if names.is_empty() { topology::kept()? } else { names };
    for name in &names {
        let owner = topology::owner(name).context("see lab sweep")?;
        kill(owner, Signal::SIGTERM)?;
        let gone = (0..1000).any(|_| {
            thread::sleep(Duration::from_millis(10));
            topology::owner(name).is_err()
        });
        if !gone {
            bail!("process {owner} does not end {name}");
        }
        println!("ended {name}");
    }
    Ok(ExitCode::SUCCESS)
}
