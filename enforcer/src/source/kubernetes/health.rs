//! How the watches do, for status and metrics.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::cluster::object::Kind;

/// Shared between the source, which writes it, and whoever asks.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    kinds: Mutex<BTreeMap<Kind, KindHealth>>,
    sent: AtomicU64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct KindHealth {
    /// Complete lists.
    pub lists: u64,
    pub events: u64,
    pub errors: u64,
    pub objects: usize,
    pub version: Option<u64>,
    /// The watch is open.
    pub connected: bool,
    /// When the API server said something last.
    pub heard: Option<Instant>,
    /// The last error, and whether it is over.
    pub error: Option<(String, Instant)>,
}

/// One kind's watch at a moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WatchStatus {
    /// Completely listed at least once.
    pub synced: bool,
    /// The watch is open: changes arrive as they happen.
    pub connected: bool,
    pub objects: usize,
    /// `resourceVersion` up to which everything was told.
    pub version: Option<u64>,
    /// Complete lists after the first one.
    pub relists: u64,
    pub events: u64,
    pub errors: u64,
    /// Seconds since the API server last said something of this kind; `None`: never.
    pub heard_seconds_ago: Option<f64>,
    pub last_error: Option<String>,
    pub last_error_seconds_ago: Option<f64>,
}

impl Health {
    pub fn watches(&self) -> BTreeMap<Kind, WatchStatus> {
        self.lock().iter().map(|(kind, health)| (*kind, health.status())).collect()
    }

    /// Everything is as the API server says now, as far as an open connection can tell.
    pub fn is_current(&self, kind: Kind) -> bool {
        self.lock().get(&kind).is_some_and(|health| health.connected)
    }

    /// Updates sent so far. Versions are told with the update that holds them.
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Acquire)
    }

    pub(super) fn note_sent(&self) {
        self.0.sent.fetch_add(1, Ordering::Release);
    }

    pub(super) fn note(&self, kind: Kind, note: impl FnOnce(&mut KindHealth)) {
        note(self.lock().entry(kind).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Kind, KindHealth>> {
        self.0.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KindHealth {
    fn status(&self) -> WatchStatus {
        let ago = |at: &Instant| at.elapsed().as_secs_f64();
        WatchStatus {
            synced: self.lists > 0,
            connected: self.connected,
            objects: self.objects,
            version: self.version,
            relists: self.lists.saturating_sub(1),
            events: self.events,
            errors: self.errors,
            heard_seconds_ago: self.heard.as_ref().map(ago),
            last_error: self.error.as_ref().map(|(text, _)| text.clone()),
            last_error_seconds_ago: self.error.as_ref().map(|(_, at)| ago(at)),
        }
    }
}

impl WatchStatus {
    /// For people, in a few words.
    pub fn summary(&self) -> String {
        let state = match (self.synced, self.connected) {
            (true, true) => "watched",
            (true, false) => "NOT WATCHED, last state in force",
            (false, _) => "NOT READ YET",
        };
        let heard = self.heard_seconds_ago.map(Duration::from_secs_f64).unwrap_or_default();
        let error = self.last_error.as_ref().filter(|_| !self.connected);
        let error = error.map(|error| format!("; {error}")).unwrap_or_default();
        format!("{state}, {} objects, heard {} s ago{error}", self.objects, heard.as_secs())
    }
}
