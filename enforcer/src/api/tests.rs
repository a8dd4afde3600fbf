//! Over a real socket, with callers that are polite, slow, hostile or gone.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its stage must stop")]

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::{FileTypeExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bulkhead_cni::{
    agent::Agent,
    protocol::{AttachmentId, CniAnswer, CniRequest, MAX_LINE},
};
use futures::{StreamExt, TryStreamExt};
use nix::unistd::geteuid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::{AbortHandle, spawn_blocking},
    time::timeout,
};

use super::{
    BindError, ClientError, FlowQuery, Handler, Limits, Listener, MAX_ANSWER, coverage, explain, flows,
    serve, status,
};
use crate::policy::{probe::ProbeProtocol, question::Question};

/// Far longer than anything here takes; bounds a test that would hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers like an agent with three flow records; keeps the sending ends of followers.
#[derive(Default)]
struct FakeAgent {
    asked: Mutex<Vec<CniRequest>>,
    followers: Mutex<Vec<mpsc::Sender<Value>>>,
    status: Mutex<Value>,
}

impl Handler for FakeAgent {
    async fn cni(&self, request: CniRequest) -> CniAnswer {
        assert_ne!(request, CniRequest::Gc { network: "panic".into(), valid: BTreeSet::new() });
        self.asked.lock().unwrap().push(request);
        CniAnswer::TryAgain { message: "pod unknown".into() }
    }

    async fn status(&self) -> Value {
        self.status.lock().unwrap().clone()
    }

    async fn explain(&self, question: Question) -> Result<Value, String> {
        if question.to.port.is_none() {
            return Err("a TCP probe needs a port".into());
        }
        Ok(json!(question))
    }

    async fn coverage(&self) -> Result<Value, String> {
        Ok(json!({"totals": {"pods": 3}}))
    }

    async fn flows(&self, query: FlowQuery) -> Result<mpsc::Receiver<Value>, String> {
        if query.filter != Value::Null && query.filter != json!({"verdict": "DROPPED"}) {
            return Err("filter: no such thing".into());
        }
        let (sender, receiver) = mpsc::channel(8);
        for record in 3 - query.last.unwrap_or(3)..3 {
            sender.try_send(json!(record)).unwrap();
        }
        if query.follow {
            self.followers.lock().unwrap().push(sender);
        }
        Ok(receiver)
    }
}

struct Stage {
    agent: Arc<FakeAgent>,
    socket: PathBuf,
    server: AbortHandle,
    _directory: TempDir,
}

impl Stage {
    async fn set(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run").join("agent.sock");
        let listener = Listener::bind(&socket).await.unwrap();
        let agent = Arc::new(FakeAgent::default());
        let server = tokio::spawn(serve(listener, Arc::clone(&agent), limits)).abort_handle();
        Self { agent, socket, server, _directory: directory }
    }

    async fn usual() -> Self {
        Self::set(limits()).await
    }

    async fn connect(&self) -> BufReader<UnixStream> {
        BufReader::new(UnixStream::connect(&self.socket).await.unwrap())
    }

    /// One line sent, one line back.
    async fn exchange(&self, line: &str) -> Value {
        let mut stream = self.connect().await;
        stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        next(&mut stream).await.unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Tests may run as any user.
fn limits() -> Limits {
    Limits { uid: geteuid().as_raw(), ..Limits::default() }
}

/// The next line; `None` when the agent has closed.
async fn next(stream: &mut BufReader<UnixStream>) -> Option<Value> {
    let mut line = String::new();
    match timeout(PATIENCE, stream.read_line(&mut line)).await.unwrap() {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(serde_json::from_str(&line).unwrap()),
    }
}

fn del() -> CniRequest {
    CniRequest::Del { attachment: AttachmentId { container: "c0ffee".into(), ifname: "eth0".into() } }
}

#[tokio::test]
async fn the_plugins_request_reaches_the_handler_and_its_answer_the_plugin() {
    let stage = Stage::usual().await;
    let plugin = Agent { socket: stage.socket.clone(), limit: PATIENCE };
    let answer = spawn_blocking(move || plugin.ask(&del())).await.unwrap().unwrap();
    assert_eq!(answer, CniAnswer::TryAgain { message: "pod unknown".into() });
    assert_eq!(*stage.agent.asked.lock().unwrap(), [del()]);
}

#[tokio::test]
async fn status_comes_whole() {
    let stage = Stage::usual().await;
    *stage.agent.status.lock().unwrap() = json!({"node": "n1", "broken": ["x".repeat(2 * MAX_LINE)]});
    assert_eq!(status(&stage.socket).await.unwrap(), *stage.agent.status.lock().unwrap());
    *stage.agent.status.lock().unwrap() = json!("x".repeat(MAX_ANSWER));
    assert!(
        matches!(status(&stage.socket).await, Err(ClientError::Refused(why)) if why.contains("larger than"))
    );
}

#[tokio::test]
async fn questions_about_policy_reach_the_handler_and_its_refusals_the_caller() {
    let stage = Stage::usual().await;
    let question = |to: &str| Question {
        from: "shop/cart".parse().unwrap(),
        to: to.parse().unwrap(),
        protocol: ProbeProtocol::Tcp,
        family: None,
    };
    let asked = question("service:shop/database:5432");
    assert_eq!(explain(&stage.socket, asked.clone()).await.unwrap(), json!(asked));
    let refused = explain(&stage.socket, question("shop/database")).await;
    assert!(
        matches!(&refused, Err(ClientError::Refused(why)) if why == "a TCP probe needs a port"),
        "{refused:?}"
    );
    assert_eq!(coverage(&stage.socket).await.unwrap(), json!({"totals": {"pods": 3}}));
    for (line, why) in [
        (r#"{"query":"explain","from":"shop/cart","to":"cart:80","protocol":"TCP"}"#, "`cart:80` is none of"),
        (r#"{"query":"explain","from":"shop/cart","to":"a/b:80","protocol":"GRE"}"#, "unknown variant `GRE`"),
        (r#"{"query":"explain","from":"shop/cart","protocol":"TCP"}"#, "missing field `to`"),
        (r#"{"query":"explain","from":"a/b","to":"a/b:1","protocol":"TCP","x":1}"#, "unknown field `x`"),
        (r#"{"query":"explained"}"#, "unknown variant `explained`"),
    ] {
        let answer = stage.exchange(line).await;
        let said = answer["error"].as_str().unwrap_or_default();
        assert!(said.contains(why), "{line}: {answer}");
    }
}

#[tokio::test]
async fn flows_end_after_the_last_record_unless_followed() {
    let stage = Stage::usual().await;
    let all = flows(&stage.socket, FlowQuery::default()).await.unwrap();
    assert_eq!(all.try_collect::<Vec<_>>().await.unwrap(), [0, 1, 2]);
    let filter = json!({"verdict": "DROPPED"});
    let last = flows(&stage.socket, FlowQuery { last: Some(1), follow: false, filter }).await.unwrap();
    assert_eq!(last.try_collect::<Vec<_>>().await.unwrap(), [2]);

    let query = FlowQuery { last: Some(0), follow: true, filter: Value::Null };
    let mut followed = flows(&stage.socket, query).await.unwrap();
    let stays_open = timeout(Duration::from_millis(100), followed.next()).await;
    assert!(stays_open.is_err(), "{stays_open:?}");
    let sender = stage.agent.followers.lock().unwrap()[0].clone();
    sender.send(json!("new")).await.unwrap();
    assert_eq!(followed.next().await.unwrap().unwrap(), "new");
    drop(followed);
    timeout(PATIENCE, sender.closed()).await.expect("the sender learns that the follower has left");
}

#[tokio::test]
async fn a_refused_filter_and_an_agent_that_dies_are_told_apart_from_the_end() {
    let stage = Stage::usual().await;
    let mut refused =
        flows(&stage.socket, FlowQuery { filter: json!(7), ..FlowQuery::default() }).await.unwrap();
    assert!(
        matches!(refused.next().await, Some(Err(ClientError::Refused(why))) if why == "filter: no such thing")
    );

    let mut followed =
        flows(&stage.socket, FlowQuery { follow: true, ..FlowQuery::default() }).await.unwrap();
    assert_eq!(followed.next().await.unwrap().unwrap(), 0);
    stage.server.abort();
    assert_eq!(followed.next().await.unwrap().unwrap(), 1);
    let rest: Vec<_> = followed.collect().await;
    assert!(
        matches!(rest.last(), Some(Err(ClientError::Closed { .. } | ClientError::Lost { .. }))),
        "{rest:?}"
    );
}

#[tokio::test]
async fn only_so_many_may_follow_and_the_rest_is_still_served() {
    let stage = Stage::set(Limits { followers: 1, ..limits() }).await;
    let follow = || FlowQuery { follow: true, ..FlowQuery::default() };
    let mut first = flows(&stage.socket, follow()).await.unwrap();
    assert_eq!(first.next().await.unwrap().unwrap(), 0);
    let mut second = flows(&stage.socket, follow()).await.unwrap();
    assert!(
        matches!(second.next().await, Some(Err(ClientError::Refused(why))) if why == "1 callers follow flows already")
    );
    assert_eq!(status(&stage.socket).await.unwrap(), Value::Null);
}

#[tokio::test]
async fn an_unreadable_line_is_answered_in_the_language_it_was_meant_in() {
    let stage = Stage::usual().await;
    for (line, key, part) in [
        ("garbage", "error", "expected value"),
        ("", "error", "EOF while parsing"),
        ("[]", "error", ""),
        ("{}", "error", "missing field `query`"),
        (r#"{"query":"everything"}"#, "error", "unknown variant `everything`"),
        (r#"{"query":"flows","folow":true}"#, "error", "unknown field `folow`"),
        (r#"{"query":"flows","last":-1}"#, "error", "invalid value: integer `-1`"),
        (r#"{"cni":"MULTIPLY"}"#, "message", "unknown variant `MULTIPLY`"),
        (r#"{"cni":"DEL","attachment":{"container":"a"}}"#, "message", "missing field `ifname`"),
        (r#"{"cni":"DEL","query":"status"}"#, "message", ""),
        (&"[".repeat(MAX_LINE - 2), "error", "recursion limit exceeded"),
        (&format!(r#"{{"cni":{}"#, r#"{"a":"#.repeat(100_000)), "error", "recursion limit exceeded"),
    ] {
        let answer = stage.exchange(line).await;
        let text = answer[key].as_str().unwrap_or_else(|| panic!("{line}: {answer}"));
        assert!(text.contains(part), "{line}: {answer}");
        assert_eq!(answer.get("answer"), (key == "message").then_some(&json!("failed")), "{line}");
    }
    assert_eq!(*stage.agent.asked.lock().unwrap(), []);
}

#[tokio::test]
async fn one_connection_may_ask_more_than_once_and_survives_its_own_mistakes() {
    let stage = Stage::usual().await;
    let mut stream = stage.connect().await;
    stream.write_all(b"{\"query\":\"status\"}\ngarbage\n{\"query\":\"status\"}\n").await.unwrap();
    assert_eq!(next(&mut stream).await, Some(json!({"status": null})));
    assert!(next(&mut stream).await.unwrap().get("error").is_some());
    assert_eq!(next(&mut stream).await, Some(json!({"status": null})));
}

#[tokio::test]
async fn a_line_without_end_costs_no_more_than_its_bound() {
    let stage = Stage::usual().await;
    let (reader, mut writer) = UnixStream::connect(&stage.socket).await.unwrap().into_split();
    let flood = tokio::spawn(async move {
        let chunk = vec![b'x'; 64 << 10];
        let mut sent = 0;
        while writer.write_all(&chunk).await.is_ok() {
            sent += chunk.len();
        }
        sent
    });
    let mut answer = String::new();
    // The agent closes with our bytes unread, which may reset the connection after the answer.
    let _ = timeout(PATIENCE, BufReader::new(reader).read_line(&mut answer)).await.unwrap();
    let sent = timeout(PATIENCE, flood).await.unwrap().unwrap();
    assert!(sent < 3 * MAX_LINE, "the agent took {sent} bytes");
    assert_eq!(status(&stage.socket).await.unwrap(), Value::Null);
}

#[tokio::test]
async fn silent_and_dribbling_callers_are_shown_out_and_make_room() {
    let stage = Stage::set(Limits { connections: 2, request: Duration::from_millis(300), ..limits() }).await;
    let mut silent = stage.connect().await;
    let mut dribbling = stage.connect().await;
    let writer = tokio::spawn(async move {
        while dribbling.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    // Both places are taken; this one waits in the queue until a caller has used up its time.
    let answer = timeout(PATIENCE, status(&stage.socket)).await.expect("there is room again");
    assert_eq!(answer.unwrap(), Value::Null);
    assert_eq!(next(&mut silent).await, None);
    timeout(PATIENCE, writer).await.expect("the dribbling caller is cut off").unwrap();
}

#[tokio::test]
async fn a_caller_that_does_not_read_is_cut_off() {
    let stage = Stage::set(Limits { answer: Duration::from_millis(300), ..limits() }).await;
    let mut deaf = stage.connect().await;
    deaf.write_all(b"{\"query\":\"flows\",\"follow\":true}\n").await.unwrap();
    assert_eq!(next(&mut deaf).await, Some(json!({"record": 0})));
    let sender = stage.agent.followers.lock().unwrap()[0].clone();
    let large = json!("x".repeat(MAX_LINE));
    let cut_off = timeout(PATIENCE, async { while sender.send(large.clone()).await.is_ok() {} }).await;
    cut_off.expect("the sender learns that nobody reads");
}

#[tokio::test]
async fn a_handler_that_panics_takes_one_connection_with_it_and_no_more() {
    let stage = Stage::set(Limits { connections: 1, ..limits() }).await;
    let mut stream = stage.connect().await;
    stream.write_all(b"{\"cni\":\"GC\",\"network\":\"panic\",\"valid\":[]}\n").await.unwrap();
    assert_eq!(next(&mut stream).await, None);
    assert_eq!(timeout(PATIENCE, status(&stage.socket)).await.unwrap().unwrap(), Value::Null);
}

#[tokio::test]
async fn another_user_is_turned_away_unheard() {
    let stage = Stage::set(Limits { uid: geteuid().as_raw() + 1, ..limits() }).await;
    let mut stream = stage.connect().await;
    // The door may close before or after this is sent.
    let _ = stream.write_all(b"{\"query\":\"status\"}\n").await;
    let mut heard = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"");
    let refused = status(&stage.socket).await;
    assert!(matches!(refused, Err(ClientError::Closed { .. } | ClientError::Lost { .. })), "{refused:?}");
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_socket_and_its_directory_are_its_owners_alone_and_leave_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("run").join("agent.sock");
    let listener = Listener::bind(&socket).await.unwrap();
    assert_eq!((mode(socket.parent().unwrap()), mode(&socket)), (0o700, 0o600));
    let names = |path: &Path| fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names(socket.parent().unwrap()), ["agent.sock"]);
    drop(listener);
    assert_eq!(names(socket.parent().unwrap()), [""; 0]);
}

#[tokio::test]
async fn a_dead_agents_socket_is_replaced_and_a_living_ones_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());

    let listener = Listener::bind(&socket).await.expect("nobody listens any more");
    assert!(matches!(Listener::bind(&socket).await, Err(BindError::InUse(path)) if path == socket));
    UnixStream::connect(&socket).await.expect("the living agent was not disturbed");

    // A successor that took the path by force keeps it when the old agent goes.
    fs::remove_file(&socket).unwrap();
    let _successor = Listener::bind(&socket).await.unwrap();
    drop(listener);
    UnixStream::connect(&socket).await.expect("the successor's socket is still there");
}

#[tokio::test]
async fn what_is_not_a_socket_or_not_ours_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let refused = async |path: PathBuf| Listener::bind(&path).await.map(drop).unwrap_err().to_string();

    fs::write(at("file"), "precious").unwrap();
    symlink(at("file"), at("link")).unwrap();
    for name in ["file", "link"] {
        assert!(refused(at(name)).await.contains("something that is not a socket"));
    }
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "precious");
    assert_eq!(fs::read_link(at("link")).unwrap(), at("file"));

    fs::create_dir(at("open")).unwrap();
    fs::set_permissions(at("open"), Permissions::from_mode(0o777)).unwrap();
    assert!(refused(at("open").join("agent.sock")).await.contains("can be written to by other users"));
    symlink(directory.path(), at("elsewhere")).unwrap();
    assert!(refused(at("elsewhere").join("agent.sock")).await.contains("symbolic links are not followed"));
    assert!(refused(PathBuf::from("agent.sock")).await.contains("must be an absolute path"));
}

#[tokio::test]
async fn without_an_agent_the_error_names_the_socket_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let stale = directory.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    for socket in [directory.path().join("agent.sock"), stale] {
        let error = status(&socket).await.unwrap_err().to_string();
        assert!(error.contains(socket.to_str().unwrap()) && error.contains("`bulkhead agent`"), "{error}");
        assert!(matches!(
            flows(&socket, FlowQuery::default()).await.map(drop),
            Err(ClientError::NotThere { .. })
        ));
    }
}
