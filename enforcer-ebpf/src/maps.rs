//! The maps of the object file. The agent gives them their pins, and may give other sizes.

use core::{cell::Cell, mem::transmute, ptr::NonNull};

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns},
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
};
use bulkhead_ebpf::{
    abi::{
        self, Config, Conn, ConnKey, ConnKey4, ConnKey6, DropCount, DropKey, ENDPOINT_SLOTS, ENTERED_V4,
        ENTERED_V6, Endpoint, Event, Fragment, FragmentKey, LOST_CONNS, LOST_DETAIL, LOST_EVENTS, LOST_LEN,
        Limits, Peer, Purses, RULE_BITS_PORT, RuleKey, ServiceKey, ServiceKey4, ServiceKey6,
    },
    family::{Family, V4, V6},
    flow::Flow,
    reason::{REASONS, Reason},
    tables::{Addresses, ConnRef, Inserted, Tables, tick},
};

#[map]
static ENDPOINTS: Array<Endpoint> = Array::with_max_entries(ENDPOINT_SLOTS, 0);
#[map]
static ENDPOINTS_SPILL: HashMap<u32, Endpoint> = HashMap::with_max_entries(4096, 0);
#[map]
static PEERS_V4: HashMap<Addr<V4>, Peer> = HashMap::with_max_entries(1 << 18, BPF_F_NO_PREALLOC);
#[map]
static PEERS_V6: HashMap<Addr<V6>, Peer> = HashMap::with_max_entries(1 << 18, BPF_F_NO_PREALLOC);
#[map]
static PREFIXES_V4: LpmTrie<Addr<V4>, Peer> = LpmTrie::with_max_entries(1 << 16, 0);
#[map]
static PREFIXES_V6: LpmTrie<Addr<V6>, Peer> = LpmTrie::with_max_entries(1 << 16, 0);
#[map]
static SERVICES_V4: HashMap<[u32; 2], u32> = HashMap::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);
#[map]
static SERVICES_V6: HashMap<[u32; 5], u32> = HashMap::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);
#[map]
static ORIGINS: Array<u32> = Array::with_max_entries(abi::ORIGINS, 0);
/// The value is the number of the rule, for the flow log.
#[map]
static RULES: LpmTrie<RuleKey, u32> = LpmTrie::with_max_entries(1 << 22, 0);
#[map]
static CONNS_V4: LruHashMap<[u64; 2], Conn> = LruHashMap::with_max_entries(1 << 18, 0);
#[map]
static CONNS_V6: LruHashMap<[u64; 5], Conn> = LruHashMap::with_max_entries(1 << 18, 0);
/// More than one pod can enter at once by its budget, as it is if not set otherwise.
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, Fragment> = LruHashMap::with_max_entries(1 << 15, 0);
#[map]
static DROPS: LruHashMap<DropKey, DropCount> = LruHashMap::with_max_entries(16384, 0);
#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 22, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(REASONS, 0);
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(LOST_LEN, 0);
#[map]
static PURSES: Array<Purses> = Array::with_max_entries(abi::ORIGINS, 0);
#[map]
static LIMITS: Array<Limits> = Array::with_max_entries(1, 0);

/// One flow for [`Addresses::settle`].
#[map]
static SCRATCH: PerCpuArray<[u64; 7]> = PerCpuArray::with_max_entries(1, 0);
const _: () = assert!(size_of::<Flow<V6>>() <= size_of::<[u64; 7]>());

/// The tick that this processor has read last, and when.
#[map]
static CLOCK: PerCpuArray<Clock> = PerCpuArray::with_max_entries(1, 0);
#[repr(C)]
struct Clock {
    jiffies: u64,
    tick: u32,
    pad: u32,
}

type Addr<F> = <F as Family>::Addr;
// The keys have the size that the agent knows them by.
const _: () = assert!(size_of::<[u64; 2]>() == size_of::<ConnKey4>());
const _: () = assert!(size_of::<[u64; 5]>() == size_of::<ConnKey6>());
const _: () = assert!(size_of::<[u32; 2]>() == size_of::<ServiceKey4>());
const _: () = assert!(size_of::<[u32; 5]>() == size_of::<ServiceKey6>());

/// All maps of the kernel.
pub struct Kernel;

/// What follows the addresses in a key of the kernel.
#[inline(always)]
fn tail<A>(key: &ConnKey<A>) -> u64 {
    let [low, high] = key.ports_be.map(u16::from_ne_bytes).map(u64::from);
    let protocol = u64::from(key.protocol);
    if cfg!(target_endian = "little") {
        low | high << 16 | protocol << 32
    } else {
        low << 48 | high << 32 | protocol << 24
    }
}

/// A connection's key as whole words: built byte by byte it would stall the lookup that reads words.
#[inline(always)]
fn words_v4(key: &ConnKey<Addr<V4>>) -> [u64; 2] {
    let [low, high] = key.addresses.map(u64::from);
    [if cfg!(target_endian = "little") { low | high << 32 } else { low << 32 | high }, tail(key)]
}

#[inline(always)]
fn words_v6(key: &ConnKey<Addr<V6>>) -> [u64; 5] {
    let [[a, b], [c, d]] = key.addresses;
    [a, b, c, d, tail(key)]
}

/// A Service's frontend as the words of its key.
#[inline(always)]
fn frontend_v4(key: &ServiceKey<Addr<V4>>) -> [u32; 2] {
    [key.address, frontend_tail(key)]
}

#[inline(always)]
fn frontend_v6(key: &ServiceKey<Addr<V6>>) -> [u32; 5] {
    let [a, b] = key.address.map(u64::to_ne_bytes);
    let word = |bytes: &[u8]| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    [word(&a[..4]), word(&a[4..]), word(&b[..4]), word(&b[4..]), frontend_tail(key)]
}

#[inline(always)]
fn frontend_tail<A>(key: &ServiceKey<A>) -> u32 {
    let [high, low] = key.port_be;
    u32::from_ne_bytes([high, low, key.protocol, key.pad])
}

/// Keys are eight-byte aligned on the stack, so that they are written in whole words.
#[repr(C, align(8))]
struct Aligned<T>(T);

const EEXIST: i32 = -17;

macro_rules! addresses {
    ($family:ty, $peers:ident, $prefixes:ident, $services:ident, $frontend:path, $conns:ident, $words:path, $entered:ident) => {
        impl Addresses<$family> for Kernel {
            #[inline(always)]
            fn peer(&self, address: Addr<$family>) -> Option<Peer> {
                // SAFETY: without preallocation a removed peer stays readable until the program ends.
                if let Some(peer) = unsafe { $peers.get(address) } {
                    return Some(*peer);
                }
                let key = Aligned(Key::new(size_of::<Addr<$family>>() as u32 * 8, address));
                $prefixes.get(&key.0).copied()
            }

            #[inline(always)]
            fn settle(&self, flow: &mut Flow<$family>) {
                if let Some(scratch) = SCRATCH.get_ptr_mut(0) {
                    let (scratch, flow) = (scratch.cast::<u64>(), (&raw mut *flow).cast::<u64>());
                    // SAFETY: large enough (asserted above), and this processor's alone while the program
                    // runs; volatile, because otherwise the compiler knows what is read back.
                    unsafe {
                        for word in 0..size_of::<Flow<$family>>() / size_of::<u64>() {
                            scratch.add(word).write_volatile(*flow.add(word));
                            *flow.add(word) = scratch.add(word).read_volatile();
                        }
                    }
                }
            }

            #[inline(always)]
            fn conn(&self, key: &ConnKey<Addr<$family>>) -> Option<ConnRef<'_>> {
                let conn = NonNull::new($conns.get_ptr_mut($words(key))?)?;
                // SAFETY: a map's value stays mapped while the program runs.
                Some(unsafe { ConnRef::new(conn) })
            }

            #[inline(always)]
            fn service(&self, key: &ServiceKey<Addr<$family>>) -> Option<u32> {
                // SAFETY: without preallocation a removed frontend stays readable until the program ends.
                unsafe { $services.get($frontend(key)) }.copied()
            }

            #[inline(always)]
            fn insert_conn(&self, key: &ConnKey<Addr<$family>>, conn: &Conn) -> Inserted {
                match $conns.insert($words(key), conn, u64::from(BPF_NOEXIST)) {
                    Ok(()) => {
                        add(&LOST, $entered);
                        Inserted::Done
                    }
                    Err(EEXIST) => Inserted::Exists,
                    Err(_) => Inserted::Full,
                }
            }
        }
    };
}
addresses!(V4, PEERS_V4, PREFIXES_V4, SERVICES_V4, frontend_v4, CONNS_V4, words_v4, ENTERED_V4);
addresses!(V6, PEERS_V6, PREFIXES_V6, SERVICES_V6, frontend_v6, CONNS_V6, words_v6, ENTERED_V6);

impl Tables for Kernel {
    #[inline(always)]
    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint> {
        match ENDPOINTS.get(ifindex % ENDPOINT_SLOTS) {
            Some(endpoint) if endpoint.ifindex == ifindex => Some(endpoint),
            // SAFETY: a map's value stays mapped while the program runs.
            _ => unsafe { ENDPOINTS_SPILL.get(ifindex) }.filter(|endpoint| endpoint.ifindex == ifindex),
        }
    }

    #[inline(always)]
    fn endpoint_ending(&self, low: u16) -> Option<&Endpoint> {
        ENDPOINTS.get(u32::from(low) % ENDPOINT_SLOTS)
    }

    #[inline(always)]
    fn origin(&self, mark: u32) -> Option<u32> {
        ORIGINS.get(mark).copied()
    }

    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> Option<u32> {
        let key = Aligned(Key::new(RULE_BITS_PORT, *key));
        RULES.get(&key.0).copied()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: a map's value stays mapped while the program runs.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn remember_fragment(&self, key: &FragmentKey, fragment: Fragment) {
        // Without room the later fragments are dropped, and counted as such.
        let _ = FRAGMENTS.insert(key, fragment, 0);
    }

    #[inline(always)]
    fn drop_count(&self, key: &DropKey) -> Option<&Cell<DropCount>> {
        // SAFETY: a map's value stays mapped while the program runs; a `Cell` is its value in memory.
        DROPS.get_ptr_mut(key).map(|count| unsafe { &*count.cast_const().cast() })
    }

    #[inline(always)]
    fn insert_drop_count(&self, key: &DropKey, count: DropCount) {
        // Without room the next drop of this kind sends an event too.
        let _ = DROPS.insert(key, count, 0);
    }

    #[inline(always)]
    fn config(&self) -> Config {
        // SAFETY: a map's value is aligned to 8 bytes, and of any 8 bytes a `Config` can be made (checked by
        // `transmute`). Read as one word, because a type of bytes is read byte by byte.
        CONFIG
            .get_ptr(0)
            .map_or_else(Config::default, |config| unsafe { transmute(config.cast::<u64>().read()) })
    }

    #[inline(always)]
    fn limits(&self) -> Limits {
        LIMITS.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn purse(&self, mark: u16, word: usize) -> Option<&Cell<u64>> {
        let purses = PURSES.get_ptr(u32::from(mark))?.cast::<Cell<u64>>();
        // SAFETY: a map's value stays mapped while the program runs, it is made of words, and the index is masked to
        // their number; a `Cell` is its value in memory.
        Some(unsafe { &*purses.add(word & 3) })
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    /// Asks the clock only when the timer interrupt has moved it: jiffies are one load, the clock is calls.
    #[inline(always)]
    fn tick(&self) -> u32 {
        // SAFETY: no arguments.
        let jiffies = unsafe { bpf_jiffies64() };
        match CLOCK.get_ptr_mut(0) {
            // SAFETY: a map's value stays mapped while the program runs, and is this processor's alone.
            Some(clock) => unsafe {
                if (*clock).jiffies != jiffies {
                    *clock = Clock { jiffies, tick: tick(self.now()), pad: 0 };
                }
                (*clock).tick
            },
            None => tick(self.now()),
        }
    }

    #[inline(always)]
    fn event(&self, fill: impl FnOnce(&mut Event)) -> bool {
        let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
            add(&LOST, LOST_EVENTS);
            return false;
        };
        // SAFETY: zero bytes are an event, and all of it is written before it is lent out. In volatile
        // words, because a plain fill becomes a loop over bytes, here and for the verifier.
        let event = unsafe {
            let words = entry.as_mut_ptr().cast::<u64>();
            for index in 0..size_of::<Event>() / size_of::<u64>() {
                words.add(index).write_volatile(0);
            }
            entry.assume_init_mut()
        };
        fill(event);
        entry.submit(0);
        true
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        add(&COUNTERS, reason as u32);
    }

    #[inline(always)]
    fn opaque(&self, word: u64) -> u64 {
        match SCRATCH.get_ptr_mut(0) {
            // SAFETY: as in `settle`.
            Some(scratch) => unsafe {
                scratch.cast::<u64>().write_volatile(word);
                scratch.cast::<u64>().read_volatile()
            },
            None => word,
        }
    }

    #[inline(always)]
    fn lost_conn(&self) {
        add(&LOST, LOST_CONNS);
    }

    #[inline(always)]
    fn lost_detail(&self) {
        add(&LOST, LOST_DETAIL);
    }
}

/// This processor's count is this program's alone while it runs.
#[inline(always)]
fn add(counters: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: a map's value stays mapped while the program runs.
        unsafe { *counter += 1 }
    }
}
