//! One question to the agent: connect, one line out, one line back, all under one deadline.

use std::{io, path::PathBuf, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    runtime,
    time::{sleep, timeout},
};

use crate::protocol::{CniAnswer, CniRequest, MAX_LINE};

/// How often a connection is tried again while the agent's queue of connections is full.
const QUEUE_RETRY: Duration = Duration::from_millis(20);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("no agent answers on {}", .socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error("the agent on {} did not answer within {} s", .socket.display(), .limit.as_secs())]
    Silent { socket: PathBuf, limit: Duration },
    #[error("the agent closed the connection without an answer")]
    Closed,
    #[error("the conversation with the agent broke off")]
    Broken { source: io::Error },
    #[error("the agent's answer is not one line of at most {MAX_LINE} bytes")]
    TooLong,
    #[error("the agent's answer is not in our protocol; are agent and plugin of the same release?")]
    Garbled { source: serde_json::Error },
    #[error("the request is longer than the {MAX_LINE} bytes the agent accepts")]
    RequestTooLong,
}

impl AgentError {
    /// Whether somebody answered, but not in our protocol.
    pub const fn is_protocol(&self) -> bool {
        matches!(self, Self::TooLong | Self::Garbled { .. })
    }
}

/// Where the agent is, and for how long we wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    pub socket: PathBuf,
    /// From connecting to the last byte of the answer.
    pub limit: Duration,
}

impl Agent {
    /// Asks and waits for the answer.
    pub fn ask(&self, request: &CniRequest) -> Result<CniAnswer, AgentError> {
        let mut line = serde_json::to_vec(request).expect("requests are strings, numbers and lists");
        line.push(b'\n');
        if line.len() > MAX_LINE {
            return Err(AgentError::RequestTooLong);
        }
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| AgentError::Broken { source })?;
        runtime.block_on(async {
            timeout(self.limit, self.converse(&line)).await.unwrap_or_else(|_| {
                Err(AgentError::Silent { socket: self.socket.clone(), limit: self.limit })
            })
        })
    }

    async fn converse(&self, request: &[u8]) -> Result<CniAnswer, AgentError> {
        let broken = |source| AgentError::Broken { source };
        let mut stream = self.connect().await?;
        stream.write_all(request).await.map_err(broken)?;
        let mut line = Vec::new();
        let bound = u64::try_from(MAX_LINE).expect("a megabyte fits");
        BufReader::new(stream.take(bound)).read_until(b'\n', &mut line).await.map_err(broken)?;
        match line.last() {
            Some(b'\n') => serde_json::from_slice(&line).map_err(|source| AgentError::Garbled { source }),
            _ if line.len() >= MAX_LINE => Err(AgentError::TooLong),
            _ => Err(AgentError::Closed),
        }
    }

    async fn connect(&self) -> Result<UnixStream, AgentError> {
        loop {
            match UnixStream::connect(&self.socket).await {
                // A full queue is a busy agent, not an absent one; the deadline bounds the patience.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(QUEUE_RETRY).await,
                other => {
                    return other
                        .map_err(|source| AgentError::Unreachable { socket: self.socket.clone(), source });
                }
            }
        }
    }
}
