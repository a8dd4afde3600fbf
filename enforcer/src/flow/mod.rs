//! What happened: from the kernel's events to records that name both ends and the policies that decided.
//!
//! ```text
//! bytes ─ event ─▶ Observation ─ enrich (names, clock) ─▶ Flow ─┬▶ ring ─▶ followers, `bulkhead flows`
//!          ▲                                                    └▶ export ─▶ stdout or rotated file
//!        ended: what the agent finds itself              record: rendered only where it is read
//! ```

pub mod clock;
mod ended;
pub mod enrich;
pub mod event;
pub mod export;
pub mod filter;
pub mod hubble;
pub mod names;
pub mod reader;
pub mod record;
mod render;
pub mod ring;
mod rotate;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bulkhead_ebpf::abi::{Conn, ConnKey, DropCount, DropKey};
use tokio::{sync::watch, task::JoinHandle};

use self::{
    clock::{Clock, Timestamp, monotonic},
    enrich::Flow,
    event::{DecodeError, Observation},
    export::{Exporter, Target},
    names::Names,
    reader::Source,
    record::{Lost, LostSource},
    ring::{Item, Ring},
};

/// Events handled before anything else gets a turn.
const BATCH: usize = 256;
/// After a batch, events gather this long: a wake-up for each would cost more than its record.
const GATHER: Duration = Duration::from_millis(5);
/// How often the offset of the wall clock is taken anew.
const CLOCK_SAMPLE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Settings {
    pub node_name: String,
    pub target: Target,
    /// Records kept in memory.
    pub ring: usize,
}

/// Totals since the agent started.
#[derive(Debug, Default)]
pub struct Counters {
    pub decoded: AtomicU64,
    /// Events that could not be read; told as lost too.
    pub malformed: AtomicU64,
    /// Events that the kernel had no room for, as reported to [`Pipeline::lost_in_kernel`].
    pub lost_in_kernel: AtomicU64,
    /// Records that the exporter's queue had no room for.
    pub lost_in_export: AtomicU64,
    /// Lines written.
    pub exported: AtomicU64,
    /// Writes and rotations that failed; the lines themselves are retried.
    pub export_errors: AtomicU64,
}

/// The running flow log. Cheap to share; records come in from the kernel's events and from the owner of
/// the tables.
#[derive(Debug)]
pub struct Pipeline {
    names: watch::Receiver<Arc<Names>>,
    clock: Clock,
    ring: Arc<Ring>,
    exporter: Exporter,
    counters: Arc<Counters>,
}

/// Ends the flow log.
#[derive(Debug)]
pub struct Handle {
    pub pipeline: Arc<Pipeline>,
    reader: JoinHandle<()>,
}

impl Pipeline {
    /// Starts reading `source` on the current runtime. Fails if the target cannot be opened.
    pub fn start(
        source: impl Source,
        names: watch::Receiver<Arc<Names>>,
        settings: &Settings,
    ) -> io::Result<Handle> {
        let pipeline = Arc::new(Self::new(names, settings, Clock::sampled())?);
        let reader = tokio::spawn(Arc::clone(&pipeline).read(source));
        Ok(Handle { pipeline, reader })
    }

    fn new(names: watch::Receiver<Arc<Names>>, settings: &Settings, clock: Clock) -> io::Result<Self> {
        let counters = Arc::new(Counters::default());
        Ok(Self {
            names,
            clock,
            ring: Arc::new(Ring::new(&settings.node_name, settings.ring)),
            exporter: Exporter::start(&settings.target, &settings.node_name, &counters)?,
            counters,
        })
    }

    pub fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// A connection that fell idle and is removed from its table.
    pub fn ended<A: Copy + Into<IpAddr>>(&self, key: &ConnKey<A>, conn: &Conn) {
        let names = self.names();
        self.record(Observation::ended(key, conn, &names, monotonic()), &names);
    }

    /// Drops that were counted and not sent.
    pub fn suppressed(&self, key: &DropKey, count: DropCount) -> Result<(), DecodeError> {
        let names = self.names();
        self.record(Observation::suppressed(key, count, &names, monotonic())?, &names);
        Ok(())
    }

    /// `count` more events than at the last call that the kernel could not send.
    pub fn lost_in_kernel(&self, count: u64) {
        if count > 0 {
            self.counters.lost_in_kernel.fetch_add(count, Ordering::Relaxed);
            self.lost(count);
        }
    }

    async fn read(self: Arc<Self>, mut source: impl Source) {
        let mut sample = tokio::time::interval(CLOCK_SAMPLE);
        sample.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut batch = Batch { pipeline: &self, names: None, malformed: 0 };
            let mut take = |bytes: &[u8]| batch.take(bytes);
            let drained = tokio::select! {
                drained = source.drain(BATCH, &mut take) => drained,
                _ = sample.tick() => {
                    self.clock.sample();
                    continue;
                }
            };
            batch.finish();
            if let Err(error) = drained {
                tracing::error!(%error, "kernel events cannot be read");
                tokio::time::sleep(CLOCK_SAMPLE).await;
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    fn names(&self) -> Arc<Names> {
        Arc::clone(&self.names.borrow())
    }

    fn record(&self, seen: Observation, names: &Names) {
        self.publish(Item::Flow(Flow::of(seen, names, |time| self.clock.wall(time))));
    }

    fn lost(&self, num_events_lost: u64) {
        let lost = Lost { source: LostSource::Kernel, num_events_lost };
        self.publish(Item::Lost(Timestamp::now(), lost));
    }

    fn publish(&self, item: Item) {
        let item = Arc::new(item);
        self.exporter.send(&item, &self.counters);
        self.ring.push(item);
    }
}

struct Batch<'a> {
    pipeline: &'a Pipeline,
    /// Taken with the first event: before it, they may be as old as the wait for it.
    names: Option<Arc<Names>>,
    malformed: u64,
}

impl Batch<'_> {
    fn take(&mut self, bytes: &[u8]) {
        match Observation::decode(bytes) {
            Ok(seen) => {
                self.pipeline.counters.decoded.fetch_add(1, Ordering::Relaxed);
                let names = self.names.get_or_insert_with(|| self.pipeline.names());
                self.pipeline.record(seen, names);
            }
            Err(error) => {
                tracing::debug!(%error, "kernel event cannot be read");
                self.malformed += 1;
            }
        }
    }

    fn finish(self) {
        if self.malformed > 0 {
            self.pipeline.counters.malformed.fetch_add(self.malformed, Ordering::Relaxed);
            tracing::warn!(count = self.malformed, "kernel events cannot be read");
            self.pipeline.lost(self.malformed);
        }
    }
}

impl Handle {
    /// Stops reading and writes out what is queued, unless the output refuses.
    pub async fn stop(self) {
        self.reader.abort();
        let _cancelled = self.reader.await;
        // Somebody may still hold the pipeline: then its exporter ends with the process.
        if let Some(pipeline) = Arc::into_inner(self.pipeline) {
            let _panicked = tokio::task::spawn_blocking(move || pipeline.exporter.stop()).await;
        }
    }
}
