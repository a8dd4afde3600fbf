//! Serves the socket. No caller, however slow or strange, can take more than one connection's worth of the agent.

use std::{future::Future, sync::Arc, time::Duration};

use bulkhead_cni::protocol::MAX_LINE;
use futures::{SinkExt, StreamExt};
use serde::Serialize;
use serde_json::Value;
use tokio::{
    net::UnixStream,
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};
use tracing::{debug, error, warn};

use super::{Answer, FlowQuery, Handler, Listener, MAX_ANSWER, Query, Request, Unreadable};

/// What a caller may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at one time; more of them wait in the kernel's queue.
    pub connections: usize,
    /// Connections of these that may follow flows: they stay for hours, and must leave room for pods to start.
    pub followers: usize,
    /// How long a caller may take to send a request, and how long a connection may lie idle.
    pub request: Duration,
    /// How long a caller may take to accept one line of an answer.
    pub answer: Duration,
    /// The one user who is served.
    pub uid: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            followers: 16,
            request: Duration::from_secs(10),
            answer: Duration::from_secs(10),
            uid: 0,
        }
    }
}

/// Rest after a connection could not be accepted, which is when the process runs out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves until dropped; connections end with it.
pub async fn serve<H: Handler>(listener: Listener, handler: Arc<H>, limits: Limits) {
    let connections = Arc::new(Semaphore::new(limits.connections));
    let followers = Arc::new(Semaphore::new(limits.followers));
    let mut conversations = JoinSet::new();
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await.expect("the semaphore is never closed");
        match listener.socket.accept().await {
            Ok((stream, _)) if admitted(&stream, limits.uid) => {
                let (followers, limits) = (Arc::clone(&followers), limits.clone());
                let handler = Arc::clone(&handler);
                conversations.spawn(async move {
                    let mut caller = Caller::new(stream, limits);
                    if let Err(gone) = caller.converse(&*handler, &followers).await {
                        debug!(reason = %gone, "caller left early");
                    }
                    drop(permit);
                });
            }
            Ok(_) => {}
            Err(reason) => {
                warn!(%reason, "cannot accept a connection");
                sleep(ACCEPT_RETRY).await;
            }
        }
        while let Some(ended) = conversations.try_join_next() {
            if let Err(reason) = ended {
                error!(%reason, "a request's handler failed");
            }
        }
    }
}

/// The kernel says who called; the file's mode says the same, but a mode is easily changed.
fn admitted(stream: &UnixStream, uid: u32) -> bool {
    match stream.peer_cred() {
        Ok(caller) if caller.uid() == uid => true,
        Ok(caller) => {
            warn!(uid = caller.uid(), pid = caller.pid(), "caller refused: not root");
            false
        }
        Err(reason) => {
            warn!(%reason, "caller refused: unknown user");
            false
        }
    }
}

/// Why a conversation ended before the caller hung up.
#[derive(Debug, thiserror::Error)]
enum Gone {
    #[error("no request in time")]
    Idle,
    #[error("does not read its answer")]
    NotReading,
    #[error("connection lost")]
    Lost(#[from] LinesCodecError),
}

/// One connection.
struct Caller {
    lines: Framed<UnixStream, LinesCodec>,
    limits: Limits,
}

impl Caller {
    fn new(stream: UnixStream, limits: Limits) -> Self {
        Self { lines: Framed::new(stream, LinesCodec::new_with_max_length(MAX_LINE)), limits }
    }

    /// Request by request, until the caller hangs up.
    async fn converse(&mut self, handler: &impl Handler, followers: &Semaphore) -> Result<(), Gone> {
        while let Some(line) = self.request().await? {
            match Request::parse(&line) {
                Ok(Request::Cni(request)) => {
                    let answer = handler.cni(request).await;
                    self.send(&answer).await?;
                }
                Ok(Request::Query(Query::Status)) => {
                    let status = handler.status().await;
                    self.send(&Answer::Status(status)).await?;
                }
                Ok(Request::Query(Query::Explain(question))) => {
                    let explained = handler.explain(question).await;
                    self.send(&explained.map_or_else(Answer::Error, Answer::Explanation)).await?;
                }
                Ok(Request::Query(Query::Coverage)) => {
                    let covered = handler.coverage().await;
                    self.send(&covered.map_or_else(Answer::Error, Answer::Coverage)).await?;
                }
                Ok(Request::Query(Query::Flows(query))) => self.flows(handler, query, followers).await?,
                Err(Unreadable::Cni(answer)) => self.send(&answer).await?,
                Err(Unreadable::Query(answer)) => self.send(&answer).await?,
            }
        }
        Ok(())
    }

    /// The next line; `None` when the caller has hung up.
    async fn request(&mut self) -> Result<Option<String>, Gone> {
        match timeout(self.limits.request, self.lines.next()).await {
            Err(_) => Err(Gone::Idle),
            Ok(None) => Ok(None),
            Ok(Some(Ok(line))) => Ok(Some(line)),
            Ok(Some(Err(reason))) => {
                self.send(&Answer::Error(format!("the request cannot be read: {reason}"))).await?;
                Err(reason.into())
            }
        }
    }

    async fn flows(
        &mut self,
        handler: &impl Handler,
        query: FlowQuery,
        followers: &Semaphore,
    ) -> Result<(), Gone> {
        let follow = query.follow;
        let Ok(_permit) = follow.then(|| followers.try_acquire()).transpose() else {
            let why = format!("{} callers follow flows already", self.limits.followers);
            return self.send(&Answer::Error(why)).await;
        };
        match handler.flows(query).await {
            Ok(records) => self.records(records, follow).await,
            Err(why) => self.send(&Answer::Error(why)).await,
        }
    }

    async fn records(&mut self, mut records: mpsc::Receiver<Value>, follow: bool) -> Result<(), Gone> {
        loop {
            tokio::select! {
                record = records.recv() => match record {
                    Some(record) => self.send(&Answer::Record(record)).await?,
                    None => return self.send(&Answer::End).await,
                },
                // Without new records nothing would ever tell that the caller has left. Whatever it sends means the
                // same.
                _ = self.lines.next(), if follow => return Err(Gone::Idle),
            }
        }
    }

    async fn send(&mut self, answer: &impl Serialize) -> Result<(), Gone> {
        let mut line = serde_json::to_string(answer).expect("answers are JSON already");
        if line.len() > MAX_ANSWER {
            let why = format!("the answer is larger than {MAX_ANSWER} bytes");
            line = serde_json::to_string(&Answer::Error(why)).expect("a string serializes");
        }
        within(self.limits.answer, self.lines.send(line)).await
    }
}

async fn within(
    limit: Duration,
    send: impl Future<Output = Result<(), LinesCodecError>>,
) -> Result<(), Gone> {
    Ok(timeout(limit, send).await.map_err(|_| Gone::NotReading)??)
}
