//! Between the agents and an API server, ours or a real one: passes everything on, but for the faults.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    pin::Pin,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{Stream, StreamExt, future, stream};

use super::{
    fault::{Call, Faults, What},
    resource::Target,
    store::Refusal,
    task::Task,
};

/// Makes the socket that the proxy listens on, in whichever namespace that is.
pub type Listen = Arc<dyn Fn(SocketAddr) -> Result<TcpListener> + Send + Sync>;

/// Serves HTTP; while it is stopped, connections are refused.
pub struct Proxy {
    address: SocketAddr,
    listen: Listen,
    upstream: Upstream,
    task: Mutex<Option<Task>>,
}

#[derive(Clone)]
struct Upstream {
    config: kube::Config,
    faults: Faults,
}

/// One per life of the proxy: connections belong to the thread that made them.
#[derive(Clone)]
struct Passing {
    client: kube::Client,
    faults: Faults,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Proxy {
    /// `config` is how the API server is reached, and as whom.
    pub fn start(config: kube::Config, at: SocketAddr, listen: Listen) -> Result<Self> {
        let upstream = Upstream { config, faults: Faults::default() };
        let proxy = Self { address: at, listen, upstream, task: Mutex::new(None) };
        let address = proxy.open(at)?;
        Ok(Self { address, ..proxy })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn faults(&self) -> &Faults {
        &self.upstream.faults
    }

    /// Breaks every connection and refuses new ones.
    pub fn stop(&self) {
        self.task.lock().expect("no holder panics").take();
    }

    /// Listens again where it did.
    pub fn restart(&self) -> Result<()> {
        self.stop();
        // A program that another thread starts holds a copy of the socket until it is under way.
        let in_use = |error: &anyhow::Error| {
            let cause = error.root_cause().downcast_ref::<io::Error>();
            cause.is_some_and(|cause| cause.kind() == io::ErrorKind::AddrInUse)
        };
        for _ in 0..200 {
            match self.open(self.address) {
                Err(error) if in_use(&error) => thread::sleep(Duration::from_millis(10)),
                opened => return opened.map(drop),
            }
        }
        self.open(self.address).map(drop)
    }

    fn open(&self, at: SocketAddr) -> Result<SocketAddr> {
        let Upstream { config, faults } = self.upstream.clone();
        let mut task = self.task.lock().expect("no holder panics");
        ensure!(task.is_none(), "the proxy already runs");
        let listen = Arc::clone(&self.listen);
        // kube's client spawns a task: it is made where it will be used.
        let make = move || {
            let client = kube::Client::try_from(config)?;
            Ok(Router::new().fallback(pass).with_state(Passing { client, faults }))
        };
        let new = Task::serve_made("proxy", move || listen(at), make).context("the proxy cannot listen")?;
        let address = new.address();
        *task = Some(new);
        Ok(address)
    }
}

type Chunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

async fn pass(State(passing): State<Passing>, request: Request) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if !passing.faults.accepts(authorization) {
        return refused(401, "Unauthorized", "Unauthorized");
    }
    let query = request.uri().query().unwrap_or_default();
    let target = Target::parse(request.uri().path());
    let call = match &target {
        Some(target) if target.name.is_some() => Call::Get,
        Some(_) if query.contains("watch=true") => Call::Watch,
        Some(_) if query.contains("continue=") => Call::NextPage,
        _ => Call::List,
    };
    let is_read = request.method() == "GET";
    let fault =
        target.filter(|_| is_read).and_then(|target| passing.faults.draw(target.resource.plural, call));
    match fault {
        Some(What::Refuse(code)) => return refused(code, reason(code), "said the proxy"),
        Some(What::Hang) => return future::pending().await,
        _ => {}
    }
    match forward(&passing.client, request).await {
        Ok((parts, chunks)) => {
            let body = Body::from_stream(spoil(chunks, fault.as_ref()));
            let mut response = (parts.0, body).into_response();
            response.headers_mut().extend(parts.1);
            response
        }
        Err(error) => refused(502, "BadGateway", &format!("{error:#}")),
    }
}

async fn forward(
    client: &kube::Client,
    request: Request,
) -> Result<((StatusCode, axum::http::HeaderMap), Chunks)> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 16 << 20).await?;
    let uri = parts.uri.path_and_query().context("a request has a path")?.to_string();
    let mut passed = axum::http::Request::builder().method(parts.method).uri(uri);
    if let Some(kind) = parts.headers.get(header::CONTENT_TYPE) {
        passed = passed.header(header::CONTENT_TYPE, kind);
    }
    let response = client.send(passed.body(kube::client::Body::from(body.to_vec()))?).await?;
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE).cloned();
    let headers = kind.map(|kind| (header::CONTENT_TYPE, kind)).into_iter().collect();
    let chunks =
        Body::new(response.into_body()).into_data_stream().map(|chunk| chunk.map_err(io::Error::other));
    Ok(((status, headers), Box::pin(chunks)))
}

fn reason(code: u16) -> &'static str {
    match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        410 => "Expired",
        429 => "TooManyRequests",
        500 => "InternalError",
        _ => "Timeout",
    }
}

fn refused(code: u16, reason: &'static str, message: &str) -> Response {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = Refusal::new(code, reason, message).body().to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn spoil(chunks: Chunks, fault: Option<&What>) -> Chunks {
    match fault.cloned() {
        Some(What::Reset(after)) => {
            // A moment later, or what came before would not have been sent either.
            let broken = stream::once(async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Err(io::ErrorKind::ConnectionReset.into())
            });
            Box::pin(first(chunks, after).chain(broken))
        }
        Some(What::EndAfter(after)) => Box::pin(first(chunks, after)),
        Some(What::Drip(size, pause)) => drip(chunks, size, pause),
        // The API server's own end of the watch does not come through either.
        Some(What::Silent) => Box::pin(chunks.filter(|_| future::ready(false)).chain(stream::pending())),
        Some(What::Twice) => events(chunks, |line| vec![line.clone(), line]),
        Some(What::Garble(text)) => {
            events(chunks, move |line| if contains(&line, text) { vec![half(&line)] } else { vec![line] })
        }
        Some(What::GoneMidway) => {
            let gone = Refusal::new(410, "Expired", "too old resource version").body();
            let gone = Bytes::from(format!("{{\"type\":\"ERROR\",\"object\":{gone}}}\n"));
            events(chunks, move |line| vec![line, gone.clone()])
        }
        Some(What::NoBookmarks) => {
            events(chunks, |line| if contains(&line, "\"BOOKMARK\"") { Vec::new() } else { vec![line] })
        }
        _ => chunks,
    }
}

fn contains(line: &Bytes, text: &str) -> bool {
    line.windows(text.len()).any(|window| window == text.as_bytes())
}

fn half(line: &Bytes) -> Bytes {
    let mut half = line[..line.len() / 2].to_vec();
    half.push(b'\n');
    half.into()
}

/// No more than so many bytes.
fn first(chunks: Chunks, bytes: usize) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let left = (chunks, bytes);
    stream::unfold(left, |(mut chunks, left)| async move {
        if left == 0 {
            return None;
        }
        let chunk = chunks.next().await?;
        let chunk = chunk.map(|chunk| chunk.slice(..chunk.len().min(left)));
        let taken = chunk.as_ref().map_or(left, Bytes::len);
        Some((chunk, (chunks, left - taken)))
    })
}

fn drip(chunks: Chunks, size: usize, pause: Duration) -> Chunks {
    Box::pin(chunks.flat_map(move |chunk| {
        let pieces: Vec<io::Result<Bytes>> = match chunk {
            Ok(chunk) => chunk.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect(),
            Err(error) => vec![Err(error)],
        };
        stream::iter(pieces).then(move |piece| async move {
            tokio::time::sleep(pause).await;
            piece
        })
    }))
}

/// Each event of a watch becomes these lines.
fn events(chunks: Chunks, change: impl Fn(Bytes) -> Vec<Bytes> + Send + 'static) -> Chunks {
    let state = (chunks, Vec::new(), change);
    Box::pin(stream::unfold(state, |(mut chunks, mut begun, change)| async move {
        loop {
            match chunks.next().await? {
                Ok(chunk) => {
                    begun.extend_from_slice(&chunk);
                    let Some(end) = begun.iter().rposition(|byte| *byte == b'\n') else { continue };
                    let rest = begun.split_off(end + 1);
                    let lines = begun.split_inclusive(|byte| *byte == b'\n');
                    let lines: Vec<u8> =
                        lines.flat_map(|line| change(Bytes::copy_from_slice(line))).flatten().collect();
                    if lines.is_empty() {
                        begun = rest;
                        continue;
                    }
                    return Some((Ok(lines.into()), (chunks, rest, change)));
                }
                Err(error) => return Some((Err(error), (chunks, begun, change))),
            }
        }
    }))
}
