//! In the order of their sending, packets meet the old policy first and then the new one, never by turns.

use std::{
    collections::BTreeSet,
    env,
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use lab::{Family, Lab, Pod, until};
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    sys::socket::{setsockopt, sockopt},
    unistd::Pid,
};

use crate::stage::{ARRIVES_WITHIN, at, lab_with, policy};

const FIRST_PORT: u16 = 10_000;
const PACE: Duration = Duration::from_micros(50);

fn admit(lab: &Lab, port: u16) {
    let rule = format!(
        "{{from: [{{podSelector: {{matchLabels: {{app: web}}}}}}], ports: [{{port: {port}, protocol: UDP}}]}}"
    );
    policy(lab, "flips", "db", &format!("policyTypes: [Ingress], ingress: [{rule}]"));
}

/// Room for everything that a flip can bring: it is looked at afterwards.
fn receiver(pod: &Pod, port: u16) -> UdpSocket {
    let _inside = pod.netns().enter().unwrap();
    let socket = UdpSocket::bind(at(pod, Family::V4, port)).unwrap();
    socket.set_nonblocking(true).unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20)).unwrap();
    socket
}

fn drain(socket: &UdpSocket, into: &mut BTreeSet<u64>) {
    let mut number = [0; 8];
    while socket.recv(&mut number).is_ok() {
        into.insert(u64::from_be_bytes(number));
    }
}

/// `$LAB_FLIPS` edits, each of which opens one port and closes the one of before. Datagrams go to both by turns.
#[test]
fn old_and_new_are_never_let_through_by_turns() {
    let flips: u16 = env::var("LAB_FLIPS").map_or(60, |n| n.parse().unwrap());
    let lab = lab_with(&["shop/db-1", "shop/web-1"]);
    let (db, web) = (lab.pod("shop/db-1"), lab.pod("shop/web-1"));
    admit(&lab, FIRST_PORT);
    lab.settle().unwrap();
    let mut old = receiver(&db, FIRST_PORT);
    let mut mixed = Vec::new();
    for port in FIRST_PORT..FIRST_PORT + flips {
        let new = receiver(&db, port + 1);
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, to) = (Arc::clone(&stop), db.ip(Family::V4));
        let sender = web.netns().spawn(move || {
            // A packet waits in its processor's backlog: those of two could overtake each other before the hook.
            let mut here = CpuSet::new();
            here.set(sched_getcpu().unwrap()).unwrap();
            sched_setaffinity(Pid::from_raw(0), &here).unwrap();
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let mut sent = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                socket.send_to(&sent.to_be_bytes(), (to, port + u16::from(sent % 2 == 1))).unwrap();
                sent += 1;
                thread::sleep(PACE);
            }
        });
        let arrivals = |socket: &UdpSocket| {
            let look = || Ok(socket.peek(&mut [0; 8]).is_ok());
            until(ARRIVES_WITHIN, look, |arrived| *arrived).unwrap()
        };
        assert!(arrivals(&old), "flip to {port}: the old port is open");
        admit(&lab, port + 1);
        assert!(arrivals(&new), "flip to {port}: the new port opens");
        thread::sleep(Duration::from_millis(5));
        stop.store(true, Ordering::Relaxed);
        sender.unwrap().join().unwrap();
        thread::sleep(Duration::from_millis(20));
        let (mut before, mut after) = (BTreeSet::new(), BTreeSet::new());
        drain(&old, &mut before);
        drain(&new, &mut after);
        let (last, first) = (before.last().unwrap(), after.first().unwrap());
        if last > first {
            mixed.push(format!("{port}: {last} to the old port arrived after {first} to the new one"));
        }
        old = new;
    }
    assert!(mixed.is_empty(), "{} of {flips} flips:\n{}", mixed.len(), mixed.join("\n"));
}
