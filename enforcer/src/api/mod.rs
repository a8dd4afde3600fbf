//! How people and the CNI plugin ask: one Unix socket, one JSON object per line.
//!
//! ```text
//! bulkhead-cni ──▶ {"cni":"ADD",…}      ◀── {"answer":"ok"}
//! bulkhead …   ──▶ {"query":"status"}   ◀── {"status":{…}}
//!              ──▶ {"query":"flows",…}  ◀── {"record":{…}} … {"end":null}
//!              ──▶ {"query":"explain",…} ◀── {"explanation":{…}}
//!              ──▶ {"query":"coverage"} ◀── {"coverage":{…}}
//! ```
//!
//! `listener` guards the door, `server` bounds what one caller can cost, a [`Handler`] knows the answers, and
//! `client` is the other end, for the command line.

mod client;
mod listener;
mod server;
#[cfg(test)]
mod tests;

use std::future::Future;

use bulkhead_cni::protocol::{CniAnswer, CniRequest};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::policy::question::Question;

pub use client::{ClientError, coverage, explain, flows, status};
pub use listener::{BindError, Listener};
pub use server::{Limits, serve};

/// Longest answer to a query, in bytes; requests and CNI answers are bounded by
/// [`MAX_LINE`](bulkhead_cni::protocol::MAX_LINE).
pub const MAX_ANSWER: usize = 16 << 20;

/// Knows the answers. Called concurrently; a call that hangs holds one connection and nothing else.
pub trait Handler: Send + Sync + 'static {
    /// Not cancelled when the caller leaves: a half-done ADD would be worse than one nobody waits for.
    fn cni(&self, request: CniRequest) -> impl Future<Output = CniAnswer> + Send;

    /// Everything an operator asks first, as JSON.
    fn status(&self) -> impl Future<Output = Value> + Send;

    /// Why a connection would be allowed or not. The error is for the caller, for instance about an unknown pod.
    fn explain(&self, question: Question) -> impl Future<Output = Result<Value, String>> + Send;

    /// Who is not covered by any policy.
    fn coverage(&self) -> impl Future<Output = Result<Value, String>> + Send;

    /// Records, oldest first. The channel closes after the last one; with `follow` it stays open until the caller
    /// leaves, which the sender sees as a closed channel. A caller who reads slowly fills the channel, so senders must
    /// not wait for it. The error is for the caller, for instance about an unreadable filter.
    fn flows(&self, query: FlowQuery) -> impl Future<Output = Result<mpsc::Receiver<Value>, String>> + Send;
}

/// What is asked for in one line.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Cni(CniRequest),
    Query(Query),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "query", rename_all = "camelCase", deny_unknown_fields)]
pub enum Query {
    Status,
    Flows(FlowQuery),
    Explain(Question),
    Coverage,
}

/// Which flow records are wanted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FlowQuery {
    /// At most this many of the records that are there already, the newest ones; all of them if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<usize>,
    /// Then go on with new ones as they come.
    pub follow: bool,
    /// The flow module's own filter; `null` takes everything.
    pub filter: Value,
}

/// One line of an answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    Status(Value),
    Explanation(Value),
    Coverage(Value),
    Record(Value),
    /// All records have been sent: tells a complete answer from an agent that died on the way.
    End,
    Error(String),
}

/// A line we cannot serve, and how its sender wants to hear it.
#[derive(Clone, Debug, PartialEq)]
pub enum Unreadable {
    Cni(CniAnswer),
    Query(Answer),
}

impl Request {
    /// Told apart by their tag rather than by trying both, so that the error is about what was meant.
    pub fn parse(line: &str) -> Result<Self, Unreadable> {
        let unreadable = |error: serde_json::Error| Unreadable::Query(Answer::Error(error.to_string()));
        let value: Value = serde_json::from_str(line).map_err(unreadable)?;
        if value.get("cni").is_some() {
            return serde_json::from_value(value)
                .map(Self::Cni)
                .map_err(|error| Unreadable::Cni(CniAnswer::Failed { code: 6, message: error.to_string() }));
        }
        serde_json::from_value(value).map(Self::Query).map_err(unreadable)
    }
}
