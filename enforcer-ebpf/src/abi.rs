//! The layouts that the kernel programs and the agent share: map keys, map values and event records.
//!
//! Integers only, no implicit padding, every size asserted: any bit pattern is a valid value, and two
//! equal meanings have equal bytes (padding takes part in a hash lookup, so it is named and always zero).
//! Ports are in network byte order; everything else is in the machine's.

use core::mem::{offset_of, size_of};

/// Raised with every change of this file; pins live in a directory per version, and maps pinned under
/// another version are rebuilt, never reinterpreted.
pub const ABI_VERSION: u32 = 4;

/// One local pod's interface. Map `ENDPOINTS` (ARRAY): slot `ifindex % ENDPOINT_SLOTS`, valid only if
/// `ifindex` is equal too; an endpoint whose slot is taken lives in `ENDPOINTS_SPILL` (HASH by ifindex).
/// A packet on an interface without a record is dropped: no record means not yet, or no longer, a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Host-side interface index; 0: this slot is free.
    pub ifindex: u32,
    /// Node-local number of the endpoint, as in status and flow records; never 0.
    pub id: u32,
    /// Which rules apply, and since when: see [`PolicyWord`].
    pub policy: PolicyWord,
    /// The pod's IPv6 address; all zero: none.
    pub ipv6: [u8; 16],
    /// The pod's IPv4 address; all zero: none.
    pub ipv4: [u8; 4],
    pub tenant: TenantWord,
    /// The pod's own MAC address (the container side of the veth pair).
    pub mac: [u8; 6],
    /// Bits of `ENDPOINT_*`.
    pub flags: u16,
    /// The pod's own identity number.
    pub identity: u32,
    /// Number under which the pod's packets to Services and nodes are marked, 1 to [`ORIGINS`] - 1, unique
    /// among the endpoints of the node; 0: they are not marked.
    pub mark: u16,
    pub pad: [u8; 10],
}
/// Entries of map `ORIGINS` (ARRAY of u32): host-side interface index by [`Endpoint::mark`]. A stale entry does
/// no harm: the endpoint there must have the number in its record.
pub const ORIGINS: u32 = 1 << 12;
pub const ENDPOINT_SLOTS: u32 = 1 << 16;
/// The pod ran before bulkhead did: a TCP packet without SYN and without an entry is judged as a new
/// connection in its own direction instead of being dropped.
pub const ENDPOINT_ADOPTED: u16 = 1;
const _: () = assert!(size_of::<Endpoint>() == 64 && offset_of!(Endpoint, policy) == 8);

/// Rule set (low half) and policy generation (high half) of an endpoint in one word, read by one load.
///
/// New rules come with a new generation: under the old one, tracked connections would pass by the old rules while
/// new ones pass by the new. A second generation follows, because a program may have met a record half written and
/// recorded a verdict of the old rules under the first.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyWord(pub u64);

impl PolicyWord {
    pub const fn new(rule_set: u32, generation: u32) -> Self {
        Self((generation as u64) << 32 | rule_set as u64)
    }
    /// 0 holds no rules: everything is denied.
    pub const fn rule_set(self) -> u32 {
        self.0 as u32
    }
    /// Counts up over the agent's life on this node; a verdict of another generation is not trusted. Never 0.
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Tenant number of a pod's namespace (low 31 bits; 0: shared), and which of a peer's two tenants it is compared with (the
/// high bit), in one word, read by one load: see [`Peer::tenants`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantWord(pub u32);

impl TenantWord {
    /// `view`: 0 or 1.
    pub const fn new(tenant: u32, view: u32) -> Self {
        Self(tenant & !TENANT_VIEW | view << 31)
    }
    pub const fn tenant(self) -> u32 {
        self.0 & !TENANT_VIEW
    }
    pub const fn view(self) -> u32 {
        self.0 >> 31
    }
    /// What the peer belongs to, as this endpoint sees it.
    #[inline(always)]
    pub const fn of(self, peer: &Peer) -> u32 {
        if self.0 & TENANT_VIEW == 0 { peer.tenants[0] } else { peer.tenants[1] }
    }
    /// Whether there is a boundary between the endpoint and what belongs to `other`.
    #[inline(always)]
    pub const fn is_apart_from(self, other: u32) -> bool {
        self.tenant() != 0 && other != 0 && self.tenant() != other
    }
}
const TENANT_VIEW: u32 = 1 << 31;

/// What an address is. Maps `PEERS_V4`, `PEERS_V6` (HASH by address: pods and nodes) and
/// `PREFIXES_V4`, `PREFIXES_V6` (LPM: everything else; a prefix of length 0 is always present).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Identity number, `IDENTITY_*` or from [`FIRST_POD_IDENTITY`] up; always below [`BLOCKS_TAG`].
    pub identity: u32,
    /// Number of the set of ipBlocks (and "any pod") that hold this address, tagged with [`BLOCKS_TAG`];
    /// 0: in none.
    pub blocks: u32,
    /// Tenant number; 0: shared; [`TENANT_UNKNOWN`]. Twice, because both ends of a connection may move to another tenant
    /// at once: each endpoint goes on from the tenants before to those after, its own and all peers', in one write of its
    /// record ([`TenantWord`]). Except on that way both are the same.
    pub tenants: [u32; 2],
    /// Host-side interface index of the endpoint whose address this is; 0: no endpoint of this node.
    pub ifindex: u32,
}
const _: () = assert!(size_of::<Peer>() == 20);

/// Where a Service is reached: a cluster, external or load balancer address, or an address of this node with a
/// node port. Maps `SERVICES_V4`, `SERVICES_V6` (HASH): to an identity number (u32) that stands for the backends.
///
/// A rule set lets a pod speak to that identity (`EGRESS`, all protocols) if it allows some of the backends; which
/// one is meant is judged after translation. A pod that has a tenant needs that identity's door, too.
///
/// The unspecified address stands for every address of another node. Its node ports are translated there, where
/// nobody knows the pod's tenant any more: a pod that has one needs that identity's door besides the rules for nodes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey<A> {
    pub address: A,
    pub port_be: [u8; 2],
    pub protocol: u8,
    pub pad: u8,
}
pub type ServiceKey4 = ServiceKey<[u8; 4]>;
pub type ServiceKey6 = ServiceKey<[u8; 16]>;
const _: () = assert!(size_of::<ServiceKey4>() == 8 && size_of::<ServiceKey6>() == 20);

pub const IDENTITY_HOST: u32 = 1;
pub const IDENTITY_REMOTE_NODE: u32 = 2;
pub const IDENTITY_WORLD: u32 = 3;
/// An address of the pod network that no known pod owns: matches no selector and no tenant.
pub const IDENTITY_UNKNOWN_POD: u32 = 4;
/// In place of what stands behind a Service: a tunnel's port at an address that is no pod's. Nobody gets there.
pub const IDENTITY_TUNNEL: u32 = 5;
pub const FIRST_POD_IDENTITY: u32 = 256;
pub const BLOCKS_TAG: u32 = 1 << 31;
/// Another tenant than every tenant, but not a boundary for shared namespaces.
pub const TENANT_UNKNOWN: u32 = u32::MAX;

/// Key of the rule trie `RULES` (LPM), without its prefix length. All rules allow, and any match will do:
/// the compiler has added everything up, so the longest match is as good as any other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleKey {
    pub rule_set: u32,
    /// Identity number, tagged block-set number, or [`PEER_ANY`].
    pub peer: u32,
    /// `INGRESS`, `EGRESS`, or one of the doors.
    pub direction: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// The destination's port; 0 for protocols without ports.
    pub port_be: [u8; 2],
}
const _: () = assert!(size_of::<RuleKey>() == 12 && offset_of!(RuleKey, direction) == 8);

pub const PEER_ANY: u32 = 0;
pub const INGRESS: u8 = 0;
pub const EGRESS: u8 = 1;
/// Added to a direction: the peer may pass the tenant boundary (policy still decides afterwards).
pub const DOOR: u8 = 2;
/// Prefix length of a rule for all protocols.
pub const RULE_BITS_ALL: u32 = 72;
/// Prefix length of a rule for one protocol and all its ports; each leading port bit adds one.
pub const RULE_BITS_PROTOCOL: u32 = 80;
/// Prefix length of a rule for one port, and of every lookup.
pub const RULE_BITS_PORT: u32 = 96;

/// Connection key: the 5-tuple with its two sides in order, so that both directions give the same key.
/// Side 0 is the lower (address, port). ICMP echo: the asking side's port is the echo identifier, the
/// answering side's is 0, so a request never has the key of another side's reply. Other ICMP messages:
/// the sender's port is type and code, the receiver's 0xffff, so they are nobody's reply.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnKey<A> {
    pub addresses: [A; 2],
    pub ports_be: [[u8; 2]; 2],
    pub protocol: u8,
    pub pad: [u8; 3],
}
pub type ConnKey4 = ConnKey<[u8; 4]>;
pub type ConnKey6 = ConnKey<[u8; 16]>;
const _: () = assert!(size_of::<ConnKey4>() == 16 && size_of::<ConnKey6>() == 40);

/// A tracked connection. Maps `CONNS_V4`, `CONNS_V6` (`LRU_HASH`). Arrays are by side of the key.
/// Counts are written without atomics: two CPUs that carry one direction of one connection at once may
/// lose a count, never a verdict.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conn {
    pub ends: [EndWord; 2],
    /// Packets sent by each side, as the counting end saw them.
    pub packets: [u64; 2],
    /// Bytes of whole frames sent by each side.
    pub bytes: [u64; 2],
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub started: u64,
    /// In ticks of 2^30 ns (1.07 s) of the same clock.
    pub last_seen: u32,
    /// [`CONN_OPENER`]: the side that sent the first packet. [`CONN_COUNTER`]: the side whose pod's hooks count
    /// packets and report the end.
    pub sides: u8,
    /// Bits of `CONN_*`.
    pub state: u8,
    /// Low half of the interface index of the endpoint that opened the connection or, if it is none of this node's,
    /// of the one that was asked.
    pub origin: u16,
}
const _: () = assert!(size_of::<Conn>() == 64);

pub const CONN_OPENER: u8 = 1;
pub const CONN_COUNTER: u8 = 2;
/// In `sides`: the opener came in from elsewhere under an address of this node (masquerading hides who it is),
/// so that it has the rights of another node and not of this one. So has an endpoint whom [`Conn::origin`] would not
/// find, when it comes to new rules.
pub const CONN_STRANGER: u8 = 4;
/// The side that did not open has sent something.
pub const CONN_REPLIED: u8 = 1;
/// Side 0 has sent FIN; shift left by the side.
pub const CONN_FIN: u8 = 2;
pub const CONN_RESET: u8 = 8;
/// The end has been reported; the entry stays for late packets until the agent removes it.
pub const CONN_ENDED: u8 = 16;
/// To a Service or a node: the opener's packets carry its mark, so that they can be told after translation. Also, who
/// opened it came in by the address and port of a Service: what goes back there may go to the Service.
pub const CONN_MARKED: u8 = 32;
/// As it is after translation. The opener is a pod of this node whose egress could not be judged at its own
/// interface; the verdict is the opener's word in `ends`, whichever address it has there.
pub const CONN_TRANSLATED: u8 = 64;

/// The verdict at one end that is a local pod: under which generation (low half) which rule (high half)
/// allowed the connection. A generation of 0 is never current: not judged at this end.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndWord(pub u64);

impl EndWord {
    pub const fn new(generation: u32, rule: u32) -> Self {
        Self((rule as u64) << 32 | generation as u64)
    }
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }
    pub const fn rule(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A datagram whose first fragment was allowed at one hook. Map `FRAGMENTS` (`LRU_HASH`), both families.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    /// IPv4 in the first four bytes, the rest zero.
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub id: u32,
    pub ifindex: u32,
    pub protocol: u8,
    pub direction: u8,
    pub pad: [u8; 2],
}
const _: () = assert!(size_of::<FragmentKey>() == 44);

/// Generation under which the first fragment was allowed, and the tick it came.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    pub generation: u32,
    pub tick: u32,
}
const _: () = assert!(size_of::<Fragment>() == 8);

/// Like drops are counted together. Map `DROPS` (`LRU_HASH`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DropKey {
    pub remote: [u8; 16],
    pub ifindex: u32,
    pub port_be: [u8; 2],
    pub protocol: u8,
    pub direction: u8,
    pub reason: u8,
    pub family: u8,
    pub pad: [u8; 2],
}
const _: () = assert!(size_of::<DropKey>() == 28);

/// Drops since the last event for this key, and that event's tick.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCount {
    pub count: u32,
    pub tick: u32,
}
const _: () = assert!(size_of::<DropCount>() == 8);
/// A key that keeps dropping sends one event per this many ticks.
pub const DROP_EVENT_TICKS: u32 = 5;

/// Settings of the programs. Map `CONFIG` (ARRAY of one).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// UDP port of the overlay's tunnels; pods may not send to it on a node. 0: no such port.
    pub tunnel_port_be: [u8; 2],
    /// Bits of `LET_*`: what pods may send although it is not a pod's to send.
    pub lets: u16,
    /// Twelve neighbouring bits of a packet's mark that belong to us. Without them masquerading would hide who sends:
    /// only benches and tests leave them out.
    pub mark_mask: u32,
}
const _: () = assert!(size_of::<Config>() == 8);
/// Tunnels (IP in IP, GRE and their like) to where no pod is known to be.
pub const LET_TUNNELS: u16 = 1;
/// What DHCP servers say.
pub const LET_DHCP: u16 = 2;

/// What one endpoint has used up lately of what all of them share. Map `PURSES` (ARRAY, [`ORIGINS`] entries) by
/// [`Endpoint::mark`]; all endpoints without a mark have one together.
///
/// The first three are points in time (`CLOCK_MONOTONIC`, nanoseconds) until which what was taken is paid for: see the
/// module `budget`. Written without atomics: processors that carry one pod's packets at once may take for one price.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purses {
    /// By direction: entries for what is begun, and for datagrams that come in fragments.
    pub entries: [u64; 2],
    /// Events about drops.
    pub drops: u64,
    /// Packets dropped because there was nothing left in `entries`.
    pub refused: u64,
}
const _: () = assert!(size_of::<Purses>() == 32);
/// Words of [`Purses`] after those by direction.
pub const PURSE_DROPS: usize = 2;
pub const PURSE_REFUSED: usize = 3;

/// What endpoints may take. Map `LIMITS` (ARRAY of one).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Nanoseconds of income that one new entry of what a pod sends costs; 0: it may have any number. What comes to a
    /// pod costs the [`INGRESS_SHARE`]th part.
    pub entry_cost: u64,
    /// Nanoseconds of income that a pod can save up.
    pub savings: u64,
}
const _: () = assert!(size_of::<Limits>() == 16);
/// How many senders' budgets one receiver can take in: no pod alone uses up another's.
pub const INGRESS_SHARE: u64 = 4;
/// Nanoseconds of income that an event about a drop costs: 100 per second ..
pub const DROP_EVENT_COST: u64 = 10_000_000;
/// .. and 1000 at once.
pub const DROP_EVENT_SAVINGS: u64 = 1000 * DROP_EVENT_COST;

/// What the programs tell the agent, over the ring buffer `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time: u64,
    /// End: when the connection started; otherwise 0.
    pub started: u64,
    /// End: packets from the opener, to the opener; otherwise 0.
    pub packets: [u64; 2],
    /// End: bytes from the opener, to the opener; otherwise 0.
    pub bytes: [u64; 2],
    /// Of this packet; for an end, the connection's opener and its peer. IPv4 in the first four bytes.
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub ifindex: u32,
    /// Endpoint whose hook reports; 0: no record for this interface.
    pub endpoint: u32,
    /// Rule that allowed; 0 for a drop.
    pub rule: u32,
    /// Rule set in force at the time.
    pub rule_set: u32,
    pub remote_identity: u32,
    /// Drops that this event stands for, itself included; 1 for the other kinds.
    pub aggregated: u32,
    /// ICMP: type and code as a big-endian pair in `destination_port_be`.
    pub source_port_be: [u8; 2],
    pub destination_port_be: [u8; 2],
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    /// `EVENT_*`.
    pub kind: u8,
    /// A [`crate::reason::Reason`].
    pub reason: u8,
    /// Direction that was judged: `INGRESS` or `EGRESS` as seen from the endpoint, for the connection.
    pub direction: u8,
    /// 4, 6, or 0 for a frame that is neither.
    pub family: u8,
    pub protocol: u8,
    /// As in byte 13 of the TCP header; 0 for other protocols.
    pub tcp_flags: u8,
    /// `HOOK_*`: where the packet was seen.
    pub hook: u8,
    /// 1: the packet went against the connection's direction.
    pub is_reply: u8,
    /// 1: a drop that stands for others to other addresses and ports too, of the same reason and direction, because the
    /// endpoint has more than it may send events about.
    pub mixed: u8,
    pub pad: [u8; 7],
}
const _: () = assert!(size_of::<Event>() == 136);

/// A connection's first packet was allowed at this end.
pub const EVENT_NEW: u8 = 1;
/// A TCP connection closed or was reset (other ends the agent finds when it sweeps idle entries).
pub const EVENT_END: u8 = 2;
pub const EVENT_DROP: u8 = 3;
pub const HOOK_FROM_POD: u8 = 0;
pub const HOOK_TO_POD: u8 = 1;
pub const HOOK_TO_OVERLAY: u8 = 2;

/// Names of the programs and maps in the object file and of their pins.
pub mod names {
    pub const FROM_POD: &str = "from_pod";
    pub const TO_POD: &str = "to_pod";
    pub const TO_OVERLAY: &str = "to_overlay";
    /// Does nothing: what a hook costs by itself, for benches to subtract.
    pub const NOTHING: &str = "nothing";
    pub const ENDPOINTS: &str = "ENDPOINTS";
    pub const ENDPOINTS_SPILL: &str = "ENDPOINTS_SPILL";
    pub const PEERS_V4: &str = "PEERS_V4";
    pub const PEERS_V6: &str = "PEERS_V6";
    pub const PREFIXES_V4: &str = "PREFIXES_V4";
    pub const PREFIXES_V6: &str = "PREFIXES_V6";
    pub const SERVICES_V4: &str = "SERVICES_V4";
    pub const SERVICES_V6: &str = "SERVICES_V6";
    pub const ORIGINS: &str = "ORIGINS";
    pub const RULES: &str = "RULES";
    pub const CONNS_V4: &str = "CONNS_V4";
    pub const CONNS_V6: &str = "CONNS_V6";
    pub const FRAGMENTS: &str = "FRAGMENTS";
    pub const DROPS: &str = "DROPS";
    pub const CONFIG: &str = "CONFIG";
    pub const EVENTS: &str = "EVENTS";
    /// `PERCPU_ARRAY` of u64 by reason code: packets decided for that reason.
    pub const COUNTERS: &str = "COUNTERS";
    /// `PERCPU_ARRAY` of u64 by `LOST_*` and `ENTERED_*`.
    pub const LOST: &str = "LOST";
    pub const PURSES: &str = "PURSES";
    pub const LIMITS: &str = "LIMITS";
}
/// Index in `LOST`: the ring buffer was full.
pub const LOST_EVENTS: u32 = 0;
/// Index in `LOST`: an allowed connection could not be entered into the table; its packet passed.
pub const LOST_CONNS: u32 = 1;
/// Index in `LOST`: drops that were counted with others of their endpoint, because it may send no more events.
pub const LOST_DETAIL: u32 = 2;
/// Index in `LOST`: connections entered into `CONNS_V4`, and into `CONNS_V6`.
pub const ENTERED_V4: u32 = 3;
pub const ENTERED_V6: u32 = 4;
pub const LOST_LEN: u32 = 5;

#[cfg(feature = "user")]
mod user {
    use super::{
        Config, Conn, ConnKey4, ConnKey6, DropCount, DropKey, Endpoint, Fragment, FragmentKey, Limits, Peer,
        Purses, RuleKey, ServiceKey4, ServiceKey6,
    };
    macro_rules! pod { ($($t:ty),*) => { $(
        // SAFETY: `repr(C)`, integers only, no implicit padding (sizes asserted above): any bytes are valid.
        unsafe impl aya::Pod for $t {}
    )* } }
    pod!(
        Config,
        Conn,
        ConnKey4,
        ConnKey6,
        DropCount,
        DropKey,
        Endpoint,
        Fragment,
        FragmentKey,
        Limits,
        Peer,
        Purses,
        RuleKey,
        ServiceKey4,
        ServiceKey6
    );
}
