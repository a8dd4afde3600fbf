//! What a policy says is what packets meet: before, during and after an edit, from a pod's first packet on.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    cell::RefCell,
    collections::BTreeSet,
    env,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lab::{
    Blocked, Family, Knock, Lab, Outcome, Plan, Pod, PodSpec, Start, Stream, Transport,
    matrix::SETTLES_WITHIN, netns::Netns, probe::attempt, until,
};
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(2);

fn pod(key: &str, node: u8) -> PodSpec {
    let (_, name) = key.split_once('/').unwrap();
    PodSpec::new(key).on(node).label("app", name).serve(Transport::Tcp, 80).serve(Transport::Udp, 53)
}

fn lab_with(pods: impl IntoIterator<Item = PodSpec>) -> Lab {
    let lab = Plan::bulkhead().raise().unwrap();
    for namespace in ["shop", "other"] {
        lab.namespace(namespace, &[]).unwrap();
    }
    lab.start_pods(pods).unwrap();
    lab
}

/// Every pair of these, except the pairs with a different source than the `friend` towards the `guarded`.
fn all_but<'a>(pods: &[&'a str], guarded: &'a str, friend: &'a str) -> BTreeSet<(&'a str, &'a str)> {
    let pairs = pods.iter().flat_map(|from| pods.iter().map(move |to| (*from, *to)));
    pairs.filter(|(from, to)| from != to && (*to != guarded || *from == friend)).collect()
}

const GUARD_DB: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guard-db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: 80}, {port: 53, protocol: UDP}]
";

#[test]
fn a_policy_holds_in_both_families_on_the_same_node_and_across_nodes_and_ends_with_its_deletion() {
    let pods = ["other/far", "other/near", "shop/db", "shop/web"];
    let lab = lab_with([pod("shop/db", 1), pod("shop/web", 2), pod("other/near", 1), pod("other/far", 2)]);
    let everyone: BTreeSet<_> = all_but(&pods, "nobody", "nobody");
    let guarded = all_but(&pods, "shop/db", "shop/web");
    assert_eq!((everyone.len(), guarded.len()), (12, 10));
    let questions = [Family::V4, Family::V6]
        .into_iter()
        .flat_map(|family| [(Transport::Tcp, 80, family), (Transport::Udp, 53, family)]);
    let settles = |want: &BTreeSet<(&str, &str)>, when: &str| {
        for question in questions.clone() {
            let matrix = lab.matrix_settled(question, want).unwrap();
            assert_eq!(matrix.reached(), *want, "{when}\n{matrix}");
            assert!(
                matrix.denied().iter().all(|(s, d)| matrix.outcome(s, d) == Outcome::Silent),
                "{when}\n{matrix}"
            );
        }
    };
    settles(&everyone, "before any policy");
    lab.apply(GUARD_DB).unwrap();
    settles(&guarded, "with the policy");
    let nodes = lab.node_matrix(Transport::Tcp, 80, Family::V4).unwrap();
    assert_eq!(nodes.outcome("node-1", "shop/db"), Outcome::Reached, "a pod's own node probes it\n{nodes}");
    assert_eq!(nodes.outcome("node-2", "shop/db"), Outcome::Silent, "another node is policed\n{nodes}");
    lab.delete("NetworkPolicy", "shop/guard-db").unwrap();
    settles(&everyone, "after its deletion");
}

#[test]
fn egress_policy_holds_a_pod_back() {
    let pods = ["shop/db", "shop/web"];
    let lab = lab_with([pod("shop/db", 1), pod("shop/web", 2)]);
    lab.apply(
        r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-asks-nobody, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Egress]
",
    )
    .unwrap();
    for family in [Family::V4, Family::V6] {
        let want = BTreeSet::from([("shop/web", "shop/db")]);
        let matrix = lab.matrix_settled((Transport::Tcp, 80, family), &want).unwrap();
        assert_eq!(matrix.reached(), want, "replies pass, new connections do not ({pods:?})\n{matrix}");
    }
}

#[test]
fn a_denied_attempt_is_in_the_flow_log_with_both_ends_and_the_policy() {
    let pods = ["other/far", "shop/db", "shop/web"];
    let lab = lab_with([pod("shop/db", 1), pod("shop/web", 1), pod("other/far", 2)]);
    lab.apply(GUARD_DB).unwrap();
    let want = all_but(&pods, "shop/db", "shop/web");
    let matrix = lab.matrix_settled((Transport::Tcp, 80, Family::V4), &want).unwrap();
    assert_eq!(matrix.reached(), want, "\n{matrix}");
    let blocked = |source: &str| Blocked {
        node: "node-1".into(),
        source: source.into(),
        destination: "shop/db".into(),
        transport: Transport::Tcp,
        port: 80,
        direction: "INGRESS".into(),
        reason: "POLICY_DENIED".into(),
        policies: BTreeSet::from(["shop/guard-db".to_owned()]),
    };
    let look = || Ok(lab.agent(1).flow_log()?.iter().filter_map(Blocked::read).collect::<BTreeSet<_>>());
    let want = BTreeSet::from([blocked("other/far")]);
    assert_eq!(until(SETTLES_WITHIN, look, |seen| *seen == want).unwrap(), want);
    let table = lab.agent(1).flows(&["--verdict", "dropped"]).unwrap();
    assert!(
        table.contains("other/far") && table.contains("shop/db") && !table.contains("shop/web"),
        "{table}"
    );
}

/// Starts this many pods (`$LAB_STARTS`), each knocking at doors that are closed to it: from before its ADD on
/// where the door is guarded, from its first act on where the pod itself is. (Between flannel's plugin and
/// ours the pod's own interface is up and unguarded, but no runtime has started a process in it by then.)
#[test]
fn the_first_packet_of_a_new_pod_is_already_judged() {
    let starts: u32 = env::var("LAB_STARTS").map_or(20, |n| n.parse().unwrap());
    let lab = lab_with([pod("shop/db", 1), pod("other/open", 2)]);
    lab.namespace("quarantine", &[]).unwrap();
    lab.apply(GUARD_DB).unwrap();
    lab.apply(
        r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody-leaves, namespace: quarantine}
spec:
  podSelector: {}
  policyTypes: [Egress]
",
    )
    .unwrap();
    let (db, open) = (lab.pod("shop/db"), lab.pod("other/open"));
    let closed = BTreeSet::from([("shop/db", "other/open")]);
    let matrix = lab.matrix_settled((Transport::Tcp, 80, Family::V4), &closed).unwrap();
    assert_eq!(matrix.reached(), closed, "\n{matrix}");
    let mut took = Vec::new();
    for n in 0..starts {
        let node = 1 + u8::try_from(n % 2).unwrap();
        // Closed by the db's ingress, or by the new pod's own egress.
        let (key, door, early) = match n / 2 % 2 {
            0 => (format!("other/late-{n}"), &db, true),
            _ => (format!("quarantine/late-{n}"), &open, false),
        };
        took.push(start_knocking(&lab, pod(&key, node), door, early));
        // As often, a pod that may: the door is there, and opens for the right one at once.
        if n % 4 == 0 {
            let to = SocketAddr::new(db.ip(Family::V4), 80);
            let mut first = None;
            let act = |netns: &Netns| first = Some(attempt(netns, to, Transport::Tcp, PATIENCE).unwrap());
            let spec = pod(&format!("shop/friend-{n}"), 1).label("app", "web");
            let start = Start { first_act: Some(Box::new(act)), ..Start::default() };
            let key = lab.start_pod_with(spec, start).unwrap().key();
            assert_eq!(first, Some(Outcome::Reached), "{key}");
            lab.stop_pod(&key).unwrap();
        }
    }
    took.sort();
    let percentile = |p: usize| took[(took.len() - 1) * p / 100];
    println!("bulkhead-cni in ADD, {starts} starts: p50 {:?}, p99 {:?}", percentile(50), percentile(99));
}

fn start_knocking(lab: &Lab, spec: PodSpec, door: &Pod, early: bool) -> Duration {
    let key = spec.key();
    let (tcp, udp) = (SocketAddr::new(door.ip(Family::V4), 80), SocketAddr::new(door.ip(Family::V6), 53));
    let knock = |netns: &Netns| {
        [(tcp, Transport::Tcp), (udp, Transport::Udp)]
            .map(|(door, transport)| Knock::start(netns, door, transport).unwrap())
    };
    let knocks = RefCell::new(Vec::new());
    let mut first = None;
    let start = Start {
        before_add: early.then(|| -> Box<dyn FnOnce(&Netns)> {
            Box::new(|netns| knocks.borrow_mut().extend(knock(netns)))
        }),
        first_act: Some(Box::new(|netns| {
            if !early {
                knocks.borrow_mut().extend(knock(netns));
            }
            first = Some(attempt(netns, tcp, Transport::Tcp, Duration::from_millis(100)).unwrap());
        })),
    };
    let pod = lab.start_pod_with(spec, start).unwrap();
    assert_eq!(first, Some(Outcome::Silent), "{key}");
    thread::sleep(Duration::from_millis(50)); // and as its status becomes known
    for knock in knocks.into_inner() {
        let report = knock.stop();
        assert!(report.sent > 0, "{key} has knocked: {report:?}");
        assert_eq!(report.reached, 0, "{key}: {report:?}");
    }
    for family in [Family::V4, Family::V6] {
        assert_eq!(door.heard_from(pod.ip(family)), 0, "{} has heard {key}", door.key());
    }
    let took = pod.added_by_bulkhead();
    lab.stop_pod(&key).unwrap();
    took
}

/// Ports that only the first form of the policy admits, and ports that only the second one does.
const FORMS: [[u16; 3]; 2] = [[7001, 7002, 7003], [7011, 7012, 7013]];

fn form(ports: [u16; 3]) -> String {
    format!(
        r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: flips, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: db}}}}
  policyTypes: [Ingress]
  ingress:
    - from: [{{podSelector: {{matchLabels: {{app: web}}}}}}]
      ports: [{{port: 80}}, {{port: {}, protocol: UDP}}, {{port: {}, protocol: UDP}}, {{port: {}, protocol: UDP}}]
",
        ports[0], ports[1], ports[2]
    )
}

#[test]
fn a_policy_edit_flips_whole_and_what_both_forms_allow_notices_nothing() {
    const FLIPS: usize = 10;
    let lab = lab_with([pod("shop/db", 1), pod("shop/web", 1)]);
    let (db, web) = (lab.pod("shop/db"), lab.pod("shop/web"));
    let receivers: Vec<_> = (0..6).map(|i| Receiver::start(db.netns(), FORMS[i % 2][i / 2])).collect();
    lab.apply(&form(FORMS[0])).unwrap();
    let want = BTreeSet::from([("shop/web", "shop/db"), ("shop/db", "shop/web")]);
    assert_eq!(lab.matrix_settled((Transport::Tcp, 80, Family::V4), &want).unwrap().reached(), want);
    let stream =
        Stream::start(web.netns(), SocketAddr::new(db.ip(Family::V4), 80), Duration::from_millis(1)).unwrap();
    await_policy(&lab, "shop/db", "shop/flips");
    await_arrivals(&web, &db, &receivers, 0);

    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, ip) = (Arc::clone(&stop), db.ip(Family::V4));
    let sender = web.netns().spawn(move || {
        // A packet waits in its processor's backlog: those of two could overtake each other before the hook.
        let mut here = CpuSet::new();
        here.set(sched_getcpu().unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &here).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut sent = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            let i = usize::try_from(sent % 6).unwrap();
            socket.send_to(&sent.to_be_bytes(), (ip, FORMS[i % 2][i / 2])).unwrap();
            sent += 1;
            thread::sleep(Duration::from_micros(100));
        }
        sent
    });
    for flip in 1..=FLIPS {
        let fresh = receivers[flip % 2].arrived();
        lab.apply(&form(FORMS[flip % 2])).unwrap();
        let arrived = || Ok(receivers[flip % 2].arrived());
        assert!(until(SETTLES_WITHIN, arrived, |now| *now > fresh + 20).unwrap() > fresh + 20, "flip {flip}");
    }
    stop.store(true, Ordering::Relaxed);
    let sent = sender.unwrap().join().unwrap();
    thread::sleep(Duration::from_millis(100));
    let report = stream.stop();
    assert_eq!(
        (report.broken.clone(), report.echoed, report.retransmitted),
        (None, report.sent, 0),
        "{report:?}"
    );

    // Each datagram tells which form it met; in the order of sending the form changes with the edits and only then.
    let arrived: BTreeSet<u64> = receivers.into_iter().flat_map(Receiver::stop).collect();
    let met: Vec<u64> = (0..sent).map(|n| if arrived.contains(&n) { n % 2 } else { 1 - n % 2 }).collect();
    let changes: Vec<_> =
        met.windows(2).enumerate().filter(|(_, pair)| pair[0] != pair[1]).map(|(n, _)| n).collect();
    assert_eq!(
        (met.first(), changes.len()),
        (Some(&0), FLIPS),
        "of {sent} datagrams, changes at {changes:?}"
    );
}

/// Until the kernel of the pod's node isolates it by this policy.
fn await_policy(lab: &Lab, pod: &str, policy: &str) {
    let isolates = |status: &Value| {
        let endpoints = status["endpoints"].as_array().unwrap();
        let pod = endpoints.iter().find(|e| e["pod"] == pod).unwrap();
        pod["upToDate"] == true && pod["ingress"].as_array().unwrap().contains(&policy.into())
    };
    assert!(
        isolates(&until(SETTLES_WITHIN, || lab.agent(1).status(), isolates).unwrap()),
        "{policy} on {pod}"
    );
}

/// Sends to the first form's ports until one arrives: the policy is in force, and the path is warm.
fn await_arrivals(from: &Pod, to: &Pod, receivers: &[Receiver], form: usize) {
    let socket = {
        let _inside = from.netns().enter().unwrap();
        UdpSocket::bind("0.0.0.0:0").unwrap()
    };
    let look = || {
        socket.send_to(&u64::MAX.to_be_bytes(), (to.ip(Family::V4), FORMS[form][0]))?;
        Ok(receivers[form].arrived())
    };
    assert!(until(SETTLES_WITHIN, look, |arrived| *arrived > 0).unwrap() > 0);
}

/// Notes the numbers of datagrams that arrive at a port.
struct Receiver {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: thread::JoinHandle<Vec<u64>>,
}

impl Receiver {
    fn start(netns: &Netns, port: u16) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&count));
        let socket = {
            let _inside = netns.enter().unwrap();
            UdpSocket::bind(("0.0.0.0", port)).unwrap()
        };
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let thread = thread::spawn(move || {
            let (mut numbers, mut number) = (Vec::new(), [0; 8]);
            while !stopped.load(Ordering::Relaxed) {
                if socket.recv(&mut number).is_ok_and(|length| length == 8) {
                    numbers.push(u64::from_be_bytes(number));
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
            numbers
        });
        Self { stop, count, thread }
    }

    fn arrived(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn stop(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn of_1000_manifests_the_broken_one_is_named_and_999_are_in_force() {
    let pods = ["other/far", "shop/db", "shop/web"];
    let lab = lab_with([pod("shop/db", 1), pod("shop/web", 1), pod("other/far", 2)]);
    for n in 0..999 {
        // One of them is about a pod that is there.
        let app = if n == 500 { "db".to_owned() } else { format!("app-{n}") };
        lab.apply(
            &GUARD_DB.replace("app: db", &format!("app: {app}")).replace("guard-db", &format!("guard-{n}")),
        )
        .unwrap();
    }
    let broken = GUARD_DB.replace("guard-db", "guard-broken").replace("ports: [", "ports: {");
    lab.manifests().write_text("networkpolicy-shop-guard-broken.yaml", &broken).unwrap();
    let start = Instant::now();
    for agent in lab.agents() {
        let told = |status: &serde_json::Value| {
            let policies = status["source"]["objects"]["NetworkPolicy"].as_u64();
            let problems: Vec<_> =
                status["source"]["problems"].as_array().into_iter().flatten().cloned().collect();
            (policies, problems)
        };
        let look = || Ok(told(&agent.status()?));
        let (policies, problems) =
            until(SETTLES_WITHIN, look, |(policies, problems)| *policies == Some(999) && problems.len() == 1)
                .unwrap();
        assert_eq!(policies, Some(999));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].to_string().contains("networkpolicy-shop-guard-broken.yaml"), "{problems:?}");
    }
    println!("999 policies and the broken one known after {:?}", start.elapsed());
    let want = all_but(&pods, "shop/db", "shop/web");
    let matrix = lab.matrix_settled((Transport::Tcp, 80, Family::V4), &want).unwrap();
    assert_eq!(matrix.reached(), want, "\n{matrix}");
}
