//! Who has to go without when the rules of all do not fit: whoever may write policies, or start many kinds of pods, in one
//! namespace must not keep the others' policies from being enforced.
//!
//! The namespace with the most rules is told to wait: its pods here keep the rules that they have (semantics 42), new ones
//! are isolated and admit nothing. If that is not enough, all its pods here admit nothing (fail closed): what is in force
//! of it takes up the room, too. That lasts until its policies or the pods of this node change. Everybody else gets what
//! the cluster says.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{
    image::{Image, Op},
    transition::Plan,
};

/// What is in force of a namespace's policies for which there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum InForce {
    /// What was before; for pods that came since, nothing.
    Before,
    /// That they isolate, and nothing else.
    Isolation,
}

pub type Crowded = BTreeMap<String, InForce>;

/// Whether there is somebody to go without, or with less than before; `false`: the rules that a plan leads to would fit,
/// were it not for those that they replace, or there is nothing left to take.
pub(super) fn give_up(crowded: &mut Crowded, plan: &Plan, actual: &Image, capacity: usize) -> bool {
    let Some(namespace) = largest(plan, actual, capacity) else { return false };
    let next = match crowded.get(&namespace) {
        None => InForce::Before,
        Some(InForce::Before) => InForce::Isolation,
        Some(InForce::Isolation) => return false,
    };
    crowded.insert(namespace, next);
    true
}

/// The namespace with the most rules among those that a plan leads to; `None`: they would all fit, were it not for those
/// that they replace.
fn largest(plan: &Plan, actual: &Image, capacity: usize) -> Option<String> {
    let wanted: HashSet<u32> = plan.endpoints.values().map(|endpoint| endpoint.policy.rule_set()).collect();
    let mut rules = BTreeMap::<u32, usize>::new();
    let held = actual.rules.keys();
    let new = plan.ops.iter().filter_map(|op| match op {
        Op::SetRule(rule, _) if !actual.rules.contains_key(rule) => Some(rule),
        _ => None,
    });
    for rule in held.chain(new).filter(|rule| wanted.contains(&rule.key.rule_set)) {
        *rules.entry(rule.key.rule_set).or_default() += 1;
    }
    if rules.values().sum::<usize>() <= capacity {
        return None;
    }
    let mut by_namespace = BTreeMap::<&str, usize>::new();
    let mut counted = HashSet::new();
    for (ifindex, endpoint) in &plan.endpoints {
        let rule_set = endpoint.policy.rule_set();
        let pod = plan.locals.get(ifindex).and_then(|local| local.pod.as_ref());
        if let Some(pod) = pod
            && counted.insert(rule_set)
        {
            *by_namespace.entry(&pod.namespace).or_default() +=
                rules.get(&rule_set).copied().unwrap_or_default();
        }
    }
    let largest = by_namespace.into_iter().max_by_key(|(_, rules)| *rules)?;
    Some(largest.0.to_owned())
}
