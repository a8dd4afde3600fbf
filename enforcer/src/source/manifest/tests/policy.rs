use std::fmt::Write;

use super::{objects, problems, yaml};
use crate::cluster::compact::Set;
use crate::cluster::object::{
    IpBlock, Key, Labels, NetworkPolicy, Object, Operator, Peer, Port, Ports, Protocol, Requirement, Rule,
    Selector,
};

/// A policy `shop/db` with this `spec`, as flow-style YAML.
fn with_spec(spec: &str) -> (NetworkPolicy, Vec<String>) {
    let loaded = yaml(&format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: db, namespace: shop}}\nspec: {spec}\n"
    ));
    let Ok([Object::NetworkPolicy(policy)]) = <[Object; 1]>::try_from(objects(&loaded)) else {
        panic!("{spec}: {loaded:?}")
    };
    assert_eq!(policy.defects.len(), loaded.problems.len(), "{spec}");
    (policy, problems(&loaded))
}

fn policy(subjects: Selector, ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>) -> NetworkPolicy {
    let key = Key::new("shop", "db");
    NetworkPolicy { key, labels: Labels::new(), subjects, ingress, egress, defects: Vec::new() }
}

fn all() -> Selector {
    Selector::default()
}

fn equals(key: &str, value: &str) -> Selector {
    let operator = Operator::In([value.to_owned()].into());
    Selector { requirements: [Requirement { key: key.into(), operator }].into() }
}

fn pods(key: &str, value: &str) -> Peer {
    Peer::Pods { namespaces: None, pods: equals(key, value) }
}

fn rule(index: usize, peers: Vec<Peer>, ports: Vec<Port>) -> Rule {
    Rule { index, peers, ports }
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    let except = except.iter().map(|e| e.parse().unwrap()).collect();
    Peer::Block(IpBlock { cidr: cidr.parse().unwrap(), except })
}

#[test]
fn a_valid_policy_is_read_as_the_api_server_reads_it() {
    let tcp = |ports| Port { protocol: Protocol::Tcp, ports };
    let open = |index| rule(index, vec![], vec![]);
    for (case, spec, want) in [
        ("no fields: every pod, ingress", "{}", policy(all(), Some(vec![]), None)),
        ("no spec at all", "", policy(all(), Some(vec![]), None)),
        ("null fields are missing ones", "{podSelector: , policyTypes: , ingress: , egress: }", {
            policy(all(), Some(vec![]), None)
        }),
        (
            "empty egress adds no direction",
            "{podSelector: {}, egress: []}",
            policy(all(), Some(vec![]), None),
        ),
        ("an egress rule adds the direction", "{podSelector: {}, egress: [{}]}", {
            policy(all(), Some(vec![]), Some(vec![open(0)]))
        }),
        (
            "policyTypes decide alone",
            "{policyTypes: [Egress], ingress: [{}]}",
            policy(all(), None, Some(vec![])),
        ),
        ("both types", "{policyTypes: [Ingress, Egress], ingress: [{}]}", {
            policy(all(), Some(vec![open(0)]), Some(vec![]))
        }),
        (
            "missing, null and empty lists restrict nothing",
            "{ingress: [{}, {from: , ports: }, {from: [], ports: []}]}",
            { policy(all(), Some(vec![open(0), open(1), open(2)]), None) },
        ),
        (
            "one item with two selectors is one peer",
            { "{ingress: [{from: [{podSelector: {matchLabels: {a: b}}, namespaceSelector: {}}]}]}" },
            {
                let peer = Peer::Pods { namespaces: Some(all()), pods: equals("a", "b") };
                policy(all(), Some(vec![rule(0, vec![peer], vec![])]), None)
            },
        ),
        (
            "a namespace selector alone is every pod in there",
            "{ingress: [{from: [{namespaceSelector: {matchLabels: {a: b}}}]}]}",
            {
                let peer = Peer::Pods { namespaces: Some(equals("a", "b")), pods: all() };
                policy(all(), Some(vec![rule(0, vec![peer], vec![])]), None)
            },
        ),
        (
            "a null selector is not used",
            "{ingress: [{from: [{podSelector: {matchLabels: {a: }}, namespaceSelector: }]}]}",
            { policy(all(), Some(vec![rule(0, vec![pods("a", "")], vec![])]), None) },
        ),
        (
            "host bits are masked",
            "{policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.1.2.3/16, except: [10.1.9.9/24]}}]}]}",
            {
                policy(all(), None, Some(vec![rule(0, vec![block("10.1.0.0/16", &["10.1.9.0/24"])], vec![])]))
            },
        ),
        ("IPv6 blocks", "{ingress: [{from: [{ipBlock: {cidr: '::/0', except: ['fd00::1/8']}}]}]}", {
            policy(all(), Some(vec![rule(0, vec![block("::/0", &["fd00::/8"])], vec![])]), None)
        }),
        (
            "ports",
            "{ingress: [{ports: [{}, {protocol: UDP}, {port: 80}, {port: http, protocol: SCTP}, {port: 1, endPort: 65535}, {port: 7, endPort: 7}]}]}",
            {
                let ports = vec![
                    tcp(Ports::All),
                    Port { protocol: Protocol::Udp, ports: Ports::All },
                    tcp(Ports::Range(80, 80)),
                    Port { protocol: Protocol::Sctp, ports: Ports::Named("http".into()) },
                    tcp(Ports::Range(1, 65535)),
                    tcp(Ports::Range(7, 7)),
                ];
                policy(all(), Some(vec![rule(0, vec![], ports)]), None)
            },
        ),
    ] {
        assert_eq!(with_spec(spec), (want, vec![]), "{case}");
    }
}

#[test]
fn selectors_keep_every_requirement() {
    let spec = "{podSelector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [d, '']}, \
                {key: e, operator: NotIn, values: [f]}, {key: g, operator: Exists}, \
                {key: x.io/h, operator: DoesNotExist, values: []}]}}";
    let requirement = |key: &str, operator| Requirement { key: key.into(), operator };
    let values = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect();
    let requirements = Set::from([
        requirement("a", Operator::In(values(&["b"]))),
        requirement("c", Operator::In(values(&["d", ""]))),
        requirement("e", Operator::NotIn(values(&["f"]))),
        requirement("g", Operator::Exists),
        requirement("x.io/h", Operator::DoesNotExist),
    ]);
    assert_eq!(
        with_spec(spec),
        (policy(Selector { requirements: requirements.into() }, Some(vec![]), None), vec![])
    );
}

/// Each case breaks one peer or port of the second rule, beside a whole one and after a whole rule.
#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn an_unreadable_part_admits_nothing_and_is_named() {
    for (part, field, message) in [
        ("from: [{}]", "from[0]", "a peer needs a podSelector, namespaceSelector or ipBlock"),
        (
            "from: [{podSelector: , ipBlock: }]",
            "from[0]",
            "a peer needs a podSelector, namespaceSelector or ipBlock",
        ),
        ("from: [{podSelectorr: {}}]", "from[0].podSelectorr", "unknown field"),
        ("from: [{podSelector: {}, serviceAccounts: {}}]", "from[0].serviceAccounts", "unknown field"),
        ("from: [{podSelector: []}]", "from[0].podSelector", "expected a map, found a list"),
        ("from: [{podSelector: {matchLabel: {a: b}}}]", "from[0].podSelector.matchLabel", "unknown field"),
        (
            "from: [{podSelector: {matchLabels: {a: 1}}}]",
            "from[0].podSelector.matchLabels.a",
            "expected a string, found a number",
        ),
        (
            "from: [{podSelector: {matchLabels: {a/: b}}}]",
            "from[0].podSelector.matchLabels[\"a/\"]",
            "\"a/\" is not a label key",
        ),
        (
            "from: [{podSelector: {matchLabels: {a: b c}}}]",
            "from[0].podSelector.matchLabels.a",
            "\"b c\" is not a label value",
        ),
        (
            "from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]",
            "from[0].podSelector.matchExpressions[0].values",
            "In and NotIn need values",
        ),
        (
            "from: [{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}}]",
            "from[0].podSelector.matchExpressions[0].values",
            "In and NotIn need values",
        ),
        (
            "from: [{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}]",
            "from[0].podSelector.matchExpressions[0].values",
            "Exists and DoesNotExist take no values",
        ),
        (
            "from: [{podSelector: {matchExpressions: [{key: a, operator: Gt, values: ['1']}]}}]",
            "from[0].podSelector.matchExpressions[0].operator",
            "\"Gt\" is none of In, NotIn, Exists, DoesNotExist",
        ),
        (
            "from: [{podSelector: {matchExpressions: [{key: a, operator: In, values: [1]}]}}]",
            "from[0].podSelector.matchExpressions[0].values[0]",
            "invalid type: integer `1`, expected a string",
        ),
        (
            "from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]",
            "from[0]",
            "ipBlock cannot be combined with selectors",
        ),
        (
            "from: [{ipBlock: {cidr: 10.0.0.0}}]",
            "from[0].ipBlock.cidr",
            "\"10.0.0.0\" is not an address prefix such as 10.0.0.0/8",
        ),
        (
            "from: [{ipBlock: {cidr: 10.0.0.0/33}}]",
            "from[0].ipBlock.cidr",
            "\"10.0.0.0/33\" is not an address prefix such as 10.0.0.0/8",
        ),
        (
            "from: [{ipBlock: {cidr: 10.0.0.0/255.0.0.0}}]",
            "from[0].ipBlock.cidr",
            "\"10.0.0.0/255.0.0.0\" is not an address prefix such as 10.0.0.0/8",
        ),
        (
            "from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]",
            "from[0].ipBlock.except[0]",
            "10.0.0.0/8 is not strictly inside 10.0.0.0/8",
        ),
        (
            "from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/16']}}]",
            "from[0].ipBlock.except[0]",
            "fd00::/16 is not strictly inside 10.0.0.0/8",
        ),
        (
            "from: [{ipBlock: {cidr: 10.0.0.0/8, exept: []}}]",
            "from[0].ipBlock.exept",
            "unknown field `exept`, expected `cidr` or `except`",
        ),
        ("from: {podSelector: {}}", "from", "expected a list, found a map"),
        ("to: [{podSelector: {}}]", "to", "unknown field"),
        ("ports: [{protocol: ICMP}]", "ports[0].protocol", "\"ICMP\" is none of TCP, UDP, SCTP"),
        ("ports: [{protocol: tcp}]", "ports[0].protocol", "\"tcp\" is none of TCP, UDP, SCTP"),
        ("ports: [{port: 0}]", "ports[0].port", "0 is not a port from 1 to 65535"),
        ("ports: [{port: 65536}]", "ports[0].port", "65536 is not a port from 1 to 65535"),
        ("ports: [{port: '80'}]", "ports[0].port", "\"80\" is not a port name"),
        ("ports: [{port: true}]", "ports[0].port", "true is not a port from 1 to 65535"),
        ("ports: [{port: 80, endPort: 79}]", "ports[0].endPort", "79 is below port 80"),
        ("ports: [{port: http, endPort: 80}]", "ports[0].endPort", "needs a numeric port"),
        ("ports: [{endPort: 80}]", "ports[0].endPort", "needs a numeric port"),
        (
            "ports: [{portt: 80}]",
            "ports[0].portt",
            "unknown field `portt`, expected one of `protocol`, `port`, `endPort`",
        ),
        ("ports: [80]", "ports[0]", "invalid type: integer `80`, expected struct RawPort"),
        ("ports: 80", "ports", "expected a list, found a number"),
    ] {
        let (got, problems) = with_spec(&format!(
            "{{ingress: [{{ports: [{{port: 1}}]}}, {{{part}}}, {{from: [{{podSelector: {{matchLabels: {{a: b}}}}}}]}}]}}"
        ));
        let first = rule(0, vec![], vec![Port { protocol: Protocol::Tcp, ports: Ports::Range(1, 1) }]);
        let third = rule(2, vec![pods("a", "b")], vec![]);
        let mut want = policy(all(), Some(vec![first, third]), None);
        want.defects = vec![format!("spec.ingress[1].{field}: {message}")];
        assert_eq!(got, want, "{part}");
        assert_eq!(
            problems,
            [format!("m.yaml:4: NetworkPolicy shop/db: spec.ingress[1].{field}: {message}")]
        );
    }
}

#[test]
fn what_stands_beside_an_unreadable_item_still_counts() {
    let (got, problems) = with_spec(
        "{ingress: [{from: [{podSelector: {matchLabels: {a: b}}}, {sidecars: {}}], ports: [{port: 99999}, {port: 5}]}]}",
    );
    let ports = vec![Port { protocol: Protocol::Tcp, ports: Ports::Range(5, 5) }];
    assert_eq!(got.ingress, Some(vec![rule(0, vec![pods("a", "b")], ports)]));
    assert_eq!(problems.len(), 2);
}

#[test]
fn peers_that_slipped_out_of_their_rule_do_not_leave_one_for_everybody() {
    let (got, problems) = with_spec(
        "{ingress: [{from: null}, {podSelector: {matchLabels: {a: b}}}, {from: null, ports: [{port: 5}]}]}",
    );
    let ports = vec![Port { protocol: Protocol::Tcp, ports: Ports::Range(5, 5) }];
    assert_eq!(got.ingress, Some(vec![rule(2, vec![], ports)]));
    assert_eq!(problems.len(), 2, "{problems:?}");
}

/// Direction by direction: `None` open, `Some(n)` isolated with n rules.
#[test]
fn an_unreadable_policy_isolates_whom_and_where_it_may_mean() {
    let labelled = equals("a", "b");
    let a = "podSelector: {matchLabels: {a: b}}";
    for (case, spec, subjects, ingress, egress) in [
        (
            "selector unreadable: every pod of the namespace",
            "{podSelector: {matchLabel: {a: b}}, ingress: [{}]}".into(),
            all(),
            Some(1),
            None,
        ),
        ("spec is no map", "[]".into(), all(), Some(0), Some(0)),
        ("a wrong type", format!("{{{a}, policyTypes: [Ingres]}}"), labelled.clone(), Some(0), Some(0)),
        (
            "types in lower case",
            format!("{{{a}, policyTypes: [egress], egress: [{{}}]}}"),
            labelled.clone(),
            Some(0),
            Some(1),
        ),
        (
            "types are no list",
            format!("{{{a}, policyTypes: Ingress, ingress: [{{}}]}}"),
            labelled.clone(),
            Some(1),
            Some(0),
        ),
        (
            "three types",
            format!("{{{a}, policyTypes: [Ingress, Ingress, Ingress]}}"),
            labelled.clone(),
            Some(0),
            Some(0),
        ),
        (
            "mistyped policyTypes",
            format!("{{{a}, policyType: [Egress]}}"),
            labelled.clone(),
            Some(0),
            Some(0),
        ),
        (
            "peers that slipped out of their rule",
            format!("{{{a}, policyTypes: [Ingress], ingress: [{{ports: [{{port: 80}}]}}], from: []}}"),
            labelled.clone(),
            Some(0),
            None,
        ),
        (
            "an unknown field, but the types are there",
            format!("{{{a}, policyTypes: [Egress], x: 1}}"),
            labelled.clone(),
            None,
            Some(0),
        ),
        ("egress is no list", format!("{{{a}, egress: {{}}}}"), labelled.clone(), Some(0), Some(0)),
        (
            "an unreadable egress rule names the direction",
            format!("{{{a}, egress: [7]}}"),
            labelled.clone(),
            Some(0),
            Some(0),
        ),
        (
            "an unreadable ingress rule leaves egress open",
            format!("{{{a}, policyTypes: [Ingress], ingress: [7]}}"),
            labelled,
            Some(0),
            None,
        ),
    ] {
        let (got, problems) = with_spec(&spec);
        let rules = |rules: Option<Vec<Rule>>| rules.map(|r| r.len());
        assert_eq!(
            (got.subjects, rules(got.ingress), rules(got.egress)),
            (subjects, ingress, egress),
            "{case}"
        );
        assert!(!problems.is_empty(), "{case}");
    }
}

#[test]
fn metadata_or_version_that_is_refused_does_not_open_a_policy() {
    let head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n";
    for (text, key, problem) in [
        (format!("{head}metadata: {{name: db}}\n"), Key::new("default", "db"), None),
        (
            format!("{head}metadata: {{}}\n"),
            Key::new("default", "unnamed (m.yaml:1)"),
            Some("m.yaml:3: NetworkPolicy default/unnamed (m.yaml:1): metadata.name: the object has no name"),
        ),
        (
            head.to_owned(),
            Key::new("default", "unnamed (m.yaml:1)"),
            Some("m.yaml:1: NetworkPolicy default/unnamed (m.yaml:1): metadata.name: the object has no name"),
        ),
        (
            format!("{head}metadata: {{name: 5, namespace: shop}}\n"),
            Key::new("shop", "5"),
            Some("m.yaml:3: NetworkPolicy shop/5: metadata.name: expected a string, found a number"),
        ),
        (
            format!("{head}metadata: {{name: db, namespace: 7}}\n"),
            Key::new("7", "db"),
            Some("m.yaml:3: NetworkPolicy 7/db: metadata.namespace: expected a string, found a number"),
        ),
        (
            format!("{head}metadata: {{name: D b}}\n"),
            Key::new("default", "D b"),
            Some("m.yaml:3: NetworkPolicy default/D b: metadata.name: \"D b\" is not a name"),
        ),
        (
            format!("{head}metadata:\n  name: db\nspecs: {{}}\n"),
            Key::new("default", "db"),
            Some("m.yaml:5: NetworkPolicy default/db: specs: unknown field"),
        ),
        (
            "apiVersion: v1\nkind: NetworkPolicy\nmetadata: {name: db}\n".to_owned(),
            Key::new("default", "db"),
            Some(
                "m.yaml:1: NetworkPolicy default/db: apiVersion: \"v1\" is not networking.k8s.io/v1, the version of a NetworkPolicy",
            ),
        ),
        (
            "kind: NetworkPolicy\nmetadata: {name: db}\n".to_owned(),
            Key::new("default", "db"),
            Some(
                "m.yaml:1: NetworkPolicy default/db: apiVersion: \"\" is not networking.k8s.io/v1, the version of a NetworkPolicy",
            ),
        ),
        (
            "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: db}\n".to_owned(),
            Key::new("default", "db"),
            Some(
                "m.yaml:1: NetworkPolicy default/db: apiVersion: \"extensions/v1beta1\" is not networking.k8s.io/v1, the version of a NetworkPolicy",
            ),
        ),
    ] {
        let loaded = yaml(&text);
        let [Object::NetworkPolicy(policy)] = &objects(&loaded)[..] else { panic!("{text}") };
        assert_eq!(policy.key, key, "{text}");
        assert!(policy.ingress.as_ref().is_some_and(Vec::is_empty), "{text}");
        assert_eq!(problems(&loaded), Vec::from_iter(problem), "{text}");
    }
}

#[test]
fn a_spec_that_slipped_to_the_top_isolates_both_ways() {
    let loaded = yaml(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db}\nspec: {ingress: [{}]}\negress: []\n",
    );
    let mut want = policy(all(), Some(vec![]), Some(vec![]));
    want.key = Key::new("default", "db");
    want.defects = vec!["egress: unknown field".into()];
    assert_eq!(objects(&loaded), [Object::NetworkPolicy(want)]);
}

#[test]
fn fields_are_found_by_line_in_a_long_document() {
    let mut text = "# policies\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: db\nspec:\n  ingress:\n".to_owned();
    for port in 0..3 {
        write!(text, "  - ports:\n    - port: {port}\n").unwrap();
    }
    let problem =
        "m.yaml:10: NetworkPolicy default/db: spec.ingress[0].ports[0].port: 0 is not a port from 1 to 65535";
    assert_eq!(problems(&yaml(&text)), [problem]);
}
