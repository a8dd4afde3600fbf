//! The agent may die and come back at any time; what it decided stays decided.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, net::SocketAddr, thread, time::Duration};

use lab::{Family, Knock, Lab, Outcome, Plan, PodSpec, Stream, Transport, agent::Agent, probe::attempt};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(2);
const TCP_V4: (Transport, u16, Family) = (Transport::Tcp, 80, Family::V4);

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

fn pod(key: &str, node: u8) -> PodSpec {
    let (_, name) = key.split_once('/').unwrap();
    PodSpec::new(key).on(node).label("app", name).serve(Transport::Tcp, 80).serve(Transport::Udp, 53)
}

/// The db on node 1 lets in the web on either node; a stranger on either node it does not.
fn guarded_shop() -> Lab {
    let lab = Plan::bulkhead().raise().unwrap();
    lab.namespace("shop", &[]).unwrap();
    let web = |name: &str, node| pod(name, node).label("app", "web");
    lab.start_pods([
        pod("shop/db", 1),
        web("shop/web-near", 1),
        web("shop/web-far", 2),
        pod("shop/stranger-near", 1),
        pod("shop/stranger-far", 2),
    ])
    .unwrap();
    lab.apply(GUARD_DB).unwrap();
    let matrix = lab.matrix_settled(TCP_V4, &guarded()).unwrap();
    assert_eq!(matrix.reached(), guarded(), "\n{matrix}");
    lab
}

fn guarded() -> BTreeSet<(&'static str, &'static str)> {
    let pods = ["shop/db", "shop/stranger-far", "shop/stranger-near", "shop/web-far", "shop/web-near"];
    let pairs = pods.into_iter().flat_map(|from| pods.into_iter().map(move |to| (from, to)));
    pairs.filter(|(from, to)| from != to && !(*to == "shop/db" && from.contains("stranger"))).collect()
}

/// What the last start of the agent had to change in the kernel.
fn changed_at_start(agent: &Agent) -> Value {
    let status = agent.status().unwrap();
    let adoption = &status["datapath"]["adoption"];
    assert!(adoption.is_object(), "{status:#}");
    let fresh = ["mapsCreated", "programsReplaced", "linksUpdated"];
    json!({
        "made": fresh.map(|what| (what, adoption[what].as_u64())).into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "written": status["datapath"]["firstWritten"],
    })
}

#[test]
fn kill_9_under_traffic_loses_nothing_opens_nothing_and_the_restart_rewrites_nothing() {
    let lab = guarded_shop();
    let db = lab.pod("shop/db");
    let at = |family, port| SocketAddr::new(db.ip(family), port);
    let streams: Vec<_> =
        [("shop/web-near", Family::V4), ("shop/web-far", Family::V4), ("shop/web-far", Family::V6)]
            .map(|(pod, family)| {
                Stream::start(lab.pod(pod).netns(), at(family, 80), Duration::from_millis(1)).unwrap()
            })
            .into();
    let knocks: Vec<_> = ["shop/stranger-near", "shop/stranger-far"]
        .into_iter()
        .flat_map(|pod| [(pod, Family::V4, Transport::Tcp, 80), (pod, Family::V6, Transport::Udp, 53)])
        .map(|(pod, family, transport, port)| {
            Knock::start(lab.pod(pod).netns(), at(family, port), transport).unwrap()
        })
        .collect();
    thread::sleep(Duration::from_millis(200));
    let heard_of_strangers = || {
        ["shop/stranger-near", "shop/stranger-far"].map(|stranger| {
            [Family::V4, Family::V6].map(|family| db.heard_from(lab.pod(stranger).ip(family)))
        })
    };
    let before = heard_of_strangers(); // what came through until the policy was in force
    lab.agents().iter().for_each(Agent::kill9);
    let matrix = lab.matrix(TCP_V4.0, TCP_V4.1, TCP_V4.2).unwrap();
    assert_eq!(matrix.reached(), guarded(), "new connections while no agent runs\n{matrix}");
    lab.agents().iter().try_for_each(Agent::start).unwrap();
    let matrix = lab.matrix(TCP_V4.0, TCP_V4.1, TCP_V4.2).unwrap();
    assert_eq!(matrix.reached(), guarded(), "after the restart\n{matrix}");
    for report in streams.into_iter().map(Stream::stop) {
        assert!(report.sent > 100, "{report:?}");
        assert_eq!(
            (report.echoed, report.retransmitted, report.broken.clone()),
            (report.sent, 0, None),
            "{report:?}"
        );
    }
    for report in knocks.into_iter().map(Knock::stop) {
        assert!(report.sent > 10, "{report:?}");
        assert_eq!(report.reached, 0, "{report:?}");
    }
    assert_eq!(heard_of_strangers(), before);
    for agent in lab.agents() {
        let nothing = json!({
            "made": {"mapsCreated": 0, "programsReplaced": 0, "linksUpdated": 0},
            "written": {"rules": 0, "addresses": 0, "endpoints": 0},
        });
        assert_eq!(changed_at_start(agent), nothing, "{}", agent.log());
    }
}

#[test]
fn an_edit_made_while_no_agent_runs_holds_after_its_start() {
    let lab = guarded_shop();
    for agent in lab.agents() {
        assert!(agent.terminate().unwrap().success(), "{}", agent.log());
    }
    lab.delete("NetworkPolicy", "shop/guard-db").unwrap();
    lab.apply(
        &GUARD_DB.replace("guard-db", "guard-web").replace("app: db", "app: web").replace(
            "[{podSelector: {matchLabels: {app: web}}}]",
            "[{podSelector: {matchLabels: {app: db}}}]",
        ),
    )
    .unwrap();
    let matrix = lab.matrix(TCP_V4.0, TCP_V4.1, TCP_V4.2).unwrap();
    assert_eq!(matrix.reached(), guarded(), "nobody has told the kernel yet\n{matrix}");
    lab.agents().iter().try_for_each(Agent::start).unwrap();
    let want: BTreeSet<_> = {
        let all = lab.pods();
        let keys: Vec<_> = all.iter().map(|pod| pod.key()).collect();
        let pairs = keys.iter().flat_map(|from| keys.iter().map(move |to| (from.clone(), to.clone())));
        pairs.filter(|(from, to)| from != to && (!to.contains("web") || from == "shop/db")).collect()
    };
    let want = want.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
    let matrix = lab.matrix_settled(TCP_V4, &want).unwrap();
    assert_eq!(matrix.reached(), want, "\n{matrix}");
}

#[test]
fn pods_that_start_and_end_after_a_restart_are_enforced_and_forgotten() {
    let lab = guarded_shop();
    lab.agent(1).kill9();
    lab.agent(1).start().unwrap();
    let late = lab.start_pod(pod("shop/late", 1)).unwrap();
    let to = SocketAddr::new(lab.pod("shop/db").ip(Family::V4), 80);
    let ask = |pod: &lab::Pod| attempt(pod.netns(), to, Transport::Tcp, Duration::from_millis(500)).unwrap();
    assert_eq!(ask(&late), Outcome::Silent);
    let friend = lab.start_pod(pod("shop/friend", 1).label("app", "web")).unwrap();
    assert_eq!(attempt(friend.netns(), to, Transport::Tcp, PATIENCE).unwrap(), Outcome::Reached);
    lab.stop_pod("shop/late").unwrap();
    let status = lab.agent(1).status().unwrap();
    let pods: BTreeSet<_> = status["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|endpoint| endpoint["pod"].as_str().unwrap())
        .collect();
    assert_eq!(pods, BTreeSet::from(["shop/db", "shop/friend", "shop/stranger-near", "shop/web-near"]));
}
