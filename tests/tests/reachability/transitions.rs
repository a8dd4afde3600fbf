//! What an edit, a deletion or a label changes, and what it leaves as it was.

use serde_json::json;

use crate::stage::{Scenario, Stage, Step, label, policy};

#[test]
fn edits_deletions_and_labels_change_what_they_are_about_and_nothing_else() {
    Stage::set(&[]).play(SCENARIOS);
}

const FROM_WEB: &str =
    "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]";
const FROM_OPS: &str =
    "policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {team: ops}}}]}]";

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a policy",
        steps: &[
            Step {
                name: "is made",
                act: |lab| policy(lab, "db", "db", FROM_WEB),
                then: &["TCP 80: db* <- web*", "UDP 53: db* <- web*"],
            },
            Step {
                name: "gets another peer",
                act: |lab| policy(lab, "db", "db", FROM_OPS),
                then: &["TCP 80: db* <- probe-1 job-2", "UDP 53: db* <- probe-1 job-2"],
            },
            Step {
                name: "gets a port",
                act: |lab| {
                    lab.edit("NetworkPolicy", "shop/db", |policy| {
                        policy["spec"]["ingress"][0]["ports"] = json!([{"port": 53, "protocol": "UDP"}]);
                    })
                    .unwrap();
                },
                then: &["TCP 80: db* <-", "UDP 53: db* <- probe-1 job-2"],
            },
            Step {
                name: "gets another subject",
                act: |lab| policy(lab, "db", "web", FROM_OPS),
                then: &["TCP 80: web* <- probe-1 job-2"],
            },
            Step {
                name: "turns into egress",
                act: |lab| policy(lab, "db", "web", "policyTypes: [Egress]"),
                then: &["TCP 80: web* ->"],
            },
            Step {
                name: "is deleted",
                act: |lab| lab.delete("NetworkPolicy", "shop/db").unwrap(),
                then: &["TCP 80:", "UDP 53:"],
            },
        ],
    },
    Scenario {
        name: "a pod",
        steps: &[
            Step {
                name: "is selected",
                act: |lab| policy(lab, "db", "db", FROM_WEB),
                then: &["TCP 80: db* <- web*"],
            },
            Step {
                name: "is a peer no more",
                act: |lab| label(lab, "Pod", "shop/web-2", ("app", "old")),
                then: &["TCP 80: db* <- web-1"],
            },
            Step {
                name: "is a subject no more",
                act: |lab| label(lab, "Pod", "shop/db-1", ("app", "old")),
                then: &["TCP 80: db-2 <- web-1"],
            },
            Step {
                name: "becomes a peer",
                act: |lab| label(lab, "Pod", "shop/db-1", ("app", "web")),
                then: &["TCP 80: db-2 <- web-1 db-1"],
            },
            Step {
                name: "becomes a subject",
                act: |lab| label(lab, "Pod", "shop/web-1", ("app", "db")),
                then: &["TCP 80: db-2 web-1 <- db-1"],
            },
            Step {
                name: "has labels that no selector reads",
                act: |lab| label(lab, "Pod", "shop/web-1", ("pod-template-hash", "7f9c")),
                then: &["TCP 80: db-2 web-1 <- db-1"],
            },
        ],
    },
    Scenario {
        name: "a namespace",
        steps: &[
            Step {
                name: "is selected",
                act: |lab| policy(lab, "db", "db", FROM_OPS),
                then: &["TCP 80: db* <- probe-1 job-2"],
            },
            Step {
                name: "becomes a peer",
                act: |lab| label(lab, "Namespace", "other", ("team", "ops")),
                then: &["TCP 80: db* <- probe-1 job-2 guest*"],
            },
            Step {
                name: "is a peer no more",
                act: |lab| label(lab, "Namespace", "ops", ("team", "dev")),
                then: &["TCP 80: db* <- guest*"],
            },
            Step {
                name: "is the subjects' own",
                act: |lab| label(lab, "Namespace", "shop", ("team", "ops")),
                then: &["TCP 80: db* <- web* db* guest*"],
            },
        ],
    },
];
