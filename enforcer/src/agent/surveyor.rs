//! Has the node looked over now and then for pods that are no endpoints yet.

use std::{io, path::PathBuf};

use tokio::sync::mpsc;

use super::node::Node;
use crate::endpoint::survey::Survey;

/// Looks the node over now and then, on a thread that may block.
pub struct Surveyor {
    cache: PathBuf,
    results: mpsc::Sender<io::Result<Survey>>,
    busy: bool,
}

impl Surveyor {
    /// Results come out of the channel; each must be told to [`Surveyor::done`].
    pub fn new(cache: PathBuf) -> (Self, mpsc::Receiver<io::Result<Survey>>) {
        let (results, received) = mpsc::channel(1);
        (Self { cache, results, busy: false }, received)
    }

    /// Begins a survey unless one is under way, or the cluster is not known yet.
    pub fn look(&mut self, node: &Node) {
        if self.busy || !node.source.synced {
            return;
        }
        self.busy = true;
        let (cache, results) = (self.cache.clone(), self.results.clone());
        let (known, departed) = node.known_attachments();
        tokio::spawn(async move {
            let survey = tokio::task::spawn_blocking(move || Survey::take(&cache, &known, &departed)).await;
            // Nobody receives when the agent stops.
            let _ = results.send(survey.unwrap_or_else(|panic| Err(io::Error::other(panic)))).await;
        });
    }

    /// As [`Surveyor::look`], if nobody has looked yet.
    pub fn look_first(&mut self, node: &Node) {
        if !node.running.surveyed {
            self.look(node);
        }
    }

    pub fn done(&mut self) {
        self.busy = false;
    }
}
