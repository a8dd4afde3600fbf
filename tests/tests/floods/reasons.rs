//! Drops of many reasons at once.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use lab::{
    Family,
    node::TUNNEL_PORT,
    raw::{ACK, FIN, Fragment, Packet, SYN, Trouble},
    until,
};
use serde_json::Value;

use crate::stage::{PATIENCE, count, look, node, packets};

/// Of each reason; of all together several times what is told one by one.
const ROUNDS: u16 = 500;
/// Events that a pod saves up, and that it gets per second.
const SAVED: u64 = 1000;
const EVENTS: u64 = 100;
/// How long what is counted together waits to be told of.
const TOGETHER: Duration = Duration::from_secs(5);

#[test]
fn drops_of_every_kind_at_once_are_each_counted_and_all_told_in_bounds() {
    let lab = node();
    let (pod, agent) = (lab.pod("shop/flooder"), lab.agent(1));
    let (me, to, node) =
        (pod.ip(Family::V4), lab.pod("shop/other").ip(Family::V4), lab.node(1).ip(Family::V4));
    let closed = lab.pod("shop/db").ip(Family::V4);
    let at = |ip: IpAddr, port| (ip, port).into();
    let before = look(&lab).unwrap();
    let since = Instant::now();
    let mut reasons = Vec::new();
    for n in 0..ROUNDS {
        let port = 20_000 + n;
        let [high, low] = n.to_be_bytes();
        let spoofed: IpAddr = [198, 18, high, low].into();
        let later = Packet {
            fragment: Some(Fragment { id: n.into(), offset: 64, more: false }),
            ..Packet::udp(at(me, 1), at(to, 2), &[7; 56])
        };
        let never_sent = Packet::udp(at(to, port), at(me, 9), b"never sent");
        let short = Packet { payload: vec![7; 8], ..Packet::tcp(at(me, port), at(to, port), SYN, &[]) };
        let all = [
            ("source-ip", Packet::udp(at(spoofed, 1), at(to, port), &[])),
            ("invalid-header", Packet::tcp(at(me, 1), at(to, port), SYN | FIN, &[])),
            ("not-tracked", Packet::tcp(at(me, 1), at(to, port), ACK, &[])),
            ("fragment-not-tracked", later),
            (
                "error-not-tracked",
                Packet { destination: to, ..Packet::error(me, Trouble::PortUnreachable, &never_sent) },
            ),
            ("tunnel", Packet::udp(at(me, port), at(node, TUNNEL_PORT), &[0; 16])),
            ("dhcp-server", Packet::udp(at(me, port), at(to, 68), &[])),
            ("truncated", short),
            ("policy-denied", Packet::udp(at(me, 1), at(closed, port), &[])),
        ];
        for (_, packet) in &all {
            packet.send(pod.netns()).unwrap();
        }
        reasons = all.map(|(reason, _)| reason).to_vec();
    }
    let rounds = u64::from(ROUNDS);
    let moved = |status: &Value| -> BTreeMap<_, _> {
        let moved = |reason: &&'static str| (*reason, packets(status, reason) - packets(&before, reason));
        reasons.iter().map(moved).collect()
    };
    let status =
        until(PATIENCE, || look(&lab), |status| moved(status).values().all(|n| *n >= rounds)).unwrap();
    let want: BTreeMap<_, _> = reasons.iter().map(|reason| (*reason, rounds)).collect();
    assert_eq!(moved(&status), want);
    // Nothing is in the log that was not sent, and all of it is: each by itself, or as one of many.
    let told = |log: &[Value]| {
        let mut told = BTreeMap::new();
        for ours in log.iter().map(|record| &record["flow"]["extensions"]["value"]) {
            if let Some(reason) = reasons.iter().find(|reason| ours["reason"] == **reason) {
                *told.entry(*reason).or_default() += ours["aggregated"].as_u64().unwrap();
            }
        }
        told
    };
    let log = until(PATIENCE, || agent.flow_log(), |log| told(log) == want).unwrap();
    assert_eq!(told(&log), want);
    let status = look(&lab).unwrap();
    assert_eq!((count(&status, "lostEvents"), &status["flows"]["lostInExport"]), (0, &0.into()));
    assert!(count(&status, "lostDetail") > 0, "everything was told one by one");
    let seconds = since.elapsed().as_secs() + 1;
    let together = reasons.len() as u64 * (seconds / TOGETHER.as_secs() + 2);
    let most = SAVED + EVENTS * seconds + together;
    // The pod that denies has its own.
    let of_pod = |record: &&Value| record["flow"]["extensions"]["value"]["reason"] != "policy-denied";
    let records =
        log.iter().filter(|record| record["flow"]["verdict"] == "DROPPED").filter(of_pod).count() as u64;
    assert!(records <= most, "{records} records in {seconds} s, at most {most}");
    println!("{} reasons, {rounds} drops each: {records} records", reasons.len());
}
