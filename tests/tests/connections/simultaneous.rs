//! Both ends ask for one connection, each from the port that the other asks for (RFC 9293, 3.5: simultaneous open).
//!
//! To policy these are two connections, one in each direction, that happen to have one pair of ports. Each end's SYN is
//! judged for itself, and what answers an allowed one passes: one direction that is allowed is enough to be connected.

use std::{
    cell::RefCell,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab, Pod,
    matrix::SETTLES_WITHIN,
    raw::{Packet, TCP},
    sniffer::Sniffer,
    until,
};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
    },
};

use crate::stage::{FAMILIES, at, lab_with, packets, policy};

/// A SYN is sent again after 1, 3 and 7 seconds.
const CONNECTED_WITHIN: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_millis(3500);

const ISOLATED: &str = "policyTypes: [Ingress]";
const OPEN: &str = "policyTypes: [Ingress], ingress: [{}]";

#[test]
fn who_asks_at_once_from_both_ends_is_connected_if_either_may_ask() {
    let lab = lab_with(&["shop/one-1", "shop/near-1", "shop/far-2"]);
    let others = ["shop/near-1", "shop/far-2"].map(|key| lab.pod(key));
    let mut port = 7000;
    for open @ [to_one, to_others] in [[true, true], [true, false], [false, true], [false, false]] {
        let rules = |open| if open { OPEN } else { ISOLATED };
        policy(&lab, "one", "one", rules(to_one));
        for app in ["near", "far"] {
            policy(&lab, app, app, rules(to_others));
        }
        lab.settle().unwrap();
        let before = denied(&lab);
        let mut pairs = Vec::new();
        for other in &others {
            for family in FAMILIES {
                let one = lab.pod("shop/one-1");
                let ends = [at(&one, family, port), at(other, family, port + 1)];
                let streams = ask_at_once(&lab, [one, Arc::clone(other)], ends, to_others);
                pairs.push((format!("{family} with {}, open: {open:?}", other.key()), streams));
                port += 2;
            }
        }
        let may = to_one || to_others;
        let until_then = Instant::now() + if may { CONNECTED_WITHIN } else { SILENCE };
        for (what, streams) in &mut pairs {
            assert_eq!(is_connected(streams, until_then), may, "{what}");
        }
        // Each end's own SYN is judged, whatever becomes of the other's.
        let closed = open.iter().filter(|open| !**open).count() * pairs.len();
        let least = before + u64::try_from(closed).unwrap();
        let seen = until(SETTLES_WITHIN, || Ok(denied(&lab)), |seen| *seen >= least).unwrap();
        assert!(if closed == 0 { seen == before } else { seen >= least }, "{open:?}: {before} to {seen}");
    }
}

/// On both nodes.
fn denied(lab: &Lab) -> u64 {
    [1, 2].into_iter().map(|node| packets(lab, node, "policy-denied")).sum()
}

/// The second one asks when the first one's question has come to its door, and no refusal has gone back.
fn ask_at_once(
    lab: &Lab,
    [one, other]: [Arc<Pod>; 2],
    [own, to]: [SocketAddr; 2],
    is_let_in: bool,
) -> [TcpStream; 2] {
    let length = if own.is_ipv4() { 32 } else { 128 };
    let (before, at_door) = (denied(lab), RefCell::new(Sniffer::start(other.netns()).unwrap()));
    other.netns().ip(&format!("route add blackhole {}/{length}\n", own.ip())).unwrap();
    let first = ask(&one, own, to);
    let is_asked = |packet: &Packet| packet.protocol == TCP && packet.source == own.ip();
    let has_come = || {
        Ok(if is_let_in { at_door.borrow_mut().seen()?.iter().any(is_asked) } else { denied(lab) > before })
    };
    assert!(until(SETTLES_WITHIN, has_come, |come| *come).unwrap(), "{own} to {to}");
    thread::sleep(Duration::from_millis(50)); // its own stack hears of it after the sniffer
    other.netns().ip(&format!("route del blackhole {}/{length}\n", own.ip())).unwrap();
    [first, ask(&other, to, own)]
}

/// Does not wait for the answer.
fn ask(pod: &Pod, own: SocketAddr, to: SocketAddr) -> TcpStream {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let _inside = pod.netns().enter().unwrap();
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None).unwrap();
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(own)).unwrap();
    let asked = connect(socket.as_raw_fd(), &SockaddrStorage::from(to));
    assert_eq!(asked, Err(Errno::EINPROGRESS), "{own} to {to}");
    TcpStream::from(socket)
}

/// Whether each end hears what the other says.
fn is_connected([one, other]: &mut [TcpStream; 2], until_then: Instant) -> bool {
    let (mut said, mut heard) = ([false; 2], [false; 2]);
    loop {
        for (n, stream) in [&mut *one, &mut *other].into_iter().enumerate() {
            said[n] = said[n] || stream.write_all(&[7]).is_ok();
            heard[n] = heard[n] || stream.read_exact(&mut [0]).is_ok();
        }
        if heard == [true; 2] || Instant::now() > until_then {
            return heard == [true; 2];
        }
        thread::sleep(Duration::from_millis(10));
    }
}
