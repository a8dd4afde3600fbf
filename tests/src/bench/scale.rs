//! A large cluster, fed to one agent by the lab's API server: how long until it is ready, how much memory, and what
//! each change costs.

use std::{
    fs,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bulkhead_cni::protocol::{CniAnswer, CniRequest};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    agent::Agent,
    apiserver::{Call, Fault, Resource, Store, What},
    plan::Plan,
    pod::PodSpec,
    topology::Lab,
};

/// Largest patience with a start.
const READY_WITHIN: Duration = Duration::from_mins(10);

#[derive(Clone, Debug, Args)]
pub struct Options {
    #[arg(long, default_value_t = 100_000)]
    pods: u32,
    #[arg(long, default_value_t = 1_000)]
    nodes: u32,
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    namespaces: u32,
    #[arg(long, default_value_t = 10_000)]
    policies: u32,
    #[arg(long, default_value_t = 2_000)]
    services: u32,
    /// Endpoints of each Service
    #[arg(long, default_value_t = 5)]
    endpoints: u32,
    /// Pods that run on the agent's node
    #[arg(long, default_value_t = 20)]
    local: u32,
    /// Changes of each sort
    #[arg(long, default_value_t = 1_000)]
    changes: u32,
    /// Milliseconds from one change to the next
    #[arg(long, default_value_t = 5)]
    pace: u64,
}

pub fn run(options: &Options) -> Result<()> {
    let lab = Plan::bulkhead().nodes(1).api_server().raise()?;
    lab.namespace("ns-0", &[])?;
    let specs = (0..options.local).map(|n| PodSpec::new(&format!("ns-0/local-{n}")).label("app", "app-0"));
    lab.start_pods(specs)?;
    let agent = lab.agent(1);
    let store = lab.api().store().context("the objects are put straight into the lab's own API server")?;
    println!("small cluster: {}", memory(agent)?);
    agent.kill9();
    println!(
        "loading {} pods, {} nodes, {} policies, {} Services",
        options.pods, options.nodes, options.policies, options.services
    );
    store.load(objects(options));
    let sample = store.get(kind("Pod"), "ns-1", &pod_name(1)).map_or(0, |json| json.len());
    println!("a pod's JSON has {sample} bytes");

    let begun = Instant::now();
    agent.start_unready()?;
    await_ready(agent, begun)?;
    let (ready, cpu) = (begun.elapsed(), agent_cpu(agent)?);
    println!("from start to ready: {:.1} s, {:.1} s of CPU; {}", ready.as_secs_f64(), cpu, memory(agent)?);

    for (what, change) in CHANGES {
        measure(&lab, options, what, store, change)?;
    }
    // Everything is listed anew, while everything is known.
    let before = agent_cpu(agent)?;
    let begun = Instant::now();
    lab.api().faults().add(Fault::new(What::Refuse(410)).at(Call::Watch).times(6));
    lab.api().proxy().restart()?;
    await_watches(&lab, |watch| watch["relists"].as_u64() >= Some(1) && watch["connected"] == true)?;
    let cpu = agent_cpu(agent)? - before;
    println!(
        "all listed anew: {:.1} s, {cpu:.1} s of CPU; {}",
        begun.elapsed().as_secs_f64(),
        memory(agent)?
    );
    Ok(())
}

type Change = fn(&mut Value, u32);
const CHANGES: [(&str, Change); 3] = [
    ("a pod's heartbeat", |pod, round| pod["status"]["message"] = format!("beat {round}").into()),
    ("a pod's label", |pod, round| pod["metadata"]["labels"]["version"] = format!("{}", round % 3).into()),
    ("a pod's address", |pod, round| {
        let address = Ipv4Addr::from(0x0b00_0000 + round).to_string();
        pod["status"]["podIPs"] = json!([{"ip": address}]);
        pod["status"]["podIP"] = address.into();
    }),
];

fn measure(lab: &Lab, options: &Options, what: &str, store: &Store, change: Change) -> Result<()> {
    let agent = lab.agent(1);
    let before = (agent_cpu(agent)?, updates(agent)?);
    for round in 0..options.changes {
        let number = 1 + (round * 97) % (options.pods - 1);
        let (namespace, name) = (format!("ns-{}", number % options.namespaces), pod_name(number));
        let json =
            store.get(kind("Pod"), &namespace, &name).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        let mut pod: Value = serde_json::from_str(&json)?;
        change(&mut pod, round);
        store.put(kind("Pod"), pod, false).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        thread::sleep(Duration::from_millis(options.pace));
    }
    let version = store.version();
    let caught_up = |watch: &Value| watch["version"].as_u64() >= Some(version);
    await_watches(lab, |watch| {
        watch["objects"].as_u64() < Some(u64::from(options.pods)) || caught_up(watch)
    })?;
    let cpu = (agent_cpu(agent)? - before.0) * 1e3 / f64::from(options.changes);
    let updates = updates(agent)? - before.1;
    println!(
        "{what}: {cpu:.3} ms of CPU each, {} changes in {updates} updates; {}",
        options.changes,
        memory(agent)?
    );
    Ok(())
}

fn await_ready(agent: &Agent, begun: Instant) -> Result<()> {
    while !matches!(agent.ask(&CniRequest::Status), Ok(CniAnswer::Ok)) {
        ensure!(begun.elapsed() < READY_WITHIN, "the agent is not ready:\n{}", agent.log());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn await_watches(lab: &Lab, all: impl Fn(&Value) -> bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        let source = lab.agent(1).status()?["source"].clone();
        let taken_in = source["learned"].as_u64() >= source["sent"].as_u64();
        if taken_in && source["watches"].as_object().is_some_and(|watches| watches.values().all(&all)) {
            return Ok(());
        }
        ensure!(begun.elapsed() < READY_WITHIN, "the agent does not catch up: {source:#}");
        thread::sleep(Duration::from_millis(100));
    }
}

fn updates(agent: &Agent) -> Result<u64> {
    agent.status()?["datapath"]["updates"].as_u64().context("no updates in status")
}

/// Seconds of CPU since the agent's start.
fn agent_cpu(agent: &Agent) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid()?))?;
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: u32 = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
    Ok(f64::from(ticks) / 100.0) // USER_HZ is 100 on every architecture that we build for
}

fn memory(agent: &Agent) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()?))?;
    let megabytes = |field: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("not in /proc")?;
        Ok(line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<u64>()? / 1024)
    };
    let (resident, most, own) = (megabytes("VmRSS")?, megabytes("VmHWM")?, megabytes("RssAnon")?);
    Ok(format!("{resident} MB resident ({own} MB without the program's file), {most} MB at most"))
}

fn kind(kind: &str) -> Resource {
    Resource::of_kind(kind).expect("a kind that is served")
}

fn objects(options: &Options) -> impl Iterator<Item = Value> + use<> {
    let Options { pods, nodes, namespaces, policies, services, endpoints, .. } = options.clone();
    (1..namespaces)
        .map(namespace)
        .chain((2..nodes).map(node))
        .chain((1..pods).map(move |number| pod(number, nodes, namespaces)))
        .chain((0..policies).map(move |number| policy(number, namespaces)))
        .chain((0..services).flat_map(move |number| service(number, namespaces, nodes, endpoints)))
}

fn namespace(number: u32) -> Value {
    let labels = json!({"team": format!("team-{}", number % 50)});
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("ns-{number}"), "labels": labels}})
}

/// 10.64.0.0/10 in pieces of 256 addresses.
fn network(node: u32) -> u32 {
    0x0a40_0000 + (node << 8)
}

fn node(number: u32) -> Value {
    let cidr = format!("{}/24", Ipv4Addr::from(network(number)));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": format!("far-{number}"),
            "annotations": {"flannel.alpha.coreos.com/public-ip": Ipv4Addr::from(0xac10_0000 + number)},
            "managedFields": managed(20),
        },
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": Ipv4Addr::from(0xac10_0000 + number)}],
            "images": (0..50).map(|n| json!({"names": [format!("registry.example/image-{n}@sha256:{n:064x}")], "sizeBytes": n}))
                .collect::<Vec<_>>(),
        },
    })
}

fn pod_name(number: u32) -> String {
    format!("app-{}-{:08x}-{number:05x}", number / 1000 % 10, number % 31_000)
}

fn address(pod: u32, nodes: u32) -> Ipv4Addr {
    Ipv4Addr::from(network(2 + pod % (nodes - 2)) + 2 + pod / (nodes - 2))
}

/// As kubelet and scheduler leave it, about 5 KB.
fn pod(number: u32, nodes: u32, namespaces: u32) -> Value {
    let (space, app) = (number % namespaces, number / 1000 % 10);
    let ip = address(number, nodes).to_string();
    let env: Vec<_> =
        (0..12).map(|n| json!({"name": format!("SETTING_{n}"), "value": "of no interest to us"})).collect();
    let conditions = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": format!("ns-{space}"), "name": pod_name(number),
            "labels": {
                "app": format!("app-{app}"), "app.kubernetes.io/name": format!("app-{app}"),
                "app.kubernetes.io/part-of": format!("suite-{}", space % 50),
                "tier": if app < 3 { "back" } else { "front" }, "version": format!("{}", app % 3),
                "pod-template-hash": format!("{:08x}", space * 31 + app),
            },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true, "uid": format!("{space:036}"),
                "name": format!("app-{app}-{:08x}", space * 31 + app),
            }],
            "managedFields": managed(12),
        },
        "spec": {
            "nodeName": format!("far-{}", 2 + number % (nodes - 2)),
            "containers": [{
                "name": "main", "image": format!("registry.example/app-{app}:1.{number}"), "env": env,
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "volumeMounts": [{"name": "kube-api-access", "mountPath": "/var/run/secrets", "readOnly": true}],
            }],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}],
            "volumes": [{"name": "kube-api-access", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
        },
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "qosClass": "BestEffort",
            "conditions": conditions.map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"})),
            "containerStatuses": [{"name": "main", "ready": true, "restartCount": 0, "imageID": format!("sha256:{number:064x}")}],
        },
    })
}

fn managed(fields: u32) -> Value {
    let entries: serde_json::Map<String, Value> =
        (0..fields).map(|n| (format!("f:some-field-{n}"), json!({"f:of-somebody": {}, ".": {}}))).collect();
    json!([{"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": entries}])
}

fn policy(number: u32, namespaces: u32) -> Value {
    let (space, app) = (number % namespaces, number / namespaces);
    let ingress = json!([{
        "from": [
            {"podSelector": {"matchLabels": {"app": format!("app-{}", (app + 1) % 10)}}},
            {"namespaceSelector": {"matchLabels": {"team": format!("team-{}", space % 50)}},
             "podSelector": {"matchLabels": {"tier": "front"}}},
        ],
        "ports": [{"port": 8080, "protocol": "TCP"}],
    }]);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": format!("ns-{space}"), "name": format!("policy-{app}"), "managedFields": managed(4)},
        "spec": {
            "podSelector": {"matchLabels": {"app": format!("app-{}", app % 10)}},
            "policyTypes": ["Ingress"], "ingress": ingress,
        },
    })
}

fn service(number: u32, namespaces: u32, nodes: u32, endpoints: u32) -> [Value; 2] {
    let (space, name) = (number % namespaces, format!("service-{number}"));
    let endpoints: Vec<_> = (1..=endpoints)
        .map(|n| json!({"addresses": [address(number * endpoints + n, nodes)], "conditions": {"ready": true, "serving": true}}))
        .collect();
    let ip = Ipv4Addr::from(0x0a60_0000 + number);
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": format!("ns-{space}"), "name": name},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "targetPort": 8080}]},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "namespace": format!("ns-{space}"), "name": format!("{name}-x"),
                "labels": {"kubernetes.io/service-name": name},
            },
            "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        }),
    ]
}
