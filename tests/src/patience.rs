//! Waiting for what another process brings about, with an end.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks again until `enough`, or gives what is there when time is up.
pub fn until<T>(within: Duration, look: impl Fn() -> Result<T>, enough: impl Fn(&T) -> bool) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        let seen = look()?;
        if enough(&seen) || Instant::now() > deadline {
            return Ok(seen);
        }
        thread::sleep(PAUSE);
    }
}
