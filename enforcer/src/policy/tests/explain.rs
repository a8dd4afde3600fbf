//! Explanations: they agree with the simulator's answers, say why, and need no more of the index than they ask for.

use std::{collections::BTreeSet, net::IpAddr};

use super::shop::{INTO, OUT_OF, all, index_of, labels, objects, pods, pods_of, policy, probe, rule, tcp};
use crate::{
    cluster::{
        Index,
        object::{NetworkPolicy, Object},
    },
    policy::{
        Probe, Settings, Simulator,
        explain::{Explanation, Finding, Judgement},
        probe::{EndpointRef, ProbeProtocol, Verdict},
        testkit::Case,
    },
};

fn cluster(policies: Vec<NetworkPolicy>) -> Simulator {
    let policies = policies.into_iter().map(Object::NetworkPolicy);
    Simulator::new(index_of(objects().into_iter().chain(policies)), Settings::default())
}

fn explain(policies: Vec<NetworkPolicy>, question: &str) -> Explanation {
    cluster(policies).explain(&probe(question)).expect("it can be asked")
}

/// `policy rule finding` of every rule.
fn findings(judgement: &Judgement) -> Vec<String> {
    let policies = judgement.policies.iter();
    let rules = policies
        .flat_map(|p| p.rules.iter().map(move |r| format!("{} {} {:?}", p.policy, r.rule, r.finding)));
    rules.collect()
}

#[test]
fn every_rule_of_an_isolating_policy_says_why_it_admits_or_does_not() {
    let database = || {
        vec![
            policy("shop/deny", all(), INTO, vec![]),
            policy(
                "shop/db",
                labels(&["app=db"]),
                INTO,
                vec![
                    rule(vec![pods(&["app=job"])], vec![]),
                    rule(vec![pods(&["app=web"])], vec![tcp(5432, 5432)]),
                    rule(vec![pods(&["app=web"])], vec![tcp(80, 90), tcp(443, 443)]),
                ],
            ),
        ]
    };
    for (question, verdict, want) in [
        (
            "shop/web shop/db TCP 81",
            Verdict::Allow,
            ["shop/db 0 OtherPeer", "shop/db 1 OtherPort", "shop/db 2 Admits"],
        ),
        (
            "shop/web shop/db TCP 79",
            Verdict::Deny,
            ["shop/db 0 OtherPeer", "shop/db 1 OtherPort", "shop/db 2 OtherPort"],
        ),
        (
            "ops/web shop/db TCP 81",
            Verdict::Deny,
            ["shop/db 0 OtherPeer", "shop/db 1 OtherPeer", "shop/db 2 OtherPeer"],
        ),
        (
            // Its own node is admitted, but by no rule.
            "node:n2 shop/db TCP 81",
            Verdict::Allow,
            ["shop/db 0 OtherPeer", "shop/db 1 OtherPeer", "shop/db 2 OtherPeer"],
        ),
    ] {
        let explanation = explain(database(), question);
        let [way] = &explanation.ways[..] else { panic!("one way: {explanation:#?}") };
        assert_eq!(explanation.answer.verdict, verdict, "{question}");
        assert_eq!(findings(&way.ingress), want, "{question}");
        let names: Vec<_> = way.ingress.policies.iter().map(|p| p.policy.as_str()).collect();
        assert_eq!(names, ["shop/db", "shop/deny"], "{question}");
        assert_eq!(way.egress.policies, [], "{question}");
    }
    let way = &explain(database(), "shop/web shop/db TCP 81").ways[0];
    let admits: Vec<_> = way.ingress.policies[0].rules.iter().map(|r| r.admits.as_str()).collect();
    assert_eq!(
        admits,
        [
            "pods app=job of its namespace, any port",
            "pods app=web of its namespace, TCP/5432",
            "pods app=web of its namespace, TCP/80-90, TCP/443",
        ]
    );
}

#[test]
fn ends_are_told_as_policy_sees_them() {
    let policies = vec![
        policy(
            "shop/web",
            labels(&["app=web"]),
            OUT_OF,
            vec![rule(vec![super::shop::block("192.0.2.0/24", &["192.0.2.9/32"])], vec![])],
        ),
        policy("shop/db", labels(&["tier"]), INTO, vec![rule(vec![pods_of(&["env=ops"], &["app"])], vec![])]),
    ];
    let explanation = explain(policies, "shop/web ip:192.0.2.7 TCP 80");
    let (source, destination) = (&explanation.source, &explanation.destination);
    assert_eq!(source.is, "pod shop/web on n1");
    let identity = source.identity.as_ref().expect("a pod");
    assert_eq!(identity.labels, [("app".to_owned(), "web".to_owned())].into());
    assert_eq!(identity.namespace_labels, [("env".to_owned(), "prod".to_owned())].into());
    assert_eq!((destination.is.as_str(), &destination.identity), ("outside the cluster", &None));
    assert_eq!(destination.blocks, ["192.0.2.0/24 except 192.0.2.9/32"]);
    assert_eq!(explanation.ways[0].ingress.pod, None);

    for (end, want) in [
        ("node:n2", "node n2"),
        ("shop/host", "host-network pod shop/host: to policy it is its node"),
        ("ip:10.244.1.77", "an address of the pod network that no known pod has"),
    ] {
        let explanation = explain(vec![], &format!("shop/web {end} TCP 80"));
        assert_eq!(explanation.destination.is, want, "{end}");
    }
}

#[test]
fn what_of_a_policy_is_not_in_force_is_said() {
    let mut broken = policy("shop/db", labels(&["app=db"]), INTO, vec![]);
    broken.defects = vec!["spec.ingress[0]: no".to_owned()];
    let explanation = explain(vec![broken], "shop/web shop/db TCP 80");
    assert_eq!(explanation.ways[0].ingress.policies[0].defects, ["spec.ingress[0]: no"]);
    assert_eq!(explanation.answer.verdict, Verdict::Deny);
}

#[test]
fn a_tenant_boundary_is_named_with_both_tenants() {
    let tenant = |name: &'static str| [(crate::policy::DEFAULT_TENANT_LABEL, name)];
    let namespaces = [
        super::shop::namespace("shop", &tenant("red"), None),
        super::shop::namespace("ops", &tenant("blue"), None),
    ];
    let index = index_of(objects().into_iter().chain(namespaces));
    let explanation = Simulator::new(index, Settings::default())
        .explain(&probe("shop/web ops/web TCP 80"))
        .expect("it can be asked");
    let boundary = explanation.ways[0].egress.boundary.clone().expect("a pod's");
    assert_eq!(
        (boundary.own.as_deref(), boundary.other.as_str(), boundary.passed),
        (Some("red"), "tenant blue", false)
    );
    assert_eq!(explanation.answer.egress.by, "tenant boundary: red -> blue");
}

/// Of the generated clusters: everything that an explanation says fits together.
#[test]
fn explanations_agree_with_answers_over_generated_clusters() {
    let mut found = [0; 3];
    let mut services = 0;
    for seed in 0..150 {
        let case = Case::of(seed, 40);
        let mut simulator = Simulator::new(case.index(), case.settings.clone());
        for probe in &case.probes {
            let context = || format!("seed {seed}: {probe:?}");
            let (answer, explanation) = (simulator.answer(probe), simulator.explain(probe));
            let (Ok(answer), Ok(explanation)) = (&answer, &explanation) else {
                assert_eq!(answer.err(), explanation.err(), "{}", context());
                continue;
            };
            assert_eq!(explanation.answer, *answer, "{}", context());
            services += usize::from(explanation.service.is_some());
            for judgement in explanation.ways.iter().flat_map(|way| [&way.egress, &way.ingress]) {
                let rules = || judgement.policies.iter().flat_map(|policy| &policy.rules);
                rules().for_each(|rule| found[rule.finding as usize] += 1);
                let admits = rules().any(|rule| rule.finding == Finding::Admits);
                let boundary = judgement.boundary.as_ref().is_some_and(|boundary| !boundary.passed);
                let by = judgement.side.by.as_str();
                match judgement.side.verdict {
                    Verdict::Allow if by.contains(" rule ") => {
                        assert!(admits, "{}: {judgement:#?}", context());
                    }
                    Verdict::Allow => {}
                    Verdict::Deny if by.starts_with("isolated by") => {
                        assert!(!admits && !boundary, "{}: {judgement:#?}", context());
                        assert!(!judgement.policies.is_empty(), "{}", context());
                    }
                    Verdict::Deny => assert!(boundary, "{}: {judgement:#?}", context()),
                }
            }
        }
    }
    assert!(found.iter().all(|n| *n > 50) && services > 50, "{found:?}, {services} of Services");
}

/// The addresses that a question may be about, and those of backends: as the agent narrows its index.
fn narrowed(index: &Index, probe: &Probe) -> Index {
    let mut pods = BTreeSet::new();
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    for end in [&probe.src, &probe.dst] {
        match end {
            EndpointRef::Pod(key) => {
                addresses.extend(index.pod(key).map(|pod| index.addresses(pod)).unwrap_or_default());
                pods.insert(key.clone());
            }
            EndpointRef::Ip(address) => _ = addresses.insert(*address),
            EndpointRef::Node(_) => {}
        }
    }
    let backends = index.services().services().flat_map(|s| index.services().backend_addresses(&s.key));
    addresses.extend(backends);
    index.narrowed(&pods, &addresses)
}

#[test]
fn a_narrowed_index_answers_like_the_whole() {
    let mut smaller = 0;
    for seed in 0..150 {
        let case = Case::of(seed, 20);
        let index = case.index().seen_from(Some("n1"));
        for probe in case.probes.iter().filter(|probe| probe.protocol != ProbeProtocol::Icmp) {
            let part = narrowed(&index, probe);
            smaller += index.pods().count() - part.pods().count();
            let mut whole = Simulator::new(index.clone(), case.settings.clone());
            let mut part = Simulator::new(part, case.settings.clone());
            assert_eq!(part.explain(probe), whole.explain(probe), "seed {seed}: {probe:?}");
        }
    }
    assert!(smaller > 100, "{smaller} pods were left out");
}
