//! The tables and the packet on the host: what tests, fuzzers and offline questions run the decision on.

pub mod frames;

use core::{
    cell::{Cell, RefCell, UnsafeCell},
    hash::Hash,
    ptr::NonNull,
};
use std::{boxed::Box, collections::HashMap, vec::Vec};

use crate::{
    abi::{
        Config, Conn, ConnKey, ConnKey4, ConnKey6, DropCount, DropKey, Endpoint, Event, Fragment,
        FragmentKey, Limits, Peer, Purses, RULE_BITS_PORT, RuleKey, ServiceKey, ServiceKey4, ServiceKey6,
    },
    family::{Family, V4, V6},
    packet::{Packet, Wire},
    reason::{REASONS, Reason},
    tables::{Addresses, ConnRef, Inserted, Tables},
};

/// A frame in memory, as seen on an interface.
#[derive(Clone, Debug)]
pub struct Frame<'a> {
    pub bytes: &'a [u8],
    pub ifindex: u32,
    pub vlan_tagged: bool,
    pub came_in_by: u32,
    pub mark: Cell<u32>,
}

impl<'a> Frame<'a> {
    pub const fn new(bytes: &'a [u8], ifindex: u32) -> Self {
        Self { bytes, ifindex, vlan_tagged: false, came_in_by: 0, mark: Cell::new(0) }
    }
}

impl Packet for Frame<'_> {
    fn frame_len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn vlan_tagged(&self) -> bool {
        self.vlan_tagged
    }

    fn came_in_by(&self) -> u32 {
        self.came_in_by
    }

    fn mark(&self) -> u32 {
        self.mark.get()
    }

    fn set_mark(&self, mark: u32) {
        self.mark.set(mark);
    }

    fn read<T: Wire>(&self, at: usize) -> Result<T, Reason> {
        let end = at.checked_add(size_of::<T>()).ok_or(Reason::Truncated)?;
        let bytes = self.bytes.get(at..end).ok_or(Reason::Truncated)?;
        // SAFETY: as many bytes as `T` has, and any bytes are a `T`.
        Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    fn load<T: Wire>(&self, at: u32) -> Result<T, Reason> {
        self.read(at as usize)
    }
}

/// All tables in memory, with everything that was reported. Fill the fields, decide, look at the fields.
#[derive(Default)]
pub struct Memory {
    pub endpoints: HashMap<u32, Endpoint>,
    pub peers_v4: HashMap<[u8; 4], Peer>,
    pub peers_v6: HashMap<[u8; 16], Peer>,
    /// By prefix length in bits and masked address.
    pub prefixes_v4: HashMap<(u32, [u8; 4]), Peer>,
    pub prefixes_v6: HashMap<(u32, [u8; 16]), Peer>,
    pub services_v4: HashMap<ServiceKey4, u32>,
    pub services_v6: HashMap<ServiceKey6, u32>,
    /// Interface index by mark.
    pub origins: HashMap<u32, u32>,
    /// By prefix length in bits and masked key; the value is the rule's number.
    pub rules: HashMap<(u32, RuleKey), u32>,
    pub config: Config,
    pub limits: Limits,
    /// Nanoseconds.
    pub now: Cell<u64>,
    /// What the next insertion of a connection comes to; for testing the ways it fails.
    pub insertion: Cell<Option<Inserted>>,
    /// Events that still find room; unlimited if none is set.
    pub event_room: Cell<Option<u32>>,
    pub events: RefCell<Vec<Event>>,
    pub lost_events: Cell<u64>,
    pub lost_conns: Cell<u64>,
    pub lost_detail: Cell<u64>,
    counters: RefCell<HashMap<Reason, u64>>,
    conns_v4: Entries<ConnKey4, Conn>,
    conns_v6: Entries<ConnKey6, Conn>,
    fragments: RefCell<HashMap<FragmentKey, Fragment>>,
    drops: Entries<DropKey, DropCount>,
    purses: Entries<u16, Purses>,
}

/// A map that only grows while it is shared, so that references to its boxed values stay valid.
struct Entries<K, V>(RefCell<HashMap<K, Box<UnsafeCell<V>>>>);

impl<K, V> Default for Entries<K, V> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: Copy + Eq + Hash, V: Copy> Entries<K, V> {
    fn get(&self, key: &K) -> Option<&UnsafeCell<V>> {
        let entry: *const UnsafeCell<V> = &raw const **self.0.borrow().get(key)?;
        // SAFETY: boxed, and removed only through a mutable reference to the whole.
        Some(unsafe { &*entry })
    }

    fn insert(&self, key: K, value: V) -> bool {
        let mut entries = self.0.borrow_mut();
        let vacant = !entries.contains_key(&key);
        if vacant {
            entries.insert(key, Box::new(UnsafeCell::new(value)));
        }
        vacant
    }

    fn snapshot(&self) -> HashMap<K, V> {
        // SAFETY: nobody else reads or writes: not `Sync`, and no reference is kept across calls.
        self.0.borrow().iter().map(|(key, value)| (*key, unsafe { *value.get() })).collect()
    }
}

impl Memory {
    pub fn counter(&self, reason: Reason) -> u64 {
        self.counters.borrow().get(&reason).copied().unwrap_or_default()
    }

    /// Packets decided so far, by reason.
    pub fn counters(&self) -> HashMap<Reason, u64> {
        self.counters.borrow().clone()
    }

    pub fn conns_v4(&self) -> HashMap<ConnKey4, Conn> {
        self.conns_v4.snapshot()
    }

    pub fn conns_v6(&self) -> HashMap<ConnKey6, Conn> {
        self.conns_v6.snapshot()
    }

    /// What the endpoint with this mark has used up.
    pub fn purses(&self, mark: u16) -> Purses {
        self.purses.snapshot().get(&mark).copied().unwrap_or_default()
    }

    /// Kinds of drops that are counted.
    pub fn drops(&self) -> HashMap<DropKey, DropCount> {
        self.drops.snapshot()
    }

    /// Allows a key's first `bits` bits.
    pub fn allow(&mut self, bits: u32, key: RuleKey, rule: u32) {
        self.rules.insert((bits, masked_rule(bits, key)), rule);
    }

    pub fn prefix_v4(&mut self, bits: u32, address: [u8; 4], peer: Peer) {
        self.prefixes_v4.insert((bits, masked(bits, address)), peer);
    }

    pub fn prefix_v6(&mut self, bits: u32, address: [u8; 16], peer: Peer) {
        self.prefixes_v6.insert((bits, masked(bits, address)), peer);
    }

    /// Takes what has been reported since the last time.
    pub fn take_events(&self) -> Vec<Event> {
        self.events.take()
    }

    pub fn clear_conns(&mut self) {
        self.conns_v4 = Entries::default();
        self.conns_v6 = Entries::default();
    }
}

fn masked<const N: usize>(bits: u32, mut bytes: [u8; N]) -> [u8; N] {
    for (byte, from) in bytes.iter_mut().zip((0u32..).step_by(8)) {
        let kept = bits.saturating_sub(from).min(8);
        *byte &= u8::try_from(0xff00u16 >> kept & 0xff).unwrap_or(0);
    }
    bytes
}

fn masked_rule(bits: u32, key: RuleKey) -> RuleKey {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&key.rule_set.to_ne_bytes());
    bytes[4..8].copy_from_slice(&key.peer.to_ne_bytes());
    bytes[8..].copy_from_slice(&[key.direction, key.protocol, key.port_be[0], key.port_be[1]]);
    let [a, b, c, d, e, f, g, h, direction, protocol, high, low] = masked(bits, bytes);
    RuleKey {
        rule_set: u32::from_ne_bytes([a, b, c, d]),
        peer: u32::from_ne_bytes([e, f, g, h]),
        direction,
        protocol,
        port_be: [high, low],
    }
}

fn longest<K: Eq + Hash, V: Copy>(
    table: &HashMap<(u32, K), V>,
    bits: u32,
    mask: impl Fn(u32) -> K,
) -> Option<V> {
    (0..=bits).rev().find_map(|bits| table.get(&(bits, mask(bits))).copied())
}

/// The key as it is in the kernel's tables.
fn bytes<A: Copy, B>(key: &ConnKey<A>, address: impl Fn(A) -> B) -> ConnKey<B> {
    ConnKey {
        addresses: key.addresses.map(address),
        ports_be: key.ports_be,
        protocol: key.protocol,
        pad: key.pad,
    }
}

macro_rules! addresses {
    ($family:ty, $bytes:path, $peers:ident, $prefixes:ident, $services:ident, $conns:ident) => {
        impl Addresses<$family> for Memory {
            fn peer(&self, address: <$family as Family>::Addr) -> Option<Peer> {
                let address = $bytes(address);
                let bits = 8 * u32::try_from(address.len()).unwrap_or(0);
                let known = self.$peers.get(&address).copied();
                known.or_else(|| longest(&self.$prefixes, bits, |bits| masked(bits, address)))
            }

            fn conn(&self, key: &ConnKey<<$family as Family>::Addr>) -> Option<ConnRef<'_>> {
                let conn = NonNull::new(self.$conns.get(&bytes(key, $bytes))?.get())?;
                // SAFETY: the entry lives as long as `self` is borrowed.
                Some(unsafe { ConnRef::new(conn) })
            }

            fn service(&self, key: &ServiceKey<<$family as Family>::Addr>) -> Option<u32> {
                let ServiceKey { port_be, protocol, pad, .. } = *key;
                let key = ServiceKey { address: $bytes(key.address), port_be, protocol, pad };
                self.$services.get(&key).copied()
            }

            fn insert_conn(&self, key: &ConnKey<<$family as Family>::Addr>, conn: &Conn) -> Inserted {
                match self.insertion.take() {
                    Some(outcome) => outcome,
                    None if self.$conns.insert(bytes(key, $bytes), *conn) => Inserted::Done,
                    None => Inserted::Exists,
                }
            }
        }
    };
}
addresses!(V4, u32::to_ne_bytes, peers_v4, prefixes_v4, services_v4, conns_v4);
addresses!(V6, V6::wide, peers_v6, prefixes_v6, services_v6, conns_v6);

impl Tables for Memory {
    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint> {
        self.endpoints.get(&ifindex)
    }

    fn endpoint_ending(&self, low: u16) -> Option<&Endpoint> {
        // The elder has the slot.
        let ending = self.endpoints.values().filter(|endpoint| endpoint.ifindex & 0xffff == u32::from(low));
        ending.min_by_key(|endpoint| endpoint.ifindex)
    }

    fn origin(&self, mark: u32) -> Option<u32> {
        self.origins.get(&mark).copied()
    }

    fn rule(&self, key: &RuleKey) -> Option<u32> {
        longest(&self.rules, RULE_BITS_PORT, |bits| masked_rule(bits, *key))
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn remember_fragment(&self, key: &FragmentKey, fragment: Fragment) {
        self.fragments.borrow_mut().insert(*key, fragment);
    }

    fn drop_count(&self, key: &DropKey) -> Option<&Cell<DropCount>> {
        // SAFETY: a `Cell` has the layout of its value, and of the cell around it.
        self.drops.get(key).map(|count| unsafe { &*count.get().cast::<Cell<DropCount>>() })
    }

    fn insert_drop_count(&self, key: &DropKey, count: DropCount) {
        self.drops.insert(*key, count);
    }

    fn config(&self) -> Config {
        self.config
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn purse(&self, mark: u16, word: usize) -> Option<&Cell<u64>> {
        self.purses.insert(mark, Purses::default());
        let purses = self.purses.get(&mark)?.get().cast::<Cell<u64>>();
        // SAFETY: made of words, and the index is masked to their number; a `Cell` is its value in memory, and nobody
        // holds a reference to the whole.
        Some(unsafe { &*purses.add(word & 3) })
    }

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn event(&self, fill: impl FnOnce(&mut Event)) -> bool {
        if let Some(room) = self.event_room.get() {
            if room == 0 {
                self.lost_events.set(self.lost_events.get() + 1);
                return false;
            }
            self.event_room.set(Some(room - 1));
        }
        let mut event = Event::default();
        fill(&mut event);
        self.events.borrow_mut().push(event);
        true
    }

    fn count(&self, reason: Reason) {
        debug_assert!((reason as u32) < REASONS);
        *self.counters.borrow_mut().entry(reason).or_default() += 1;
    }

    fn lost_conn(&self) {
        self.lost_conns.set(self.lost_conns.get() + 1);
    }

    fn lost_detail(&self) {
        self.lost_detail.set(self.lost_detail.get() + 1);
    }
}
