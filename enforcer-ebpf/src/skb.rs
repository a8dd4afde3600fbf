//! The kernel's packet: direct access to the head, a helper call for the rest.

use core::mem::MaybeUninit;

use aya_ebpf::{helpers::bpf_skb_load_bytes, programs::TcContext};
use bulkhead_ebpf::{
    packet::{ETHER_IPV6, HEAD, HEAD_V4, Packet, Wire},
    reason::Reason,
};

pub struct Skb(TcContext);

impl Skb {
    /// Makes the head of the frame directly readable, if it is not already.
    #[inline(always)]
    pub fn new(ctx: TcContext) -> Self {
        let this = Self(ctx);
        let linear = this.end() - this.start();
        // A byte more than is needed costs a new head for every segment that TCP keeps to send again: its
        // payload is shared, and pulling some of it means a copy (bpf_skb_pull_data makes writable).
        let head = if this.is_ipv6() { HEAD } else { HEAD_V4 };
        if linear < head && (linear as u32) < this.frame_len() {
            // On failure `read` finds the frame too short, and it is dropped.
            let _ = this.0.pull_data(this.frame_len().min(head as u32));
        }
        this
    }

    #[inline(always)]
    fn is_ipv6(&self) -> bool {
        // SAFETY: the kernel passes a valid context.
        let protocol = unsafe { (*self.0.skb.skb).protocol };
        protocol == u32::from(ETHER_IPV6.to_be())
    }

    /// Volatile, both: the compiler must not pass on as an integer what the verifier knows as a pointer.
    #[inline(always)]
    fn start(&self) -> usize {
        // SAFETY: the kernel passes a valid context.
        unsafe { (&raw const (*self.0.skb.skb).data).read_volatile() as usize }
    }

    #[inline(always)]
    fn end(&self) -> usize {
        // SAFETY: as in `start`.
        unsafe { (&raw const (*self.0.skb.skb).data_end).read_volatile() as usize }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn frame_len(&self) -> u32 {
        self.0.len()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the kernel passes a valid context.
        unsafe { (*self.0.skb.skb).ifindex }
    }

    #[inline(always)]
    fn vlan_tagged(&self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.0.skb.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn came_in_by(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.0.skb.skb).ingress_ifindex }
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.0.skb.skb).mark }
    }

    #[inline(always)]
    fn set_mark(&self, mark: u32) {
        // SAFETY: as in `ifindex`; this field may be written (bpf(2), `__sk_buff`).
        unsafe { (*self.0.skb.skb).mark = mark }
    }

    #[inline(always)]
    fn read<T: Wire>(&self, at: usize) -> Result<T, Reason> {
        let start = self.start() + at;
        if start + size_of::<T>() > self.end() {
            return Err(Reason::Truncated);
        }
        // SAFETY: within the frame, checked above; any bytes are a `T`. A load in BPF needs no alignment
        // where the machine does not, and elsewhere the verifier holds it to what the kernel guarantees.
        Ok(unsafe { (start as *const T).read() })
    }

    #[inline(always)]
    fn load<T: Wire>(&self, at: u32) -> Result<T, Reason> {
        let mut value = MaybeUninit::<T>::uninit();
        let len = size_of::<T>() as u32;
        // SAFETY: the helper writes all of `value` or fails, and checks the offset.
        let failed = unsafe { bpf_skb_load_bytes(self.0.skb.skb.cast(), at, value.as_mut_ptr().cast(), len) };
        if failed != 0 {
            return Err(Reason::Truncated);
        }
        // SAFETY: written by the helper; any bytes are a `T`.
        Ok(unsafe { value.assume_init() })
    }
}
