//! What pods ordinarily do, and what nobody but a guard that is too narrow would stop.

use std::{
    cell::RefCell,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use lab::{Family, Outcome, Plan, Pod, Transport, probe::attempt, raw::Packet, sniffer::Sniffer, until};

use crate::{
    frame::with_options,
    large,
    stage::{ARRIVES_WITHIN, Stage, Way},
};

/// Reasons that a kernel which does what it always does never gives cause to.
const NEVER: [&str; 11] = [
    "arp-claim",
    "neighbour-claim",
    "forbidden-icmp6",
    "source-ip",
    "source-mac",
    "multicast",
    "invalid-header",
    "extension-headers",
    "truncated",
    "nobodys-address",
    "tunnel",
];

#[test]
fn what_pods_ordinarily_do_works() {
    let mut stage = Stage::raise(Plan::bulkhead());
    let since = Instant::now();
    let idle: Vec<_> = stage.ways.iter().map(|way| connected(&stage.root, way.to.at(80))).collect();
    for way in stage.ways.clone() {
        datagrams_that_are_pinged_back(&stage, &way);
        the_way_is_traced(&stage, &way);
        a_connection_half_closed_goes_on(&stage.root, way.to.at(80));
    }
    for way in stage.ways.clone().iter().filter(|way| way.near && way.family == Family::V4) {
        // Full, so that nobody on the way would add to it.
        let stamped = way.carry(&with_options(&way.datagram(44_001), &[68, 8, 9, 0, 0, 0, 0, 1]));
        let routed = way.carry(&with_options(&way.datagram(44_002), &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        let frames = [stamped, routed];
        stage.send(&frames);
        stage.at_victims[0].await_all(&frames, "time stamps and a route to be recorded");
    }
    groups_are_joined(&stage.root);
    // Longer than several of the ticks by which the age of a connection is told.
    thread::sleep(Duration::from_secs(4).saturating_sub(since.elapsed()));
    for mut stream in idle {
        echoes(&mut stream, b"after a while");
    }
    large::links_are_used(&mut stage);
    a_link_that_was_down_comes_back(&stage);
    let packets = stage.packets();
    let moved: Vec<_> = NEVER.iter().filter(|reason| packets[**reason] > 0).collect();
    assert!(moved.is_empty(), "{moved:?}: {packets:?}");
}

fn connected(from: &Pod, to: SocketAddr) -> TcpStream {
    let _inside = from.netns().enter().unwrap();
    let mut stream = TcpStream::connect_timeout(&to, ARRIVES_WITHIN).unwrap();
    stream.set_read_timeout(Some(ARRIVES_WITHIN)).unwrap();
    echoes(&mut stream, b"at first");
    stream
}

fn echoes(stream: &mut TcpStream, data: &[u8]) {
    stream.write_all(data).unwrap();
    let mut echo = vec![0; data.len()];
    stream.read_exact(&mut echo).unwrap_or_else(|error| panic!("{:?}: {error}", stream.peer_addr()));
    assert_eq!(echo, data);
}

/// An echo request of several fragments, as `ping -s 8000` sends it, and its answer.
fn datagrams_that_are_pinged_back(stage: &Stage, way: &Way) {
    let back = RefCell::new(Sniffer::start(stage.root.netns()).unwrap());
    let ping = Packet::long_echo_request(way.me.ip, way.to.ip, 4711, 8000);
    for piece in ping.fragments(0x4711, 1400) {
        piece.send(stage.root.netns()).unwrap();
    }
    let heard = || {
        let mut back = back.borrow_mut();
        let from_there = back
            .seen()?
            .iter()
            .filter(|packet| packet.source == way.to.ip && packet.protocol == ping.protocol);
        Ok(from_there.map(|packet| packet.payload.len()).sum::<usize>())
    };
    let bytes = until(ARRIVES_WITHIN, heard, |bytes| *bytes >= 8000).unwrap();
    assert!(bytes >= 8000, "{way:?}: {bytes} bytes of an answer");
}

/// A router on the way answers what has made too many hops: traceroute, by UDP and by echo requests.
fn the_way_is_traced(stage: &Stage, way: &Way) {
    if way.near {
        return; // nobody is on the way
    }
    let port = 33_434;
    let udp = Packet::udp(way.me.at(44_000), way.to.at(port), b"how far are you?");
    for packet in [udp, Packet::echo_request(way.me.ip, way.to.ip, 4712)] {
        let mut bytes = packet.bytes();
        let hops = if way.family == Family::V4 { 8 } else { 7 };
        bytes[hops] = 1;
        crate::frame::reseal(&mut bytes);
        let kind = if way.family == Family::V4 { 11 } else { 3 };
        let back = RefCell::new(Sniffer::start(stage.root.netns()).unwrap());
        stage.send(&[way.carry(&bytes)]);
        let quotes = |seen: &Packet| seen.payload.first() == Some(&kind) && seen.destination == way.me.ip;
        let heard = || Ok(back.borrow_mut().seen()?.iter().filter(|packet| quotes(packet)).count());
        assert!(until(ARRIVES_WITHIN, heard, |n| *n > 0).unwrap() > 0, "{way:?}: nobody says it is too far");
    }
    // The end of the way says that nobody listens there.
    let to = way.to.at(port);
    let refused = attempt(stage.root.netns(), to, Transport::Udp, ARRIVES_WITHIN).unwrap();
    assert_eq!(refused, Outcome::Refused, "{to}");
}

/// The client has said all; the server has not.
fn a_connection_half_closed_goes_on(from: &Pod, to: SocketAddr) {
    let mut stream = connected(from, to);
    let data = vec![7; 64 << 10];
    stream.write_all(&data).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo).unwrap();
    assert_eq!(echo.len(), data.len(), "{to} answers to the end");
}

/// The kernel reports what a socket joins.
fn groups_are_joined(pod: &Pod) {
    let _inside = pod.netns().enter().unwrap();
    let v4 = UdpSocket::bind("0.0.0.0:0").unwrap();
    let IpAddr::V4(own) = pod.ip(Family::V4) else { panic!("an IPv4 address") };
    v4.join_multicast_v4(&Ipv4Addr::new(239, 1, 2, 3), &own).unwrap();
    let v6 = UdpSocket::bind("[::]:0").unwrap();
    let index = nix::net::if_::if_nametoindex("eth0").unwrap();
    v6.join_multicast_v6(&"ff05::1:3".parse::<Ipv6Addr>().unwrap(), index).unwrap();
    thread::sleep(Duration::from_millis(50)); // the reports wait for a random moment, and are repeated
    v4.leave_multicast_v4(&Ipv4Addr::new(239, 1, 2, 3), &own).unwrap();
    v6.leave_multicast_v6(&"ff05::1:3".parse::<Ipv6Addr>().unwrap(), index).unwrap();
}

/// Its addresses are gone and given again: the kernel asks whether anybody has them, and tells of itself.
fn a_link_that_was_down_comes_back(stage: &Stage) {
    let pod = &stage.root;
    let (own, gateway) = (pod.ip(Family::V6), stage.lab.node(1).gateway(Family::V6));
    let gateway4 = stage.lab.node(1).gateway(Family::V4);
    // The bridge plugin has switched off what is to be seen here.
    for (key, value) in [("accept_dad", "1"), ("dad_transmits", "2")] {
        pod.netns().sysctl(&format!("net/ipv6/conf/eth0/{key}"), value).unwrap();
    }
    pod.netns()
        .ip(&format!(
            "link set eth0 down\nlink set eth0 up\naddr replace {own}/64 dev eth0\n\
             route replace default via {gateway4}\n"
        ))
        .unwrap();
    let addresses = || {
        let output = pod.netns().command("ip")?.args(["-6", "-o", "addr", "show", "dev", "eth0"]).output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let free = |text: &String| text.contains("fe80::") && !text.contains("tentative");
    let text = until(ARRIVES_WITHIN, addresses, free).unwrap();
    assert!(free(&text) && !text.contains("dadfailed"), "{text}");
    pod.netns().ip(&format!("route replace default via {gateway}\n")).unwrap();
    for way in &stage.ways {
        let seen = until(
            ARRIVES_WITHIN,
            || attempt(pod.netns(), way.to.at(80), Transport::Tcp, ARRIVES_WITHIN),
            |outcome| *outcome == Outcome::Reached,
        );
        assert_eq!(seen.unwrap(), Outcome::Reached, "{way:?} after the link was down");
    }
}
