//! Change by change or from scratch: the same result.

use proptest::prelude::*;

use crate::{
    cluster::{Index, Touched},
    policy::{
        Compiler, Settings, compile,
        compiler::Delta,
        model::{Compiled, Scope},
        scope,
        testkit::{Case, edits::edit, generate::Random},
    },
};

/// What two results do not have in common.
fn differences(before: &Compiled, after: &Compiled) -> Delta {
    fn keys<K: Ord + Clone, V: PartialEq>(
        before: &std::collections::BTreeMap<K, V>,
        after: &std::collections::BTreeMap<K, V>,
    ) -> std::collections::BTreeSet<K> {
        let all = before.keys().chain(after.keys());
        all.filter(|key| before.get(*key) != after.get(*key)).cloned().collect()
    }
    Delta {
        peers: before
            .peers
            .keys()
            .chain(after.peers.keys())
            .filter(|address| before.peers.get(address) != after.peers.get(address))
            .collect(),
        prefixes: keys(&before.prefixes, &after.prefixes),
        services: keys(&before.services, &after.services),
        endpoints: keys(&before.endpoints, &after.endpoints),
        ..Delta::default()
    }
}

fn without_scope(delta: Delta) -> Delta {
    Delta { entered: Scope::default(), left: Scope::default(), ..delta }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_result_of_edits_is_that_of_a_compile_from_scratch(seed: u64, edits in 1_usize..24, others: u64) {
        let case = Case::of(seed, 0);
        let mut settings = case.settings.clone();
        let mut random = Random(seed ^ 3);
        let mut index = case.index().seen_from(Some("n1"));
        let mut compiler = Compiler::new(settings.clone());
        let mut told = vec!["start".to_owned()];
        let mut old_scope = Scope::default();
        for step in 0..=edits {
            let touched = index.take_touched();
            let before = compiler.compiled().clone();
            // As after a write that failed: something else is in force too.
            let also = if random.chance(15) { scope(&Case::of(others, 0).index(), &settings) } else { Scope::default() };
            let new_scope = scope(&index, &settings);
            if random.chance(10) {
                settings.backends_elsewhere_judged ^= true;
                prop_assert!(compiler.judge_backends_elsewhere(settings.backends_elsewhere_judged));
            }

            let delta = compiler.advance(&index, &touched, &also);
            let both = old_scope.clone().union(&also).union(&new_scope);
            prop_assert_eq!(compiler.scope(), &both, "{} of {}: {:#?}", step, seed, told);
            let want = compile(&index, &settings, &both);
            prop_assert_eq!(compiler.compiled(), &want, "in both scopes, step {} of {}: {:#?}", step, seed, told);
            prop_assert_eq!(&delta.entered, &both.minus(&old_scope));
            prop_assert_eq!(without_scope(delta), differences(&before, &want));

            let delta = compiler.settle(&index);
            prop_assert_eq!(compiler.scope(), &new_scope);
            let settled = compile(&index, &settings, &new_scope);
            prop_assert_eq!(compiler.compiled(), &settled, "settled, step {} of {}: {:#?}", step, seed, told);
            prop_assert_eq!(&delta.left, &both.minus(&new_scope));
            prop_assert_eq!(without_scope(delta), differences(&want, &settled));

            old_scope = new_scope;
            for _ in 0..=random.below(2) {
                told.push(edit(&mut random, &mut index));
            }
        }
    }

    #[test]
    fn all_touched_is_enough_to_start_from(seed: u64, edits in 0_usize..12) {
        let mut random = Random(seed);
        let mut index = Case::of(seed, 0).index().seen_from(Some("n1"));
        for _ in 0..edits {
            edit(&mut random, &mut index);
        }
        let settings = Settings::default();
        let mut compiler = Compiler::new(settings.clone());
        compiler.advance(&index, &index.all_touched(), &Scope::default());
        prop_assert_eq!(compiler.compiled(), &compile(&index, &settings, &scope(&index, &settings)));
    }
}

#[test]
fn what_did_not_change_touches_nothing() {
    let case = Case::of(7, 0);
    let mut index = case.index();
    index.take_touched();
    for object in &case.objects {
        index.apply(object.clone());
    }
    assert_eq!(index.take_touched(), Touched::default());
    assert_eq!(Index::default().all_touched(), Touched { pod_networks: true, ..Touched::default() });
}
