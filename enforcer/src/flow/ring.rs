//! The agent's recent records, in memory, with followers.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;
use tokio::sync::broadcast;

use super::{
    clock::Timestamp,
    enrich::Flow,
    filter::{Filter, Query},
    record::{Content, Line, Lost, LostSource},
};

/// Records kept if not set otherwise: about 30 MB when full.
pub const DEFAULT_RECORDS: usize = 65_536;
/// How far a follower may lag behind before it loses records.
const FOLLOWER_LAG: usize = 4096;

#[derive(Clone, Debug, PartialEq)]
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
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
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
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The newest records that match, oldest first.
    pub fn last(&self, filter: &Filter, count: usize) -> Vec<Line> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let found = newest(&recent, filter, count);
        drop(recent);
        self.lines(&found)
    }

    /// As [`Ring::last`], and every later record that matches, without a gap between them.
    pub fn follow(&self, filter: Filter, last: usize) -> (Vec<Line>, Follower) {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let items = self.followers.subscribe();
        let found = newest(&recent, &filter, last);
        drop(recent);
        (self.lines(&found), Follower { items, filter, node_name: self.node_name.clone() })
    }

    /// Answers a query: what there is, and where to go on if it asks to follow.
    pub fn answer(&self, query: Query) -> (Vec<Line>, Option<Follower>) {
        if query.follow {
            let (lines, follower) = self.follow(query.filter, query.last);
            (lines, Some(follower))
        } else {
            (self.last(&query.filter, query.last), None)
        }
    }

    fn lines(&self, items: &[Arc<Item>]) -> Vec<Line> {
        items.iter().rev().map(|item| item.line(&self.node_name)).collect()
    }
}

/// Newest first.
fn newest(recent: &VecDeque<Arc<Item>>, filter: &Filter, count: usize) -> Vec<Arc<Item>> {
    recent.iter().rev().filter(|item| item.matches(filter)).take(count).cloned().collect()
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
