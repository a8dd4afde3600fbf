//! What the agent measures as it works; everything else that is exported is read from its status.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};

/// Seconds: from a plan that writes a few entries to the first one of a large cluster.
const LATENCY: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Shared by all clones.
#[derive(Clone, Debug)]
pub struct Meters {
    /// From the agent's start until the kernel first held what the cluster says, in seconds.
    pub(super) start: Gauge<f64, AtomicU64>,
    /// From an update's arrival until the kernel holds it, in seconds; failed attempts are waited for.
    pub(super) policy_to_kernel: Histogram,
    /// Compiling and planning, and writing, of each update, in seconds.
    pub(super) plan: Histogram,
    pub(super) write: Histogram,
    pub(super) update_errors: Counter,
    pub(super) adds: Family<AddLabels, Histogram>,
    /// Programs put back that somebody had taken off an interface.
    pub(super) repairs: Counter,
    pub(super) events: Family<EventLabels, Counter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AddLabels {
    /// CNI error code; 0: done.
    code: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct EventLabels {
    outcome: &'static str,
}

impl Default for Meters {
    fn default() -> Self {
        let histogram = || Histogram::new(LATENCY);
        Self {
            start: Gauge::default(),
            policy_to_kernel: histogram(),
            plan: histogram(),
            write: histogram(),
            update_errors: Counter::default(),
            adds: Family::new_with_constructor(histogram),
            repairs: Counter::default(),
            events: Family::default(),
        }
    }
}

impl Meters {
    pub fn planned(&self, took: Duration) {
        self.plan.observe(took.as_secs_f64());
    }

    pub fn written(&self, took: Duration) {
        self.write.observe(took.as_secs_f64());
    }

    pub fn update_failed(&self) {
        self.update_errors.inc();
    }

    pub fn add_answered(&self, code: u32, took: Duration) {
        self.adds.get_or_create(&AddLabels { code }).observe(took.as_secs_f64());
    }

    pub fn repaired(&self) {
        self.repairs.inc();
    }

    pub fn repairs(&self) -> u64 {
        self.repairs.get()
    }

    /// `outcome`: `sent`, `failed` or `suppressed`.
    pub fn event(&self, outcome: &'static str) {
        self.events.get_or_create(&EventLabels { outcome }).inc();
    }
}

/// When what is not in force yet began to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Until the first list is in force: then it began with the agent, and says how long starting takes.
    started: Option<Instant>,
    since: Option<Instant>,
}

impl Backlog {
    pub fn new(started: Instant) -> Self {
        Self { started: Some(started), since: None }
    }

    /// Something arrived; it waits with what waits already.
    pub fn arrived(&mut self, at: Instant) {
        self.since.get_or_insert(at);
    }

    /// Measures the longest wait, if everything is in force now.
    pub fn settle(&mut self, in_force: bool, now: Instant, meters: &Meters) {
        let Some(since) = self.since.take_if(|_| in_force) else { return };
        match self.started.take() {
            Some(started) => _ = meters.start.set(now.saturating_duration_since(started).as_secs_f64()),
            None => meters.policy_to_kernel.observe(now.saturating_duration_since(since).as_secs_f64()),
        }
    }
}
