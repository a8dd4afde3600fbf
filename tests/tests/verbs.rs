//! Every verb of the plugin through real invocations, behind the real bridge plugin.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use lab::{
    AgentOptions, FailurePolicy, Family, Lab, Outcome, Plan, Pod, PodSpec, Transport, binaries,
    chain::{Attachment, PluginError, invoke},
    probe::attempt,
};
use serde_json::{Value, json};

fn lab(failure_policy: FailurePolicy) -> Lab {
    let options = AgentOptions { failure_policy, timeout_seconds: 1, ..AgentOptions::default() };
    let lab = Plan::bulkhead().agent(options).nodes(1).raise().unwrap();
    lab.namespace("shop", &[]).unwrap();
    lab
}

fn pod(key: &str) -> PodSpec {
    PodSpec::new(key).serve(Transport::Tcp, 80)
}

/// Calls our plugin alone, on node 1.
fn call(
    lab: &Lab,
    verb: &str,
    attachment: &Attachment,
    stdin: &str,
) -> Result<String, (Option<u64>, String)> {
    let environment = attachment.environment(verb, &[]);
    match invoke(lab.node(1).netns(), &binaries::cni().unwrap(), &environment, stdin.as_bytes()) {
        Ok(stdout) => Ok(String::from_utf8(stdout).unwrap()),
        Err(error) => Err((error.code, error.message)),
    }
}

fn code(answer: Result<String, (Option<u64>, String)>) -> Option<u64> {
    answer.unwrap_err().0
}

/// Our plugin's configuration at this version of the specification.
fn config(lab: &Lab, version: &str, pod: Option<&Pod>) -> Value {
    let mut config = lab.chain(1).last_config(pod.map(|pod| &pod.added().result)).unwrap();
    config["cniVersion"] = version.into();
    if config.get("prevResult").is_some() {
        config["prevResult"]["cniVersion"] = version.into();
    }
    config
}

fn nowhere() -> Attachment {
    Attachment {
        container: "nobody".into(),
        netns: "/run/netns/no-such-namespace".into(),
        namespace: "shop".into(),
        pod: "nobody".into(),
        uid: "uid-nobody".into(),
    }
}

fn endpoints(lab: &Lab) -> BTreeSet<String> {
    let status = lab.agent(1).status().unwrap();
    let endpoints = status["endpoints"].as_array().unwrap();
    endpoints.iter().map(|endpoint| endpoint["pod"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn add_passes_the_bridges_result_through_unchanged() {
    let lab = lab(FailurePolicy::Closed);
    let web = lab.start_pod(pod("shop/web")).unwrap();
    let result = &web.added().result;
    assert_eq!(
        web.added().took.iter().map(|(plugin, _)| plugin.as_str()).collect::<Vec<_>>(),
        ["bridge", "bulkhead-cni"]
    );
    assert!(result["interfaces"].as_array().unwrap().iter().any(|interface| interface["name"] == "cni0"));
    // A second ADD of the same attachment gives the same again, in the version that is asked for.
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let config = config(&lab, version, Some(&web));
        let answer: Value =
            serde_json::from_str(&call(&lab, "ADD", web.attachment(), &config.to_string()).unwrap()).unwrap();
        assert_eq!(answer, config["prevResult"], "{version}");
    }
    assert_eq!(endpoints(&lab), BTreeSet::from(["shop/web".to_owned()]));
}

#[test]
fn check_passes_while_the_pod_is_enforced_and_fails_when_it_is_not() {
    let lab = lab(FailurePolicy::Closed);
    let web = lab.start_pod(pod("shop/web")).unwrap();
    lab.chain(1).check(lab.node(1).netns(), web.attachment()).unwrap();
    let own = config(&lab, "1.1.0", Some(&web)).to_string();
    call(&lab, "DEL", web.attachment(), &own).unwrap();
    assert!(call(&lab, "CHECK", web.attachment(), &own).is_err(), "nobody enforces it any more");
    let error = lab.chain(1).check(lab.node(1).netns(), web.attachment()).unwrap_err();
    assert_eq!(error.downcast_ref::<PluginError>().unwrap().plugin, "bulkhead-cni");
}

#[test]
fn del_may_come_twice_without_add_without_a_namespace_and_without_an_agent() {
    let lab = lab(FailurePolicy::Closed);
    let web = lab.start_pod(pod("shop/web")).unwrap();
    let (node, chain) = (lab.node(1).netns(), lab.chain(1));
    chain.del(node, web.attachment()).unwrap();
    chain.del(node, web.attachment()).unwrap();
    assert_eq!(endpoints(&lab), BTreeSet::new());
    for version in ["0.3.1", "1.0.0", "1.1.0"] {
        assert_eq!(
            call(&lab, "DEL", &nowhere(), &config(&lab, version, None).to_string()),
            Ok(String::new())
        );
    }
    lab.agent(1).kill9();
    assert_eq!(call(&lab, "DEL", &nowhere(), &config(&lab, "1.1.0", None).to_string()), Ok(String::new()));
}

#[test]
fn gc_drops_what_is_not_listed_and_keeps_what_is() {
    let lab = lab(FailurePolicy::Closed);
    let kept = lab.start_pod(pod("shop/kept")).unwrap();
    lab.start_pod(pod("shop/stale")).unwrap();
    let mut list = config(&lab, "1.1.0", None);
    assert_eq!(
        code(call(&lab, "GC", &nowhere(), &list.to_string())),
        Some(7),
        "no list is not an empty list"
    );
    assert_eq!(endpoints(&lab).len(), 2);
    list["cni.dev/valid-attachments"] =
        json!([{"containerID": kept.attachment().container, "ifname": "eth0"}]);
    call(&lab, "GC", &nowhere(), &list.to_string()).unwrap();
    assert_eq!(endpoints(&lab), BTreeSet::from(["shop/kept".to_owned()]));
    list["cniVersion"] = "1.0.0".into();
    assert_eq!(code(call(&lab, "GC", &nowhere(), &list.to_string())), Some(1), "1.0.0 has no GC");
}

#[test]
fn status_and_version_tell() {
    let lab = lab(FailurePolicy::Closed);
    let config = config(&lab, "1.1.0", None).to_string();
    assert_eq!(call(&lab, "STATUS", &nowhere(), &config), Ok(String::new()));
    let versions: Value =
        serde_json::from_str(&call(&lab, "VERSION", &nowhere(), r#"{"cniVersion": "1.1.0"}"#).unwrap())
            .unwrap();
    assert_eq!(versions["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    lab.agent(1).kill9();
    assert_eq!(code(call(&lab, "STATUS", &nowhere(), &config)), Some(50));
}

#[test]
fn what_is_asked_wrongly_is_refused_with_its_own_code() {
    let lab = lab(FailurePolicy::Closed);
    let web = lab.start_pod(pod("shop/web")).unwrap();
    let alone = config(&lab, "1.1.0", None).to_string();
    let future = config(&lab, "9.0.0", Some(&web)).to_string();
    for (case, verb, stdin, want) in [
        ("garbage on stdin", "ADD", "\0\u{1}{not json", 6),
        ("nothing on stdin", "ADD", "", 6),
        ("no prevResult", "ADD", &alone, 7),
        ("a version nobody knows", "ADD", &future, 1),
        ("a verb nobody knows", "FROBNICATE", &alone, 4),
    ] {
        assert_eq!(code(call(&lab, verb, web.attachment(), stdin)), Some(want), "{case}");
    }
    assert_eq!(endpoints(&lab), BTreeSet::from(["shop/web".to_owned()]), "and nothing has changed");
}

#[test]
fn without_an_agent_closed_means_try_again_later_and_no_pod() {
    let lab = lab(FailurePolicy::Closed);
    lab.agent(1).kill9();
    let error = lab.start_pod(pod("shop/web")).unwrap_err();
    let error = error.downcast_ref::<PluginError>().unwrap();
    assert_eq!((error.plugin.as_str(), error.code), ("bulkhead-cni", Some(11)), "{error}");
    assert!(lab.pods().is_empty());
    lab.agent(1).start().unwrap();
    lab.start_pod(pod("shop/web")).unwrap();
    assert_eq!(endpoints(&lab), BTreeSet::from(["shop/web".to_owned()]), "and later it works");
}

#[test]
fn without_an_agent_open_lets_the_pod_start() {
    let lab = lab(FailurePolicy::Open);
    lab.agent(1).kill9();
    let web = lab.start_pod(pod("shop/web")).unwrap();
    let to = SocketAddr::new(web.ip(Family::V4), 80);
    let outcome = attempt(lab.node(1).netns(), to, Transport::Tcp, Duration::from_secs(2)).unwrap();
    assert_eq!(outcome, Outcome::Reached);
}
