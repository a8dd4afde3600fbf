//! The node agent: sources, CNI and clocks speak to one task that owns everything.
//!
//! ```text
//! manifests ─ Update ─▶ ┐
//! socket ─── Command ─▶ ├ run: Node (index, endpoints, kernel) ─▶ Names ─▶ flow pipeline ─▶ records
//! clock ──── tick ────▶ ┘                                                     ▲ ring buffer
//! ```
//! Killed at any moment, it leaves programs, maps and links pinned and the node enforcing (fail static);
//! the next start takes them over.
mod adoption;
mod boot;
mod connections;
mod imports;
mod local;
mod names;
mod node;
pub mod overlay;
pub mod readiness;
pub mod settings;
pub mod status;
mod succession;
mod surveyor;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use bulkhead_cni::protocol::{AttachmentId, CniAnswer, CniRequest, Sandbox};
use serde_json::Value;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval},
};

use self::{
    names::Publisher,
    node::{Node, NotAdded},
    overlay::Netlink,
    settings::Settings,
    status::Status,
    surveyor::Surveyor,
};
use crate::{
    api::{self, FlowQuery},
    flow::{Pipeline, names::Names, reader::KernelEvents},
    source::manifest::Watcher,
};

/// How often what nobody tells us is looked at: addresses, idle connections, stale pins.
const TICK: Duration = Duration::from_secs(2);
/// How long an ADD waits for its Pod object. The plugin's own deadline (10 s) is longer, so that the
/// answer, not a timeout, says why.
const POD_WAIT: Duration = Duration::from_secs(4);

/// What the socket asks of the owner task.
enum Command {
    Cni(Box<CniRequest>, oneshot::Sender<CniAnswer>),
    Status(oneshot::Sender<Status>),
}

/// An ADD whose pod is not known yet.
struct Waiting {
    attachment: AttachmentId,
    sandbox: Sandbox,
    since: Instant,
    answer: oneshot::Sender<CniAnswer>,
}

/// Runs until SIGTERM or SIGINT. The node keeps enforcing afterwards.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let started = Instant::now();
    crate::endpoint::store::make_private_directory(&settings.state)
        .with_context(|| format!("cannot make {}", settings.state.display()))?;
    let (names, names_seen) = watch::channel(Arc::new(Names::default()));
    let (updates_in, mut updates) = mpsc::channel(16);
    let watcher = Watcher::start(&settings.manifests, updates_in)?;
    let (mut node, mut ebpf) = Node::open(&settings, Publisher::new(names, watcher))?;
    let ring = crate::datapath::kernel::take_ring(&mut ebpf)?;
    drop(ebpf); // maps and programs live on: pinned, and held by `node`

    let flow_settings = settings.flow.of_node(&settings.node_name);
    let flows = Pipeline::start(KernelEvents::new(ring)?, names_seen, &flow_settings)?;
    let (commands_in, mut commands) = mpsc::channel(64);
    let handler = Handler { commands: commands_in, flows: Arc::clone(&flows.pipeline) };
    let listener = api::Listener::bind(&settings.socket).await?;
    let server = tokio::spawn(api::serve(listener, Arc::new(handler), api::Limits::default()));
    tracing::info!(node = settings.node_name, socket = %settings.socket.display(), "agent is up");

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut clock = interval(TICK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waiting: Vec<Waiting> = Vec::new();
    let netlink = Netlink::connect().context("cannot talk to the kernel about routes")?;
    node.follow_links(netlink.links().await.context("routes cannot be read")?);
    let (mut surveyor, mut surveys) = Surveyor::new(settings.cni_cache_dir.clone());
    loop {
        tokio::select! {
            update = updates.recv() => {
                node.learn(update.context("the watch on the manifests ended")?);
                retry(&mut waiting, &mut node);
                surveyor.look_first(&node);
            }
            Some(survey) = surveys.recv() => {
                surveyor.done();
                node.take_in(survey);
            }
            command = commands.recv() => match command.context("the socket's task ended")? {
                Command::Cni(request, answer) => match *request {
                    CniRequest::Add { attachment, sandbox } => {
                        waiting.push(Waiting { attachment, sandbox, since: Instant::now(), answer });
                        retry(&mut waiting, &mut node);
                    }
                    request => {
                        if let CniRequest::Del { attachment } = &request {
                            waiting.retain(|add| add.attachment != *attachment);
                        }
                        let _ = answer.send(node.answer(request)); // the client may have gone
                    }
                },
                Command::Status(answer) => {
                    let mut status = Status::of(&node, &settings);
                    status.uptime_seconds = started.elapsed().as_secs();
                    status.flows = status::Flows::of(flows.pipeline.counters());
                    let _ = answer.send(status);
                }
            },
            () = tokio::task::yield_now(), if node.is_adopting() => node.go_on_adopting(),
            _ = clock.tick() => {
                match netlink.links().await {
                    Ok(links) => node.follow_links(links),
                    Err(error) => tracing::warn!(%error, "routes cannot be read"),
                }
                node.tick();
                retry(&mut waiting, &mut node);
                surveyor.look(&node);
                node.sweep_connections(&flows.pipeline);
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("agent stops; the node keeps enforcing");
    server.abort();
    let _ = std::fs::remove_file(&settings.socket); // a plugin then knows at once that nobody is there
    drop(updates); // ends the watcher's thread
    flows.stop().await;
    Ok(())
}

/// The socket's side: asks the owner task, or the flow log directly.
struct Handler {
    commands: mpsc::Sender<Command>,
    flows: Arc<Pipeline>,
}

impl api::Handler for Handler {
    async fn cni(&self, request: CniRequest) -> CniAnswer {
        let (answer, answered) = oneshot::channel();
        let stopping = || CniAnswer::TryAgain { message: "the agent is stopping".to_owned() };
        if self.commands.send(Command::Cni(Box::new(request), answer)).await.is_err() {
            return stopping();
        }
        answered.await.unwrap_or_else(|_| stopping())
    }

    async fn status(&self) -> Value {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(Command::Status(answer)).await.is_err() {
            return Value::Null;
        }
        answered.await.map_or(Value::Null, |status| serde_json::to_value(status).unwrap_or_default())
    }

    async fn flows(&self, query: FlowQuery) -> Result<mpsc::Receiver<Value>, String> {
        self.flows.ring().answer(query)
    }
}

/// Answers the ADDs that can be answered by now.
fn retry(waiting: &mut Vec<Waiting>, node: &mut Node) {
    for add in std::mem::take(waiting) {
        let answer = match node.add(&add.attachment, &add.sandbox) {
            Ok(()) => CniAnswer::Ok,
            Err(NotAdded::Answer(answer)) => answer,
            Err(NotAdded::Unknown(_)) if add.since.elapsed() < POD_WAIT => {
                waiting.push(add);
                continue;
            }
            Err(NotAdded::Unknown(message)) => CniAnswer::TryAgain { message },
        };
        if add.answer.send(answer).is_err() {
            // The plugin gave up, and the runtime will call DEL.
            tracing::warn!(container = add.attachment.container, "nobody waits for this ADD any more");
        }
    }
}
