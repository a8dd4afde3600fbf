//! Kernel time to wall time.

use std::{
    fmt,
    sync::atomic::{AtomicI64, Ordering},
};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Converts `CLOCK_MONOTONIC` to wall time by an offset that is sampled now and then: a stepped wall
/// clock moves the times of later events, and never tears one batch apart.
#[derive(Debug)]
pub struct Clock {
    offset: AtomicI64,
}

impl Clock {
    pub fn sampled() -> Self {
        let clock = Self::fixed(0);
        clock.sample();
        clock
    }

    /// Wall time is monotonic time plus `offset` nanoseconds, until [`Clock::sample`] is called.
    pub fn fixed(offset: i64) -> Self {
        Self { offset: AtomicI64::new(offset) }
    }

    pub fn sample(&self) {
        let before = nanoseconds(ClockId::CLOCK_MONOTONIC);
        let wall = nanoseconds(ClockId::CLOCK_REALTIME);
        let after = nanoseconds(ClockId::CLOCK_MONOTONIC);
        self.offset.store(wall - i64::midpoint(before, after), Ordering::Relaxed);
    }

    pub fn wall(&self, monotonic: u64) -> Timestamp {
        let offset = self.offset.load(Ordering::Relaxed);
        Timestamp(i64::try_from(monotonic).unwrap_or(i64::MAX).saturating_add(offset))
    }
}

/// `CLOCK_MONOTONIC` now, nanoseconds: the clock of events and of [`super::names::Names`]' history.
pub fn monotonic() -> u64 {
    u64::try_from(nanoseconds(ClockId::CLOCK_MONOTONIC)).expect("the monotonic clock starts at 0")
}

fn nanoseconds(clock: ClockId) -> i64 {
    let now = clock_gettime(clock).expect("a clock that every kernel has");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

/// Nanoseconds since 1970 UTC (so until the year 2262); prints as RFC 3339 with nine digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    pub fn now() -> Self {
        Self(nanoseconds(ClockId::CLOCK_REALTIME))
    }

    pub fn parse(text: &str) -> Result<Self, time::error::Parse> {
        let nanoseconds = OffsetDateTime::parse(text, &Rfc3339)?.unix_timestamp_nanos();
        // Years up to 9999 can be written: what lies beyond our range is as late, or as early, as can be.
        let bound = if nanoseconds < 0 { i64::MIN } else { i64::MAX };
        Ok(Self(i64::try_from(nanoseconds).unwrap_or(bound)))
    }
}

impl From<Timestamp> for OffsetDateTime {
    fn from(time: Timestamp) -> Self {
        Self::from_unix_timestamp_nanos(time.0.into()).expect("64 bits of nanoseconds are within its range")
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = OffsetDateTime::from(*self);
        let (date, (hour, minute, second, nano)) = (t.date(), t.to_hms_nano());
        write!(f, "{date}T{hour:02}:{minute:02}:{second:02}.{nano:09}Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}
