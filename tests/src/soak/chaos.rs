//! What goes wrong meanwhile: one thing at a time, drawn from the seed.

use std::{
    collections::BTreeSet,
    fs,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bulkhead::{datapath::removal::remove_all, policy::testkit::generate::Random};
use bulkhead_ebpf::abi::ABI_VERSION;
use clap::ValueEnum;
use serde_json::Value;

use super::{Soak, clock, judge::Question, stage::NAMESPACES};
use crate::{
    apiserver::{Call, Fault, What},
    links,
    patience::until,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Chaos {
    /// The agent of node 1 is killed (SIGKILL) and started again; that of node 2 lives as long as the soak, so that
    /// what it gathers shows
    Kill,
    /// The API server goes away, resets, drips, repeats itself, has lost its history, refuses
    Api,
    /// The agents' wall clocks jump
    Clock,
    /// Somebody takes the programs off a pod's interface
    Detach,
    /// Somebody removes all pins of an agent that runs
    Pins,
    /// Somebody writes flannel's CNI configuration anew
    Chain,
    /// Nothing goes wrong
    None,
}

/// How long an agent may take to put right what somebody has taken away.
const REPAIRS_WITHIN: Duration = Duration::from_secs(30);

/// Breaks things until the end.
pub fn reign(soak: &Soak<'_>, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    let chosen: Vec<_> = soak.options.chaos.iter().copied().filter(|chaos| *chaos != Chaos::None).collect();
    if chosen.is_empty() {
        return Ok(());
    }
    // Everything once at first, then as it comes: what is likeliest in a cluster most often.
    let often = [Chaos::Kill, Chaos::Kill, Chaos::Api, Chaos::Api];
    let likely = often.into_iter().filter(|chaos| chosen.contains(chaos)).chain(chosen.iter().copied());
    let likely: Vec<_> = likely.collect();
    for turn in 0.. {
        pause(soak, Duration::from_millis(1000 + random.below(5000) as u64));
        if soak.is_over() {
            break;
        }
        let chaos = chosen.get(turn).copied().unwrap_or_else(|| random.pick(&likely));
        let _open = soak.gate.read().expect("no holder panics");
        let begun = Instant::now();
        let what = strike(soak, chaos, &mut random).with_context(|| format!("chaos {chaos:?}"))?;
        soak.note(format!("{what} ({:.1} s)", begun.elapsed().as_secs_f64()));
    }
    Ok(())
}

fn pause(soak: &Soak<'_>, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end && !soak.is_over() {
        thread::sleep(Duration::from_millis(50));
    }
}

fn strike(soak: &Soak<'_>, chaos: Chaos, random: &mut Random) -> Result<String> {
    match chaos {
        Chaos::Kill => kill(soak, random),
        Chaos::Api => flap(soak, random),
        Chaos::Clock => {
            let node = random.below(soak.lab.agents().len());
            let seconds =
                random.pick(&[-315_360_000, -86_400, -3_600, -7, 0, 1, 3_600, 2_592_000, 315_360_000]);
            clock::set(&soak.clocks[node], seconds)?;
            soak.tally.count("clock steps");
            Ok(format!("the clock of node-{} is {seconds} s off", node + 1))
        }
        Chaos::Detach => detach(soak, random),
        Chaos::Pins => unpin(soak, random),
        Chaos::Chain => rewrite(soak, random),
        Chaos::None => Ok("nothing".to_owned()),
    }
}

fn kill(soak: &Soak<'_>, random: &mut Random) -> Result<String> {
    let agent = soak.lab.agent(1);
    if let Some(status) = agent.ended()? {
        bail!("the agent of node-1 had ended by itself ({status}):\n{}", agent.log());
    }
    agent.kill9();
    let away = Duration::from_millis(random.below(2500) as u64);
    thread::sleep(away);
    agent.start_unready()?;
    soak.tally.count("kills");
    Ok(format!("killed the agent of node-1, away for {} ms", away.as_millis()))
}

fn flap(soak: &Soak<'_>, random: &mut Random) -> Result<String> {
    let api = soak.lab.api();
    let time = Duration::from_millis(300 + random.below(3500) as u64);
    let some = Duration::from_millis(10 + random.below(30) as u64);
    let bytes = 200 + random.below(1500);
    let what = match random.below(10) {
        0 | 1 => None,
        2 => Some(What::Reset(bytes)),
        3 => Some(What::EndAfter(bytes)),
        4 => Some(What::Drip(bytes, some)),
        5 => Some(What::Twice),
        6 => Some(What::GoneMidway),
        7 => Some(What::Refuse(410)),
        8 => Some(What::Refuse(random.pick(&[403, 429, 500, 503]))),
        _ => Some(What::Garble("actor")),
    };
    let told = what.as_ref().map_or("the API server away".to_owned(), |what| format!("API server: {what:?}"));
    match what {
        None => api.proxy().stop(),
        Some(what) => {
            let everything = matches!(what, What::Reset(_) | What::Refuse(403..)) && random.chance(50);
            let fault = Fault::new(what);
            api.faults().add(if everything { fault } else { fault.at(Call::Watch) });
            api.proxy().restart()?; // so that watches begin under the fault
        }
    }
    thread::sleep(time);
    api.faults().lift();
    api.proxy().restart()?; // a watch that has begun under a fault would keep it
    soak.tally.count("API flaps");
    Ok(format!("{told} for {} ms", time.as_millis()))
}

/// The programs of one pod; its own verdicts are nobody's until they are back.
fn detach(soak: &Soak<'_>, random: &mut Random) -> Result<String> {
    if soak.options.actors == 0 {
        return Ok("nobody to detach".to_owned());
    }
    let key = format!("{}/actor-{}", random.pick(&NAMESPACES), random.below(soak.options.actors));
    let pod = soak.lab.pod(&key);
    let node = if pod.spec().node() == "node-1" { 1 } else { 2 };
    let agent = soak.lab.agent(node);
    let own = |status: &Value| {
        let endpoints = status["endpoints"].as_array().into_iter().flatten();
        endpoints.clone().find(|endpoint| endpoint["pod"] == *key).cloned().unwrap_or_default()
    };
    let status = until(REPAIRS_WITHIN, || Ok(agent.status().unwrap_or_default()), |s| own(s).is_object())?;
    let interface = own(&status)["interface"].as_str().context("an endpoint without interface")?.to_owned();
    let before = status["datapath"]["repaired"].as_u64();
    let excuse = soak.excuses.begin(&key);
    let detached = Instant::now();
    {
        let _inside = soak.lab.node(node).netns().enter()?;
        let index = nix::net::if_::if_nametoindex(interface.as_str())?;
        let pins = agent.bpffs().join(format!("v{ABI_VERSION}/links"));
        for pin in fs::read_dir(&pins)?.collect::<Result<Vec<_>, _>>()? {
            if pin.file_name().to_string_lossy().starts_with(&format!("{index}-")) {
                links::detach(&pin.path())?;
            }
        }
    }
    let is_back =
        |status: &Value| own(status)["attached"] == true && status["datapath"]["repaired"].as_u64() > before;
    let after = until(REPAIRS_WITHIN, || Ok(agent.status().unwrap_or_default()), is_back)?;
    ensure!(is_back(&after), "the programs of {key} are not back: {after:#}");
    soak.excuses.end(excuse);
    soak.tally.count("detachments");
    Ok(format!("detached the programs of {key}, back after {:.1} s", detached.elapsed().as_secs_f64()))
}

fn unpin(soak: &Soak<'_>, random: &mut Random) -> Result<String> {
    let node = if random.chance(50) { 1 } else { 2 };
    let agent = soak.lab.agent(node);
    let is_whole = |status: &Value| {
        status["ready"] == true && status["datapath"]["predecessors"].as_array().is_some_and(Vec::is_empty)
    };
    // Without an agent that runs nothing holds what is not pinned.
    let status = until(REPAIRS_WITHIN, || Ok(agent.status().unwrap_or_default()), is_whole)?;
    if !is_whole(&status) {
        return Ok(format!("left the pins of node-{node}: {}", status["notReady"]));
    }
    let _chain = soak.starts.write().expect("no holder panics"); // links that are being pinned are not ours to take
    let before = living_pins(soak, node)?;
    let unpinned = remove_all(agent.bpffs());
    ensure!(unpinned.failed.is_empty(), "{unpinned:?}");
    let missing = || {
        let now = living_pins(soak, node)?;
        Ok(before.difference(&now).cloned().collect::<Vec<_>>())
    };
    let left = until(REPAIRS_WITHIN, missing, Vec::is_empty)?;
    ensure!(left.is_empty(), "pins of node-{node} are not back: {left:?}\n{}", agent.log());
    let removed = before.len();
    soak.tally.count("times all pins removed");
    Ok(format!("removed {removed} pins of node-{node}"))
}

/// Pins, without those of links whose interface is gone.
fn living_pins(soak: &Soak<'_>, node: u8) -> Result<BTreeSet<String>> {
    let version = soak.lab.agent(node).bpffs().join(format!("v{ABI_VERSION}"));
    let alive: BTreeSet<_> = {
        let _inside = soak.lab.node(node).netns().enter()?;
        nix::net::if_::if_nameindex()?.iter().map(nix::net::if_::Interface::index).collect()
    };
    let mut pins = BTreeSet::new();
    for part in ["maps", "programs", "links"] {
        let Ok(entries) = fs::read_dir(version.join(part)) else { continue };
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let interface = name.split_once('-').and_then(|(index, _)| index.parse().ok());
            if interface.is_none_or(|index| alive.contains(&index)) {
                pins.insert(format!("{part}/{name}"));
            }
        }
    }
    Ok(pins)
}

/// As flannel's init container does; no pod starts until the plugin is in the list again.
fn rewrite(soak: &Soak<'_>, random: &mut Random) -> Result<String> {
    let node = if random.chance(50) { 1 } else { 2 };
    let _chain = soak.starts.write().expect("no holder panics");
    let is_ours = |plugin: &Value| plugin["type"] == "bulkhead-cni";
    let plugins = |list: &Value| list["plugins"].as_array().cloned().unwrap_or_default();
    let look = || soak.lab.chain(node).conflist();
    let mut list = look()?;
    list["plugins"] = plugins(&list).into_iter().filter(|plugin| !is_ours(plugin)).collect();
    soak.lab.node(node).write_cni_configuration(&list)?;
    let is_back = |list: &Value| plugins(list).last().is_some_and(is_ours);
    let after = until(REPAIRS_WITHIN, || Ok(look().unwrap_or_default()), is_back)?;
    ensure!(is_back(&after), "the plugin is not back in the chain of node-{node}: {after:#}");
    soak.tally.count("chains rewritten");
    Ok(format!("rewrote the CNI configuration of node-{node}"))
}

/// Pods about which nothing is known for a while.
#[derive(Debug, Default)]
pub struct Excuses(Mutex<Vec<Excuse>>);

#[derive(Debug)]
struct Excuse {
    pod: String,
    ended: Option<Instant>,
}

impl Excuses {
    fn begin(&self, pod: &str) -> usize {
        let mut all = self.0.lock().expect("no holder panics");
        all.push(Excuse { pod: pod.to_owned(), ended: None });
        all.len() - 1
    }

    fn end(&self, number: usize) {
        self.0.lock().expect("no holder panics")[number].ended = Some(Instant::now());
    }

    /// Whether a probe that began then, and has ended now, may have met one.
    pub fn cover(&self, question: &Question, began: Instant) -> bool {
        let concerns = |excuse: &Excuse| {
            let ends = [&question.from.key, &question.to.key];
            ends.iter().any(|key| key.to_string() == excuse.pod)
        };
        let all = self.0.lock().expect("no holder panics");
        all.iter().any(|excuse| excuse.ended.is_none_or(|ended| ended >= began) && concerns(excuse))
    }
}
