//! One lab for many steps: the cast, the steps of a scenario, and the way back to the beginning.

use std::collections::BTreeMap;

use lab::{AgentOptions, Lab, Plan, PodSpec, Survey, Transport};

use crate::expectation::{differences, matrices};

/// What every member of the cast serves.
const PORTS: [(Transport, u16); 7] = [
    (Transport::Tcp, 80),
    (Transport::Udp, 53),
    (Transport::Tcp, 7999),
    (Transport::Tcp, 8000),
    (Transport::Tcp, 8001),
    (Transport::Tcp, 8002),
    (Transport::Tcp, 8003),
];

/// A change of manifests, and who then reaches whom.
pub struct Step {
    pub name: &'static str,
    pub act: fn(&Lab),
    /// See [`crate::expectation`].
    pub then: &'static [&'static str],
}

/// Steps that build on one another, from the untouched stage on.
pub struct Scenario {
    pub name: &'static str,
    pub steps: &'static [Step],
}

pub struct Stage {
    pub lab: Lab,
    untouched: BTreeMap<String, String>,
}

impl Stage {
    /// Eight pods in three namespaces on two nodes; `app` is the name without its number, but for `job-2`, which
    /// has the label of the shop's webs. The number is the node's. The dbs have different ports behind the
    /// name `data`.
    pub fn set(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let lab =
            Plan::bulkhead().agent(AgentOptions { arguments, ..AgentOptions::default() }).raise().unwrap();
        lab.namespace("shop", &[("team", "shop")]).unwrap();
        lab.namespace("ops", &[("team", "ops")]).unwrap();
        lab.namespace("other", &[]).unwrap();
        lab.start_pods([
            pod("shop/web-1", "web"),
            pod("shop/web-2", "web"),
            pod("shop/db-1", "db"),
            pod("shop/db-2", "db"),
            pod("ops/probe-1", "probe"),
            pod("ops/job-2", "web"),
            pod("other/guest-1", "guest"),
            pod("other/guest-2", "guest"),
        ])
        .unwrap();
        Self::resumed(lab)
    }

    /// A stage whose beginning is the lab as it is now.
    pub fn resumed(lab: Lab) -> Self {
        let untouched = lab.manifests().snapshot().unwrap();
        Self { lab, untouched }
    }

    /// Plays the scenarios one after the other; every pair of every matrix that is wrong is told at the end.
    pub fn play(&self, scenarios: &[Scenario]) {
        let survey = Survey::of(&self.lab, &PORTS).unwrap();
        let mut wrong = Vec::new();
        for Scenario { name, steps } in scenarios {
            for step in *steps {
                (step.act)(&self.lab);
                self.lab.settle().unwrap();
                let want = matrices(&survey, step.then);
                let seen = survey.settled(&want).unwrap();
                wrong.extend(
                    differences(&want, &seen).iter().map(|line| format!("{name}, {}: {line}", step.name)),
                );
            }
            self.lab.manifests().restore(&self.untouched).unwrap();
            self.lab.settle().unwrap();
        }
        assert!(wrong.is_empty(), "{} pairs are wrong:\n{}", wrong.len(), wrong.join("\n"));
    }
}

/// On the node that its name ends with, serving every port of the stage.
pub fn pod(key: &str, app: &str) -> PodSpec {
    let node = key.chars().last().and_then(|digit| digit.to_digit(10)).and_then(|n| u8::try_from(n).ok());
    let node = node.expect("a pod of the cast is named after its node");
    let data = if node == 1 { 8000 } else { 8001 };
    PORTS.into_iter().fold(PodSpec::new(key).on(node).label("app", app), |spec, (transport, port)| {
        if (app, port) == ("db", data) {
            spec.serve_as("data", transport, port)
        } else {
            spec.serve(transport, port)
        }
    })
}

/// A policy of the namespace `shop`; see [`Lab::policy`].
pub fn policy(lab: &Lab, name: &str, app: &str, rules: &str) {
    lab.policy(&format!("shop/{name}"), app, rules).unwrap();
}

pub fn label(lab: &Lab, kind: &str, key: &str, label: (&str, &str)) {
    lab.label(kind, key, label).unwrap();
}

pub fn annotate(lab: &Lab, namespace: &str, (key, value): (&str, &str)) {
    lab.edit("Namespace", namespace, |object| object["metadata"]["annotations"][key] = value.into()).unwrap();
}
