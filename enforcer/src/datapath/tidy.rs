//! Which rules nothing can lead to any more: removed a while after an update, when no packet that looked up
//! an old number can still be under way.

use std::collections::BTreeSet;

use super::{
    image::{Image, Op, Rule},
    numbers::{Mark, Numbers},
    usage::Usage,
};

/// What has gone out of use, or never came into use: their numbers are to be forgotten, their rules removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Idle {
    pub peers: BTreeSet<u32>,
    pub rule_sets: BTreeSet<u32>,
}

impl Idle {
    /// Since the last time, when numbers had been given up to `mark`. Judged by what the maps hold, not by what
    /// they should hold: after a write that failed, addresses still have the numbers of before.
    pub fn since(mark: Mark, usage: &mut Usage, numbers: &Numbers) -> Self {
        let (mut peers, mut rule_sets) = usage.take_idle();
        peers.extend(numbers.peers_since(mark));
        rule_sets.extend(numbers.rule_sets.since(mark.rule_sets).map(|(number, _)| number));
        peers.retain(|number| !usage.uses_peer(*number));
        rule_sets.retain(|number| !usage.uses_rule_set(*number));
        Self { peers, rule_sets }
    }

    /// Whatever there is: numbers and rules of an agent before us, or of a tidying that failed.
    pub fn all(usage: &mut Usage, numbers: &Numbers, image: &Image) -> Self {
        let mut idle = Self::since(Mark::default(), usage, numbers);
        let rules = || image.rules.keys().map(|rule| rule.key);
        idle.rule_sets.extend(rules().map(|key| key.rule_set).filter(|n| !usage.uses_rule_set(*n)));
        idle.peers.extend(rules().map(|key| key.peer).filter(|n| !usage.uses_peer(*n)));
        idle
    }

    pub fn forget(&self, numbers: &mut Numbers) {
        self.peers.iter().for_each(|number| numbers.forget_peer(*number));
        self.rule_sets.iter().for_each(|number| numbers.rule_sets.forget(*number));
    }

    pub fn removals(&self, image: &Image) -> Vec<Op> {
        let of_rule_sets = self.rule_sets.iter().flat_map(|rule_set| image.rules_of(*rule_set));
        let kept: Vec<u32> = image.rule_sets().filter(|number| !self.rule_sets.contains(number)).collect();
        let of_peers = kept.iter().flat_map(|rule_set| {
            self.peers.iter().flat_map(move |peer| image.rules_between(*rule_set, *peer))
        });
        of_rule_sets.chain(of_peers).copied().map(|rule: Rule| Op::RemoveRule(rule)).collect()
    }
}
