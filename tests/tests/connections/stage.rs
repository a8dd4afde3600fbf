//! Pods to connect, policies for them, and proofs that a packet did or did not get through.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    thread,
    time::Duration,
};

use lab::{Family, Lab, Plan, Pod, PodSpec, Transport, netns::Netns, raw::Packet, sniffer::Sniffer};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// How long a packet may be under way on a loaded machine.
pub const ARRIVES_WITHIN: Duration = Duration::from_secs(5);

/// In the namespaces `shop` and `other`; the number that a pod's name ends with is its node's, the rest is its
/// `app`. All serve TCP 80 and UDP 53.
pub fn lab_with(pods: &[&str]) -> Lab {
    let lab = Plan::bulkhead().raise().unwrap();
    lab.namespace("shop", &[]).unwrap();
    lab.namespace("other", &[]).unwrap();
    lab.start_pods(pods.iter().map(|key| {
        let (_, name) = key.split_once('/').unwrap();
        let (app, node) = name.split_once('-').unwrap();
        let spec = PodSpec::new(key).on(node.parse().unwrap()).label("app", app);
        spec.serve(Transport::Tcp, 80).serve(Transport::Udp, 53)
    }))
    .unwrap();
    lab
}

/// A policy of the namespace `shop`; see [`Lab::policy`].
pub fn policy(lab: &Lab, name: &str, app: &str, rules: &str) {
    lab.policy(&format!("shop/{name}"), app, rules).unwrap();
}

pub fn label(lab: &Lab, kind: &str, key: &str, label: (&str, &str)) {
    lab.label(kind, key, label).unwrap();
}

pub fn at(pod: &Pod, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(pod.ip(family), port)
}

/// Packets that the programs of this node have judged so.
pub fn packets(lab: &Lab, node: u8, reason: &str) -> u64 {
    let status = lab.agent(node).status().unwrap();
    status["datapath"]["packets"][reason]
        .as_u64()
        .unwrap_or_else(|| panic!("no counter {reason} in {status:#}"))
}

/// Sends from inside, and sees all of it arrive.
pub fn arrive(from: &Netns, to: &mut Sniffer, packets: &[Packet]) {
    for packet in packets {
        packet.send(from).unwrap();
    }
    for packet in packets {
        assert!(to.sees(packet, ARRIVES_WITHIN).unwrap(), "{packet:?} has not arrived from {}", from.name());
    }
}

/// Sends from inside, and behind these one that shows that the way is open; none but that one arrives.
pub fn vanish(from: &Netns, to: &mut Sniffer, packets: &[Packet], but: &Packet) {
    for packet in packets {
        packet.send(from).unwrap();
    }
    arrive(from, to, std::slice::from_ref(but));
    thread::sleep(Duration::from_millis(50)); // what another processor still holds
    for packet in packets {
        assert!(!to.seen().unwrap().contains(packet), "{packet:?} has arrived from {}", from.name());
    }
}

/// Connects from this port, whatever else still knows it.
pub fn connect_from(pod: &Pod, own: SocketAddr, to: SocketAddr) -> TcpStream {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let _inside = pod.netns().enter().unwrap();
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(own)).unwrap();
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).unwrap_or_else(|e| panic!("{own} to {to}: {e}"));
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(ARRIVES_WITHIN)).unwrap();
    stream
}

/// Sends to an echo server, and gets it back.
pub fn exchange(stream: &mut TcpStream, data: &[u8]) {
    stream.write_all(data).unwrap();
    let mut echo = vec![0; data.len()];
    stream.read_exact(&mut echo).unwrap();
    assert!(echo == data, "the echo is the question");
}
