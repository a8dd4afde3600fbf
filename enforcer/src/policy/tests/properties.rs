//! What must hold in every cluster. A failing seed repeats the case.

use proptest::prelude::*;

use crate::{
    cluster::object::{NetworkPolicy, Object, Rule, Selector},
    policy::{
        Answer, ProbeError, Settings, Simulator,
        model::{BlockSet, Entries, Identity, Scope},
        probe::{Probe, Side, Verdict},
        scope,
        testkit::{
            Case,
            generate::{Random, describe, index},
            naive, smallest,
        },
    },
};

const PROBES: usize = 24;

fn answers(objects: &[Object], settings: &Settings, probes: &[Probe]) -> Vec<Result<Answer, ProbeError>> {
    let mut simulator = Simulator::new(index(objects), settings.clone());
    probes.iter().map(|probe| simulator.answer(probe)).collect()
}

fn verdicts(answers: Vec<Result<Answer, ProbeError>>) -> Vec<Option<[Verdict; 3]>> {
    answers.into_iter().map(|a| a.ok().map(|a| [a.verdict, a.egress.verdict, a.ingress.verdict])).collect()
}

/// The first probe to which the compiler does not answer as the specification reads, and both answers.
fn disagreement(case: &Case) -> Option<String> {
    let mut simulator = Simulator::new(case.index(), case.settings.clone());
    case.probes.iter().find_map(|probe| {
        let want = naive::answer(&case.objects, &case.settings, probe);
        let answer = simulator.answer(probe);
        let allows = |side: &Side| side.verdict == Verdict::Allow;
        let translated =
            simulator.flow(probe).ok().filter(|flow| simulator.translated(probe, flow).is_some());
        let before_translation = translated.and_then(|flow| simulator.before_translation(&flow));
        let have = answer.as_ref().ok().map(|answer| naive::Verdicts {
            egress: allows(&answer.egress),
            ingress: allows(&answer.ingress),
            before_translation: before_translation.as_ref().map(allows),
        });
        (have != want).then(|| format!("{}\nspecification {want:?}\ncompiler {answer:?}", describe(probe)))
    })
}

proptest! {
    // A smaller seed is no smaller case: the case itself is made smaller.
    #![proptest_config(ProptestConfig { cases: 2000, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn the_compiler_agrees_with_a_naive_reading_of_the_specification(seed: u64) {
        let case = Case::of(seed, PROBES);
        if disagreement(&case).is_some() {
            let case = smallest(case, |case| disagreement(case).is_some());
            prop_assert!(false, "{}\n{:#?}", disagreement(&case).unwrap_or_default(), case);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_order_of_objects_has_no_effect(seed: u64, shuffle: u64) {
        let case = Case::of(seed, PROBES);
        let mut shuffled = case.objects.clone();
        let mut random = Random(shuffle);
        for i in (1..shuffled.len()).rev() {
            shuffled.swap(i, random.below(i + 1));
        }
        let (a, b) = (index(&case.objects).seen_from(Some("n1")), index(&shuffled).seen_from(Some("n1")));
        let scope = scope(&a, &case.settings);
        prop_assert_eq!(
            crate::policy::compile(&a, &case.settings, &scope),
            crate::policy::compile(&b, &case.settings, &scope)
        );
    }

    #[test]
    fn a_policy_that_isolates_nobody_changes_no_answer(seed: u64) {
        let case = Case::of(seed, PROBES);
        let mut more = case.objects.clone();
        let nobody = NetworkPolicy {
            subjects: selector("nobody"),
            ..Random(seed ^ 1).policy("nobody")
        };
        more.push(Object::NetworkPolicy(nobody));
        prop_assert_eq!(
            answers(&case.objects, &case.settings, &case.probes),
            answers(&more, &case.settings, &case.probes)
        );
    }

    #[test]
    fn a_rule_more_never_denies_what_was_allowed(seed: u64) {
        let case = Case::of(seed, PROBES);
        let mut more = case.objects.clone();
        let mut random = Random(seed ^ 2);
        for object in &mut more {
            let Object::NetworkPolicy(policy) = object else { continue };
            for rules in [&mut policy.ingress, &mut policy.egress].into_iter().flatten() {
                rules.push(random.rule(rules.len()));
            }
        }
        let before = verdicts(answers(&case.objects, &case.settings, &case.probes));
        let after = verdicts(answers(&more, &case.settings, &case.probes));
        for ((before, after), probe) in before.into_iter().zip(after).zip(&case.probes) {
            if let (Some(before), Some(after)) = (before, after) {
                prop_assert!(before.iter().zip(after).all(|(b, a)| a <= *b), "{}", describe(probe));
            }
        }
    }

    #[test]
    fn a_wider_scope_changes_no_answer(seed: u64, other: u64) {
        let case = Case::of(seed, PROBES);
        let settings = &case.settings;
        let wider = scope(&case.index(), settings).union(&scope(&Case::of(other, 0).index(), settings));
        let mut wide = Simulator::with_scope(case.index(), settings.clone(), wider);
        let wide: Vec<_> = case.probes.iter().map(|probe| wide.answer(probe)).collect();
        prop_assert_eq!(answers(&case.objects, settings, &case.probes), wide);
    }

    #[test]
    fn the_entries_for_all_are_the_entries_for_each(seed: u64) {
        let case = Case::of(seed, 0);
        let mut simulator = Simulator::new(case.index(), case.settings.clone());
        let compiled = simulator.compiled(Some("n1"));
        let peers = || compiled.peers.values().map(AsRef::as_ref).chain(compiled.prefixes.values());
        for endpoint in compiled.endpoints.values() {
            let identities = peers().map(|p| &p.identity).chain(compiled.services.values());
            let all = endpoint.rules.entries(identities, peers().map(|p| &p.blocks));
            let nobody = [].iter();
            let mut each: Entries = endpoint.rules.entries(nobody, [].iter());
            for peer in peers() {
                each.extend(endpoint.rules.entries([&peer.identity].into_iter(), [].iter()));
                each.extend(endpoint.rules.entries([].iter(), [&peer.blocks].into_iter()));
            }
            for service in compiled.services.values() {
                each.extend(endpoint.rules.entries([service].into_iter(), [].iter()));
            }
            prop_assert_eq!(all, each);
        }
    }

    #[test]
    fn equal_classes_and_rule_sets_are_shared(seed: u64) {
        let case = Case::of(seed, 0);
        let mut simulator = Simulator::new(case.index(), case.settings.clone());
        let compiled = simulator.compiled(Some("n1"));
        let identities: Vec<&std::sync::Arc<Identity>> = compiled.peers.values().map(|p| &p.identity).collect();
        let blocks: Vec<&std::sync::Arc<BlockSet>> = compiled.peers.values().map(|p| &p.blocks).collect();
        let rules: Vec<_> = compiled.endpoints.values().map(|e| &e.rules).collect();
        prop_assert!(shared(&identities) && shared(&blocks) && shared(&rules));
    }

    #[test]
    fn deleting_what_was_added_leaves_nothing(seed: u64) {
        let case = Case::of(seed, 0);
        let mut index = case.index();
        for object in &case.objects {
            prop_assert!(!index.apply(object.clone()), "a second time changes nothing");
        }
        for object in &case.objects {
            index.delete(&object.reference());
        }
        prop_assert_eq!(index.owned_addresses().count(), 0);
        prop_assert_eq!(scope(&index, &case.settings), Scope::default());
    }
}

fn shared<T: PartialEq>(values: &[&std::sync::Arc<T>]) -> bool {
    let pairs = values.iter().flat_map(|a| values.iter().map(move |b| (a, b)));
    pairs.into_iter().all(|(a, b)| (a == b) == std::sync::Arc::ptr_eq(a, b))
}

fn selector(key: &str) -> Selector {
    use crate::cluster::object::{Operator, Requirement};
    Selector { requirements: [Requirement { key: key.into(), operator: Operator::Exists }].into() }
}

#[test]
fn generated_services_reach_every_outcome() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let case = Case::of(seed, PROBES);
        let mut simulator = Simulator::new(case.index(), case.settings.clone());
        for probe in &case.probes {
            let Ok(flow) = simulator.flow(probe) else { continue };
            let Some(translated) = simulator.translated(probe, &flow) else { continue };
            let before = simulator.before_translation(&flow).map(|side| side.verdict);
            let answer = simulator.answer(probe).expect("a flow has an answer");
            seen.insert((before, answer.verdict, translated.flows.len().min(2)));
        }
    }
    let (yes, no) = (Verdict::Allow, Verdict::Deny);
    for want in [
        (Some(yes), yes, 1),
        (Some(yes), yes, 2),
        (Some(yes), no, 0), // not isolated, nobody there
        (Some(yes), no, 2), // mixed pods
        (Some(no), no, 0),
        (Some(no), no, 2),
        (None, yes, 1), // from a node
    ] {
        assert!(seen.contains(&want), "{want:?} {seen:?}");
    }
}

/// The generator must reach what the properties are about, or they say nothing.
#[test]
fn generated_cases_reach_both_verdicts_on_both_sides() {
    let mut seen = std::collections::BTreeSet::new();
    let mut rules: Vec<Rule> = Vec::new();
    for seed in 0..60 {
        let case = Case::of(seed, PROBES);
        seen.extend(verdicts(answers(&case.objects, &case.settings, &case.probes)));
        for object in case.objects {
            if let Object::NetworkPolicy(policy) = object {
                rules.extend(policy.ingress.into_iter().chain(policy.egress).flatten());
            }
        }
    }
    let (yes, no) = (Verdict::Allow, Verdict::Deny);
    let want = [None, Some([yes, yes, yes]), Some([no, no, yes]), Some([no, yes, no]), Some([no, no, no])];
    assert_eq!(seen, want.into());
    assert!(rules.iter().any(|r| !r.peers.is_empty() && !r.ports.is_empty()));
}
