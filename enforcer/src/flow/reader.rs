//! Where raw events come from.
#![expect(unsafe_code, reason = "the ring buffer's descriptor is registered with the runtime")]

use std::{future::Future, io};

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;

/// A queue of raw events; in tests a channel stands in.
pub trait Source: Send + 'static {
    /// Waits for events, then hands over what is there, at most `limit`. May be cancelled while it waits.
    fn drain(
        &mut self,
        limit: usize,
        each: &mut (dyn FnMut(&[u8]) + Send),
    ) -> impl Future<Output = io::Result<()>> + Send;
}

/// The kernel's ring buffer `EVENTS`.
pub struct KernelEvents(AsyncFd<RingBuf<MapData>>);

impl KernelEvents {
    /// Must be called inside a tokio runtime.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the map owns its descriptor, and its fields are private: it stays open and the same until
        // the map is dropped, which `AsyncFd` does.
        let ready = unsafe { AsyncFd::register(ring) }?;
        Ok(Self(ready))
    }
}

impl Source for KernelEvents {
    async fn drain(&mut self, limit: usize, each: &mut (dyn FnMut(&[u8]) + Send)) -> io::Result<()> {
        let mut ready = self.0.readable_mut().await?;
        let mut taken = 0;
        while taken < limit {
            let Some(event) = ready.get_inner_mut().next() else { break };
            each(&event);
            taken += 1;
        }
        if taken < limit {
            ready.clear_ready();
        }
        Ok(())
    }
}
