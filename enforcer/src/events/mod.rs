//! Warning Events: what cannot be honoured, told where `kubectl describe` shows it.
//!
//! ```text
//! Status, index ─ warnings ─▶ {Warning} ─ watch ─▶ publisher ─▶ API server
//! ```
//! A thousand nodes know the same broken policy, and one of them speaks: of the nodes that hold its subjects (without
//! subjects: of all), restricted to those with a pod of the agent where such pods are known, the one that hashes
//! highest with the policy's name. Every agent knows the whole cluster, so all come to the same node without asking
//! each other. Where that node's agent is down, nobody speaks: an Event is a courtesy, status and metrics of every
//! node tell the same. What concerns a node alone, it tells itself.

pub mod publisher;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use crate::{
    agent::status::Status,
    cluster::{
        Index,
        object::{Key, Kind, NetworkPolicy, ObjectRef, Pod},
    },
    policy::coverage::AGENT_LABEL,
    source::Problem,
};

/// Broken objects that are looked at, and that one node speaks about at one time; more are in status.
const MAX_OBJECTS: usize = 1000;
const MAX_WARNINGS: usize = 100;
/// Longest note, in bytes: the API server takes 1024.
const MAX_NOTE: usize = 1000;

/// One condition that should not be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    pub about: ObjectRef,
    /// In `PascalCase`.
    pub reason: &'static str,
    /// What bulkhead does about it.
    pub action: &'static str,
    pub note: String,
}

/// All that this node has to say now.
pub fn warnings(status: &Status, index: &Index, problems: &[Problem]) -> BTreeSet<Warning> {
    let policies = || index.policies().filter(|policy| !policy.defects.is_empty()).map(of_policy);
    // A policy that can be read in part is told by its defects.
    let told: BTreeSet<ObjectRef> = policies().map(|warning| warning.about).collect();
    let others = problems.iter().filter_map(of_problem).filter(|warning| !told.contains(&warning.about));
    let objects: BTreeSet<Warning> = policies().chain(others).take(MAX_OBJECTS).collect();
    let mut all = of_own_node(status);
    if !objects.is_empty() {
        let electorate = Electorate::of(index);
        all.extend(objects.into_iter().filter(|w| electorate.choose_own(&w.about)).take(MAX_WARNINGS));
    }
    all
}

fn of_policy(policy: &NetworkPolicy) -> Warning {
    Warning {
        about: ObjectRef { kind: Kind::NetworkPolicy, key: policy.key.clone() },
        reason: "PolicyNotHonoured",
        action: "Isolating",
        note: cut(format!(
            "bulkhead isolates the pods that this policy selects, and admits nothing by what it cannot honour: {}",
            policy.defects.join("; ")
        )),
    }
}

fn of_problem(problem: &Problem) -> Option<Warning> {
    let about = problem.object.clone()?;
    let field = problem.field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default();
    let reason = if about.kind == Kind::NetworkPolicy { "PolicyNotHonoured" } else { "ObjectNotHonoured" };
    let note = cut(format!("bulkhead: {field}{} ({})", problem.message.replace('\n', " "), problem.effect));
    Some(Warning { about, reason, action: "Reading", note })
}

/// What is about this node alone.
fn of_own_node(status: &Status) -> BTreeSet<Warning> {
    let warning = |reason, action, note: String| Warning {
        about: ObjectRef { kind: Kind::Node, key: Key::new("", &status.node) },
        reason,
        action,
        note: cut(note),
    };
    let kernel = status.datapath.error.iter().map(|error| {
        // The error's own words, and nobody else's: see `DatapathError::Full`.
        let reason = if error.contains("is too small") { "MapFull" } else { "KernelNotUpToDate" };
        warning(reason, "KeepingLastPolicy", format!("bulkhead enforces its last complete policy: {error}"))
    });
    let crowded = status.datapath.without_room.keys().map(|namespace| Warning {
        about: ObjectRef { kind: Kind::Namespace, key: Key::new("", namespace) },
        reason: "NoRoomForRules",
        action: "Isolating",
        note: cut(format!(
            "on node {} the rules of this namespace's policies do not fit beside the others': its pods there keep what \
             they had at best, and new ones are isolated and admit nothing",
            status.node
        )),
    });
    // Without the number: whoever makes it change would make Events.
    let unlisted = (status.datapath.unlisted_services > 0).then(|| {
        let note = "bulkhead has no room for all addresses and ports of Services: connections to those that are left \
                    out are judged by the address alone";
        warning("NoRoomForServices", "JudgingByAddress", note.to_owned())
    });
    let chain = status.chain.unchained.iter().map(|list| {
        let directory = &status.chain.directory;
        let note = format!("bulkhead-cni is not in {directory}/{list}: pods wired by it are not enforced");
        warning("NotInCniChain", "NotEnforcing", note)
    });
    let ways = status.ways.iter().filter(|way| !way.error.is_empty()).map(|way| {
        let note = format!(
            "bulkhead cannot judge what leaves by {}: {}. Services are open only to pods that may reach all backends",
            way.interface, way.error
        );
        warning("WayNotGuarded", "JudgingBeforeTranslation", note)
    });
    let heard = status.warnings().into_iter().map(|heard| warning(heard.reason, "Reporting", heard.message));
    kernel.chain(crowded).chain(unlisted).chain(chain).chain(ways).chain(heard).collect()
}

/// Whoever may speak.
struct Electorate<'a> {
    index: &'a Index,
    nodes: BTreeSet<&'a str>,
    /// Nodes with a pod of the agent.
    agents: BTreeSet<&'a str>,
}

impl<'a> Electorate<'a> {
    fn of(index: &'a Index) -> Self {
        let (label, value) = AGENT_LABEL;
        let is_agent = |pod: &&Pod| !pod.finished && pod.labels.get(label).is_some_and(|v| **v == *value);
        Self {
            index,
            nodes: index.nodes().map(|node| node.name.as_str()).collect(),
            agents: index.pods().filter(is_agent).filter_map(|pod| pod.node.as_deref()).collect(),
        }
    }

    /// Is it this node that speaks about the object?
    fn choose_own(&self, about: &ObjectRef) -> bool {
        let subjects = self.holders(about);
        let with_agent = |nodes: &BTreeSet<&'a str>| -> BTreeSet<&'a str> { nodes & &self.agents };
        let choices = [with_agent(&subjects), subjects, with_agent(&self.nodes), self.nodes.clone()];
        let candidates = choices.into_iter().find(|nodes| !nodes.is_empty()).unwrap_or_default();
        let rank = |node: &str| -> [u8; 32] { Sha256::digest(format!("{node}\0{about}")).into() };
        let speaker = candidates.into_iter().max_by_key(|node| rank(node));
        // Where no node is known there is nobody else.
        speaker.is_none_or(|node| Some(node) == self.index.node_name())
    }

    /// Nodes with a pod that the policy selects; of other objects, none.
    fn holders(&self, about: &ObjectRef) -> BTreeSet<&'a str> {
        let policy = self.index.policy(&about.key).filter(|_| about.kind == Kind::NetworkPolicy);
        let Some(policy) = policy else { return BTreeSet::new() };
        let pods = self.index.pods_in(&policy.key.namespace);
        let subjects = pods.filter(|pod| !pod.finished && policy.subjects.matches(&pod.labels));
        subjects.filter_map(|pod| pod.node.as_deref()).collect()
    }
}

fn cut(mut note: String) -> String {
    if note.len() > MAX_NOTE {
        let end = (0..=MAX_NOTE).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
        note.truncate(end);
        note.push('…');
    }
    note
}
