//! What one packet costs in the programs: the agent's own object, loaded privately, its maps filled as the
//! agent fills them, run on frames by `BPF_PROG_TEST_RUN`. All figures are net of an empty program.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Result, ensure};
use bulkhead::datapath::{
    Op, Rule,
    frame::Opening,
    kernel::{Kernel, Maps, take_ring},
    programs::{Capacity, classifier, load_private},
};
use bulkhead_ebpf::{
    abi::{
        BLOCKS_TAG, Endpoint, FIRST_POD_IDENTITY, IDENTITY_WORLD, INGRESS, Peer, PolicyWord, RULE_BITS_PORT,
        RuleKey, names,
    },
    reason::Reason,
};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::Serialize;

use super::{
    RULES,
    bpf::{NEXT, Renumber, SHOT, lookup, nothing, run},
};
use crate::probe::Family;

/// Runs of one frame in one system call, and calls. Short calls, because one that another process
/// interrupts is worth nothing: the median leaves it out.
const REPEAT: u32 = 1000;
const CALLS: u32 = 200;
/// Connections in one pass, a power of two: one system call.
const PASS: u16 = 1 << 10;
/// The table's size, and in passes: how many are measured with room, how many fill it, how many overflow it.
const CONNECTIONS: u32 = 1 << 18;
const WITH_ROOM: u16 = 128;
const TO_FULL: u16 = 320;
const OVERFLOWING: u16 = 128;
/// Passes that use up the ports of one client.
const PASSES_OF_CLIENT: u16 = 1 << 6;

const TCP: u8 = 6;
const PORT: u16 = 80;
const ACK: u8 = 0x10;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Interface index that a test run carries: loopback's.
const LOOPBACK: u32 = 1;
const RULE_SET: u32 = 1;
/// Many rules are this many blocks of addresses, each by as many ports as it takes.
const BLOCKS: u16 = 100;

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Path {
    /// The empty program itself, gross: tells how fast the machine was.
    Nothing,
    /// One hit in a table like that of connections: what no packet of a connection can be cheaper than.
    Lookup,
    TrackedToPod,
    TrackedFromPod,
    /// Every packet of another connection than the one before.
    TrackedInTurn,
    New,
    /// The oldest connection has to go.
    NewInFullTable,
    Denied,
}

impl Path {
    pub const fn title(self) -> &'static str {
        match self {
            Self::Nothing => "(empty program, gross)",
            Self::Lookup => "(one look into an LRU table)",
            Self::TrackedToPod => "tracked, to the pod",
            Self::TrackedFromPod => "tracked, from the pod",
            Self::TrackedInTurn => "tracked, each of another connection",
            Self::New => "new: judged, entered, reported",
            Self::NewInFullTable => "new, connection table full",
            Self::Denied => "denied, aggregated",
        }
    }
}

/// Nanoseconds per packet, net of an empty program, of one path: by measurement.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    pub path: Path,
    pub family: Family,
    pub rules: usize,
    pub samples: Vec<f64>,
}

/// Each round begins with fresh maps, and takes both families and all numbers of rules in turn.
pub fn measure(rounds: u32) -> Result<Vec<Figure>> {
    let mut figures: Vec<Figure> = Vec::new();
    for _ in 0..rounds {
        for rules in RULES {
            for family in [Family::V4, Family::V6] {
                for (path, sample) in Bench::new(family, rules)?.measure()? {
                    let same = |f: &&mut Figure| (f.path, f.family, f.rules) == (path, family, rules);
                    match figures.iter_mut().find(same) {
                        Some(figure) => figure.samples.push(sample),
                        None => figures.push(Figure { path, family, rules, samples: vec![sample] }),
                    }
                }
            }
        }
    }
    Ok(figures)
}

struct Bench {
    family: Family,
    maps: Maps,
    drain: Box<dyn FnMut()>,
    nothing: OwnedFd,
    lookup: OwnedFd,
    to_pod: OwnedFd,
    from_pod: OwnedFd,
    /// Runs after [`Renumber`] has changed the client's port.
    nothing_in_turn: Renumber,
    to_pod_in_turn: Renumber,
}

impl Bench {
    fn new(family: Family, rules: usize) -> Result<Self> {
        let mut ebpf = load_private(Capacity { connections: CONNECTIONS })?;
        let mut program = |name| -> Result<OwnedFd> {
            Ok(classifier(&mut ebpf, name)?.fd()?.as_fd().try_clone_to_owned()?)
        };
        let (to_pod, from_pod) = (program(names::TO_POD)?, program(names::FROM_POD)?);
        let mut ring = take_ring(&mut ebpf)?;
        let mut maps = Maps::take(&mut ebpf)?;
        operations(rules).try_for_each(|op| maps.apply(&op))?;
        let port = if family == Family::V4 { 34 } else { 54 };
        let nothing = nothing()?;
        Ok(Self {
            family,
            maps,
            drain: Box::new(move || while ring.next().is_some() {}),
            nothing_in_turn: Renumber::before(nothing.as_fd(), port)?,
            to_pod_in_turn: Renumber::before(to_pod.as_fd(), port)?,
            nothing,
            lookup: lookup(if family == Family::V4 { 16 } else { 40 }, CONNECTIONS)?,
            to_pod,
            from_pod,
        })
    }

    fn measure(mut self) -> Result<Vec<(Path, f64)>> {
        let new = self.passes(0..WITH_ROOM, false)?;
        let in_turn = self.passes(0..WITH_ROOM, true)?;
        let hot = [
            (Path::Nothing, self.empty()?),
            (Path::Lookup, self.lookup()?),
            (Path::TrackedToPod, self.tracked(false)?),
            (Path::TrackedFromPod, self.tracked(true)?),
            (Path::Denied, self.denied()?),
        ];
        self.passes(WITH_ROOM..TO_FULL, false)?;
        let full = self.passes(TO_FULL..TO_FULL + OVERFLOWING, false)?;
        let cold = [(Path::TrackedInTurn, in_turn), (Path::New, new), (Path::NewInFullTable, full)];
        let all = hot.into_iter().chain(cold);
        Ok(all.flat_map(|(path, samples)| samples.into_iter().map(move |sample| (path, sample))).collect())
    }

    fn passes(&mut self, passes: Range<u16>, established: bool) -> Result<Vec<f64>> {
        passes.map(|pass| self.pass(pass, established)).collect()
    }

    /// One packet of each of a pass's connections.
    fn pass(&mut self, pass: u16, established: bool) -> Result<f64> {
        // Ports count in the machine's byte order: what Renumber adds to.
        let port = u16::from_be((pass % PASSES_OF_CLIENT * PASS).to_le());
        let mut frame = self.opening(client(self.family, pass / PASSES_OF_CLIENT), port).frame();
        let expected = if established { Reason::Tracked } else { Reason::Allowed };
        if established {
            acknowledge(&mut frame, self.family);
        }
        let before = self.count(expected)?;
        let empty = run(self.nothing_in_turn.as_fd(), &frame, PASS.into())?;
        let full = run(self.to_pod_in_turn.as_fd(), &frame, PASS.into())?;
        (self.drain)();
        ensure!((empty.returned, full.returned) == (NEXT, NEXT), "{empty:?}, {full:?}");
        let counted = self.count(expected)? - before;
        ensure!(counted == u64::from(PASS), "{counted} of {PASS} packets were {expected:?}");
        Ok(full.each - empty.each)
    }

    fn empty(&self) -> Result<Vec<f64>> {
        let frame = self.opening(client(self.family, 0), PORT).frame();
        (0..CALLS).map(|_| Ok(run(self.nothing.as_fd(), &frame, REPEAT)?.each)).collect()
    }

    fn lookup(&self) -> Result<Vec<f64>> {
        let frame = self.opening(client(self.family, 0), PORT).frame();
        self.net(&self.lookup, &frame, NEXT)
    }

    fn tracked(&self, reply: bool) -> Result<Vec<f64>> {
        let opening = self.opening(client(self.family, 0), PORT + 1);
        let program = if reply { &self.from_pod } else { &self.to_pod };
        run(self.to_pod.as_fd(), &opening.frame(), 1)?;
        let mut frame = if reply { reversed(&opening) } else { opening }.frame();
        acknowledge(&mut frame, self.family);
        self.repeat(program, &frame, NEXT, Reason::Tracked)
    }

    fn denied(&self) -> Result<Vec<f64>> {
        let stranger = match self.family {
            Family::V4 => block_v4(7).ip().into(),
            Family::V6 => block_v6(7).ip().into(),
        };
        self.repeat(&self.to_pod, &self.opening(stranger, 4000).frame(), SHOT, Reason::PolicyDenied)
    }

    fn repeat(&self, program: &OwnedFd, frame: &[u8], verdict: u32, reason: Reason) -> Result<Vec<f64>> {
        let before = self.count(reason)?;
        let samples = self.net(program, frame, verdict)?;
        let counted = self.count(reason)? - before;
        ensure!(
            counted == u64::from(REPEAT * CALLS),
            "{counted} of {REPEAT} x {CALLS} packets were {reason:?}"
        );
        Ok(samples)
    }

    /// Time of a run less that of an empty program.
    fn net(&self, program: &OwnedFd, frame: &[u8], verdict: u32) -> Result<Vec<f64>> {
        let samples = (0..CALLS).map(|_| {
            let empty = run(self.nothing.as_fd(), frame, REPEAT)?;
            let full = run(program.as_fd(), frame, REPEAT)?;
            ensure!((empty.returned, full.returned) == (NEXT, verdict), "{empty:?}, {full:?}");
            Ok(full.each - empty.each)
        });
        samples.collect()
    }

    fn count(&self, reason: Reason) -> Result<u64> {
        Ok(self.maps.counters()?.get(&reason).copied().unwrap_or(0))
    }

    fn opening(&self, client: IpAddr, port: u16) -> Opening {
        Opening {
            source_mac: PEER_MAC,
            destination_mac: MAC,
            source: client,
            destination: pod(self.family),
            protocol: TCP,
            source_port: port,
            destination_port: PORT,
        }
    }
}

/// The pod, its clients, everybody else, and a rule set in which only the last rule admits the clients.
fn operations(rules: usize) -> impl Iterator<Item = Op> {
    let endpoint = Endpoint {
        ifindex: LOOPBACK,
        id: 1,
        policy: PolicyWord::new(RULE_SET, 1),
        ipv4: POD_V4.octets(),
        ipv6: POD_V6.octets(),
        mac: MAC,
        identity: FIRST_POD_IDENTITY,
        ..Endpoint::default()
    };
    let friend = Peer { identity: FIRST_POD_IDENTITY + 1, ..Peer::default() };
    let clients = [Family::V4, Family::V6]
        .into_iter()
        .flat_map(|family| (0..8).map(move |n| client(family, n)))
        .map(move |address| Op::SetPeer(address, friend));
    let world = move |blocks| Peer { identity: IDENTITY_WORLD, blocks, ..Peer::default() };
    let everybody: [IpNetwork; 2] = [
        Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).expect("0 is a prefix length").into(),
        Ipv6Network::new(Ipv6Addr::UNSPECIFIED, 0).expect("0 is a prefix length").into(),
    ];
    let ports = u16::try_from(rules / usize::from(BLOCKS)).expect("fewer than 65536 ports");
    let blocks = (0..if ports == 0 { 0 } else { BLOCKS }).flat_map(move |block| {
        let tag = BLOCKS_TAG | (u32::from(block) + 1);
        let networks: [IpNetwork; 2] = [block_v4(block).into(), block_v6(block).into()];
        let prefixes = networks.map(|network| Op::SetPrefix(network, world(tag)));
        prefixes.into_iter().chain((0..ports).map(move |n| rule(tag, 20_000 + 7 * n)))
    });
    everybody
        .map(|network| Op::SetPrefix(network, world(0)))
        .into_iter()
        .chain(clients)
        .chain(blocks)
        .chain([rule(friend.identity, PORT), Op::SetEndpoint(endpoint)])
}

fn rule(peer: u32, port: u16) -> Op {
    let key =
        RuleKey { rule_set: RULE_SET, peer, direction: INGRESS, protocol: TCP, port_be: port.to_be_bytes() };
    Op::SetRule(Rule { key, bits: RULE_BITS_PORT }, 1)
}

const POD_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 2);

fn pod(family: Family) -> IpAddr {
    if family == Family::V4 { POD_V4.into() } else { POD_V6.into() }
}

fn client(family: Family, number: u16) -> IpAddr {
    let [_, low] = number.to_be_bytes();
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, 2, 10 + low).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, 2, 0, 0, 0, 10 + number).into(),
    }
}

fn block_v4(number: u16) -> Ipv4Network {
    let [_, low] = number.to_be_bytes();
    Ipv4Network::new(Ipv4Addr::new(198, 18, low, 0), 24).expect("24 is a prefix length")
}

fn block_v6(number: u16) -> Ipv6Network {
    Ipv6Network::new(Ipv6Addr::new(0x2001, 0xdb8, number, 0, 0, 0, 0, 0), 48).expect("48 is a prefix length")
}

fn reversed(opening: &Opening) -> Opening {
    Opening {
        source_mac: opening.destination_mac,
        destination_mac: opening.source_mac,
        source: opening.destination,
        destination: opening.source,
        source_port: opening.destination_port,
        destination_port: opening.source_port,
        ..*opening
    }
}

/// Makes a SYN a segment from the middle of its connection.
fn acknowledge(frame: &mut [u8], family: Family) {
    let segment = if family == Family::V4 { 34 } else { 54 };
    frame[segment + 13] = ACK;
}
