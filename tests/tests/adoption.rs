//! Bulkhead comes to a cluster that runs, and leaves it again: what policies allow notices nothing.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bulkhead::datapath::removal::remove_all;
use lab::{
    Family, Lab, Outcome, Plan, Pod, PodSpec, Stream, Transport, agent::Agent, matrix::SETTLES_WITHIN,
    probe::attempt, scrape::get, until,
};
use serde_json::Value;

const PACE: Duration = Duration::from_millis(1);
/// What was under way when a change came into force has arrived by then, on a loaded machine.
const UNDER_WAY: Duration = Duration::from_millis(200);
const SILENCE: Duration = Duration::from_millis(400);
const TCP_V4: (Transport, u16, Family) = (Transport::Tcp, 80, Family::V4);

/// The db answers webs and asks nobody; the near web asks nobody but the db. Nobody else is isolated.
const POLICIES: &str = r"
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db, namespace: shop}, spec: {
  podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress],
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: shop}, spec: {
  podSelector: {matchLabels: {app: web, copy: near}}, policyTypes: [Ingress, Egress],
  egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}}
";

const PODS: [(&str, u8); 5] = [
    ("shop/db", 1),
    ("shop/web-near", 1),
    ("shop/web-far", 2),
    ("shop/stranger-near", 1),
    ("shop/stranger-far", 2),
];

/// A flannel cluster with a shop that talks, and policies that nobody enforces yet.
fn shop() -> Lab {
    let lab = Plan::installed_later().raise().unwrap();
    lab.namespace("shop", &[]).unwrap();
    lab.start_pods(PODS.map(|(key, node)| {
        let (app, copy) = key.strip_prefix("shop/").unwrap().split_once('-').unwrap_or(("db", "one"));
        let spec = PodSpec::new(key).on(node).label("app", app).label("copy", copy);
        spec.serve(Transport::Tcp, 80).serve(Transport::Udp, 53)
    }))
    .unwrap();
    lab.apply(POLICIES).unwrap();
    lab
}

fn at(pod: &Pod, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(pod.ip(family), port)
}

/// Conversations with the db, of webs and of strangers.
struct Talk {
    streams: Vec<(String, Stream)>,
}

impl Talk {
    fn begin(lab: &Lab, clients: &[&str]) -> Self {
        let db = lab.pod("shop/db");
        let ways = clients.iter().flat_map(|client| Family::BOTH.map(|family| (*client, family)));
        let streams = ways.map(|(client, family)| {
            let stream = Stream::start(lab.pod(client).netns(), at(&db, family, 80), PACE).unwrap();
            (format!("{client} {family}"), stream)
        });
        Self { streams: streams.collect() }
    }

    /// Nobody of them has lost anything, and all of them still talk.
    fn notice_nothing(self, lab: &Lab) {
        let now = Instant::now();
        for (who, stream) in &self.streams {
            let echo = until(SETTLES_WITHIN, || Ok(stream.last_echo()), |echo| *echo > now).unwrap();
            assert!(echo > now, "{who} is silent\n{}", drops(lab));
        }
        for (who, stream) in self.streams {
            let report = stream.stop();
            let told = (report.echoed, report.retransmitted, report.broken.clone());
            assert_eq!(told, (report.sent, 0, None), "{who}: {report:?}\n{}", drops(lab));
        }
    }

    /// All of them were heard until they were cut.
    fn are_cut(self) {
        thread::sleep(UNDER_WAY);
        let in_force = Instant::now();
        thread::sleep(UNDER_WAY);
        for (who, stream) in self.streams {
            let last = stream.last_echo();
            let report = stream.abandon();
            assert!(report.echoed > 0 && last < in_force, "{who}: {report:?}");
        }
    }
}

fn drops(lab: &Lab) -> String {
    lab.agents().iter().map(|agent| agent.flows(&["--verdict", "dropped"]).unwrap_or_default()).collect()
}

/// A connection in which nothing is said, accepted by a server that has stopped listening.
struct Quiet {
    client: TcpStream,
    server: TcpStream,
}

impl Quiet {
    fn begin(from: &Pod, to: &Pod, family: Family, port: u16) -> Self {
        let listener = {
            let _inside = to.netns().enter().unwrap();
            TcpListener::bind(at(to, family, port)).unwrap()
        };
        let client = {
            let _inside = from.netns().enter().unwrap();
            TcpStream::connect(at(to, family, port)).unwrap()
        };
        Self { client, server: listener.accept().unwrap().0 }
    }

    /// The server speaks first, and is answered.
    fn speaks(&mut self) -> bool {
        let patience = Some(Duration::from_secs(2));
        self.client.set_read_timeout(patience).unwrap();
        self.server.set_read_timeout(patience).unwrap();
        let mut heard = [0; 4];
        let there = self.server.write_all(b"news").and_then(|()| self.client.read_exact(&mut heard));
        let back = there.and_then(|()| self.client.write_all(b"fine"));
        back.and_then(|()| self.server.read_exact(&mut heard)).is_ok()
    }
}

fn learnt(lab: &Lab) {
    for agent in lab.agents() {
        let learning = |status: &Value| status["running"]["learning"].as_u64();
        let status = until(SETTLES_WITHIN, || agent.status(), |status| learning(status) == Some(0)).unwrap();
        assert_eq!(learning(&status), Some(0), "{status:#}");
    }
}

#[test]
fn streams_of_before_survive_installation_restart_and_uninstallation_or_are_cut() {
    let lab = shop();
    let (db, web) = (lab.pod("shop/db"), lab.pod("shop/web-far"));
    let webs = Talk::begin(&lab, &["shop/web-near", "shop/web-far"]);
    let strangers = Talk::begin(&lab, &["shop/stranger-near", "shop/stranger-far"]);
    let quiet = |from: &Arc<Pod>| {
        Family::BOTH.map(|family| Quiet::begin(from, &db, family, 5432 + u16::from(family == Family::V6)))
    };
    let mut quiet_webs = quiet(&web);
    lab.install().unwrap();
    lab.adopted().unwrap();
    strangers.are_cut();
    learnt(&lab);
    assert!(quiet_webs.iter_mut().all(Quiet::speaks), "{}", drops(&lab));
    for agent in lab.agents() {
        agent.kill9();
        agent.start().unwrap();
    }
    lab.settle().unwrap();
    lab.agents().iter().for_each(Agent::kill9);
    for agent in lab.agents() {
        assert_eq!(remove_all(agent.bpffs()).failed.len(), 0);
        assert!(!agent.bpffs().exists());
    }
    webs.notice_nothing(&lab);
    assert!(quiet_webs.iter_mut().all(Quiet::speaks), "after uninstallation");
    let stranger = lab.pod("shop/stranger-far");
    let anybody = || attempt(stranger.netns(), at(&db, Family::V4, 80), Transport::Tcp, SILENCE);
    let seen = until(SETTLES_WITHIN, anybody, |seen| *seen == Outcome::Reached).unwrap();
    assert_eq!(seen, Outcome::Reached, "nobody enforces any more");
}

#[test]
fn an_adopted_pod_is_an_endpoint_like_any_other() {
    let lab = shop();
    lab.install().unwrap();
    lab.adopted().unwrap();
    learnt(&lab);
    let db = lab.pod("shop/db");
    lab.chain(1).check(lab.node(1).netns(), db.attachment()).unwrap();
    let ask = |from: &str| {
        attempt(lab.pod(from).netns(), at(&db, Family::V4, 80), Transport::Tcp, SILENCE).unwrap()
    };
    let verdicts =
        || [ask("shop/web-near"), ask("shop/web-far"), ask("shop/stranger-near"), ask("shop/stranger-far")];
    let want = [Outcome::Reached, Outcome::Reached, Outcome::Silent, Outcome::Silent];
    assert_eq!(verdicts(), want);

    let endpoints = || lab.agent(1).status().unwrap()["endpoints"].clone();
    let before = endpoints();
    assert_eq!(before.as_array().unwrap().len(), 3);
    lab.agent(1).kill9();
    assert_eq!(verdicts(), want, "while no agent runs");
    lab.agent(1).start().unwrap();
    lab.adopted().unwrap();
    assert_eq!(endpoints(), before, "taken over, not adopted anew");
    let status = lab.agent(1).status().unwrap();
    assert_eq!(
        (&status["running"]["adopted"], &status["datapath"]["firstWritten"]["endpoints"]),
        (&0.into(), &0.into())
    );
    assert_eq!(verdicts(), want);

    lab.stop_pod("shop/db").unwrap();
    let left = |status: &Value| status["endpoints"].as_array().unwrap().len();
    let status = lab.agent(1).status().unwrap();
    assert_eq!(
        (left(&status), &status["running"]["unadopted"]),
        (2, &Value::Array(Vec::new())),
        "{status:#}"
    );
}

#[test]
fn when_everything_was_wiped_while_no_agent_ran_streams_survive_or_are_cut_as_by_an_installation() {
    let lab = shop();
    lab.install().unwrap();
    lab.adopted().unwrap();
    let webs = Talk::begin(&lab, &["shop/web-near", "shop/web-far"]);
    lab.agents().iter().for_each(Agent::kill9);
    for (agent, node) in lab.agents().iter().zip(lab.nodes()) {
        assert_eq!(remove_all(agent.bpffs()).failed.len(), 0);
        // Their own state is enough.
        fs::remove_dir_all(node.dir().join("cni-cache")).unwrap();
    }
    let stranger = lab.pod("shop/stranger-far");
    let open = || attempt(stranger.netns(), at(&lab.pod("shop/db"), Family::V4, 80), Transport::Tcp, SILENCE);
    assert_eq!(until(SETTLES_WITHIN, open, |seen| *seen == Outcome::Reached).unwrap(), Outcome::Reached);
    let strangers = Talk::begin(&lab, &["shop/stranger-near", "shop/stranger-far"]);
    lab.agents().iter().try_for_each(Agent::start).unwrap();
    lab.adopted().unwrap();
    strangers.are_cut();
    webs.notice_nothing(&lab);
}

/// The runtime's file for a pod.
fn cache_file(lab: &Lab, pod: &Pod, node: u8) -> PathBuf {
    let name = format!("cbr0-{}-eth0", pod.attachment().container);
    lab.node(node).dir().join("cni-cache/results").join(name)
}

fn unadopted(lab: &Lab, enough: impl Fn(&[(String, String)]) -> bool) -> Vec<(String, String)> {
    let look = || {
        let status = lab.agent(1).status()?;
        let all = status["running"]["unadopted"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(all.iter().map(|one| (text(&one["pod"]), text(&one["why"]))).collect::<Vec<_>>())
    };
    until(SETTLES_WITHIN, look, |seen| enough(seen)).unwrap()
}

#[test]
fn a_pod_that_cannot_be_told_for_sure_is_named_and_left_alone_until_it_can() {
    let lab = shop();
    let (db, web) = (lab.pod("shop/db"), lab.pod("shop/web-near"));
    let files = [&db, &web].map(|pod| cache_file(&lab, pod, 1));
    let [of_db, of_web] = files.each_ref().map(|file| fs::read_to_string(file).unwrap());
    // The db is remembered where the web is, and the web not at all.
    let [in_db, in_web] = [&db, &web].map(|pod| pod.netns().path().display().to_string());
    fs::write(&files[0], of_db.replace(&in_db, &in_web)).unwrap();
    fs::remove_file(&files[1]).unwrap();
    let stream = Talk::begin(&lab, &["shop/stranger-near"]);
    lab.install().unwrap();
    let seen = unadopted(&lab, |seen| !seen.is_empty());
    let named: Vec<_> = seen
        .iter()
        .map(|(pod, why)| (pod.as_str(), why.split(' ').take(3).collect::<Vec<_>>().join(" ")))
        .collect();
    assert_eq!(
        named,
        [("shop/db", "its MAC address".to_owned()), ("shop/web-near", "the runtime remembers".to_owned())],
        "{seen:?}"
    );
    let status = lab.agent(1).status().unwrap();
    let endpoints: Vec<_> =
        status["endpoints"].as_array().unwrap().iter().map(|e| e["pod"].clone()).collect();
    assert_eq!(endpoints, ["shop/stranger-near"], "nobody's policy is on another's interface");
    stream.notice_nothing(&lab);
    // A rollout goes on to the next node only when this one enforces for all of its pods.
    let ready = || get(lab.node(1).netns(), ([127, 0, 0, 1], 9964).into(), "/readyz");
    let (code, why) = ready().unwrap();
    assert!(code == 503 && why.contains("shop/db") && why.contains("shop/web-near"), "{code}: {why}");

    fs::write(&files[0], of_db).unwrap();
    fs::write(&files[1], of_web).unwrap();
    assert_eq!(unadopted(&lab, <[_]>::is_empty), []);
    let (code, why) = until(SETTLES_WITHIN, ready, |(code, _)| *code == 200).unwrap();
    assert_eq!((code, why.as_str()), (200, "ready\n"));
    let want = |from: &&str, to: &&str| {
        from != to
            && (*to != "shop/db" || from.contains("web"))
            && *to != "shop/web-near"
            && *from != "shop/db"
            && (*from != "shop/web-near" || *to == "shop/db")
    };
    let keys = PODS.map(|(key, _)| key);
    let want =
        keys.iter().flat_map(|from| keys.iter().filter(move |to| want(from, to)).map(move |to| (*from, *to)));
    let want = want.collect();
    let matrix = lab.matrix_settled(TCP_V4, &want).unwrap();
    assert_eq!(matrix.reached(), want, "\n{matrix}");
}
