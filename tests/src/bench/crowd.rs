//! A full node: how long it takes to adopt its pods, and what ADD takes longer while pods start at a steady rate, beside
//! the same starts on the same node before bulkhead is installed.
//!
//! Checked of each start, not timed: its first packet to a pod that it may not reach is not answered, and one that it may
//! reach answers.

use std::{
    net::SocketAddr,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;

use crate::{
    Family, Lab, Outcome, Plan, PodSpec, Start, Transport,
    netns::{Netns, require_root},
    pod::Act,
    probe::attempt,
};

#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Pods that run before bulkhead is installed; with those that start, at most 1000
    #[arg(long, default_value_t = 250)]
    pods: usize,
    /// Starts per second
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// Pods to start at this rate
    #[arg(long, default_value_t = 60)]
    starts: usize,
    /// Of the first kind at once
    #[arg(long, default_value_t = 8)]
    parallel: usize,
    /// Each pod that has started ends at once, as many ends as starts; otherwise all end when the last has started
    #[arg(long)]
    ends: bool,
    /// The agent watches an API server instead of a directory
    #[arg(long)]
    api_server: bool,
}

/// How long a pod waits for an answer that must not come, and for one that must.
const SILENCE: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(2);

const POLICIES: &str = r"
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: guarded, namespace: crowd}, spec: {
  podSelector: {matchLabels: {app: guarded}}, policyTypes: [Ingress],
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: late, namespace: crowd}, spec: {
  podSelector: {matchLabels: {app: late}}, policyTypes: [Ingress]}}
";

/// What came of a start.
struct Started {
    key: String,
    /// When ADD was answered.
    at: Instant,
    added: Duration,
    whole: Duration,
    guarded: Outcome,
    open: Outcome,
}

pub fn run(options: &Options) -> Result<()> {
    require_root()?;
    let plan = Plan::installed_later().nodes(1).wide();
    let lab = if options.api_server { plan.api_server() } else { plan }.raise()?;
    lab.namespace("crowd", &[])?;
    let serving =
        |name: &str| PodSpec::new(&format!("crowd/{name}")).label("app", name).serve(Transport::Tcp, 80);
    lab.start_pods([serving("guarded"), serving("open")])?;
    let crowd: Vec<_> = (2..options.pods).map(|n| PodSpec::new(&format!("crowd/pod-{n}"))).collect();
    for some in crowd.chunks(options.parallel.max(1)) {
        lab.start_pods(some.iter().cloned())?;
    }
    lab.apply(POLICIES)?;
    println!("flannel alone");
    let started = start_all(&lab, "flat", options)?;
    report(&started);
    end(&lab, &started, options)?;

    println!("bulkhead");
    let installing = Instant::now();
    lab.install()?;
    lab.adopted()?;
    let running = lab.agent(1).status()?["running"].clone();
    println!(
        "  adopted      {} pods in {} ms, {:.1} s after the agent's start; {} connections",
        running["adopted"],
        running["tookMillis"],
        installing.elapsed().as_secs_f64(),
        running["imported"]
    );
    let started = start_all(&lab, "late", options)?;
    report(&started);
    let wrong = |outcome: fn(&Started) -> bool| started.iter().filter(|started| outcome(started)).count();
    let (unprotected, cut) = (wrong(|s| s.guarded != Outcome::Silent), wrong(|s| s.open != Outcome::Reached));
    ensure!(unprotected == 0 && cut == 0, "{unprotected} pods unprotected, {cut} without network");
    println!("  of these     none unprotected, none without network");
    if options.ends {
        return Ok(());
    }
    let status = lab.agent(1).status()?;
    let enforced = |endpoint: &&Value| endpoint["upToDate"] == true && endpoint["attached"] == true;
    let endpoints = status["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
    let (all, wanted) = (endpoints.iter().filter(enforced).count(), options.pods + options.starts);
    ensure!(all == wanted, "{all} of {wanted} pods are enforced: {status:#}");
    println!("  on the node  {all} pods enforced");
    Ok(())
}

fn start_all(lab: &Lab, name: &str, options: &Options) -> Result<Vec<Started>> {
    let to = |name: &str| SocketAddr::new(lab.pod(&format!("crowd/{name}")).ip(Family::V4), 80);
    let (guarded, open) = (to("guarded"), to("open"));
    let began = Instant::now();
    let started = thread::scope(|scope| {
        let starts: Vec<_> = (0..options.starts)
            .map(|number| {
                let due = Duration::from_secs_f64(f64::from(u32::try_from(number)?) / options.rate);
                thread::sleep(due.saturating_sub(began.elapsed()));
                let key = format!("crowd/{name}-{number}");
                Ok(scope.spawn(move || start(lab, key, (guarded, open), options.ends)))
            })
            .collect::<Result<_>>()?;
        starts
            .into_iter()
            .map(|start| start.join().expect("a start does not panic"))
            .collect::<Result<Vec<_>>>()
    })?;
    let answers = || started.iter().map(|started| started.at);
    let (Some(first), Some(last)) = (answers().min(), answers().max()) else { return Ok(started) };
    let seconds = (last - first).as_secs_f64();
    println!(
        "  started      {} pods: {:.1} ADDs answered per second, the last {:.1} s after the first start",
        started.len(),
        f64::from(u32::try_from(started.len() - 1)?) / seconds,
        (last - began).as_secs_f64()
    );
    Ok(started)
}

fn end(lab: &Lab, started: &[Started], options: &Options) -> Result<()> {
    if options.ends {
        return Ok(());
    }
    for some in started.chunks(options.parallel.max(1)) {
        thread::scope(|scope| {
            let ends: Vec<_> = some.iter().map(|one| scope.spawn(|| lab.stop_pod(&one.key))).collect();
            ends.into_iter().try_for_each(|end| end.join().expect("an end does not panic"))
        })?;
    }
    Ok(())
}

fn start(lab: &Lab, key: String, (guarded, open): (SocketAddr, SocketAddr), ends: bool) -> Result<Started> {
    let asked = Mutex::new(None);
    let act: Act<'_> = Box::new(|netns: &Netns| {
        let ask = |to, patience| attempt(netns, to, Transport::Tcp, patience);
        let at = Instant::now();
        *asked.lock().expect("nobody else holds it") = Some((at, ask(guarded, SILENCE), ask(open, PATIENCE)));
    });
    let begin = Instant::now();
    let spec = PodSpec::new(&key).label("app", "late");
    let pod = lab.start_pod_with(spec, Start { first_act: Some(act), ..Start::default() })?;
    let (at, guarded, open) = asked.into_inner()?.context("the pod did not act")?;
    if ends {
        lab.stop_pod(&key)?;
    }
    Ok(Started { key, at, added: pod.added_by_bulkhead(), whole: at - begin, guarded: guarded?, open: open? })
}

fn report(started: &[Started]) {
    let line = |what: &str, time: fn(&Started) -> Duration| {
        let mut times: Vec<_> = started.iter().map(time).collect();
        times.sort();
        let at = |percent: usize| {
            let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        println!("  {what:<13}p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms", at(50), at(99), at(100));
    };
    line("added to ADD", |started| started.added);
    line("whole start", |started| started.whole);
}
