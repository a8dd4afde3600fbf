//! `/metrics`, `/healthz` and `/readyz`. Nobody who can reach the address can hold more of the agent than a few
//! connections for a few seconds, and those from elsewhere leave room for this node's own: the kubelet's.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep, timeout},
};

use super::{Meters, exposition};
use crate::agent::status::Status;

/// Where the status comes from: the owner task, which may be stuck.
pub trait Source: Send + Sync + 'static {
    /// `None`: it is stopping.
    fn status(&self) -> impl Future<Output = Option<Status>> + Send;

    /// Comes back when the task has had its turn, at next to no cost to it.
    fn alive(&self) -> impl Future<Output = Option<()>> + Send;
}

/// What callers may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at one time from this node's own addresses, and from all others together; more are closed at once.
    pub own: usize,
    pub others: usize,
    /// New connections in one second from all others together; more are closed at once.
    pub others_per_second: u32,
    /// A connection's whole life, however it is spent.
    pub connection: Duration,
    /// How long the owner task may take to answer. The kubelet's own timeout must be longer for its message to arrive.
    pub answer: Duration,
    /// A status is this old at most; within that time, scrapes do not trouble the owner task again.
    pub fresh: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            own: 16,
            others: 16,
            others_per_second: 50,
            connection: Duration::from_secs(10),
            answer: Duration::from_secs(5),
            fresh: Duration::from_millis(500),
        }
    }
}

/// Rest after an address could not be taken, or a connection not accepted.
const BIND_RETRY: Duration = Duration::from_secs(5);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

struct Shared<S> {
    source: S,
    meters: Meters,
    limits: Limits,
    last: Mutex<Option<(Instant, Arc<Status>)>>,
}

/// Serves until dropped. An address that is taken (by the agent that this one replaces) is tried again: a node that
/// enforces must not stop because nobody can watch it.
pub async fn run<S: Source>(address: SocketAddr, source: S, meters: Meters, limits: Limits) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::error!(%address, %error, "metrics and health cannot be served; trying again");
                sleep(BIND_RETRY).await;
            }
        }
    };
    tracing::info!(%address, "metrics and health");
    serve(listener, source, meters, limits).await;
}

pub(super) async fn serve<S: Source>(listener: TcpListener, source: S, meters: Meters, limits: Limits) {
    let shared = Arc::new(Shared { source, meters, limits, last: Mutex::default() });
    let router = Router::new()
        .route("/metrics", get(metrics::<S>))
        .route("/healthz", get(healthz::<S>))
        .route("/readyz", get(readyz::<S>))
        .layer(middleware::from_fn(one_request))
        .with_state(shared);
    // Only ends by an error that `Door` never gives.
    let _ = axum::serve(Door::new(listener, limits), router).await;
}

async fn metrics<S: Source>(State(shared): State<Arc<Shared<S>>>) -> Response {
    match shared.status().await {
        Ok(status) => {
            let text = exposition::text(&status, &shared.meters);
            ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], text).into_response()
        }
        Err(why) => unavailable(&why),
    }
}

/// Is the owner task alive? Asked anew each time: an old answer would say nothing.
async fn healthz<S: Source>(State(shared): State<Arc<Shared<S>>>) -> Response {
    match shared.in_time(shared.source.alive()).await {
        Ok(()) => "alive\n".into_response(),
        Err(why) => unavailable(&why),
    }
}

async fn readyz<S: Source>(State(shared): State<Arc<Shared<S>>>) -> Response {
    match shared.status().await {
        Ok(status) if status.ready => "ready\n".into_response(),
        Ok(status) => unavailable(&status.not_ready.join("\n")),
        Err(why) => unavailable(&why),
    }
}

fn unavailable(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

/// Connections do not idle between requests: they are few.
async fn one_request(request: axum::extract::Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}

impl<S: Source> Shared<S> {
    /// At most [`Limits::fresh`] old; many who ask at once wait for one answer.
    async fn status(&self) -> Result<Arc<Status>, String> {
        let mut last = self.last.lock().await;
        if let Some((at, status)) = &*last
            && at.elapsed() < self.limits.fresh
        {
            return Ok(Arc::clone(status));
        }
        let status = Arc::new(self.in_time(self.source.status()).await?);
        *last = Some((Instant::now(), Arc::clone(&status)));
        Ok(status)
    }

    async fn in_time<T>(&self, answer: impl Future<Output = Option<T>>) -> Result<T, String> {
        match timeout(self.limits.answer, answer).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err("the agent is stopping".to_owned()),
            Err(_) => Err(format!("the agent's owner task has not answered for {:?}", self.limits.answer)),
        }
    }
}

/// Lets in as many as there is room for.
pub(super) struct Door {
    listener: TcpListener,
    own: Arc<Semaphore>,
    others: Arc<Semaphore>,
    limits: Limits,
    /// When the present second began, and how many others have come in it.
    second: Instant,
    came: u32,
}

impl Door {
    pub(super) fn new(listener: TcpListener, limits: Limits) -> Self {
        let room = |places| Arc::new(Semaphore::new(places));
        let (own, others) = (room(limits.own), room(limits.others));
        Self { listener, own, others, limits, second: Instant::now(), came: 0 }
    }

    /// `None`: there is no room for one from there now. `own`: from this node.
    pub(super) fn admit(&mut self, own: bool) -> Option<OwnedSemaphorePermit> {
        if own {
            return Arc::clone(&self.own).try_acquire_owned().ok();
        }
        if self.second.elapsed() >= Duration::from_secs(1) {
            (self.second, self.came) = (Instant::now(), 0);
        }
        self.came += 1;
        let in_rate = self.came <= self.limits.others_per_second;
        Arc::clone(&self.others).try_acquire_owned().ok().filter(|_| in_rate)
    }
}

impl axum::serve::Listener for Door {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    let Some(permit) = self.admit(is_own(&stream, from.ip())) else { continue };
                    let end = Box::pin(sleep(self.limits.connection));
                    return (Guest { stream, end, _permit: permit }, from);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection for metrics or health cannot be accepted");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// From this node: no pod can have such a source address, bulkhead sees to that.
fn is_own(stream: &TcpStream, from: IpAddr) -> bool {
    from.to_canonical().is_loopback() || stream.local_addr().is_ok_and(|own| own.ip() == from)
}

/// A connection that ends in time, whatever the other side does.
pub(super) struct Guest {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Guest {
    fn in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.in_time(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.in_time(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
