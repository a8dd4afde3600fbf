//! What the decision looks up and writes down, however the host or the kernel keeps it.

use core::{cell::Cell, marker::PhantomData, ptr::NonNull};

use crate::{
    abi::{
        CONN_COUNTER, CONN_OPENER, CONN_STRANGER, Config, Conn, ConnKey, DropCount, DropKey, EndWord,
        Endpoint, Event, Fragment, FragmentKey, Limits, Peer, RuleKey, ServiceKey,
    },
    family::{Family, V4, V6},
    flow::Flow,
    reason::Reason,
};

/// The tables whose keys hold addresses of one family.
pub trait Addresses<F: Family> {
    /// What the address is: exact match first, then the longest prefix.
    fn peer(&self, address: F::Addr) -> Option<Peer>;
    /// Leaves the flow as it is. The kernel's verifier follows every way in which a packet can be laid out;
    /// a flow that has been through a map is the same to it whichever way it came.
    fn settle(&self, _flow: &mut Flow<F>) {}
    fn conn(&self, key: &ConnKey<F::Addr>) -> Option<ConnRef<'_>>;
    /// Identity number behind a Service's frontend.
    fn service(&self, key: &ServiceKey<F::Addr>) -> Option<u32>;
    /// Never overwrites.
    fn insert_conn(&self, key: &ConnKey<F::Addr>, conn: &Conn) -> Inserted;
}

/// All tables and the clock.
pub trait Tables: Addresses<V4> + Addresses<V6> {
    /// The record of exactly this interface.
    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint>;
    /// Whichever record's interface index ends in these bits; who relies on it being a certain one compares.
    fn endpoint_ending(&self, low: u16) -> Option<&Endpoint>;
    /// Interface index by an endpoint's mark.
    fn origin(&self, mark: u32) -> Option<u32>;
    /// Number of the rule that allows this.
    fn rule(&self, key: &RuleKey) -> Option<u32>;
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    fn remember_fragment(&self, key: &FragmentKey, fragment: Fragment);
    fn drop_count(&self, key: &DropKey) -> Option<&Cell<DropCount>>;
    fn insert_drop_count(&self, key: &DropKey, count: DropCount);
    fn config(&self) -> Config;
    fn limits(&self) -> Limits;
    /// A word of the [`crate::abi::Purses`] of the endpoint with this mark.
    fn purse(&self, mark: u16, word: usize) -> Option<&Cell<u64>>;
    /// `CLOCK_MONOTONIC`, nanoseconds, coarse.
    fn now(&self) -> u64;
    /// [`tick`] of now.
    fn tick(&self) -> u32 {
        tick(self.now())
    }
    /// Hands out a zeroed event to fill, then sends it. False: no room, counted as lost.
    fn event(&self, fill: impl FnOnce(&mut Event)) -> bool;
    /// The word as it is, of which the kernel's verifier knows nothing afterwards: see [`Addresses::settle`].
    fn opaque(&self, word: u64) -> u64 {
        word
    }
    /// One more packet was decided for this reason.
    fn count(&self, reason: Reason);
    /// An allowed connection found no room.
    fn lost_conn(&self);
    /// A drop was counted with others of its endpoint.
    fn lost_detail(&self);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    Done,
    /// Another processor was faster.
    Exists,
    Full,
}

/// Nanoseconds to the ticks of [`Conn::last_seen`].
pub const fn tick(now: u64) -> u32 {
    (now >> 30) as u32
}

/// A connection where it lives in its table, changed in place. Other processors may change it at the
/// same time: every value read is used once, and a lost count is accepted.
#[derive(Clone, Copy)]
pub struct ConnRef<'t> {
    conn: NonNull<Conn>,
    table: PhantomData<&'t Conn>,
}

impl ConnRef<'_> {
    /// # Safety
    /// `conn` points to a value that stays readable and writable for the lifetime of the result.
    #[inline(always)]
    pub unsafe fn new(conn: NonNull<Conn>) -> Self {
        Self { conn, table: PhantomData }
    }

    #[inline(always)]
    pub fn end(self, side: usize) -> EndWord {
        // SAFETY: `new`'s contract; the index is masked to the array.
        EndWord(unsafe { (&raw const (*self.conn.as_ptr()).ends[side & 1].0).read_volatile() })
    }

    #[inline(always)]
    pub fn set_end(self, side: usize, end: EndWord) {
        // SAFETY: as in `end`.
        unsafe { (&raw mut (*self.conn.as_ptr()).ends[side & 1].0).write_volatile(end.0) }
    }

    #[inline(always)]
    pub fn opener(self) -> usize {
        // SAFETY: `new`'s contract.
        usize::from(unsafe { (*self.conn.as_ptr()).sides } & CONN_OPENER)
    }

    #[inline(always)]
    pub fn counter(self) -> usize {
        // SAFETY: `new`'s contract.
        usize::from((unsafe { (*self.conn.as_ptr()).sides } & CONN_COUNTER) >> 1)
    }

    #[inline(always)]
    pub fn is_stranger(self) -> bool {
        // SAFETY: `new`'s contract.
        unsafe { (*self.conn.as_ptr()).sides & CONN_STRANGER != 0 }
    }

    /// See [`Conn::origin`].
    #[inline(always)]
    pub fn origin(self) -> u16 {
        // SAFETY: `new`'s contract.
        unsafe { (*self.conn.as_ptr()).origin }
    }

    #[inline(always)]
    pub fn state(self) -> u8 {
        // SAFETY: `new`'s contract.
        unsafe { (*self.conn.as_ptr()).state }
    }

    /// Writes only a change: the line stays clean in other processors' caches.
    #[inline(always)]
    pub fn set_state(self, was: u8, state: u8) {
        if was != state {
            // SAFETY: `new`'s contract.
            unsafe { (*self.conn.as_ptr()).state = state }
        }
    }

    /// Writes only a change, at most once in a tick.
    #[inline(always)]
    pub fn seen(self, tick: u32) {
        // SAFETY: `new`'s contract.
        unsafe {
            if (*self.conn.as_ptr()).last_seen != tick {
                (*self.conn.as_ptr()).last_seen = tick;
            }
        }
    }

    /// One packet of `bytes` from `side`.
    #[inline(always)]
    pub fn add(self, side: usize, bytes: u32) {
        // SAFETY: `new`'s contract; the index is masked to the array.
        unsafe {
            (*self.conn.as_ptr()).packets[side & 1] += 1;
            (*self.conn.as_ptr()).bytes[side & 1] += u64::from(bytes);
        }
    }

    #[inline(always)]
    pub fn copy_counts(self, opener: usize, event: &mut Event) {
        // SAFETY: `new`'s contract; the indices are masked to the arrays.
        unsafe {
            let conn = self.conn.as_ptr();
            event.started = (*conn).started;
            event.packets = [(*conn).packets[opener & 1], (*conn).packets[(opener ^ 1) & 1]];
            event.bytes = [(*conn).bytes[opener & 1], (*conn).bytes[(opener ^ 1) & 1]];
        }
    }

    #[inline(always)]
    pub fn replace(self, conn: &Conn) {
        // SAFETY: `new`'s contract.
        unsafe { *self.conn.as_ptr() = *conn }
    }
}
