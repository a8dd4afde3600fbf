//! Floods: packets to random addresses and ports, as fast as one thread inside a pod can send them.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrLike, SockaddrStorage, socket},
};

use crate::{
    netns::Netns,
    pod::Pod,
    probe::Family,
    raw::{Packet, SYN},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// TCP segments that ask for a connection
    Syn,
    /// Datagrams
    Udp,
    /// Echo requests
    Icmp,
    /// First fragments of datagrams of one flow
    Fragments,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Syn, Self::Udp, Self::Icmp, Self::Fragments];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Syn => "SYN",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
            Self::Fragments => "fragments",
        })
    }
}

/// Whom a flood is for, and in whose name.
#[derive(Clone, Copy, Debug)]
struct Aim {
    source: IpAddr,
    /// The low 16 bits of the source are random.
    in_many_names: bool,
    /// One address and port; `None`: addresses that nobody has.
    to: Option<SocketAddr>,
}

/// Goes on until it is told to stop, or dropped.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Flood {
    /// As fast as it goes, from inside the pod, in its own name, to addresses outside the cluster: 198.18.0.0/16 or `2001:db8:18::/112`, which
    /// nobody has.
    pub fn start(pod: &Pod, family: Family, kind: Kind) -> Result<Self> {
        let aim = Aim { source: pod.ip(family), in_many_names: false, to: None };
        Self::begin(pod.netns(), aim, kind, Duration::ZERO)
    }

    /// As [`Flood::start`], some tens of thousands of packets per second: many times what a budget allows, and something
    /// left for others on a machine with two processors.
    pub fn start_gently(pod: &Pod, family: Family, kind: Kind) -> Result<Self> {
        let aim = Aim { source: pod.ip(family), in_many_names: false, to: None };
        Self::begin(pod.netns(), aim, kind, GENTLE)
    }

    /// As [`Flood::start_gently`], to one address and port, from random ports.
    pub fn start_upon(to: SocketAddr, pod: &Pod, kind: Kind) -> Result<Self> {
        let source = pod.ip(if to.is_ipv4() { Family::V4 } else { Family::V6 });
        Self::begin(pod.netns(), Aim { source, in_many_names: false, to: Some(to) }, kind, GENTLE)
    }

    /// As [`Flood::start_upon`], from a host outside the cluster, in the name of the 65,536 addresses to which other floods go.
    pub fn start_from_afar(to: SocketAddr, host: &Netns, kind: Kind) -> Result<Self> {
        let source = nobodys(to.is_ipv4());
        Self::begin(host, Aim { source, in_many_names: true, to: Some(to) }, kind, GENTLE)
    }

    fn begin(netns: &Netns, aim: Aim, kind: Kind, pause: Duration) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let template = Template::new(aim, kind);
        let work = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            move || flood(&template, pause, (&stop, &sent))
        };
        let thread = netns.spawn(work)?;
        Ok(Self { stop, sent, thread: Some(thread) })
    }

    /// Packets so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it; packets in all.
    pub fn stop(mut self) -> Result<u64> {
        self.end().transpose()?;
        Ok(self.sent())
    }

    fn end(&mut self) -> Option<Result<()>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(|thread| thread.join().expect("a flood does not panic"))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Between two batches.
const GENTLE: Duration = Duration::from_millis(2);
/// Packets handed over by one system call.
const BATCH: usize = 64;

/// A packet, and where in it 16 bits are random.
struct Template {
    bytes: Vec<u8>,
    to: SockaddrStorage,
    /// Of the destination's address in the packet, and as many in the socket address.
    destination: Option<usize>,
    /// Ports, an echo's identifier and number, a datagram's number, the source's address.
    places: Vec<usize>,
}

/// The first of many addresses that nobody has.
fn nobodys(v4: bool) -> IpAddr {
    if v4 { [198, 18, 0, 0].into() } else { [0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 0].into() }
}

impl Template {
    fn new(Aim { source, in_many_names, to }: Aim, kind: Kind) -> Self {
        let v4 = source.is_ipv4();
        let (from, to) = (SocketAddr::new(source, 7), to.ok_or_else(|| SocketAddr::new(nobodys(v4), 7)));
        let (Ok(at) | Err(at)) = to;
        let packet = match kind {
            Kind::Syn => Packet::tcp(from, at, SYN, &[]),
            Kind::Udp => Packet::udp(from, at, &[7; 8]),
            Kind::Icmp => Packet::echo_request(source, at.ip(), 1),
            Kind::Fragments => Packet::udp(from, at, &[7; 56]).fragments(1, 32).swap_remove(0),
        };
        let header = if v4 { 20 } else { 40 };
        let mut places = match kind {
            Kind::Syn | Kind::Udp if to.is_ok() => vec![header],
            Kind::Syn | Kind::Udp => vec![header, header + 2],
            Kind::Fragments if v4 => vec![4],
            Kind::Icmp | Kind::Fragments => vec![header + 4, header + 6],
        };
        if in_many_names {
            places.push(if v4 { 14 } else { 22 });
        }
        let destination = (to.is_err() && kind != Kind::Fragments).then_some(header - 2);
        let mut bytes = packet.bytes();
        if v4 && kind == Kind::Udp {
            bytes[header + 6..header + 8].fill(0); // has no checksum, so that somebody may read it
        }
        Self { bytes, to: SockaddrStorage::from(SocketAddr::new(at.ip(), 0)), destination, places }
    }
}

/// Checksums of the payload are left wrong.
fn flood(template: &Template, pause: Duration, (stop, sent): (&AtomicBool, &AtomicU64)) -> Result<()> {
    let family = template.to.family().context("an address has a family")?;
    // IPPROTO_RAW: the header is ours, in both families.
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let mut packets = vec![template.bytes.clone(); BATCH];
    let mut addresses = vec![bytes_of(&template.to); BATCH];
    // `sin_addr` is at byte 4 and `sin6_addr` at byte 8 (netinet/in.h).
    let low = if family == AddressFamily::Inet { 4 + 2 } else { 8 + 14 };
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ u64::from(std::process::id()));
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(pause);
        for (packet, address) in packets.iter_mut().zip(&mut addresses) {
            let noise = random.next().to_ne_bytes();
            for (place, value) in template.places.iter().zip(noise.chunks(2)) {
                packet[*place..place + 2].copy_from_slice(value);
            }
            if let Some(place) = template.destination {
                packet[place..place + 2].copy_from_slice(&noise[6..]);
                address[low..low + 2].copy_from_slice(&noise[6..]);
            }
        }
        let mut parts: Vec<_> = packets
            .iter_mut()
            .map(|packet| libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() })
            .collect();
        let mut messages: Vec<_> = parts
            .iter_mut()
            .zip(&mut addresses)
            .map(|(part, address)| {
                // SAFETY: all zero is an empty message.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_name = address.as_mut_ptr().cast();
                message.msg_hdr.msg_namelen = template.to.len();
                message.msg_hdr.msg_iov = ptr::from_mut(part);
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let count = u32::try_from(messages.len()).expect("a few");
        // SAFETY: as many messages as told, whose packets and addresses live and lie still until the call returns.
        let taken = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        match u64::try_from(taken) {
            Ok(taken) => _ = sent.fetch_add(taken, Ordering::Relaxed),
            Err(_) => match std::io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                error => return Err(error).context("the flood cannot be sent"),
            },
        }
    }
    Ok(())
}

fn bytes_of(address: &SockaddrStorage) -> Vec<u8> {
    let length = address.len() as usize;
    // SAFETY: a socket address is at least as many bytes as it says.
    unsafe { std::slice::from_raw_parts(address.as_ptr().cast::<u8>(), length) }.to_vec()
}

/// xorshift64 (Marsaglia 2003): fast, and random enough to be nobody's pattern.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
