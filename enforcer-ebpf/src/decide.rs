//! One frame at one hook: from the endpoint's record to the verdict.
//!
//! What a tracked packet passes through is inlined; what is rarer, and what needs stack of its own (a
//! program has 512 bytes), is a function that is not.

use core::{marker::PhantomData, ptr};

use crate::{
    abi::{
        ConnKey, EGRESS, ENDPOINT_ADOPTED, Endpoint, Fragment, FragmentKey, HOOK_FROM_POD, HOOK_TO_OVERLAY,
        HOOK_TO_POD, INGRESS, Peer, PolicyWord,
    },
    budget,
    family::{Family, V4, V6},
    fast,
    flow::Flow,
    guard, neighbour, origin, overlay,
    packet::{ETHER_ARP, ETHER_IPV4, ETHER_IPV6, ETHERNET_LEN, IGMP, Packet, TCP},
    reason::Reason,
    related::related,
    report,
    tables::{Addresses, ConnRef, Tables},
    track::{begin, track},
};

/// Where a frame is seen: at the host's end of a pod's veth pair, or on its way to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    FromPod,
    ToPod,
    ToOverlay,
}

impl Hook {
    pub const fn code(self) -> u8 {
        match self {
            Self::FromPod => HOOK_FROM_POD,
            Self::ToPod => HOOK_TO_POD,
            Self::ToOverlay => HOOK_TO_OVERLAY,
        }
    }

    /// Direction of a connection that begins with a packet here.
    pub const fn direction(self) -> u8 {
        match self {
            Self::FromPod | Self::ToOverlay => EGRESS,
            Self::ToPod => INGRESS,
        }
    }

    /// The pod's side of a connection, given the side that sent the packet.
    #[inline(always)]
    pub const fn own_side(self, sender: usize) -> usize {
        match self {
            Self::FromPod | Self::ToOverlay => sender,
            Self::ToPod => sender ^ 1,
        }
    }

    /// The other end's address.
    #[inline(always)]
    pub const fn remote<F: Family>(self, flow: &Flow<F>) -> F::Addr {
        match self {
            Self::FromPod | Self::ToOverlay => flow.destination,
            Self::ToPod => flow.source,
        }
    }
}

/// A hook known when the program is built: nothing of the other one is left in it.
pub trait At {
    const HOOK: Hook;
}
pub enum FromPod {}
pub enum ToPod {}
pub enum ToOverlay {}

impl At for FromPod {
    const HOOK: Hook = Hook::FromPod;
}
impl At for ToPod {
    const HOOK: Hook = Hook::ToPod;
}
impl At for ToOverlay {
    const HOOK: Hook = Hook::ToOverlay;
}

/// The hook at work: whose packet, under which policy.
pub struct Site<'t, T, H> {
    pub tables: &'t T,
    pub endpoint: &'t Endpoint,
    /// Read once: the whole decision is made under one policy.
    pub policy: PolicyWord,
    pub ifindex: u32,
    at: PhantomData<H>,
}

impl<'t, T, H: At> Site<'t, T, H> {
    #[inline(always)]
    pub fn of(tables: &'t T, endpoint: &'t Endpoint, ifindex: u32) -> Self {
        // SAFETY: a reference is valid to read; volatile, because the agent may write at any moment.
        let policy = unsafe { ptr::read_volatile(&raw const endpoint.policy) };
        Self { tables, endpoint, policy, ifindex, at: PhantomData }
    }

    #[inline(always)]
    pub const fn hook(&self) -> Hook {
        H::HOOK
    }

    #[inline(always)]
    pub fn adopted(&self) -> bool {
        self.endpoint.flags & ENDPOINT_ADOPTED != 0
    }

    #[inline(always)]
    pub fn peer<F: Family>(&self, address: F::Addr) -> Option<Peer>
    where
        T: Addresses<F>,
    {
        Addresses::<F>::peer(self.tables, address)
    }

    #[inline(always)]
    pub fn settle<F: Family>(&self, flow: &mut Flow<F>)
    where
        T: Addresses<F>,
    {
        Addresses::<F>::settle(self.tables, flow);
    }

    #[inline(always)]
    pub fn conn<F: Family>(&self, key: &ConnKey<F::Addr>) -> Option<ConnRef<'_>>
    where
        T: Addresses<F>,
    {
        Addresses::<F>::conn(self.tables, key)
    }
}

/// A drop, and whether the packet went against the connection that it was judged for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denial {
    pub reason: Reason,
    pub against: bool,
    /// It is the egress of the pod that sent the packet which was judged, after translation: see the module `origin`.
    pub late: bool,
}

impl From<Reason> for Denial {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self { reason, against: false, late: false }
    }
}

/// A verdict that a function can return in one register, all of it defined: of the bits that a `Result` leaves
/// open the verifier would complain.
#[derive(Clone, Copy)]
pub struct Outcome(u32);

impl Outcome {
    const AGAINST: u32 = 1 << 8;
    const LATE: u32 = 1 << 9;
    const FIRST: u32 = 1 << 10;
    const OVER: u32 = 1 << 11;

    /// No verdict yet: the packet is to be judged as the first of a connection. `over`: under the key of one that
    /// has an entry.
    #[inline(always)]
    pub const fn first(over: bool) -> Self {
        Self(if over { Self::FIRST | Self::OVER } else { Self::FIRST })
    }

    #[inline(always)]
    pub const fn is_first(self) -> Option<bool> {
        if self.0 & Self::FIRST != 0 { Some(self.0 & Self::OVER != 0) } else { None }
    }

    #[inline(always)]
    pub fn new(result: Result<Reason, Denial>) -> Self {
        Self(match result {
            Ok(reason) => reason as u32,
            Err(Denial { reason, against, late }) => {
                reason as u32 | if against { Self::AGAINST } else { 0 } | if late { Self::LATE } else { 0 }
            }
        })
    }

    #[inline(always)]
    pub fn result(self) -> Result<Reason, Denial> {
        let reason = Reason::of(self.0 as u8);
        if !reason.is_drop() {
            return Ok(reason);
        }
        Err(Denial { reason, against: self.0 & Self::AGAINST != 0, late: self.0 & Self::LATE != 0 })
    }
}

/// Decides, counts and reports.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &P, tables: &T, hook: Hook) -> Reason {
    let reason = match hook {
        Hook::FromPod => frame::<P, T, FromPod>(packet, tables),
        Hook::ToPod => frame::<P, T, ToPod>(packet, tables),
        Hook::ToOverlay => overlay::frame(packet, tables),
    };
    tables.count(reason);
    reason
}

#[inline(always)]
fn frame<P: Packet, T: Tables, H: At>(packet: &P, tables: &T) -> Reason {
    let ifindex = packet.ifindex();
    let Some(endpoint) = tables.endpoint(ifindex) else {
        return report::stranger(packet, tables, H::HOOK, Reason::NoEndpoint);
    };
    let site = Site::<T, H>::of(tables, endpoint, ifindex);
    let reason = match guard::frame(packet, &site) {
        Ok(ETHER_IPV4) => {
            return match fast::tracked::<V4, P, T, H>(packet, &site) {
                Some(reason) => reason,
                None => internet::<V4, P, T, H>(packet, &site),
            };
        }
        Ok(ETHER_IPV6) => {
            return match tracked_v6(packet, &site) {
                Some(reason) => reason,
                None => internet::<V6, P, T, H>(packet, &site),
            };
        }
        Ok(ETHER_ARP) => match guard::arp(packet, &site) {
            Ok(reason) => return reason,
            Err(reason) => reason,
        },
        Ok(_) => Reason::UnsupportedEtherType,
        Err(reason) => reason,
    };
    report::unread(packet, &site, 0, reason)
}

/// With a stack of its own: this key is the larger one.
#[inline(never)]
fn tracked_v6<P: Packet, T: Tables, H: At>(packet: &P, site: &Site<T, H>) -> Option<Reason> {
    fast::tracked::<V6, P, T, H>(packet, site)
}

#[inline(never)]
fn internet<F: Family, P: Packet, T: Tables + Addresses<F>, H: At>(packet: &P, site: &Site<T, H>) -> Reason {
    let mut flow = Flow::<F>::empty();
    if let Err(reason) = F::network(packet, site.tables, ETHERNET_LEN, false, &mut flow) {
        return report::unread(packet, site, F::NUMBER, reason);
    }
    match judge(packet, site, &mut flow) {
        Ok(reason) => reason,
        Err(Denial { reason: Reason::Overheard, .. }) => Reason::Overheard,
        Err(denial) if denial.late => origin::denied(packet, site.tables, &flow, denial),
        Err(denial) => report::denied(packet, site, &flow, denial),
    }
}

#[inline(always)]
fn judge<F: Family, P: Packet, T: Tables + Addresses<F>, H: At>(
    packet: &P,
    site: &Site<T, H>,
    flow: &mut Flow<F>,
) -> Result<Reason, Denial> {
    if !flow.is_plain() {
        site.settle(flow);
    }
    if flow.is_later_fragment() {
        guard::addresses(packet, site, flow)?;
        return Ok(later_fragment(site, flow)?);
    }
    flow.transport(packet, false)?;
    // Always: what follows is the largest part of the program, and the verifier would go through it once for every
    // way in which a packet can be read.
    site.settle(flow);
    if flow.protocol == F::ICMP
        && let Some(reason) = F::discovery(packet, site, flow)?
    {
        return Ok(reason);
    }
    if F::NUMBER == 4 && flow.protocol == IGMP && F::is_multicast(flow.destination) {
        return Ok(neighbour::membership(packet, site, flow)?);
    }
    if flow.is_first_fragment() {
        guard::first_fragment(flow)?;
    }
    guard::addresses(packet, site, flow)?;
    let reason = if flow.source == flow.destination {
        Reason::OwnAddress
    } else if flow.is_error() {
        related(packet, site, flow)?
    } else {
        if site.hook() == Hook::FromPod {
            guard::services(site, flow)?;
        }
        let outcome = track(packet, site, flow);
        match outcome.is_first() {
            None => outcome.result()?,
            Some(over) => begin(packet, site, flow, over).result()?,
        }
    };
    if flow.is_first_fragment() && !enter_fragment(site, flow) {
        return Err(Reason::OverBudget.into());
    }
    Ok(reason)
}

/// Whether the datagram's other fragments will be known; otherwise its first is worth nothing.
#[inline(never)]
fn enter_fragment<F: Family, T: Tables, H: At>(site: &Site<T, H>, flow: &Flow<F>) -> bool {
    let may = budget::may_enter(site);
    if may {
        remember_fragment(site, flow);
    }
    may
}

/// Seconds for which Linux waits for the rest of a datagram (`ipfrag_time`), in ticks.
const FRAGMENT_TICKS: u32 = 28;

#[inline(never)]
pub fn later_fragment<F: Family, T: Tables, H: At>(
    site: &Site<T, H>,
    flow: &Flow<F>,
) -> Result<Reason, Reason> {
    // Of a whole datagram, without its network header.
    let longest = if F::NUMBER == 4 { 0xffff - 20 } else { 0xffff };
    let (offset, len) = (u32::from(flow.fragment & !7), flow.end.saturating_sub(flow.at));
    let more = flow.fragment & 1 != 0;
    // It would overwrite ports or flags that have been judged (RFC 3128), or belong to no datagram that can be.
    if flow.fragment_protocol == TCP && offset < 20
        || len == 0
        || more && !len.is_multiple_of(8)
        || offset + len > longest
    {
        return Err(Reason::InvalidHeader);
    }
    match site.tables.fragment(&fragment_key(site, flow)) {
        Some(first)
            if first.generation == site.policy.generation()
                && site.tables.tick().wrapping_sub(first.tick) <= FRAGMENT_TICKS =>
        {
            Ok(Reason::Fragment)
        }
        _ => Err(Reason::FragmentNotTracked),
    }
}

#[inline(never)]
pub fn remember_fragment<F: Family, T: Tables, H: At>(site: &Site<T, H>, flow: &Flow<F>) {
    let fragment = Fragment { generation: site.policy.generation(), tick: site.tables.tick() };
    site.tables.remember_fragment(&fragment_key(site, flow), fragment);
}

#[inline(always)]
fn fragment_key<F: Family, T, H: At>(site: &Site<T, H>, flow: &Flow<F>) -> FragmentKey {
    FragmentKey {
        source: F::wide(flow.source),
        destination: F::wide(flow.destination),
        id: flow.fragment_id,
        ifindex: site.ifindex,
        protocol: flow.fragment_protocol,
        direction: site.hook().direction(),
        pad: [0; 2],
    }
}
