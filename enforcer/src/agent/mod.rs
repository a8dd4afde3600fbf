//! The node agent: sources, CNI and clocks speak to one task that owns everything.
//!
//! ```text
//! source ──── Update ─▶ ┐
//! socket ─── Command ─▶ ├ run: Node (index, endpoints, kernel) ─▶ Names ─▶ flow pipeline ─▶ records
//! kernel ── attached ─▶ │    │                                                ▲ ring buffer
//! clock ──── tick ────▶ ┘    │
//!                            └▶ Status, Examination ─▶ handler ─▶ socket, HTTP
//! ```
//! Killed at any moment, it leaves programs, maps and links pinned and the node enforcing (fail static);
//! the next start takes them over.
mod admission;
mod adoption;
mod arrival;
mod attaching;
mod boot;
pub mod connections;
pub mod explain;
mod handler;
mod imports;
pub mod local;
mod names;
mod node;
pub mod overlay;
pub mod readiness;
mod rounds;
pub mod settings;
pub mod status;
mod succession;
mod surveyor;
mod verbs;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use bulkhead_cni::protocol::CniRequest;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};

use self::{
    admission::Admission,
    arrival::Arrived,
    attaching::Attacher,
    handler::{Command, Handler, Survey},
    names::Publisher,
    node::Node,
    overlay::Netlink,
    rounds::Rounds,
    settings::Settings,
    status::{Around, Status},
    surveyor::Surveyor,
};
use crate::{
    api,
    chain::Keeper,
    events,
    flow::{Pipeline, names::Names, reader::KernelEvents},
    metrics,
    others::Lookout,
    source::running::Source,
};

/// How often what nobody tells us is looked at: addresses, idle connections, stale pins.
const TICK: Duration = Duration::from_secs(2);

/// How often connections are looked at while a table of theirs fills up.
const HASTE: Duration = Duration::from_millis(500);

/// Runs until SIGTERM or SIGINT. The node keeps enforcing afterwards.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let started = Instant::now();
    crate::private::make_private_directory(&settings.state)
        .with_context(|| format!("cannot make {}", settings.state.display()))?;
    crate::datapath::bpffs::require(&settings.bpffs)?;
    let (names, names_seen) = watch::channel(Arc::new(Names::default()));
    let (updates_in, updates) = mpsc::channel(16);
    let (fetched_in, fetched) = mpsc::channel(64);
    let mut arrivals = arrival::in_order(updates, fetched);
    let mut backlog = metrics::Backlog::new(started);
    let source = Source::start(&settings.source(), &settings.node_name, updates_in, fetched_in).await?;
    let publisher = Publisher::new(names, source.watcher().cloned());
    let (attacher, mut fitted) = Attacher::new();
    let (mut node, mut ebpf) = Node::open(&settings, publisher, attacher)?;
    let ring = crate::datapath::kernel::take_ring(&mut ebpf)?;
    drop(ebpf); // maps and programs live on: pinned, and held by `node`

    // Only now: an entry in the chain makes pod starts wait for an agent.
    let chain =
        Keeper::start(&settings.chain, &settings.socket).context("cannot look after the CNI chain")?;
    let lookout = Lookout::start(&settings.chain.installation.directories, &settings.bpffs)?;
    let flow_settings = settings.flow.of_node(&settings.node_name);
    let flows = Pipeline::start(KernelEvents::new(ring)?, names_seen, &flow_settings)?;
    let (commands_in, mut commands) = mpsc::channel(64);
    let handler = Handler::new(commands_in, Arc::clone(&flows.pipeline));
    let listener = api::Listener::bind(&settings.socket).await?;
    // Manifests have no API server that could be told.
    let told = events::publisher::start(source.client(), &settings.node_name, &node.meters);
    let around = Around { started, source, chain, lookout, flows: Arc::clone(&flows.pipeline) };
    let http = settings.metrics_address.0.map(|address| {
        let limits = metrics::server::Limits::default();
        tokio::spawn(metrics::server::run(address, handler.clone(), node.meters.clone(), limits))
    });
    let server = tokio::spawn(api::serve(listener, Arc::new(handler), api::Limits::default()));
    tracing::info!(node = settings.node_name, socket = %settings.socket.display(), "agent is up");

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut clock = interval(TICK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut haste = interval(HASTE);
    haste.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut admission = Admission::default();
    let netlink = Netlink::connect().context("cannot talk to the kernel about routes")?;
    node.follow_links(netlink.links().await.context("routes cannot be read")?);
    let (mut rounds, mut found) = Rounds::new(netlink);
    let (mut surveyor, mut surveys) = Surveyor::new(settings.cni_cache_dir.clone());
    loop {
        tokio::select! {
            arrived = arrivals.recv() => match arrived.context("the source of the cluster's objects ended")? {
                Arrived::Update(update, at) => {
                    backlog.arrived(at);
                    node.learn(update);
                    admission.retry(&mut node, &around.source);
                    surveyor.look_first(&node);
                }
                Arrived::Fetched(fetched) => {
                    admission.fetched(&fetched);
                    admission.retry(&mut node, &around.source);
                }
            },
            Some(survey) = surveys.recv() => {
                surveyor.done();
                node.take_in(survey);
            }
            _ = haste.tick(), if node.tracked.is_pressing() => node.sweep_connections(&around.flows),
            command = commands.recv() => {
                let command = command.context("the socket's task ended")?;
                answer(command, &mut node, &mut admission, &settings, &around);
            }
            Some(fitted) = fitted.recv() => {
                let (ifindex, result) = node.attached(fitted);
                admission.attached(&mut node, ifindex, &result);
                admission.retry(&mut node, &around.source); // who could not join
            }
            Some(round) = found.recv() => {
                rounds.done();
                node.take_round(round);
            }
            _ = clock.tick() => {
                rounds.begin(&node);
                node.tick();
                admission.retry(&mut node, &around.source);
                surveyor.look(&node);
                node.sweep_connections(&around.flows);
                if let Some(told) = &told {
                    let now = events::warnings(&Status::of(&node, &settings, &around), &node.index, &node.source.problems);
                    told.send_if_modified(|before| *before != now && { *before = now; true });
                }
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
        backlog.settle(node.is_in_force(), Instant::now(), &node.meters);
    }
    tracing::info!("agent stops; the node keeps enforcing");
    server.abort();
    http.iter().for_each(tokio::task::JoinHandle::abort);
    let _ = std::fs::remove_file(&settings.socket); // a plugin then knows at once that nobody is there
    drop((arrivals, around)); // ends the source, and lets the flow log be written out
    flows.stop().await;
    Ok(())
}

/// What the socket and the HTTP server want to know or to have done.
fn answer(
    command: Command,
    node: &mut Node,
    admission: &mut Admission,
    settings: &Settings,
    around: &Around,
) {
    // Whoever asked may have gone; then nobody hears the answer.
    match command {
        Command::Cni(request, answer) => match *request {
            CniRequest::Add { attachment, sandbox } => {
                admission.add(attachment, sandbox, &around.source, answer);
                admission.retry(node, &around.source);
            }
            request => {
                if let CniRequest::Del { attachment } = &request {
                    admission.forget(attachment, node);
                }
                let _ = answer.send(node.answer(request));
            }
        },
        Command::Status(answer) => _ = answer.send(Status::of(node, settings, around)),
        Command::Alive(answer) => _ = answer.send(()),
        Command::Examine(question, answer) => _ = answer.send(node.examine(*question)),
        Command::Survey(answer) => {
            let (index, of) = (node.index.unclaimed(), node.compiler.settings().clone());
            let status = Status::of(node, settings, around);
            let _ = answer.send(Survey { index, settings: of, status });
        }
    }
}
