//! The one task that all watches speak to: what they tell becomes updates.

use std::{collections::BTreeMap, time::Instant};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant as Deadline, sleep_until},
};

use super::{
    health::{Health, KindHealth},
    mirror::{Event, KINDS, Mirror},
    pace::Pace,
    watch::News,
};
use crate::{
    cluster::object::Kind,
    source::{Place, Problem, Update},
};

/// A list of so many objects leaves more freed memory behind than should be kept.
const LARGE_LIST: usize = 5000;
/// Before everything was read once nothing is enforced, so changes need not be kept together: so many go at once.
const UNSYNCED_PORTION: usize = 2000;

pub(super) struct Collector {
    mirror: Mirror,
    health: Health,
    pace: Pace,
    updates: mpsc::Sender<Update>,
    /// True when the namespaces have been listed.
    namespaces: watch::Sender<bool>,
    /// What is wrong with a kind's watch.
    failing: BTreeMap<Kind, String>,
    /// When the first and the last change came that was not sent yet.
    unsent: Option<(Deadline, Deadline)>,
    told_synced: bool,
    /// Who waits for what was fetched to be sent.
    asked: Vec<oneshot::Sender<()>>,
}

impl Collector {
    pub fn new(
        node: &str,
        pace: Pace,
        health: Health,
        updates: mpsc::Sender<Update>,
        namespaces: watch::Sender<bool>,
    ) -> Self {
        Self {
            mirror: Mirror::new(node),
            health,
            pace,
            updates,
            namespaces,
            failing: BTreeMap::new(),
            unsent: None,
            told_synced: false,
            asked: Vec::new(),
        }
    }

    /// Returns when the receiver of the updates, or every sender of news, is gone.
    pub async fn run(mut self, mut news: mpsc::Receiver<(Kind, News)>) {
        loop {
            let due =
                self.unsent.map(|(first, last)| (last + self.pace.quiet).min(first + self.pace.longest));
            tokio::select! {
                told = news.recv() => match told {
                    Some((kind, told)) => self.take(kind, told),
                    None => return,
                },
                () = sleep_until(due.unwrap_or_else(Deadline::now)), if due.is_some() => {
                    if self.send().await.is_err() {
                        return;
                    }
                }
                () = self.updates.closed() => return,
            }
            let portion_is_full = !self.told_synced && self.mirror.pending() >= UNSYNCED_PORTION;
            let overdue = due.is_some_and(|due| due <= Deadline::now());
            if (portion_is_full || overdue) && self.unsent.is_some() && self.send().await.is_err() {
                return;
            }
        }
    }

    fn take(&mut self, kind: Kind, news: News) {
        let failing = self.failing.clone();
        let before = self.mirror.pending();
        let mut urgent = false;
        match news {
            News::Connected => {
                self.health.note(kind, |health| health.connected = true);
                self.failing.remove(&kind);
            }
            News::Closed => self.health.note(kind, |health| health.connected = false),
            News::Failed(error) => {
                self.health.note(kind, |health| {
                    health.connected = false;
                    health.errors += 1;
                    health.error = Some((error.clone(), Instant::now()));
                });
                if self.failing.get(&kind) != Some(&error) {
                    tracing::warn!(%kind, error, "the API server cannot be watched");
                }
                self.failing.insert(kind, error);
            }
            News::Fetched(items, told) => {
                urgent = true;
                self.asked.push(told);
                for item in items {
                    self.mirror.apply(item.reference.kind, Event::Fetched(item));
                }
            }
            News::Told(event) => {
                let is_end = matches!(*event, Event::End(_));
                self.health.note(kind, |health| note(health, &event));
                if matches!(*event, Event::Page(_)) {
                    self.failing.remove(&kind);
                }
                self.mirror.apply(kind, *event);
                let objects = self.mirror.count(kind);
                self.health.note(kind, |health| health.objects = objects);
                if is_end {
                    tracing::info!(%kind, objects, "listed");
                    if objects >= LARGE_LIST {
                        crate::allocator::give_back();
                    }
                }
                if is_end && kind == Kind::Namespace {
                    self.namespaces.send_replace(true);
                }
            }
        }
        let news = self.mirror.pending() != before
            || failing != self.failing
            || (self.mirror.synced() && !self.told_synced);
        if news || urgent {
            let now = Deadline::now();
            let (first, _) = self.unsent.unwrap_or((now, now));
            // What was fetched is waited for.
            self.unsent = Some(if urgent { (now - self.pace.longest, now) } else { (first, now) });
        } else if self.unsent.is_none() {
            self.note_version(kind);
        }
    }

    async fn send(&mut self) -> Result<(), mpsc::error::SendError<Update>> {
        self.unsent = None;
        let synced = self.mirror.synced();
        self.told_synced |= synced;
        let update = Update {
            changes: self.mirror.take_changes(),
            problems: self.problems(),
            ignored: BTreeMap::new(),
            synced,
        };
        self.updates.send(update).await?;
        self.health.note_sent();
        for told in self.asked.drain(..) {
            let _ = told.send(()); // whoever asked may have lost patience
        }
        for kind in KINDS {
            self.note_version(kind);
        }
        Ok(())
    }

    fn note_version(&self, kind: Kind) {
        let version = self.mirror.progress(kind).number();
        self.health.note(kind, |health| health.version = version);
    }

    fn problems(&self) -> Vec<Problem> {
        let watches = self.failing.iter().map(|(kind, error)| Problem {
            place: Place::ApiServer,
            object: None,
            field: None,
            message: format!("{kind} objects cannot be watched: {error}"),
            effect: if self.mirror.is_synced(*kind) {
                "what was known before stays in force"
            } else {
                "until they are read nothing new is enforced and no pod is admitted"
            }
            .to_owned(),
        });
        watches.chain(self.mirror.problems().cloned()).collect()
    }
}

fn note(health: &mut KindHealth, event: &Event) {
    if matches!(event, Event::Begin) {
        health.connected = false;
        return; // our own doing
    }
    health.heard = Some(Instant::now());
    match event {
        Event::End(_) => health.lists += 1,
        Event::Upsert(_) | Event::Delete(_) => health.events += 1,
        _ => {}
    }
}
