//! What the source has to say, in its order and with the time at which it came: measured before it waits for the owner
//! task, so that a busy task shows.

use std::time::Instant;

use tokio::sync::mpsc;

use crate::source::{Update, kubernetes::Fetched};

#[derive(Debug)]
pub enum Arrived {
    Update(Update, Instant),
    /// What was fetched is in one of the updates before.
    Fetched(Fetched),
}

/// Ends when no update can come any more. Must be called inside a tokio runtime.
pub fn in_order(
    mut updates: mpsc::Receiver<Update>,
    mut fetched: mpsc::Receiver<Fetched>,
) -> mpsc::Receiver<Arrived> {
    let (out, arrivals) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            // An update that was sent before an answer is there before it.
            let arrived = tokio::select! {
                biased;
                update = updates.recv() => match update {
                    Some(update) => Arrived::Update(update, Instant::now()),
                    None => return,
                },
                Some(fetched) = fetched.recv() => {
                    while let Ok(update) = updates.try_recv() {
                        if out.send(Arrived::Update(update, Instant::now())).await.is_err() {
                            return;
                        }
                    }
                    Arrived::Fetched(fetched)
                }
            };
            if out.send(arrived).await.is_err() {
                return;
            }
        }
    });
    arrivals
}
