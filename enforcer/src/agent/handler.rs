//! Everybody who asks: turns questions from the socket and over HTTP into commands to the owner task, or asks the
//! flow log directly. What needs a compile or a walk over all pods is worked out here, one at a time, so that the
//! owner task only copies.

use std::sync::Arc;

use bulkhead_cni::protocol::{CniAnswer, CniRequest};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{explain::Examination, status::Status};
use crate::{
    api::{self, FlowQuery},
    cluster::Index,
    flow::Pipeline,
    metrics,
    policy::{Settings, coverage::Coverage, question::Question},
};

/// What is asked of the owner task.
pub enum Command {
    Cni(Box<CniRequest>, oneshot::Sender<CniAnswer>),
    Status(oneshot::Sender<Status>),
    Alive(oneshot::Sender<()>),
    Examine(Box<Question>, oneshot::Sender<Result<Examination, String>>),
    Survey(oneshot::Sender<Survey>),
}

/// What coverage is worked out from.
pub struct Survey {
    pub index: Index,
    pub settings: Settings,
    pub status: Status,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Handler {
    commands: mpsc::Sender<Command>,
    flows: Arc<Pipeline>,
    /// Answers that cost memory and time are given one after the other.
    costly: Arc<Semaphore>,
}

impl Handler {
    pub fn new(commands: mpsc::Sender<Command>, flows: Arc<Pipeline>) -> Self {
        Self { commands, flows, costly: Arc::new(Semaphore::new(1)) }
    }

    /// `None`: the agent is stopping.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.ok()?;
        answered.await.ok()
    }
}

const STOPPING: &str = "the agent is stopping";

/// Away from the tasks that must stay quick.
async fn work_out<T: Serialize + Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<Value, String> {
    let work = move || work().map(|answer| serde_json::to_value(answer).expect("answers are plain data"));
    tokio::task::spawn_blocking(work).await.map_err(|error| format!("the answer failed: {error}"))?
}

impl api::Handler for Handler {
    async fn cni(&self, request: CniRequest) -> CniAnswer {
        let answer = self.ask(|answer| Command::Cni(Box::new(request), answer)).await;
        answer.unwrap_or_else(|| CniAnswer::TryAgain { message: STOPPING.to_owned() })
    }

    async fn status(&self) -> Value {
        let status = self.ask(Command::Status).await;
        status.map_or(Value::Null, |status| serde_json::to_value(status).unwrap_or_default())
    }

    async fn explain(&self, question: Question) -> Result<Value, String> {
        let _turn = self.costly.acquire().await.map_err(|_| STOPPING)?;
        let examination = self.ask(|answer| Command::Examine(Box::new(question), answer)).await;
        let examination = examination.ok_or(STOPPING)??;
        work_out(move || examination.explain()).await
    }

    async fn coverage(&self) -> Result<Value, String> {
        let _turn = self.costly.acquire().await.map_err(|_| STOPPING)?;
        let Survey { index, settings, status } = self.ask(Command::Survey).await.ok_or(STOPPING)?;
        work_out(move || {
            let mut coverage = Coverage::of(&index, &settings);
            coverage.know_own_node(&status.node, &status.not_ready);
            Ok(coverage)
        })
        .await
    }

    async fn flows(&self, query: FlowQuery) -> Result<mpsc::Receiver<Value>, String> {
        self.flows.ring().answer(query)
    }
}

impl metrics::server::Source for Handler {
    async fn status(&self) -> Option<Status> {
        self.ask(Command::Status).await
    }

    async fn alive(&self) -> Option<()> {
        self.ask(Command::Alive).await
    }
}
