//! The text that is scraped, and an HTTP server among callers that are polite, slow, many or hostile.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its stage must stop")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
    time::timeout,
};

use super::{
    Backlog, Meters, exposition,
    server::{Door, Limits, Source, serve},
};
use crate::{
    agent::status::{self, Fill, Status},
    cluster::object::Kind,
    source::kubernetes::WatchStatus,
};

/// Far longer than anything here takes; bounds a test that would hang.
const PATIENCE: Duration = Duration::from_secs(20);

fn status() -> Status {
    let endpoint = |up_to_date| status::Endpoint { up_to_date, ..status::Endpoint::default() };
    Status {
        ready: true,
        version: "1.2.3".into(),
        uptime_seconds: 7,
        endpoints: vec![endpoint(true), endpoint(true), endpoint(false)],
        defects: [("shop/bad".to_owned(), vec!["why".to_owned()])].into(),
        source: status::Source {
            synced: true,
            age_seconds: Some(3),
            watches: [(
                Kind::Pod,
                WatchStatus {
                    synced: true,
                    heard_seconds_ago: Some(4.2),
                    errors: 5,
                    relists: 6,
                    ..WatchStatus::default()
                },
            )]
            .into(),
            objects: [("Pod".to_owned(), 9)].into(),
            problems: vec!["secret.yaml: no".into()],
            ..status::Source::default()
        },
        datapath: status::Datapath {
            updates: 6,
            maps: [("RULES".to_owned(), Fill { entries: 12, capacity: 100 })].into(),
            packets: [("allowed".to_owned(), 40), ("policy-denied".to_owned(), 41)].into(),
            lost_connections: 2,
            pins_restored: 3,
            ..status::Datapath::default()
        },
        flows: status::Flows { lost_in_kernel: 11, decoded: 50, ..status::Flows::default() },
        ..Status::default()
    }
}

/// Samples by name and labels.
fn samples(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| line.rsplit_once(' ').unwrap());
    samples.map(|(name, n)| (name.to_owned(), n.to_owned())).collect()
}

#[test]
fn everything_that_is_known_is_told_under_its_name() {
    let meters = Meters::default();
    meters.add_answered(0, Duration::from_millis(20));
    meters.add_answered(11, Duration::from_secs(4));
    meters.planned(Duration::from_millis(3));
    meters.update_failed();
    meters.repaired();
    meters.event("sent");
    let text = exposition::text(&status(), &meters);
    let samples = samples(&text);
    for (name, want) in [
        (r#"bulkhead_build_info{version="1.2.3",abi="0"}"#, "1"),
        ("bulkhead_ready", "1"),
        (r#"bulkhead_endpoints{state="enforced"}"#, "2"),
        (r#"bulkhead_endpoints{state="not_up_to_date"}"#, "1"),
        (r#"bulkhead_packets_total{verdict="passed",reason="allowed"}"#, "40"),
        (r#"bulkhead_packets_total{verdict="dropped",reason="policy-denied"}"#, "41"),
        (r#"bulkhead_packets_total{verdict="dropped",reason="tenant-boundary"}"#, "0"),
        (r#"bulkhead_cni_add_seconds_count{code="0"}"#, "1"),
        (r#"bulkhead_cni_add_seconds_bucket{le="0.025",code="0"}"#, "1"),
        (r#"bulkhead_cni_add_seconds_bucket{le="2.5",code="11"}"#, "0"),
        ("bulkhead_plan_seconds_count", "1"),
        ("bulkhead_updates_total", "6"),
        ("bulkhead_update_errors_total", "1"),
        ("bulkhead_repairs_total", "1"),
        ("bulkhead_pins_restored_total", "3"),
        (r#"bulkhead_events_total{outcome="sent"}"#, "1"),
        (r#"bulkhead_map_entries{map="RULES"}"#, "12"),
        (r#"bulkhead_map_capacity{map="RULES"}"#, "100"),
        ("bulkhead_kernel_up_to_date", "1"),
        ("bulkhead_policies_not_honoured", "1"),
        ("bulkhead_source_problems", "1"),
        (r#"bulkhead_source_objects{kind="Pod"}"#, "9"),
        (r#"bulkhead_watch_synced{kind="Pod"}"#, "1"),
        (r#"bulkhead_watch_age_seconds{kind="Pod"}"#, "4"),
        (r#"bulkhead_watch_errors_total{kind="Pod"}"#, "5"),
        (r#"bulkhead_watch_relists_total{kind="Pod"}"#, "6"),
        (r#"bulkhead_watch_connected{kind="Pod"}"#, "0"),
        ("bulkhead_lost_connections_total", "2"),
        (r#"bulkhead_flow_lost_total{place="kernel"}"#, "11"),
        ("bulkhead_flow_events_total", "50"),
    ] {
        assert_eq!(samples.get(name).map(String::as_str), Some(want), "{name} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    assert!(!text.contains("secret"), "texts of problems are not metrics");
}

#[test]
fn what_waits_is_measured_from_its_first_arrival_and_only_once_it_is_in_force() {
    let (meters, start) = (Meters::default(), Instant::now());
    let mut backlog = Backlog::new(start);
    let after = |seconds| start + Duration::from_secs(seconds);
    backlog.settle(true, after(1), &meters); // nothing waits
    backlog.arrived(after(2));
    backlog.settle(true, after(3), &meters); // the first list
    backlog.arrived(after(11));
    backlog.settle(false, after(12), &meters);
    backlog.arrived(after(13));
    backlog.settle(true, after(15), &meters);
    backlog.settle(true, after(19), &meters);
    let samples = samples(&exposition::text(&status(), &meters));
    assert_eq!(samples["bulkhead_start_seconds"], "3.0");
    assert_eq!(samples["bulkhead_policy_to_kernel_seconds_count"], "1");
    assert_eq!(samples["bulkhead_policy_to_kernel_seconds_sum"], "4.0");
}

/// An owner task that can be stopped.
struct Owner {
    status: watch::Receiver<Option<Status>>,
    asked: Arc<AtomicUsize>,
}

impl Source for Owner {
    async fn status(&self) -> Option<Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut status = self.status.clone();
        let status = status.wait_for(Option::is_some).await.ok()?;
        status.clone()
    }

    async fn alive(&self) -> Option<()> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.status.clone().wait_for(Option::is_some).await.ok().map(drop)
    }
}

struct Stage {
    address: SocketAddr,
    /// `None`: the owner task is stuck.
    owner: watch::Sender<Option<Status>>,
    asked: Arc<AtomicUsize>,
    server: AbortHandle,
}

impl Stage {
    async fn set(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (owner, seen) = watch::channel(Some(status()));
        let asked = Arc::new(AtomicUsize::new(0));
        let source = Owner { status: seen, asked: Arc::clone(&asked) };
        let server = tokio::spawn(serve(listener, source, Meters::default(), limits)).abort_handle();
        Self { address, owner, asked, server }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Status line and body.
    async fn get(&self, path: &str) -> (String, String) {
        let mut stream = self.connect().await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let text = rest(&mut stream).await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Until the server closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the server closes");
    String::from_utf8_lossy(&bytes).into_owned()
}

const OK: &str = "HTTP/1.1 200 OK";
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable";

#[tokio::test]
async fn each_path_has_its_answer_and_the_connection_then_closes() {
    let stage = Stage::set(Limits { fresh: Duration::ZERO, ..Limits::default() }).await;
    let (line, body) = stage.get("/metrics").await;
    assert_eq!(line, OK);
    assert_eq!(samples(&body)["bulkhead_ready"], "1");
    assert_eq!(stage.get("/healthz").await, (OK.into(), "alive\n".into()));
    assert_eq!(stage.get("/readyz").await, (OK.into(), "ready\n".into()));
    assert_eq!(stage.get("/secrets").await.0, "HTTP/1.1 404 Not Found");

    let not_ready = vec!["a map is full".to_owned(), "a list is missing".to_owned()];
    stage.owner.send_replace(Some(Status { ready: false, not_ready, ..status() }));
    assert_eq!(stage.get("/readyz").await, (UNAVAILABLE.into(), "a map is full\na list is missing\n".into()));
    assert_eq!(stage.get("/healthz").await.0, OK, "alive, though not ready");
}

#[tokio::test]
async fn a_stuck_owner_task_fails_every_probe_in_time() {
    let limits = Limits { answer: Duration::from_millis(50), fresh: Duration::ZERO, ..Limits::default() };
    let stage = Stage::set(limits).await;
    assert_eq!(stage.get("/healthz").await.0, OK);
    stage.owner.send_replace(None);
    for path in ["/healthz", "/readyz", "/metrics"] {
        let (line, body) = stage.get(path).await;
        assert_eq!(line, UNAVAILABLE, "{path}");
        assert!(body.contains("has not answered for 50ms"), "{path}: {body}");
    }
    stage.owner.send_replace(Some(status()));
    assert_eq!(stage.get("/healthz").await.0, OK);
}

#[tokio::test]
async fn many_scrapes_trouble_the_owner_task_once() {
    let stage = Stage::set(Limits { fresh: Duration::from_mins(1), ..Limits::default() }).await;
    for _ in 0..5 {
        assert_eq!(stage.get("/metrics").await.0, OK);
    }
    assert_eq!(stage.asked.load(Ordering::Relaxed), 1);
    assert_eq!(stage.get("/healthz").await.0, OK);
    assert_eq!(stage.asked.load(Ordering::Relaxed), 2, "health is never an old answer");
}

#[tokio::test]
async fn others_than_this_node_are_few_in_a_second_and_leave_it_room() {
    // Every caller of a test is this node itself, so the door is asked directly.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limits = Limits { own: 1, others: 2, others_per_second: 3, ..Limits::default() };
    let mut door = Door::new(listener, limits);
    let (first, second) = (door.admit(false), door.admit(false));
    assert!(first.is_some() && second.is_some());
    assert!(door.admit(false).is_none(), "there is room for two");
    assert!(door.admit(true).is_some(), "and for its own");
    drop((first, second));
    assert!(door.admit(false).is_none(), "the fourth of this second");
    assert!(door.admit(true).is_some());
}

#[tokio::test]
async fn callers_that_say_nothing_or_never_end_are_cut_off() {
    let stage = Stage::set(Limits { connection: Duration::from_millis(100), ..Limits::default() }).await;
    let mut silent = stage.connect().await;
    let mut slow = stage.connect().await;
    slow.write_all(b"GET /metrics HTTP/1.1\r\nX-Slow: ").await.unwrap();
    assert!(!rest(&mut silent).await.contains("200"));
    assert!(!rest(&mut slow).await.contains("200"));
    let mut endless = stage.connect().await;
    let flood = async {
        endless.write_all(b"GET /metrics HTTP/1.1\r\n").await?;
        loop {
            endless.write_all(b"X-Flood: 0123456789012345678901234567890123456789\r\n").await?;
        }
    };
    let refused: std::io::Result<()> = timeout(PATIENCE, flood).await.expect("the server refuses");
    assert!(refused.is_err());
    assert_eq!(stage.get("/healthz").await.0, OK);
}

#[tokio::test]
async fn more_connections_than_there_is_room_for_are_closed_at_once_and_room_comes_back() {
    let stage = Stage::set(Limits { own: 2, ..Limits::default() }).await;
    let (first, second) = (stage.connect().await, stage.connect().await);
    let mut third = stage.connect().await;
    assert_eq!(rest(&mut third).await, "");
    drop((first, second));
    let deadline = Instant::now() + PATIENCE;
    while stage.get("/healthz").await.0 != OK {
        assert!(Instant::now() < deadline, "the room did not come back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
