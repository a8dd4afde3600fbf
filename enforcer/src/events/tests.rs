//! Who says what, as tables; and an API server on loopback that writes down what it is told.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its stage must stop")]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::to_bytes,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep},
};

use super::{Warning, publisher, publisher::Pace, warnings};
use crate::{
    agent::{
        overlay::Way,
        status::{Datapath, Status},
    },
    chain,
    cluster::{
        Index,
        object::{Key, Kind, Labels, NetworkPolicy, Node, Object, ObjectRef, Pod, Selector},
    },
    metrics::{Meters, exposition},
    source::{Place, Problem},
};

/// Far longer than anything here takes; bounds a test that would hang.
const PATIENCE: Duration = Duration::from_secs(20);

fn status(node: &str) -> Status {
    Status { node: node.to_owned(), ..Status::default() }
}

/// Nodes and, on each, a pod of the shop.
fn cluster(own: &str, nodes: &[&str], policies: &[(&str, &[&str])]) -> Index {
    let mut index = Index::new(Some(own.to_owned()));
    for name in nodes {
        index.apply(Object::Node(Node { name: (*name).to_owned(), ..Node::default() }));
        index.apply(Object::Pod(pod("shop", name, &Labels::new())));
    }
    for (name, defects) in policies {
        index.apply(Object::NetworkPolicy(NetworkPolicy {
            key: Key::new("shop", name),
            labels: Labels::new(),
            subjects: Selector::default(),
            ingress: Some(Vec::new()),
            egress: None,
            defects: defects.iter().map(|defect| (*defect).to_owned()).collect(),
        }));
    }
    index
}

fn pod(namespace: &str, node: &str, labels: &Labels) -> Pod {
    Pod {
        key: Key::new(namespace, format!("pod-{node}")),
        labels: labels.clone(),
        node: Some(node.into()),
        host_network: false,
        finished: false,
        ips: [].into(),
        ports: [].into(),
        workload: None,
        uid: None,
    }
}

fn about(kind: Kind, namespace: &str, name: &str) -> ObjectRef {
    ObjectRef { kind, key: Key::new(namespace, name) }
}

#[test]
fn what_is_wrong_is_told_about_the_object_that_is_concerned() {
    let index = cluster(
        "n1",
        &["n1"],
        &[("bad", &["spec.egress[0]: no", "spec.egress[1]: nor this"]), ("good", &[])],
    );
    let problem = |object: Option<ObjectRef>, message: &str| Problem {
        place: Place::File { path: "a.yaml".into(), line: 3 },
        object,
        field: Some("spec.ports[0]".into()),
        message: message.into(),
        effect: "its backends are not known".into(),
    };
    let problems = [
        problem(Some(about(Kind::NetworkPolicy, "shop", "bad")), "told by its defects already"),
        problem(Some(about(Kind::Service, "shop", "web")), "not a\nport"),
        problem(None, "nobody's"),
    ];
    let mut status = status("n1");
    status.datapath = Datapath {
        error: Some("map RULES is too small: 9 entries needed, 8 possible".into()),
        ..Datapath::default()
    };
    status.chain = chain::Status {
        directory: "/etc/cni/net.d".into(),
        unchained: vec!["10-other.conflist".into()],
        ..chain::Status::default()
    };
    status.ways = vec![
        Way { interface: "flannel.1".into(), error: String::new() },
        Way { interface: "flannel-wg".into(), error: "no Ethernet header".into() },
    ];
    let told: Vec<_> = warnings(&status, &index, &problems)
        .into_iter()
        .map(|w| (w.about.to_string(), w.reason, w.action, w.note))
        .collect();
    let want = [
        (
            "Node n1",
            "MapFull",
            "KeepingLastPolicy",
            "bulkhead enforces its last complete policy: map RULES is too small: 9 entries needed, 8 possible",
        ),
        (
            "Node n1",
            "NotInCniChain",
            "NotEnforcing",
            "bulkhead-cni is not in /etc/cni/net.d/10-other.conflist: pods wired by it are not enforced",
        ),
        (
            "Node n1",
            "WayNotGuarded",
            "JudgingBeforeTranslation",
            "bulkhead cannot judge what leaves by flannel-wg: no Ethernet header. Services are open only to pods that may reach all backends",
        ),
        (
            "NetworkPolicy shop/bad",
            "PolicyNotHonoured",
            "Isolating",
            "bulkhead isolates the pods that this policy selects, and admits nothing by what it cannot honour: spec.egress[0]: no; spec.egress[1]: nor this",
        ),
        (
            "Service shop/web",
            "ObjectNotHonoured",
            "Reading",
            "bulkhead: spec.ports[0]: not a port (its backends are not known)",
        ),
    ];
    assert_eq!(
        told,
        want.map(|(about, reason, action, note)| (about.to_owned(), reason, action, note.to_owned()))
    );
}

/// Nodes that would speak about the policies, by policy.
fn speakers(nodes: &[&str], policies: &[(&str, &[&str])], agents_on: &[&str]) -> Vec<(String, String)> {
    let mut speakers = Vec::new();
    for own in nodes {
        let mut index = cluster(own, nodes, policies);
        let label: Labels = [("app.kubernetes.io/name".to_owned(), "bulkhead".to_owned())].into();
        for node in agents_on {
            index.apply(Object::Pod(pod("kube-system", node, &label)));
        }
        let told = warnings(&status(own), &index, &[]).into_iter();
        speakers.extend(told.map(|warning| (warning.about.key.name.to_string(), (*own).to_owned())));
    }
    speakers.sort();
    speakers
}

#[test]
fn of_many_nodes_one_speaks_about_a_policy_and_the_burden_is_shared() {
    let nodes: Vec<String> = (0..20).map(|n| format!("n{n}")).collect();
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let names: Vec<String> = (0..30).map(|n| format!("p{n:02}")).collect();
    let policies: Vec<(&str, &[&str])> = names.iter().map(|name| (name.as_str(), &["no"][..])).collect();
    let told = speakers(&nodes, &policies, &[]);
    assert_eq!(told.iter().map(|(policy, _)| policy).collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
    let busy: BTreeSet<_> = told.iter().map(|(_, node)| node).collect();
    assert!(busy.len() > 8, "{busy:?}");

    let told = speakers(&nodes, &policies, &["n3", "n4"]);
    assert_eq!(told.len(), names.len());
    assert!(told.iter().all(|(_, node)| node == "n3" || node == "n4"), "only where an agent is: {told:?}");
}

#[test]
fn a_long_note_is_cut_to_what_the_api_server_takes() {
    let defect = "é".repeat(2000);
    let index = cluster("n1", &["n1"], &[("bad", &[&defect])]);
    let told: Vec<_> = warnings(&status("n1"), &index, &[]).into_iter().collect();
    assert!(told[0].note.len() <= 1024 && told[0].note.ends_with("é…"), "{}", told[0].note);
}

/// Writes down what it is told; the next answers may be failures.
#[derive(Clone, Default)]
struct ApiServer {
    events: Arc<Mutex<Vec<(String, Value)>>>,
    failures: Arc<Mutex<Vec<StatusCode>>>,
    /// Reading is not allowed.
    unreadable: Arc<Mutex<bool>>,
}

impl ApiServer {
    async fn start(&self) -> (kube::Client, AbortHandle) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(self.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await }).abort_handle();
        let config = kube::Config::new(at.parse().unwrap());
        (kube::Client::try_from(config).unwrap(), server)
    }

    /// `METHOD path` and body of each event, once there are as many.
    async fn told(&self, count: usize) -> Vec<(String, Value)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let events = self.events.lock().unwrap().clone();
            if events.len() >= count || Instant::now() > deadline {
                return events;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn answer(State(server): State<ApiServer>, request: Request) -> Response {
    let call = format!("{} {}", request.method(), request.uri().path());
    let reason = |code: StatusCode| code.canonical_reason().unwrap_or_default().replace(' ', "");
    let failed = |code: StatusCode| {
        let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": reason(code), "code": code.as_u16()});
        (code, body.to_string()).into_response()
    };
    if call.starts_with("GET") {
        if *server.unreadable.lock().unwrap() {
            return failed(StatusCode::FORBIDDEN);
        }
        if call.ends_with("/gone") {
            return failed(StatusCode::NOT_FOUND);
        }
        let name = call.rsplit('/').next().unwrap_or_default();
        let object = json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-of-{name}")},
        });
        return object.to_string().into_response();
    }
    let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let failure = server.failures.lock().unwrap().pop();
    if let Some(code) = failure {
        return failed(code);
    }
    let event: Value = serde_json::from_slice(&body).unwrap();
    server.events.lock().unwrap().push((call, event));
    (StatusCode::CREATED, body).into_response()
}

fn pace() -> Pace {
    Pace {
        jitter: Duration::ZERO,
        gap: Duration::from_millis(1),
        change: Duration::from_millis(50),
        repeat: Duration::from_hours(1),
        rest: Duration::from_millis(5),
        patience: PATIENCE,
    }
}

fn warning(object: ObjectRef, note: &str) -> Warning {
    Warning { about: object, reason: "PolicyNotHonoured", action: "Isolating", note: note.to_owned() }
}

fn policy(name: &str) -> ObjectRef {
    about(Kind::NetworkPolicy, "shop", name)
}

#[tokio::test]
async fn events_reach_the_api_server_with_the_objects_uid_and_each_condition_once() {
    let server = ApiServer::default();
    let (client, running) = server.start().await;
    let both = BTreeSet::from([warning(policy("bad"), "no"), warning(about(Kind::Node, "", "n1"), "full")]);
    let (wanted, seen) = watch::channel(both.clone());
    let meters = Meters::default();
    let publisher = tokio::spawn(publisher::run(client, "n1".into(), seen, meters.clone(), pace()));

    let told = server.told(2).await;
    let by_path = |path: &str| told.iter().find(|(call, _)| call == path).map(|(_, event)| event.clone());
    let event = by_path("POST /apis/events.k8s.io/v1/namespaces/shop/events").unwrap();
    let regarding = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": "shop", "name": "bad", "uid": "uid-of-bad"});
    for (field, want) in [
        ("regarding", &regarding),
        ("type", &json!("Warning")),
        ("reason", &json!("PolicyNotHonoured")),
        ("action", &json!("Isolating")),
        ("note", &json!("no")),
        ("reportingController", &json!("bulkhead")),
        ("reportingInstance", &json!("n1")),
    ] {
        assert_eq!(event[field], *want, "{field} of {event:#}");
    }
    let event = by_path("POST /apis/events.k8s.io/v1/namespaces/default/events").unwrap();
    assert_eq!(event["regarding"], json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1"}));

    // Gone and back again: no news. Other words: news, as the same series.
    wanted.send_replace(BTreeSet::new());
    wanted.send_replace(both);
    wanted.send_replace([warning(policy("bad"), "otherwise")].into());
    let told = server.told(3).await;
    assert_eq!(told.len(), 3, "{told:#?}");
    let (call, event) = &told[2];
    assert!(call.starts_with("PATCH /apis/events.k8s.io/v1/namespaces/shop/events/bad."), "{call}");
    assert_eq!(event["series"]["count"], 2);

    drop(wanted);
    tokio::time::timeout(PATIENCE, publisher).await.expect("it ends with the agent").unwrap();
    let text = exposition::text(&Status::default(), &meters);
    assert!(text.contains("bulkhead_events_total{outcome=\"sent\"} 3"), "{text}");
    running.abort();
}

#[tokio::test]
async fn failures_are_tried_again_counted_and_the_gone_are_left_alone() {
    let server = ApiServer::default();
    server.failures.lock().unwrap().extend([StatusCode::INTERNAL_SERVER_ERROR, StatusCode::FORBIDDEN]);
    let (client, running) = server.start().await;
    let (wanted, seen) =
        watch::channel([warning(policy("gone"), "no"), warning(policy("kept"), "no")].into());
    let meters = Meters::default();
    tokio::spawn(publisher::run(client, "n1".into(), seen, meters.clone(), pace()));
    let told = server.told(1).await;
    assert_eq!(told[0].1["regarding"]["name"], "kept");

    *server.unreadable.lock().unwrap() = true;
    wanted.send_replace([warning(policy("dark"), "no")].into());
    let told = server.told(2).await;
    assert_eq!(told[1].1["regarding"]["uid"], Value::Null, "an Event without a UID is better than none");
    assert_eq!(told.len(), 2, "{told:#?}");
    let text = exposition::text(&Status::default(), &meters);
    for line in ["{outcome=\"failed\"} 2", "{outcome=\"suppressed\"} 1"] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    running.abort();
}
