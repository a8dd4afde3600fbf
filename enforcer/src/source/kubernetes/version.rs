//! `resourceVersion`: which of two states of an object is the later one.

use std::num::NonZeroU64;

/// A number in etcd's order of writes, which all kinds share. A server that numbers in another way gives versions
/// that are equal to nothing and come neither before nor after anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Version(Option<NonZeroU64>);

impl Version {
    pub fn new(text: &str) -> Self {
        Self(text.parse().ok())
    }

    pub fn number(self) -> Option<u64> {
        self.0.map(NonZeroU64::get)
    }

    /// Certainly: an unknown version is not the same as another one.
    pub fn is(self, other: Self) -> bool {
        self.0.is_some() && self.0 == other.0
    }

    /// Certainly.
    pub fn is_after(self, other: Self) -> bool {
        matches!((self.0, other.0), (Some(this), Some(other)) if this > other)
    }
}
