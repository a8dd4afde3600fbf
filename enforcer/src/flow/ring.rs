//! The agent's recent records, in memory, with followers.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::{broadcast, mpsc};

use super::{
    clock::Timestamp,
    enrich::Flow,
    filter::Filter,
    record::{Content, Line, Lost, LostSource},
};
use crate::api::FlowQuery;

/// Records kept if not set otherwise: some 0.4 kB each, so 7 MB of the agent's 40 when full.
pub const DEFAULT_RECORDS: usize = 16_384;
/// How far a follower may lag behind before it loses records.
const FOLLOWER_LAG: usize = 4096;
/// Rendered lines that wait for a caller of the socket.
const ANSWER_QUEUE: usize = 64;

#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly all are flows, and all are behind an `Arc`")]
pub enum Item {
    Flow(Flow),
    Lost(Timestamp, Lost),
}

impl Item {
    pub fn time(&self) -> Timestamp {
        match self {
            Self::Flow(flow) => flow.time,
            Self::Lost(time, _) => *time,
        }
    }

    pub fn line(&self, node_name: &str) -> Line {
        let content = match self {
            Self::Flow(flow) => Content::Flow(Box::new(flow.record(node_name))),
            Self::Lost(_, lost) => Content::LostEvents(lost.clone()),
        };
        Line { content, node_name: node_name.into(), time: self.time() }
    }

    /// What was lost may have matched: it is never filtered out but by time.
    fn matches(&self, filter: &Filter) -> bool {
        match self {
            Self::Flow(flow) => filter.matches(flow),
            Self::Lost(time, _) => filter.since.is_none_or(|since| *time >= since),
        }
    }
}

/// One JSON line, without its newline.
pub fn json(line: &impl Serialize) -> String {
    serde_json::to_string(line).expect("strings, numbers and string keys")
}

#[derive(Debug)]
pub struct Ring {
    node_name: String,
    capacity: usize,
    recent: Mutex<VecDeque<Arc<Item>>>,
    followers: broadcast::Sender<Arc<Item>>,
}

impl Ring {
    /// Keeps the newest `capacity` records.
    pub fn new(node_name: impl Into<String>, capacity: usize) -> Self {
        Self {
            node_name: node_name.into(),
            capacity,
            recent: Mutex::default(),
            followers: broadcast::channel(FOLLOWER_LAG).0,
        }
    }

    pub fn push(&self, item: Arc<Item>) {
        let mut recent = self.lock();
        while recent.len() >= self.capacity.max(1) {
            recent.pop_front();
        }
        if self.capacity > 0 {
            recent.push_back(Arc::clone(&item));
        }
        // Sent under the lock, so that a follower that starts now misses nothing and sees nothing twice.
        let _no_followers = self.followers.send(item);
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The newest records that match, oldest first.
    pub fn last(&self, filter: &Filter, count: usize) -> Vec<Line> {
        let found = newest(&self.lock(), filter, count);
        found.iter().map(|item| item.line(&self.node_name)).collect()
    }

    /// Every later record that matches.
    pub fn follow(&self, filter: Filter) -> Follower {
        Follower { items: self.followers.subscribe(), filter, node_name: self.node_name.clone() }
    }

    /// Answers a caller of the socket: what there is, then, if asked, what comes, without a gap between them.
    /// Rendered as fast as it is read, on a task of its own; a caller who reads too slowly loses records and
    /// is told how many. The error says what is wrong with the filter.
    pub fn answer(&self, query: FlowQuery) -> Result<mpsc::Receiver<Value>, String> {
        let filter = match query.filter {
            Value::Null => Filter::default(),
            filter => serde_json::from_value(filter).map_err(|error| error.to_string())?,
        };
        let recent = self.lock();
        let found = newest(&recent, &filter, query.last.unwrap_or(usize::MAX));
        let follower = query.follow.then(|| self.follow(filter));
        drop(recent);
        let (caller, answers) = mpsc::channel(ANSWER_QUEUE);
        tokio::spawn(tell(found, follower, self.node_name.clone(), caller));
        Ok(answers)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Item>>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until all is told or the caller has left.
async fn tell(
    found: Vec<Arc<Item>>,
    mut follower: Option<Follower>,
    node_name: String,
    caller: mpsc::Sender<Value>,
) {
    for item in found {
        if caller.send(value(&item.line(&node_name))).await.is_err() {
            return;
        }
    }
    while let Some(follower) = &mut follower {
        let line = tokio::select! {
            line = follower.next() => line,
            () = caller.closed() => None,
        };
        let Some(line) = line else { return };
        if caller.send(value(&line)).await.is_err() {
            return;
        }
    }
}

fn value(line: &Line) -> Value {
    serde_json::to_value(line).expect("strings, numbers and string keys")
}

/// Oldest first.
fn newest(recent: &VecDeque<Arc<Item>>, filter: &Filter, count: usize) -> Vec<Arc<Item>> {
    let mut found: Vec<_> =
        recent.iter().rev().filter(|item| item.matches(filter)).take(count).cloned().collect();
    found.reverse();
    found
}

#[derive(Debug)]
pub struct Follower {
    items: broadcast::Receiver<Arc<Item>>,
    filter: Filter,
    node_name: String,
}

impl Follower {
    /// The next record, or a line that tells how many this follower was too slow for. `None`: the agent is
    /// going down. May be cancelled between records without losing one.
    pub async fn next(&mut self) -> Option<Line> {
        loop {
            match self.items.recv().await {
                Ok(item) if item.matches(&self.filter) => return Some(item.line(&self.node_name)),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(num_events_lost)) => {
                    let lost = Lost { source: LostSource::Follower, num_events_lost };
                    return Some(Item::Lost(Timestamp::now(), lost).line(&self.node_name));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
