//! The tenant boundary, its door, and namespaces that move.

use std::collections::BTreeSet;

use lab::{matrix::SETTLES_WITHIN, until};
use serde_json::Value;

use crate::stage::{Scenario, Stage, Step, annotate, label, policy};

const TENANT: &str = "bulkhead.io/tenant";
const DOOR: &str = "bulkhead.io/allow-tenants";

#[test]
fn tenants_are_apart_but_for_doors_and_the_flow_log_names_both() {
    let stage = Stage::set(&[]);
    stage.play(&SCENARIOS[..1]);
    let look = || {
        let records = stage.lab.agent(1).flow_log()?;
        Ok(records.iter().filter_map(crossing).collect::<BTreeSet<_>>())
    };
    // On node 1: each way, at the end that saw the attempt first.
    let want = |from: [&str; 2], to: [&str; 2]| (from.map(str::to_owned), to.map(str::to_owned));
    let want = [want(["guest-1", "blue"], ["db-1", "red"]), want(["db-1", "red"], ["guest-2", "blue"])];
    let seen =
        until(SETTLES_WITHIN, look, |seen| want.iter().all(|crossing| seen.contains(crossing))).unwrap();
    assert!(want.iter().all(|crossing| seen.contains(crossing)), "{seen:#?}");
    let nameless = seen
        .iter()
        .find(|(from, to)| from[1] != "red" && from[1] != "blue" || to[1] != "red" && to[1] != "blue");
    assert_eq!(nameless, None, "every denial at the boundary names two tenants");
    stage.play(&SCENARIOS[1..]);
}

/// Pod and tenant of both ends, of a denial at the tenant boundary.
fn crossing(record: &Value) -> Option<([String; 2], [String; 2])> {
    let flow = &record["flow"];
    let extensions = &flow["extensions"]["value"];
    if flow["verdict"] != "DROPPED" || extensions["reason"] != "tenant-boundary" {
        return None;
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let end = |side: &str| [text(&flow[side]["pod_name"]), text(&extensions["tenant"][side])];
    Some((end("source"), end("destination")))
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "the boundary",
        steps: &[
            Step {
                name: "holds both ways; the third namespace is shared",
                act: |lab| {
                    label(lab, "Namespace", "shop", (TENANT, "red"));
                    label(lab, "Namespace", "other", (TENANT, "blue"));
                },
                then: &["TCP 80: web* db* || guest*", "UDP 53: web* db* || guest*"],
            },
            Step {
                name: "cannot be opened by policy",
                act: |lab| {
                    policy(lab, "open", "*", "policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]");
                },
                then: &["TCP 80: web* db* || guest*"],
            },
            Step {
                name: "has a door one way",
                act: |lab| annotate(lab, "shop", (DOOR, "green, blue")),
                then: &["TCP 80: web* db* -/> guest*", "UDP 53: web* db* -/> guest*"],
            },
            Step {
                name: "and policies decide on what comes through the door",
                act: |lab| {
                    policy(lab, "open", "db", "policyTypes: [Ingress], ingress: [{ports: [{port: 80}]}]");
                },
                then: &["TCP 80: web* db* -/> guest*", "UDP 53: web* db* -/> guest*; db* <-"],
            },
            Step {
                name: "the door is for everybody",
                act: |lab| annotate(lab, "shop", (DOOR, "*")),
                then: &["TCP 80: web* db* -/> guest*"],
            },
            Step {
                name: "the door is for another tenant",
                act: |lab| annotate(lab, "shop", (DOOR, "green")),
                then: &["TCP 80: web* db* || guest*"],
            },
        ],
    },
    Scenario {
        name: "a namespace",
        steps: &[
            Step {
                name: "becomes a tenant alone",
                act: |lab| label(lab, "Namespace", "shop", (TENANT, "red")),
                then: &["TCP 80:"],
            },
            Step {
                name: "another becomes another tenant",
                act: |lab| label(lab, "Namespace", "ops", (TENANT, "")),
                then: &["TCP 80: web* db* || probe-1 job-2"],
            },
            Step {
                name: "changes to the first tenant",
                act: |lab| label(lab, "Namespace", "ops", (TENANT, "red")),
                then: &["TCP 80:"],
            },
            Step {
                name: "the third joins a third",
                act: |lab| label(lab, "Namespace", "other", (TENANT, "blue")),
                then: &["TCP 80: web* db* probe-1 job-2 || guest*"],
            },
            Step {
                name: "the first moves over to it",
                act: |lab| label(lab, "Namespace", "shop", (TENANT, "blue")),
                then: &["TCP 80: web* db* guest* || probe-1 job-2"],
            },
            Step {
                name: "a pod's own label changes nothing",
                act: |lab| label(lab, "Pod", "ops/probe-1", (TENANT, "blue")),
                then: &["TCP 80: web* db* guest* || probe-1 job-2"],
            },
            Step {
                name: "the last becomes shared again",
                act: |lab| {
                    lab.edit("Namespace", "ops", |ns| {
                        drop(ns["metadata"]["labels"].as_object_mut().unwrap().remove(TENANT));
                    })
                    .unwrap();
                },
                then: &["TCP 80:"],
            },
        ],
    },
];
