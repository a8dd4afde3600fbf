//! What one state of the policies admits.

use lab::Lab;

use crate::stage::{Scenario, Stage, Step, policy};

const FROM_OPS: &str = "{namespaceSelector: {matchLabels: {team: ops}}}";

#[test]
fn every_kind_of_rule_admits_whom_it_names_and_nobody_else() {
    Stage::set(&[]).play(SCENARIOS);
}

#[test]
fn pods_reach_their_own_node_only_by_policy_where_the_agent_is_told_so() {
    // Not a matrix of its own words: rules say nothing about a pod and its own node.
    let stage = Stage::set(&["--local-node-egress", "policy"]);
    let survey = lab::Survey::of(&stage.lab, &[(lab::Transport::Tcp, 80)]).unwrap();
    policy(&stage.lab, "silent", "web", "policyTypes: [Egress]");
    stage.lab.settle().unwrap();
    let mut want = crate::expectation::matrices(&survey, &["TCP 80: web* ->"]);
    for reached in want.values_mut() {
        reached.retain(|(from, _)| !from.starts_with("web"));
    }
    let seen = survey.settled(&want).unwrap();
    assert_eq!(crate::expectation::differences(&want, &seen), Vec::<String>::new());
}

fn ingress(lab: &Lab, name: &str, app: &str, rules: &str) {
    policy(lab, name, app, &format!("policyTypes: [Ingress], ingress: [{rules}]"));
}

fn egress(lab: &Lab, name: &str, app: &str, rules: &str) {
    policy(lab, name, app, &format!("policyTypes: [Egress], egress: [{rules}]"));
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "no policy",
        steps: &[Step { name: "at first", act: |_| {}, then: &["TCP 80:", "UDP 53:"] }],
    },
    Scenario {
        name: "default deny",
        steps: &[
            Step {
                name: "of ingress",
                act: |lab| ingress(lab, "deny", "*", ""),
                then: &["TCP 80: web* db* <-", "UDP 53: web* db* <-"],
            },
            Step {
                name: "of both directions",
                act: |lab| policy(lab, "deny", "*", "policyTypes: [Ingress, Egress]"),
                then: &["TCP 80: web* db* <-; web* db* ->", "UDP 53: web* db* <-; web* db* ->"],
            },
        ],
    },
    Scenario {
        name: "allow",
        steps: &[
            Step {
                name: "from a namespace",
                act: |lab| ingress(lab, "db", "db", &format!("{{from: [{FROM_OPS}]}}")),
                then: &["TCP 80: db* <- probe-1 job-2", "UDP 53: db* <- probe-1 job-2"],
            },
            Step {
                name: "from pods of the own namespace",
                act: |lab| ingress(lab, "db", "db", "{from: [{podSelector: {matchLabels: {app: web}}}]}"),
                then: &["TCP 80: db* <- web*"],
            },
            Step {
                name: "from a pod in a namespace",
                act: |lab| {
                    ingress(
                        lab,
                        "db",
                        "db",
                        "{from: [{namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {app: web}}}]}",
                    );
                },
                then: &["TCP 80: db* <- job-2"],
            },
            Step {
                name: "from a namespace or a pod",
                act: |lab| {
                    ingress(
                        lab,
                        "db",
                        "db",
                        &format!("{{from: [{FROM_OPS}, {{podSelector: {{matchLabels: {{app: web}}}}}}]}}"),
                    );
                },
                then: &["TCP 80: db* <- web* probe-1 job-2"],
            },
            Step {
                name: "from all pods",
                act: |lab| ingress(lab, "db", "db", "{from: [{namespaceSelector: {}}]}"),
                then: &["TCP 80: db* <- web* db* probe-1 job-2 guest*"],
            },
        ],
    },
    Scenario {
        name: "an ipBlock",
        steps: &[
            Step {
                // The pods' own addresses count; node 1 is in the first block by its overlay address.
                name: "with except, of pods' addresses",
                act: |lab| {
                    ingress(
                        lab,
                        "db",
                        "db",
                        "{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.2.0/24]}}, {ipBlock: {cidr: 'fd00:10:244::/48', except: ['fd00:10:244:2::/64']}}]}",
                    );
                },
                then: &["TCP 80: db* <- web-1 db-1 probe-1 guest-1 node-1"],
            },
            Step {
                name: "whose exception a sibling admits",
                act: |lab| {
                    ingress(
                        lab,
                        "db",
                        "db",
                        "{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.2.0/24]}}, {ipBlock: {cidr: 'fd00:10:244::/48', except: ['fd00:10:244:2::/64']}}, {podSelector: {matchLabels: {app: web}}}]}",
                    );
                },
                then: &["TCP 80: db* <- web* db-1 probe-1 guest-1 node-1"],
            },
            Step {
                name: "of the world, in either family",
                act: |lab| ingress(lab, "db", "db", "{from: [{ipBlock: {cidr: 192.168.77.254/32}}]}"),
                then: &["TCP 80 IPv4: db* <- world", "TCP 80 IPv6: db* <-"],
            },
            Step {
                name: "of all IPv4, with host bits",
                act: |lab| ingress(lab, "db", "db", "{from: [{ipBlock: {cidr: 10.244.1.7/0}}]}"),
                then: &["TCP 80 IPv4:", "TCP 80 IPv6: db* <-"],
            },
            Step {
                name: "to the world",
                act: |lab| {
                    lab.delete("NetworkPolicy", "shop/db").unwrap();
                    egress(
                        lab,
                        "out",
                        "web",
                        "{to: [{ipBlock: {cidr: 192.168.77.254/32}}, {ipBlock: {cidr: 'fd00:c0:a8:4d::fe/128'}}]}",
                    );
                },
                then: &["TCP 80: web* -> world"],
            },
        ],
    },
    Scenario {
        name: "a named port",
        steps: &[
            Step {
                name: "of the subjects",
                act: |lab| {
                    ingress(
                        lab,
                        "db",
                        "db",
                        "{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: data}]}",
                    );
                },
                then: &[
                    "TCP 8000: db-1 <- web*; db-2 <-",
                    "TCP 8001: db-2 <- web*; db-1 <-",
                    "TCP 80: db* <-",
                ],
            },
            Step {
                name: "of the peers",
                act: |lab| {
                    lab.delete("NetworkPolicy", "shop/db").unwrap();
                    egress(lab, "out", "web", "{ports: [{port: data}]}");
                },
                then: &["TCP 8000: web* -> db-1", "TCP 8001: web* -> db-2", "TCP 80: web* ->"],
            },
        ],
    },
    Scenario {
        name: "a port range",
        steps: &[Step {
            name: "8000 to 8002",
            act: |lab| {
                ingress(
                    lab,
                    "db",
                    "db",
                    "{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8000, endPort: 8002}]}",
                );
            },
            then: &[
                "TCP 7999: db* <-",
                "TCP 8000: db* <- web*",
                "TCP 8001: db* <- web*",
                "TCP 8002: db* <- web*",
                "TCP 8003: db* <-",
            ],
        }],
    },
    Scenario {
        name: "egress only",
        steps: &[
            Step {
                name: "to pods",
                act: |lab| {
                    egress(
                        lab,
                        "out",
                        "web",
                        "{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 80}]}",
                    );
                },
                then: &["TCP 80: web* -> db*", "UDP 53: web* ->"],
            },
            Step {
                name: "to a namespace, any port",
                act: |lab| egress(lab, "out", "web", &format!("{{to: [{FROM_OPS}]}}")),
                then: &["TCP 80: web* -> probe-1 job-2", "UDP 53: web* -> probe-1 job-2"],
            },
        ],
    },
    Scenario {
        name: "both directions",
        steps: &[
            Step {
                name: "egress alone does not open the other end",
                act: |lab| {
                    policy(lab, "deny", "*", "policyTypes: [Ingress, Egress]");
                    egress(lab, "out", "web", "{to: [{podSelector: {matchLabels: {app: db}}}]}");
                },
                then: &["TCP 80: web* db* <-; web* db* ->"],
            },
            Step {
                name: "with ingress it does",
                act: |lab| ingress(lab, "in", "db", "{from: [{podSelector: {matchLabels: {app: web}}}]}"),
                then: &["TCP 80: web* <-; db* <- web*; web* -> db*; db* ->"],
            },
        ],
    },
    Scenario {
        name: "several policies",
        steps: &[Step {
            name: "add up, and never mix peers and ports",
            act: |lab| {
                ingress(lab, "deny", "*", "");
                ingress(
                    lab,
                    "web",
                    "db",
                    "{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}",
                );
                ingress(lab, "ops", "db", &format!("{{from: [{FROM_OPS}]}}"));
                ingress(
                    lab,
                    "names",
                    "*",
                    "{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}], ports: [{port: 53, protocol: UDP}]}",
                );
            },
            then: &[
                "TCP 80: web* <-; db* <- web* probe-1 job-2",
                "UDP 53: web* <- guest*; db* <- probe-1 job-2 guest*",
            ],
        }],
    },
];
