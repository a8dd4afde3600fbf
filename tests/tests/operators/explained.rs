//! `bulkhead explain`, `endpoints` and `coverage` against what pods really reach.

use std::{fs, net::SocketAddr, time::Duration};

use lab::{
    Family, Lab, Outcome, Plan, PodSpec, ProxyMode, Transport, agent::Agent, matrix::SETTLES_WITHIN,
    probe::attempt, until,
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_millis(700);
const SERVICE: &str = "10.96.0.80";

fn stage() -> Lab {
    let pod = |key: &str, node| {
        let (_, name) = key.split_once('/').unwrap();
        PodSpec::new(key).on(node).label("app", name).serve(Transport::Tcp, 80).serve(Transport::Tcp, 81)
    };
    let lab = Plan::bulkhead().proxy(ProxyMode::Nftables).raise().unwrap();
    lab.namespace("shop", &[]).unwrap();
    lab.namespace("ops", &[]).unwrap();
    lab.namespace("red", &[("bulkhead.io/tenant", "red")]).unwrap();
    lab.start_pods([
        pod("shop/web", 1),
        pod("shop/db", 1),
        pod("shop/far", 2),
        pod("ops/near", 1),
        pod("red/box", 2),
    ])
    .unwrap();
    lab.manifests()
        .write(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "db"},
            "spec": {
                "type": "ClusterIP", "clusterIP": SERVICE, "clusterIPs": [SERVICE], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "selector": {"app": "db"},
                "ports": [{"name": "web", "protocol": "TCP", "port": 8080, "targetPort": 80}],
            },
        }))
        .unwrap();
    refresh(&lab);
    lab
}

fn refresh(lab: &Lab) {
    lab.publish_endpoints().unwrap();
    lab.settle().unwrap();
    lab.sync_proxies().unwrap();
}

fn explain(agent: &Agent, from: &str, to: &str) -> Value {
    let output = agent.output("explain", &[from, to, "-o", "json"]).unwrap();
    assert!(output.status.code() < Some(2), "{from} {to}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asks both agents about every pair, and the pods themselves.
fn every_pair_agrees(lab: &Lab, when: &str) -> [usize; 2] {
    let mut counts = [0, 0];
    for port in [80, 81] {
        let matrix = until(
            SETTLES_WITHIN,
            || lab.matrix(Transport::Tcp, port, Family::V4),
            |matrix| disagreements(lab, matrix, port).is_empty(),
        )
        .unwrap();
        assert_eq!(disagreements(lab, &matrix, port), Vec::<String>::new(), "{when}\n{matrix}");
        counts[0] += matrix.reached().len();
        counts[1] += matrix.denied().len();
    }
    counts
}

fn disagreements(lab: &Lab, matrix: &lab::Matrix, port: u16) -> Vec<String> {
    let pairs = matrix.reached().into_iter().map(|pair| (pair, "allow"));
    let pairs = pairs.chain(matrix.denied().into_iter().map(|pair| (pair, "deny")));
    let mut wrong = Vec::new();
    for ((from, to), want) in pairs {
        for agent in lab.agents() {
            let told = explain(agent, from, &format!("{to}:{port}"));
            let kernel = told["kernel"].as_array().unwrap();
            let local = |key: &str| usize::from(told["node"] == lab.pod(key).spec().node());
            let differs = kernel.iter().any(|finding| finding["differs"] != json!([]));
            if told["verdict"] != want || differs || kernel.len() != local(from) + local(to) {
                wrong.push(format!("{from} -> {to}:{port} is {want}, but {told:#}"));
            }
        }
    }
    wrong
}

/// One lab for all: loading programs is what takes time here.
#[test]
fn operators_are_told_what_is_open_what_was_repaired_and_what_pods_meet() {
    let lab = stage();
    let untouched = lab.manifests().snapshot().unwrap();
    coverage_and_endpoints_tell_who_is_open(&lab);
    lab.manifests().restore(&untouched).unwrap();
    refresh(&lab);
    a_pin_that_somebody_removed_is_back_and_counted(&lab);
    explanations_are_what_pods_meet_and_name_what_decides(&lab);
}

fn explanations_are_what_pods_meet_and_name_what_decides(lab: &Lab) {
    let [reached, denied] = every_pair_agrees(lab, "without policies");
    assert_eq!((reached, denied), (40, 0), "a shared namespace and one tenant are not apart");

    lab.policy(
        "shop/guard",
        "db",
        "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: far}}}]}, \
         {from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}]",
    )
    .unwrap();
    lab.policy(
        "shop/quiet",
        "far",
        "policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}]}]",
    )
    .unwrap();
    lab.label("Namespace", "ops", ("bulkhead.io/tenant", "blue")).unwrap();
    refresh(lab);
    let [reached, denied] = every_pair_agrees(lab, "with policies and tenants");
    // Out of far nothing (8); into db only web at 80 (5 more); nothing between red and blue (4).
    assert_eq!((reached, denied), (23, 17));

    let told = explain(lab.agent(1), "shop/web", "shop/db:81");
    let ingress = &told["ways"][0]["ingress"];
    assert_eq!(ingress["policies"][0]["policy"], "shop/guard");
    let findings: Vec<_> =
        ingress["policies"][0]["rules"].as_array().unwrap().iter().map(|rule| &rule["finding"]).collect();
    assert_eq!(findings, ["otherPeer", "otherPort"]);
    let told = explain(lab.agent(1), "ops/near", "red/box:80");
    assert_eq!(told["egress"]["by"], "tenant boundary: blue -> red");
    assert_eq!(
        told["ways"][0]["egress"]["boundary"],
        json!({"own": "blue", "other": "tenant red", "passed": false})
    );

    // By the Service, whose backend is db at 80.
    let cluster_ip: SocketAddr = format!("{SERVICE}:8080").parse().unwrap();
    for (from, outcome, verdict) in
        [("shop/web", Outcome::Reached, "allow"), ("ops/near", Outcome::Silent, "deny")]
    {
        let pod = lab.pod(from);
        assert_eq!(attempt(pod.netns(), cluster_ip, Transport::Tcp, PATIENCE).unwrap(), outcome, "{from}");
        for to in ["service:shop/db:8080".to_owned(), format!("ip:{cluster_ip}")] {
            let told = explain(lab.agent(1), from, &to);
            assert_eq!(told["verdict"], verdict, "{told:#}");
            assert_eq!(told["service"]["services"], json!(["shop/db"]), "{told:#}");
            // Before translation and at the backend by the source, and by the backend.
            assert_eq!(told["kernel"].as_array().unwrap().len(), 3, "{told:#}");
            assert!(told["kernel"].as_array().unwrap().iter().all(|k| k["differs"] == json!([])), "{told:#}");
        }
    }
    let table = lab.agent(1).output("explain", &["ops/near", "service:shop/db:8080"]).unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    for line in [
        "ops/near -> service:shop/db:8080 TCP: DENIED",
        "Service shop/db: 0 of 1 backends allowed",
        "rule 1: pods app=web of its namespace, TCP/80: no: the other end is none of these",
    ] {
        assert!(table.contains(line), "{line} is not in\n{table}");
    }
    for (from, to, why) in [
        ("shop/nobody", "shop/db:80", "unknown pod shop/nobody"),
        ("shop/web", "service:shop/db:80", "Service shop/db serves TCP/8080, nothing else"),
        ("shop/web", "service:shop/none:80", "unknown Service shop/none"),
    ] {
        let refused = lab.agent(1).output("explain", &[from, to]).unwrap();
        assert_eq!(refused.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&refused.stderr).contains(why), "{refused:?}");
    }
}

fn a_pin_that_somebody_removed_is_back_and_counted(lab: &Lab) {
    let agent = lab.agent(1);
    let ifname = |endpoint: &Value| endpoint["interface"].as_str().unwrap().to_owned();
    let endpoints: Value = serde_json::from_slice(
        &agent.output("endpoints", &["--pod", "shop/db", "-o", "json"]).unwrap().stdout,
    )
    .unwrap();
    let interface = ifname(&endpoints[0]);
    let links =
        lab.dir().join("bpf/node-1").join(format!("v{}", bulkhead_ebpf::abi::ABI_VERSION)).join("links");
    let index = {
        let _inside = lab.node(1).netns().enter().unwrap();
        nix::net::if_::if_nametoindex(interface.as_str()).unwrap()
    };
    let repairs = || Ok(agent.status()?["datapath"]["pinsRestored"].as_u64().unwrap());
    let before = repairs().unwrap();
    // The agent holds the link too: nothing opens meanwhile.
    fs::remove_file(links.join(format!("{index}-to_pod"))).unwrap();
    let after = until(SETTLES_WITHIN, repairs, |repairs| *repairs > before).unwrap();
    assert_eq!(after, before + 1);
    assert!(links.join(format!("{index}-to_pod")).exists());
    assert_eq!(explain(agent, "shop/web", "shop/db:80")["kernel"][1]["differs"], json!([]));
}

fn coverage_and_endpoints_tell_who_is_open(lab: &Lab) {
    lab.policy("shop/guard", "db", "policyTypes: [Ingress, Egress]").unwrap();
    lab.settle().unwrap();
    let coverage = |arguments: &[&str]| {
        let arguments = [&["-o", "json"], arguments].concat();
        let output = lab.agent(1).output("coverage", &arguments).unwrap();
        (output.status.code().unwrap(), serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let (code, all) = coverage(&[]);
    assert_eq!(code, 0);
    let totals = json!({
        "namespaces": 3, "namespacesWithoutPolicy": 2, "policies": 1, "pods": 5, "openIngress": 4, "openEgress": 4,
        "hostNetwork": 0, "nodes": 2, "nodesWithoutAgent": 0,
    });
    assert_eq!(all["totals"], totals);
    let states: Vec<_> = all["nodes"].as_array().unwrap().iter().map(|node| &node["state"]).collect();
    assert_eq!(states, ["enforcing", "unknown"], "{all:#}");
    assert_eq!(coverage(&["--fail-on-gap"]).0, 1);
    assert_eq!(coverage(&["--fail-on-gap=nodes"]).0, 0);
    assert_eq!(
        coverage(&["--fail-on-gap=namespaces", "--exclude-namespace", "ops", "--exclude-namespace", "red"]).0,
        0
    );

    let output = lab.agent(1).output("endpoints", &["--namespace", "shop", "-o", "json"]).unwrap();
    let endpoints: Value = serde_json::from_slice(&output.stdout).unwrap();
    let told: Vec<_> = endpoints
        .as_array()
        .unwrap()
        .iter()
        .map(|e| {
            (
                e["pod"].as_str().unwrap(),
                &e["ingress"],
                &e["upToDate"],
                e["generation"] == e["wantedGeneration"],
            )
        })
        .collect();
    let mut told = told;
    told.sort_by_key(|(pod, ..)| *pod);
    let (none, guard, yes) = (json!([]), json!(["shop/guard"]), json!(true));
    assert_eq!(told, [("shop/db", &guard, &yes, true), ("shop/web", &none, &yes, true)]);
}
