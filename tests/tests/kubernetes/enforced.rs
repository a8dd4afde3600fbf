//! Agents on nodes that watch an API server: what it says is what packets meet.

use std::{collections::BTreeSet, net::SocketAddr, thread, time::Duration};

use lab::{
    AgentOptions, FailurePolicy, Family, Knock, Lab, Outcome, Plan, Pod, PodSpec, Stream, Transport,
    apiserver::{Call, Fault, What},
    chain::PluginError,
    matrix::SETTLES_WITHIN,
    probe::attempt,
    until,
};
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
    let app = name.split('-').next().unwrap();
    PodSpec::new(key).on(node).label("app", app).serve(Transport::Tcp, 80)
}

fn shop(options: AgentOptions) -> Lab {
    let lab = Plan::bulkhead().agent(options).api_server().raise().unwrap();
    lab.namespace("shop", &[]).unwrap();
    lab.start_pods([pod("shop/db", 1), pod("shop/web", 2), pod("shop/other", 2), pod("shop/near", 1)])
        .unwrap();
    lab
}

const PODS: [&str; 4] = ["shop/db", "shop/near", "shop/other", "shop/web"];

fn everyone() -> BTreeSet<(&'static str, &'static str)> {
    let pairs = PODS.into_iter().flat_map(|from| PODS.into_iter().map(move |to| (from, to)));
    pairs.filter(|(from, to)| from != to).collect()
}

fn guarded() -> BTreeSet<(&'static str, &'static str)> {
    everyone().into_iter().filter(|(from, to)| *to != "shop/db" || *from == "shop/web").collect()
}

fn settles(lab: &Lab, want: &BTreeSet<(&str, &str)>, when: &str) {
    let matrix = lab.matrix_settled(TCP_V4, want).unwrap();
    assert_eq!(matrix.reached(), *want, "{when}\n{matrix}");
}

fn at(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.ip(Family::V4), 80)
}

fn ask(from: &Pod, to: &Pod) -> Outcome {
    attempt(from.netns(), at(to), Transport::Tcp, Duration::from_millis(700)).unwrap()
}

fn source(lab: &Lab, node: u8) -> Value {
    lab.agent(node).status().unwrap()["source"].clone()
}

#[test]
fn a_policy_holds_as_soon_as_the_api_server_tells_it_and_as_long() {
    let lab = shop(AgentOptions::default());
    settles(&lab, &everyone(), "before any policy");
    lab.apply(GUARD_DB).unwrap();
    settles(&lab, &guarded(), "with the policy");
    lab.label("Pod", "shop/other", ("app", "web")).unwrap();
    let with_other = guarded().into_iter().chain([("shop/other", "shop/db")]).collect();
    settles(&lab, &with_other, "after a pod's label changed");
    lab.delete("NetworkPolicy", "shop/guard-db").unwrap();
    settles(&lab, &everyone(), "after the policy's deletion");
    lab.settle().unwrap();
    let source = source(&lab, 1);
    assert_eq!((&source["kind"], &source["synced"]), (&json!("kubernetes"), &json!(true)));
    assert_eq!(source["path"], "http://192.168.77.254:6443/");
    assert_eq!(source["objects"]["Pod"], 4);
    for (kind, watch) in source["watches"].as_object().unwrap() {
        assert_eq!((&watch["synced"], &watch["connected"]), (&json!(true), &json!(true)), "{kind}");
    }
}

#[test]
fn with_the_api_server_away_what_was_in_force_stays_and_a_new_pod_is_kept_out_until_it_is_back() {
    let lab = shop(AgentOptions::default());
    lab.apply(GUARD_DB).unwrap();
    settles(&lab, &guarded(), "with the policy");
    let stream =
        Stream::start(lab.pod("shop/web").netns(), at(&lab.pod("shop/db")), Duration::from_millis(2))
            .unwrap();
    let knock = Knock::start(lab.pod("shop/other").netns(), at(&lab.pod("shop/db")), Transport::Tcp).unwrap();
    lab.api().proxy().stop();
    let problems = |source: &Value| source["problems"].as_array().map_or(0, Vec::len);
    let told = until(SETTLES_WITHIN, || Ok(source(&lab, 1)), |source| problems(source) == 6).unwrap();
    assert_eq!((problems(&told), &told["synced"]), (6, &json!(true)), "{told:#}");
    settles(&lab, &guarded(), "with the API server away");

    // The API server knows the pod, the node's agent cannot: closed, the runtime tries again.
    let error = lab.start_pod(pod("shop/late", 1)).unwrap_err();
    let refused = error.downcast_ref::<PluginError>().unwrap();
    assert_eq!((refused.plugin.as_str(), refused.code), ("bulkhead-cni", Some(11)), "{refused}");
    assert!(
        refused.message.contains("shop/late") || refused.to_string().contains("cannot be reached"),
        "{refused}"
    );

    // An agent that starts now has nothing to go by: it leaves the kernel as it is, and lets no pod in.
    lab.agent(1).kill9();
    assert!(lab.agent(1).start_unready().is_ok());
    let status =
        until(SETTLES_WITHIN, || Ok(lab.agent(1).status().unwrap_or_default()), Value::is_object).unwrap();
    assert_eq!(status["source"]["synced"], false, "{status:#}");
    settles(&lab, &guarded(), "after a restart with the API server away");

    lab.api().proxy().restart().unwrap();
    lab.agent(1).await_ready().unwrap();
    let late = lab.start_pod(pod("shop/late", 1)).unwrap();
    assert_eq!(ask(&late, &lab.pod("shop/db")), Outcome::Silent);
    assert_eq!(ask(&late, &lab.pod("shop/web")), Outcome::Reached);
    let report = knock.stop();
    assert_eq!(report.reached, 0, "{report:?}");
    let report = stream.stop();
    assert_eq!((report.echoed, report.broken.clone()), (report.sent, None), "{report:?}");
}

#[test]
fn with_the_api_server_away_an_open_failure_policy_lets_a_new_pod_start() {
    let lab = shop(AgentOptions { failure_policy: FailurePolicy::Open, ..AgentOptions::default() });
    lab.apply(GUARD_DB).unwrap();
    settles(&lab, &guarded(), "with the policy");
    lab.api().proxy().stop();
    let late = lab.start_pod(pod("shop/late", 1)).unwrap();
    // It is nobody that the node knows: no policy lets it in.
    assert_eq!(ask(&late, &lab.pod("shop/db")), Outcome::Silent);
    assert_eq!(ask(&late, &lab.pod("shop/near")), Outcome::Reached);
}

#[test]
fn half_a_new_list_opens_nothing_and_cuts_nothing() {
    let lab = shop(AgentOptions::default());
    lab.apply(GUARD_DB).unwrap();
    settles(&lab, &guarded(), "with the policy");
    lab.settle().unwrap();
    let db = lab.pod("shop/db");
    let stream = Stream::start(lab.pod("shop/web").netns(), at(&db), Duration::from_millis(2)).unwrap();
    let knock = Knock::start(lab.pod("shop/other").netns(), at(&db), Transport::Tcp).unwrap();
    // Every list breaks in the middle of its body, so that what comes later in it seems to be gone.
    let faults = lab.api().faults();
    faults.add(Fault::new(What::Refuse(410)).at(Call::Watch));
    faults.add(Fault::new(What::Reset(900)).at(Call::List));
    let before = faults.asked("networkpolicies", Call::List);
    lab.api().proxy().restart().unwrap();
    let lists = || Ok(faults.asked("networkpolicies", Call::List) - before);
    let tried = until(SETTLES_WITHIN, lists, |lists| *lists >= 6).unwrap();
    assert!(tried >= 6, "{tried}");
    settles(&lab, &guarded(), "while lists break");
    faults.lift();
    lab.settle().unwrap();
    settles(&lab, &guarded(), "after a whole list");
    let report = knock.stop();
    assert!(report.sent > 10, "{report:?}");
    assert_eq!(report.reached, 0, "{report:?}");
    let report = stream.stop();
    assert!(report.sent > 100, "{report:?}");
    assert_eq!((report.echoed, report.broken.clone()), (report.sent, None), "{report:?}");
}

#[test]
fn a_pod_that_no_watch_has_told_is_fetched_by_name_when_it_starts() {
    let lab = shop(AgentOptions::default());
    lab.apply(GUARD_DB).unwrap();
    settles(&lab, &guarded(), "with the policy");
    deafen(&lab, &["pods", "namespaces"]);
    lab.namespace("fresh", &[]).unwrap();
    for (key, node, want) in [
        ("shop/web-2", 1, Outcome::Reached),
        ("shop/stranger", 1, Outcome::Silent),
        ("fresh/web-3", 1, Outcome::Silent),
    ] {
        let late = lab.start_pod(pod(key, node)).unwrap();
        assert_eq!(ask(&late, &lab.pod("shop/db")), want, "{key}");
        assert_eq!(ask(&late, &lab.pod("shop/near")), Outcome::Reached, "{key}");
    }
    assert!(lab.api().faults().asked("pods", Call::Get) >= 3);
}

#[test]
fn a_pod_made_again_under_its_name_is_not_taken_for_the_old_one() {
    let lab = shop(AgentOptions::default());
    lab.start_pod(pod("shop/set-0", 1).label("app", "web")).unwrap();
    lab.apply(GUARD_DB).unwrap();
    lab.settle().unwrap();
    assert_eq!(ask(&lab.pod("shop/set-0"), &lab.pod("shop/db")), Outcome::Reached);
    deafen(&lab, &["pods"]);
    lab.stop_pod("shop/set-0").unwrap();
    let again = lab.start_pod(pod("shop/set-0", 1)).unwrap();
    assert_eq!(ask(&again, &lab.pod("shop/db")), Outcome::Silent, "its labels are others now");
}

/// These watches open, and tell nothing any more.
fn deafen(lab: &Lab, resources: &[&'static str]) {
    let faults = lab.api().faults();
    let asked = || resources.iter().map(|resource| faults.asked(resource, Call::Watch)).collect::<Vec<_>>();
    let before = asked();
    for resource in resources {
        faults.add(Fault::new(What::Silent).on(resource).at(Call::Watch));
    }
    lab.api().proxy().restart().unwrap();
    let agents = u64::try_from(lab.agents().len()).unwrap();
    let all = |now: &Vec<u64>| now.iter().zip(&before).all(|(now, before)| *now >= before + agents);
    let now = until(SETTLES_WITHIN, || Ok(asked()), all).unwrap();
    assert!(all(&now), "{now:?}");
    thread::sleep(Duration::from_millis(50)); // each agent has its answer; a missed one makes the test easier, not false
    let connected = |node| {
        let watches = source(lab, node)["watches"].clone();
        watches.as_object().is_some_and(|all| all.values().all(|watch| watch["connected"] == true))
    };
    let all_connected = || Ok((1..=2).all(connected));
    assert!(until(PATIENCE * 5, all_connected, |connected| *connected).unwrap());
}
