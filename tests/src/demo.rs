//! The demo: a scenario before and after its policies, and what the flow log says.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    agent::Agent, flowlog::Blocked, kubelet, matrix::Matrix, patience::until, plan::Plan, pod::PodSpec,
    probe::Family, topology::Lab,
};

/// How long policies may take until they show, and records until they are written.
const SHOWS_WITHIN: Duration = Duration::from_secs(10);

/// Manifests of a cluster: pods are started, everything else is stored.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub manifests: PathBuf,
    pub policies: Option<PathBuf>,
}

/// Raises the scenario's cluster without its policies.
pub fn raise(plan: Plan, scenario: &Scenario) -> Result<Lab> {
    let objects = kubelet::read_dir(&scenario.manifests)?;
    step("raising the nodes");
    let lab = plan.raise()?;
    let (pods, others): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| object["kind"] == "Pod");
    others.iter().try_for_each(|object| lab.manifests().write(object))?;
    step(&format!("starting {} pods through CNI", pods.len()));
    let specs = pods.into_iter().map(PodSpec::from_manifest).collect::<Result<Vec<_>>>()?;
    for pod in lab.start_pods(specs)? {
        println!(
            "   {:<16} {:<8} {:<14} {}",
            pod.key(),
            pod.spec().node(),
            pod.ip(Family::V4),
            pod.ip(Family::V6)
        );
    }
    Ok(lab)
}

/// Shows what the scenario's policies change.
pub fn show(lab: &Lab, scenario: &Scenario) -> Result<()> {
    let policies = scenario.policies.as_deref().context("the demo needs policies to show")?;
    step("the flat network, before any policy: who reaches whom");
    let before = both_families(lab)?;
    println!("{before}");
    apply(lab, policies)?;
    step("with the policies in force");
    let after = changed(lab, &before)?;
    println!("{after}");
    ensure!(!after.denied().is_empty(), "the policies blocked nothing");
    step("what the flow log says about the blocked attempts");
    let wanted = blocked_pairs(&after);
    let blocked = until(SHOWS_WITHIN, || flow_log(lab), |blocked| wanted.is_subset(&pairs(blocked)))?;
    for attempt in &blocked {
        println!("   {attempt}");
    }
    let missing: Vec<_> = wanted.difference(&pairs(&blocked)).cloned().collect();
    ensure!(missing.is_empty(), "blocked, but not in the flow log: {missing:?}");
    Ok(())
}

/// Stores every policy of a directory.
pub fn apply(lab: &Lab, policies: &Path) -> Result<()> {
    let objects = kubelet::read_dir(policies)?;
    step(&format!("applying {} policies from {}", objects.len(), policies.display()));
    for object in &objects {
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        println!("   {}/{}", text("/metadata/namespace"), text("/metadata/name"));
        lab.manifests().write(object)?;
    }
    Ok(())
}

/// How to look around in a lab that stays.
pub fn guide(lab: &Lab, executable: &Path) {
    let lab_binary = executable.display();
    step(&format!("lab {} stays; look around:", lab.name()));
    println!("   inside a pod or node (root):");
    for pod in lab.pods() {
        println!("     nsenter --net={} -- bash   # {}", pod.netns().path().display(), pod.key());
    }
    for node in lab.nodes() {
        println!("     nsenter --net={} -- bash   # {}", node.netns().path().display(), node.name());
    }
    if let Some((pod, port)) =
        lab.pods().iter().find_map(|pod| Some((pod.clone(), *pod.spec().ports().first()?)))
    {
        println!("   ask from there:   {lab_binary} probe {}:{}", pod.ip(Family::V4), port.1);
    }
    for agent in lab.agents() {
        println!("   {}", agent.command_line("status"));
        println!("   {} --follow", agent.command_line("flows"));
    }
    println!("   edit policies:    {}", lab.manifests().dir().display());
    println!("   end it:           {lab_binary} down {}", lab.name());
}

fn both_families(lab: &Lab) -> Result<Matrix> {
    let (v4, v6) = (lab.service_matrix(Family::V4)?, lab.service_matrix(Family::V6)?);
    ensure!(v4.reached() == v6.reached(), "the families differ:\n{v4}\n{v6}");
    Ok(v4.titled("IPv4 and IPv6"))
}

/// The matrix once the policies show in it, and nothing more changes.
fn changed(lab: &Lab, before: &Matrix) -> Result<Matrix> {
    until(SHOWS_WITHIN, || lab.service_matrix(Family::V4), |matrix| matrix.reached() != before.reached())?;
    both_families(lab)
}

fn blocked_pairs(matrix: &Matrix) -> BTreeSet<(String, String)> {
    matrix.denied().into_iter().map(|(source, to)| (source.to_owned(), to.to_owned())).collect()
}

fn pairs(blocked: &BTreeSet<Blocked>) -> BTreeSet<(String, String)> {
    blocked.iter().map(|b| (b.source.clone(), format!("{}:{}", b.destination, b.port))).collect()
}

fn flow_log(lab: &Lab) -> Result<BTreeSet<Blocked>> {
    let records = lab.agents().iter().map(Agent::flow_log).collect::<Result<Vec<_>>>()?;
    Ok(records.iter().flatten().filter_map(Blocked::read).collect())
}

fn step(what: &str) {
    println!("\n== {what}");
}
