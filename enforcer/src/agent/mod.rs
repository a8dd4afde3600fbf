//! The node agent: sources, CNI and clocks speak to one task that owns everything.
//!
//! ```text
//! manifests ─ Update ─▶ ┐
//! socket ─── Command ─▶ ├ run: Node (index, endpoints, kernel) ─▶ Names ─▶ flow pipeline ─▶ records
//! clock ──── tick ────▶ ┘                                                     ▲ ring buffer
//! ```
//! Killed at any moment, it leaves programs, maps and links pinned and the node enforcing (fail static);
//! the next start takes them over.
mod connections;
mod local;
mod names;
mod node;
pub mod settings;
pub mod status;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use bulkhead_cni::protocol::{AttachmentId, CniAnswer, CniRequest, Sandbox};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval},
};

use self::{
    node::{Node, NotAdded},
    settings::Settings,
    status::Status,
};
use crate::{api, flow, source};

/// How often what nobody tells us is looked at: addresses, idle connections, stale pins.
const TICK: Duration = Duration::from_secs(2);
/// How long an ADD waits for its Pod object. The plugin's own deadline (10 s) is longer, so that the
/// answer, not a timeout, says why.
const POD_WAIT: Duration = Duration::from_secs(4);

/// What the socket asks of the owner task.
enum Command {
    Cni(CniRequest, oneshot::Sender<CniAnswer>),
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
    let (mut node, mut ebpf) = Node::open(&settings)?;
    let ring = crate::datapath::kernel::take_ring(&mut ebpf)?;
    drop(ebpf); // maps and programs live on: pinned, and held by `node`

    let (names, names_seen) = watch::channel(Arc::new(node.names(None)));
    let flows = flow::Pipeline::start(ring, names_seen, &settings.flow, &settings.node_name)?;
    let (updates_in, mut updates) = mpsc::channel(16);
    let watcher = tokio::spawn(source::manifest::watch(settings.manifests.clone(), updates_in));
    let (commands_in, mut commands) = mpsc::channel(64);
    let handler = Handler { commands: commands_in, flows: flows.handle() };
    let _server = api::server::Server::bind(&settings.socket, handler)?;
    tracing::info!(node = settings.node_name, socket = %settings.socket.display(), "agent is up");

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut clock = interval(TICK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waiting: Vec<Waiting> = Vec::new();
    loop {
        tokio::select! {
            update = updates.recv() => {
                let Some(update) = update else {
                    watcher.await?.context("the manifests cannot be watched")?;
                    anyhow::bail!("the watch on the manifests ended");
                };
                node.learn(update);
                retry(&mut waiting, &mut node);
            }
            command = commands.recv() => match command {
                Some(Command::Cni(CniRequest::Add { attachment, sandbox }, answer)) => {
                    waiting.push(Waiting { attachment, sandbox, since: Instant::now(), answer });
                    retry(&mut waiting, &mut node);
                }
                Some(Command::Cni(request, answer)) => {
                    if let CniRequest::Del { attachment } = &request {
                        waiting.retain(|add| add.attachment != *attachment);
                    }
                    let _ = answer.send(node.answer(request)); // the client may have gone
                }
                Some(Command::Status(answer)) => {
                    let mut status = Status::of(&node);
                    status.node.clone_from(&settings.node_name);
                    status.uptime_seconds = started.elapsed().as_secs();
                    status.source.kind = "manifests".to_owned();
                    status.source.path = settings.manifests.display().to_string();
                    status.chain = status::Chain::read(&settings.cni_conf_dir);
                    status.flows = flows.status();
                    let _ = answer.send(status);
                }
                None => anyhow::bail!("the socket's task ended"),
            },
            _ = clock.tick() => {
                node.tick();
                retry(&mut waiting, &mut node);
                for record in node.sweep_connections() {
                    flows.report(record);
                }
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
        let next = node.names(Some(&names.borrow()));
        names.send_replace(Arc::new(next));
    }
    tracing::info!("agent stops; the node keeps enforcing");
    watcher.abort();
    flows.stop().await;
    Ok(())
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
