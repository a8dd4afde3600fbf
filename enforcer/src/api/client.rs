//! The asking end, for the command line.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{SinkExt, Stream, StreamExt, stream};
use serde_json::Value;
use tokio::{net::UnixStream, time::timeout};
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};

use super::{Answer, FlowQuery, MAX_ANSWER, Query};
use crate::policy::question::Question;

/// How long the agent may take for an answer that does not depend on the network.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no answer; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no agent answers on {}: is `bulkhead agent` running on this node? --socket names another socket",
        .socket.display()
    )]
    NotThere { socket: PathBuf, source: io::Error },
    #[error("{} is root's: run this command as root", .socket.display())]
    NotAllowed { socket: PathBuf, source: io::Error },
    #[error("the agent on {} did not answer within {} s; its log may say why", .socket.display(), PATIENCE.as_secs())]
    Silent { socket: PathBuf },
    #[error("the agent on {} broke off its answer; it may have been restarted, ask again", .socket.display())]
    Closed { socket: PathBuf },
    #[error("lost the connection to the agent on {}", .socket.display())]
    Lost { socket: PathBuf, source: LinesCodecError },
    #[error(
        "the agent on {} answers in another protocol; command and agent should be of the same release",
        .socket.display()
    )]
    Garbled { socket: PathBuf },
    #[error("the agent refuses: {0}")]
    Refused(String),
}

/// The agent's status.
pub async fn status(socket: &Path) -> Result<Value, ClientError> {
    one(socket, &Query::Status, |answer| match answer {
        Answer::Status(status) => Some(status),
        _ => None,
    })
    .await
}

/// Why a connection would be allowed or not.
pub async fn explain(socket: &Path, question: Question) -> Result<Value, ClientError> {
    one(socket, &Query::Explain(question), |answer| match answer {
        Answer::Explanation(explanation) => Some(explanation),
        _ => None,
    })
    .await
}

/// Who is not covered by any policy.
pub async fn coverage(socket: &Path) -> Result<Value, ClientError> {
    one(socket, &Query::Coverage, |answer| match answer {
        Answer::Coverage(coverage) => Some(coverage),
        _ => None,
    })
    .await
}

/// One question with one line for an answer.
async fn one(
    socket: &Path,
    query: &Query,
    read: impl FnOnce(Answer) -> Option<Value>,
) -> Result<Value, ClientError> {
    let mut agent = Connection::open(socket, query).await?;
    match timeout(PATIENCE, agent.answer()).await {
        Ok(Ok(answer)) => read(answer).ok_or_else(|| ClientError::Garbled { socket: socket.to_owned() }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ClientError::Silent { socket: socket.to_owned() }),
    }
}

/// Flow records as the agent has them, oldest first; ends after the last one, with `follow` only when the agent does
/// (as [`ClientError::Closed`]). After an error nothing follows.
pub async fn flows(
    socket: &Path,
    query: FlowQuery,
) -> Result<impl Stream<Item = Result<Value, ClientError>> + Unpin + Send + 'static, ClientError> {
    let agent = Connection::open(socket, &Query::Flows(query)).await?;
    let records = stream::try_unfold(agent, |mut agent| async move {
        match agent.answer().await? {
            Answer::Record(record) => Ok(Some((record, agent))),
            Answer::End => Ok(None),
            _ => Err(ClientError::Garbled { socket: agent.socket }),
        }
    });
    Ok(records.boxed())
}

struct Connection {
    socket: PathBuf,
    lines: Framed<UnixStream, LinesCodec>,
}

impl Connection {
    /// Connects and asks.
    async fn open(socket: &Path, query: &Query) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(socket).await.map_err(|source| {
            let socket = socket.to_owned();
            if source.kind() == io::ErrorKind::PermissionDenied {
                ClientError::NotAllowed { socket, source }
            } else {
                ClientError::NotThere { socket, source }
            }
        })?;
        let lines = Framed::new(stream, LinesCodec::new_with_max_length(MAX_ANSWER));
        let mut connection = Self { socket: socket.to_owned(), lines };
        let line = serde_json::to_string(query).expect("queries are JSON already");
        connection
            .lines
            .send(line)
            .await
            .map_err(|source| ClientError::Lost { socket: socket.to_owned(), source })?;
        Ok(connection)
    }

    /// The next line; a refusal is an error.
    async fn answer(&mut self) -> Result<Answer, ClientError> {
        let socket = || self.socket.clone();
        match self.lines.next().await {
            None => Err(ClientError::Closed { socket: socket() }),
            Some(Err(source)) => Err(ClientError::Lost { socket: socket(), source }),
            Some(Ok(line)) => match serde_json::from_str(&line) {
                Ok(Answer::Error(why)) => Err(ClientError::Refused(why)),
                Ok(answer) => Ok(answer),
                Err(_) => Err(ClientError::Garbled { socket: socket() }),
            },
        }
    }
}
