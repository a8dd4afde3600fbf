//! How often and how long: all patience that the source has.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// The default is for clusters; tests have less time.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Objects in a page of a list.
    pub page: u32,
    /// For a page, and for the first byte of a watch.
    pub answer: Duration,
    /// A watch that tells nothing for this long, not even a bookmark (one a minute), is taken for dead.
    pub silence: Duration,
    /// Between attempts: doubled from the first to the last, each with as much again at random.
    pub pause: (Duration, Duration),
    /// A watch that has lasted this long was a good one: the next pause is the first again.
    pub good: Duration,
    /// Changes are told together that come within this long of one another ..
    pub quiet: Duration,
    /// .. but not later than this.
    pub longest: Duration,
    /// For one pod by name, at ADD.
    pub fetch: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            page: 500,
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(150),
            pause: (Duration::from_millis(200), Duration::from_secs(10)),
            good: Duration::from_secs(20),
            quiet: Duration::from_millis(5),
            longest: Duration::from_millis(50),
            fetch: Duration::from_millis(1500),
        }
    }
}

impl Pace {
    pub(super) fn pauses(&self) -> ExponentialBackoff {
        ExponentialBuilder::default()
            .with_min_delay(self.pause.0)
            .with_max_delay(self.pause.1)
            .with_factor(2.0)
            .with_jitter()
            .without_max_times()
            .build()
    }

    /// When the API server is to end a watch, in seconds; not all at once.
    #[expect(clippy::unused_self, reason = "all patience is asked of the pace")]
    pub(super) fn watch_seconds(&self) -> u32 {
        let random = RandomState::new().hash_one(());
        200 + u32::try_from(random % 90).expect("below 90")
    }
}
