//! In the chain by its own doing, back in it when flannel writes its list anew, and out of it without a trace.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet, fs, net::SocketAddr, os::unix::fs::chown, path::PathBuf, process::Output,
    time::Duration,
};

use bulkhead::datapath::removal;
use lab::{
    AgentOptions, Family, Lab, Outcome, Plan, PodSpec, Stream, Transport, node::Node, probe::attempt, until,
};

/// How long the agent may take on a busy machine.
const SOON: Duration = Duration::from_secs(10);
const TCP_V4: (Transport, u16, Family) = (Transport::Tcp, 80, Family::V4);
const LIST: &str = "10-flannel.conflist";

const GUARD_DB: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guard-db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}]
";

fn pod(name: &str, node: u8) -> PodSpec {
    PodSpec::new(&format!("shop/{name}")).on(node).label("app", name).serve(Transport::Tcp, 80)
}

fn list(node: &Node) -> String {
    fs::read_to_string(node.cni_configurations().join(LIST)).unwrap()
}

fn is_chained(node: &Node) -> bool {
    list(node).contains("bulkhead-cni")
}

/// Everything below a directory, by path and content; a directory has none.
fn tree(directory: PathBuf) -> BTreeSet<(PathBuf, Option<Vec<u8>>)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(path.clone()));
            found.insert((path, None));
        } else {
            found.insert((path.clone(), Some(fs::read(&path).unwrap())));
        }
    }
    found
}

fn installed() -> Lab {
    let options = AgentOptions { keeps_chain: true, ..AgentOptions::default() };
    Plan::bulkhead().nodes(2).agent(options).raise().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn when_flannel_writes_its_list_anew_later_pods_are_enforced_all_the_same() {
    let lab = installed();
    assert!(lab.nodes().iter().all(|node| is_chained(node)), "{}", list(lab.node(1)));
    lab.namespace("shop", &[]).unwrap();
    lab.start_pods([pod("db", 1), pod("web", 2)]).unwrap();
    lab.apply(GUARD_DB).unwrap();
    for round in 0..2 {
        let node = lab.node(1);
        let flannels = lab::chain::Chain::flannel(node, None).conflist().unwrap();
        node.write_cni_configuration(&flannels).unwrap();
        assert!(until(SOON, || Ok(is_chained(node)), |chained| *chained).unwrap(), "{}", lab.agent(1).log());
        let late = lab.start_pod(pod(&format!("late-{round}"), 1)).unwrap();
        let db = SocketAddr::new(lab.pod("shop/db").ip(Family::V4), 80);
        assert_eq!(
            attempt(late.netns(), db, Transport::Tcp, Duration::from_millis(500)).unwrap(),
            Outcome::Silent
        );
    }
    let status = lab.agent(1).status().unwrap();
    assert_eq!(status["endpoints"].as_array().unwrap().len(), 3, "{status:#}");
    assert_eq!(status["chain"]["chained"], serde_json::json!([LIST]));
    assert_eq!(status["chain"]["problems"], serde_json::json!([]));
    assert!(status["chain"]["restored"].as_u64() >= Some(2), "{status:#}");
}

#[test]
fn uninstall_leaves_the_node_as_it_was_and_its_pods_talking() {
    let lab = installed();
    let node = lab.node(1);
    let flannels = lab::chain::Chain::flannel(node, None).conflist().unwrap();
    let before = format!("{}\n", serde_json::to_string_pretty(&flannels).unwrap());
    assert_ne!(list(node), before, "the agent is in the chain");
    lab.namespace("shop", &[]).unwrap();
    lab.start_pods([pod("db", 1), pod("web", 1), pod("stranger", 1)]).unwrap();
    lab.apply(GUARD_DB).unwrap();
    let others = [("shop/web", "shop/db"), ("shop/db", "shop/web"), ("shop/web", "shop/stranger")];
    let guarded: BTreeSet<_> =
        others.into_iter().chain([("shop/db", "shop/stranger"), ("shop/stranger", "shop/web")]).collect();
    let matrix = lab.matrix_settled(TCP_V4, &guarded).unwrap();
    assert_eq!(matrix.reached(), guarded, "\n{matrix}");
    let db = SocketAddr::new(lab.pod("shop/db").ip(Family::V4), 80);
    let stream = Stream::start(lab.pod("shop/web").netns(), db, Duration::from_millis(1)).unwrap();

    let agent = lab.agent(1);
    let (code, text) = said(&agent.uninstall(&[]).unwrap());
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("an agent serves") && is_chained(node), "nothing was done: {text}");

    agent.terminate().unwrap();
    let attached = || {
        let _inside = node.netns().enter()?;
        Ok::<_, anyhow::Error>(removal::still_attached()?)
    };
    assert_eq!(attached().unwrap().len(), 3 * 2 + 2, "two programs per pod, one per overlay device");
    let (code, text) = said(&agent.uninstall(&["--purge-logs"]).unwrap());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.ends_with("nothing of bulkhead is left on this node\n"), "{text}");

    assert_eq!(attached().unwrap(), vec![]);
    assert_eq!(list(node), before, "byte for byte");
    let left: BTreeSet<_> =
        tree(node.dir().to_owned()).into_iter().map(|(path, _)| path).filter(|path| is_ours(path)).collect();
    assert_eq!(left, BTreeSet::new());
    assert!(!lab.dir().join("bpf/node-1").exists());

    let flat: BTreeSet<_> = guarded.into_iter().chain([("shop/stranger", "shop/db")]).collect();
    let matrix = lab.matrix_settled(TCP_V4, &flat).unwrap();
    assert_eq!(matrix.reached(), flat, "flannel alone\n{matrix}");
    let traffic = stream.stop();
    assert_eq!((traffic.broken.clone(), traffic.retransmitted), (None, 0), "{traffic:?}");
    lab.start_pod(pod("late", 1)).unwrap();
    lab.stop_pod("shop/db").unwrap();

    let (code, text) = said(&agent.uninstall(&["--purge-logs"]).unwrap());
    assert_eq!((code, text.as_str()), (Some(0), "nothing of bulkhead is left on this node\n"), "again");
}

/// The bounding set is the container's; everything else that a container takes away is of no use to the agent.
#[test]
fn the_capabilities_of_the_manifest_are_enough() {
    let manifest = include_str!("../../deploy/kustomize/base/daemonset.yaml");
    let object = lab::kubelet::documents(manifest).unwrap().remove(0);
    let given = object.pointer("/spec/template/spec/containers/0/securityContext/capabilities/add").unwrap();
    let capabilities = serde_json::from_value(given.clone()).unwrap();
    let options =
        AgentOptions { keeps_chain: true, capabilities: Some(capabilities), ..AgentOptions::default() };
    let lab = Plan::bulkhead().nodes(1).agent(options).raise().unwrap();
    let (node, agent) = (lab.node(1), lab.agent(1));
    // As where release archives were unpacked with their owner.
    chown(node.cni_plugins(), Some(1001), Some(1001)).unwrap();
    let plugin = node.cni_plugins().join("bulkhead-cni");
    fs::remove_file(&plugin).unwrap();
    assert!(until(SOON, || Ok(plugin.exists()), |back| *back).unwrap(), "{}", agent.log());

    lab.namespace("shop", &[]).unwrap();
    lab.start_pods([pod("db", 1), pod("web", 1), pod("stranger", 1)]).unwrap();
    lab.apply(GUARD_DB).unwrap();
    // What kube-network-policies and Calico would leave here.
    node.netns().ip("link add cali0a1b2c3d4e5 type bridge\n").unwrap();
    let chain = "add table inet kube-network-policies; add chain inet kube-network-policies postrouting";
    assert!(node.netns().command("nft").unwrap().arg(chain).status().unwrap().success());
    agent.terminate().unwrap();
    agent.start().unwrap();
    let others = serde_json::json!([
        {"name": "kube-network-policies", "evidence": ["packet filter kube-network-policies"]},
        {"name": "Calico", "evidence": ["interface cali0a1b2c3d4e5"]},
    ]);
    assert_eq!(agent.status().unwrap()["others"], others);
    let guarded: BTreeSet<_> = ["shop/db", "shop/web", "shop/stranger"]
        .into_iter()
        .flat_map(|from| ["shop/db", "shop/web", "shop/stranger"].map(|to| (from, to)))
        .filter(|(from, to)| from != to && (*from, *to) != ("shop/stranger", "shop/db"))
        .collect();
    let matrix = lab.matrix_settled(TCP_V4, &guarded).unwrap();
    assert_eq!(matrix.reached(), guarded, "\n{matrix}");
    lab.stop_pod("shop/web").unwrap();
    let log = agent.log();
    assert!(!log.contains(" ERROR ") && !log.contains("ermitted") && !log.contains("denied"), "{log}");
}

/// What the agent made in the node's directory; its own log is the lab's.
fn is_ours(path: &std::path::Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    ["bulkhead", "agent.sock", "state", "flows.jsonl"].iter().any(|ours| name.contains(ours))
}
