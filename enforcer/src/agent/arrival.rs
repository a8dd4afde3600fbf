//! When a change came in: measured before it waits for the owner task, so that a busy task shows.

use std::time::Instant;

use tokio::sync::mpsc;

use crate::source::Update;

/// An update and when it arrived.
#[derive(Debug)]
pub struct Arrived {
    pub update: Update,
    pub at: Instant,
}

/// Stamps what comes; ends with it. Must be called inside a tokio runtime.
pub fn stamped(mut updates: mpsc::Receiver<Update>) -> mpsc::Receiver<Arrived> {
    let (out, stamped) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(update) = updates.recv().await {
            if out.send(Arrived { update, at: Instant::now() }).await.is_err() {
                return;
            }
        }
    });
    stamped
}
