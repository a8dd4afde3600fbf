//! Pods that start at the same time: each ADD is answered when its own pod is guarded, whatever happens to the others.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use bulkhead::datapath::removal::still_attached;
use bulkhead_cni::protocol::{AttachmentId, CniAnswer, CniRequest, PodName, Sandbox};
use bulkhead_ebpf::abi::ABI_VERSION;
use lab::{
    Family, Lab, Outcome, Plan, PodSpec, Transport,
    chain::{Attachment, IFNAME, NETWORK, PLUGIN_DIR, invoke},
    netns::Netns,
    probe::attempt,
    until,
};
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};

const SILENCE: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(20);

const GUARDED: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guarded, namespace: shop}
spec:
  podSelector: {matchLabels: {app: guarded}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: no-way-to-the-guarded, namespace: shop}
spec:
  podSelector: {matchLabels: {app: late}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: open}}}]}]
";

/// A node with a server that pods named `late-N` may reach, and one that they may not.
fn shop() -> Lab {
    let lab = Plan::bulkhead().nodes(1).raise().unwrap();
    lab.namespace("shop", &[]).unwrap();
    let serving =
        |name: &str| PodSpec::new(&format!("shop/{name}")).label("app", name).serve(Transport::Tcp, 80);
    lab.start_pods([serving("guarded"), serving("open")]).unwrap();
    lab.apply(GUARDED).unwrap();
    lab
}

/// A pod that the API knows and flannel has wired; the next thing is our ADD.
struct Wired {
    netns: Netns,
    attachment: AttachmentId,
    sandbox: Sandbox,
}

impl Wired {
    fn new(lab: &Lab, number: u8) -> Self {
        let netns = Netns::create(&format!("{}-late{number}", lab.name())).unwrap();
        let name = format!("late-{number}");
        let manifest = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": name, "uid": name, "labels": {"app": "late"}},
            "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "lab"}]},
        });
        lab.manifests().write(&manifest).unwrap();
        let attachment = Attachment {
            container: netns.name().to_owned(),
            netns: netns.path(),
            namespace: "shop".into(),
            pod: name.clone(),
            uid: name.clone(),
        };
        let list = lab.chain(1).conflist().unwrap();
        let mut bridge = list["plugins"][0].clone();
        (bridge["cniVersion"], bridge["name"]) = (list["cniVersion"].clone(), list["name"].clone());
        let binary = Path::new(PLUGIN_DIR).join("bridge");
        let environment = attachment.environment("ADD", &[PathBuf::from(PLUGIN_DIR)]);
        let node = lab.node(1).netns();
        let answer = invoke(node, &binary, &environment, bridge.to_string().as_bytes()).unwrap();
        let result: Value = serde_json::from_slice(&answer).unwrap();
        let interfaces = result["interfaces"].as_array().unwrap();
        let host = interfaces.iter().find_map(|i| i["name"].as_str().filter(|name| name.starts_with("veth")));
        let inside = interfaces.iter().find(|interface| interface["name"] == IFNAME).unwrap();
        let mac: Vec<_> = inside["mac"].as_str().unwrap().split(':').collect();
        let host_ifname = host.unwrap().to_owned();
        let host_ifindex = {
            let _inside = node.enter().unwrap();
            if_nametoindex(host_ifname.as_str()).unwrap()
        };
        let address = |ip: &Value| -> IpAddr {
            ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()
        };
        let sandbox = Sandbox {
            network: NETWORK.into(),
            netns: netns.path(),
            host_ifname,
            host_ifindex,
            mac: std::array::from_fn(|n| u8::from_str_radix(mac[n], 16).unwrap()),
            addresses: result["ips"].as_array().unwrap().iter().map(address).collect(),
            pod: Some(PodName { namespace: "shop".into(), name: name.clone(), uid: Some(name) }),
        };
        let attachment = AttachmentId { container: attachment.container, ifname: IFNAME.into() };
        Self { netns, attachment, sandbox }
    }

    fn several(lab: &Lab, count: u8) -> Vec<Self> {
        (1..=count).map(|number| Self::new(lab, number)).collect()
    }

    fn add(&self, lab: &Lab) -> anyhow::Result<CniAnswer> {
        let (attachment, sandbox) = (self.attachment.clone(), self.sandbox.clone());
        lab.agent(1).ask(&CniRequest::Add { attachment, sandbox })
    }

    fn del(&self, lab: &Lab) -> CniAnswer {
        lab.agent(1).ask(&CniRequest::Del { attachment: self.attachment.clone() }).unwrap()
    }

    /// What it may not reach, and what it may.
    fn reaches(&self, lab: &Lab) -> (Outcome, Outcome) {
        let to = |name: &str| SocketAddr::new(lab.pod(&format!("shop/{name}")).ip(Family::V4), 80);
        let ask = |to, patience| attempt(&self.netns, to, Transport::Tcp, patience).unwrap();
        (ask(to("guarded"), SILENCE), ask(to("open"), PATIENCE))
    }

    /// Not even an address is resolved.
    fn is_cut_off(&self, lab: &Lab) -> bool {
        let (guarded, open) = self.reaches(lab);
        guarded != Outcome::Reached && open != Outcome::Reached
    }

    fn pod(&self) -> String {
        format!("shop/{}", self.sandbox.pod.as_ref().unwrap().name)
    }
}

const GUARDED_AND_OPEN: (Outcome, Outcome) = (Outcome::Silent, Outcome::Reached);

/// Interfaces of the node, with the programs that run there.
fn programs(lab: &Lab) -> BTreeMap<String, Vec<String>> {
    let _inside = lab.node(1).netns().enter().unwrap();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (interface, program) in still_attached().unwrap() {
        found.entry(interface).or_default().push(program);
    }
    found
}

fn both() -> Vec<String> {
    ["from_pod", "to_pod"].map(str::to_owned).to_vec()
}

/// Pods named `late-N` that the agent has, and whether they are starting.
fn late(lab: &Lab) -> BTreeMap<String, bool> {
    let status = lab.agent(1).status().unwrap();
    let endpoints = status["endpoints"].as_array().unwrap().iter();
    let name = |endpoint: &Value| endpoint["pod"].as_str().unwrap().to_owned();
    endpoints
        .map(|endpoint| (name(endpoint), endpoint["starting"] == true))
        .filter(|(pod, _)| pod.starts_with("shop/late"))
        .collect()
}

#[test]
fn of_many_adds_at_once_each_is_answered_when_its_own_pod_is_guarded() {
    let lab = shop();
    let pods = Wired::several(&lab, 8);
    let start = |pod: &Wired| {
        let answer = pod.add(&lab).unwrap();
        (answer, programs(&lab).remove(&pod.sandbox.host_ifname), pod.reaches(&lab))
    };
    let seen: Vec<_> = thread::scope(|scope| {
        let starts: Vec<_> = pods.iter().map(|pod| scope.spawn(move || start(pod))).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    for (pod, seen) in pods.iter().zip(seen) {
        assert_eq!(seen, (CniAnswer::Ok, Some(both()), GUARDED_AND_OPEN), "{}", pod.pod());
    }
    assert_eq!(late(&lab), pods.iter().map(|pod| (pod.pod(), false)).collect());
    lab.agent(1).kill9();
    assert!(pods.iter().all(|pod| pod.reaches(&lab) == GUARDED_AND_OPEN), "the pins hold all of it");
}

#[test]
fn an_add_whose_programs_cannot_be_attached_is_refused_alone_and_leaves_nothing() {
    let lab = shop();
    let pods = Wired::several(&lab, 5);
    let (broken, others) = pods.split_first().unwrap();
    let links = lab.agent(1).bpffs().join(format!("v{ABI_VERSION}/links"));
    // Where its pin should be, a directory cannot be replaced.
    let obstacle = links.join(format!("{}-to_pod", broken.sandbox.host_ifindex));
    fs::create_dir(&obstacle).unwrap();
    let answers: Vec<_> = thread::scope(|scope| {
        let adds: Vec<_> = pods.iter().map(|pod| scope.spawn(|| pod.add(&lab).unwrap())).collect();
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });
    let (refused, admitted) = answers.split_first().unwrap();
    let CniAnswer::TryAgain { message } = refused else { panic!("{refused:?}") };
    assert!(
        message.contains("pod shop/late-1 cannot be enforced") && message.contains("to_pod"),
        "{message}"
    );
    assert!(admitted.iter().all(|answer| *answer == CniAnswer::Ok), "{admitted:?}");
    assert!(others.iter().all(|pod| pod.reaches(&lab) == GUARDED_AND_OPEN));
    assert_eq!(late(&lab), others.iter().map(|pod| (pod.pod(), false)).collect());
    assert!(broken.is_cut_off(&lab), "it has no record: what one of its programs sees is dropped");

    fs::remove_dir(&obstacle).unwrap();
    assert_eq!(broken.add(&lab).unwrap(), CniAnswer::Ok);
    assert_eq!(programs(&lab).remove(&broken.sandbox.host_ifname), Some(both()));
    assert_eq!(broken.reaches(&lab), GUARDED_AND_OPEN);
}

#[test]
fn the_same_add_twice_at_once_is_one_endpoint_with_one_pair_of_programs() {
    let lab = shop();
    for pod in &Wired::several(&lab, 4) {
        let answers: Vec<_> = thread::scope(|scope| {
            let adds: Vec<_> = (0..3).map(|_| scope.spawn(|| pod.add(&lab).unwrap())).collect();
            adds.into_iter().map(|add| add.join().unwrap()).collect()
        });
        assert_eq!(answers, [CniAnswer::Ok, CniAnswer::Ok, CniAnswer::Ok]);
        assert_eq!(programs(&lab).remove(&pod.sandbox.host_ifname), Some(both()));
        assert_eq!(pod.reaches(&lab), GUARDED_AND_OPEN);
    }
    let status = lab.agent(1).status().unwrap();
    assert_eq!(status["endpoints"].as_array().unwrap().len(), 2 + 4, "{status:#}");
}

#[test]
fn a_del_while_an_add_is_under_way_wins_and_the_pod_has_no_network() {
    let lab = shop();
    for pod in &Wired::several(&lab, 4) {
        let (answer, del) = thread::scope(|scope| {
            let add = scope.spawn(|| pod.add(&lab).unwrap());
            let known = || Ok(late(&lab).contains_key(&pod.pod()));
            assert!(until(DEADLINE, known, |known| *known).unwrap());
            let del = pod.del(&lab);
            (add.join().unwrap(), del)
        });
        assert_eq!(del, CniAnswer::Ok);
        match answer {
            CniAnswer::Ok => {} // it was done an instant before
            CniAnswer::TryAgain { message } => assert!(message.contains("taken the pod away"), "{message}"),
            CniAnswer::Failed { .. } => panic!("{answer:?}"),
        }
        assert_eq!(late(&lab), BTreeMap::new());
        // Programs that were on their way may still arrive.
        let attached = || Ok(programs(&lab).remove(&pod.sandbox.host_ifname));
        assert_eq!(until(DEADLINE, attached, |programs| *programs == Some(both())).unwrap(), Some(both()));
        assert!(pod.is_cut_off(&lab), "it has no record: what its programs see is dropped");
    }
    // A runtime that tries again with the same attachment gets what it asks for.
    let again = Wired::new(&lab, 7);
    assert_eq!(again.add(&lab).unwrap(), CniAnswer::Ok);
    assert_eq!(again.reaches(&lab), GUARDED_AND_OPEN);
}

#[test]
fn an_agent_that_is_killed_while_pods_start_leaves_none_of_them_open_and_the_next_one_goes_on() {
    let lab = shop();
    let pods = Wired::several(&lab, 6);
    let answers: Vec<_> = thread::scope(|scope| {
        let adds: Vec<_> = pods.iter().map(|pod| scope.spawn(|| pod.add(&lab))).collect();
        // Some have begun, and not all are done.
        until(DEADLINE, || Ok(late(&lab)), |late| !late.is_empty()).unwrap();
        lab.agent(1).kill9();
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });
    for (pod, answer) in pods.iter().zip(&answers) {
        if let Ok(answer) = answer {
            assert_eq!((answer, pod.reaches(&lab)), (&CniAnswer::Ok, GUARDED_AND_OPEN), "{}", pod.pod());
        }
    }
    lab.agent(1).start().unwrap();
    for (pod, answer) in pods.iter().zip(&answers) {
        // As the runtime does: what was answered stays, what was not is tried again, with or without a DEL before.
        if answer.is_err() {
            if pod.sandbox.host_ifindex % 2 == 0 {
                assert_eq!(pod.del(&lab), CniAnswer::Ok);
            }
            assert_eq!(pod.add(&lab).unwrap(), CniAnswer::Ok, "{}", pod.pod());
        }
        assert_eq!(programs(&lab).remove(&pod.sandbox.host_ifname), Some(both()), "{}", pod.pod());
        assert_eq!(pod.reaches(&lab), GUARDED_AND_OPEN, "{}", pod.pod());
    }
    let ready = |status: &Value| status["ready"] == true;
    let status = until(DEADLINE, || lab.agent(1).status(), ready).unwrap();
    assert!(ready(&status), "{status:#}");
}
