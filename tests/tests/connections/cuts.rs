//! A live connection that the new policy does not allow is cut at its next packet.

use std::{
    env, thread,
    time::{Duration, Instant},
};

use lab::{
    Family, Lab, Stream,
    matrix::SETTLES_WITHIN,
    raw::{ACK, Packet},
    sniffer::Sniffer,
};

use crate::stage::{FAMILIES, at, connect_from, exchange, lab_with, label, packets, policy, vanish};

const PACE: Duration = Duration::from_micros(200);
/// A conversation that had an echo every fraction of a millisecond is over after such a silence.
const SILENCE: Duration = Duration::from_millis(250);
const TENANT: &str = "bulkhead.io/tenant";

struct Tightening {
    name: &'static str,
    client: &'static str,
    family: Family,
    tighten: fn(&Lab),
    loosen: fn(&Lab),
    /// What the cut packets are counted as at the server.
    reason: &'static str,
}

const TIGHTENINGS: [Tightening; 5] = [
    Tightening {
        name: "policy edit",
        client: "shop/web-1",
        family: Family::V4,
        tighten: |lab| admit(lab, &[FRIENDS, OPS]),
        loosen: |lab| admit(lab, &[FRIENDS, OPS, WEBS]),
        reason: "policy-denied",
    },
    Tightening {
        name: "egress policy",
        client: "shop/web-1",
        family: Family::V4,
        tighten: |lab| policy(lab, "silent", "web", "policyTypes: [Egress]"),
        loosen: |lab| lab.delete("NetworkPolicy", "shop/silent").unwrap(),
        reason: "policy-denied",
    },
    Tightening {
        name: "pod relabel",
        client: "shop/web-1",
        family: Family::V6,
        tighten: |lab| label(lab, "Pod", "shop/web-1", ("app", "old")),
        loosen: |lab| label(lab, "Pod", "shop/web-1", ("app", "web")),
        reason: "policy-denied",
    },
    Tightening {
        name: "namespace relabel",
        client: "other/guest-2",
        family: Family::V4,
        tighten: |lab| label(lab, "Namespace", "other", ("team", "dev")),
        loosen: |lab| label(lab, "Namespace", "other", ("team", "ops")),
        reason: "policy-denied",
    },
    Tightening {
        name: "tenant change",
        client: "other/guest-2",
        family: Family::V6,
        tighten: |lab| label(lab, "Namespace", "other", (TENANT, "blue")),
        loosen: |lab| label(lab, "Namespace", "other", (TENANT, "red")),
        reason: "tenant-boundary",
    },
];

const FRIENDS: &str = "{podSelector: {matchLabels: {app: friend}}}";
const WEBS: &str = "{podSelector: {matchLabels: {app: web}}}";
const OPS: &str = "{namespaceSelector: {matchLabels: {team: ops}}}";

fn admit(lab: &Lab, peers: &[&str]) {
    policy(lab, "db", "db", &format!("policyTypes: [Ingress], ingress: [{{from: [{}]}}]", peers.join(", ")));
}

/// `$LAB_CUTS` times, over the tightenings in turn.
#[test]
fn a_tightening_cuts_a_live_stream_and_leaves_the_others_alone() {
    let cuts: usize = env::var("LAB_CUTS").map_or(10, |n| n.parse().unwrap());
    let lab = lab_with(&["shop/db-1", "shop/web-1", "shop/friend-1", "shop/friend-2", "other/guest-2"]);
    lab.namespace("shop", &[(TENANT, "red")]).unwrap();
    lab.namespace("other", &[(TENANT, "red"), ("team", "ops")]).unwrap();
    admit(&lab, &[FRIENDS, OPS, WEBS]);
    lab.settle().unwrap();
    let db = lab.pod("shop/db-1");
    let start = |client: &str, family, pace| {
        Stream::start(lab.pod(client).netns(), at(&db, family, 80), pace).unwrap()
    };
    let friends =
        [("shop/friend-1", Family::V4), ("shop/friend-2", Family::V4), ("shop/friend-2", Family::V6)]
            .map(|(friend, family)| start(friend, family, Duration::from_millis(1)));
    let mut took = Vec::new();
    for tightening in TIGHTENINGS.iter().cycle().take(cuts) {
        let Tightening { name, client, family, tighten, loosen, reason } = tightening;
        let stream = start(client, *family, PACE);
        thread::sleep(Duration::from_millis(50));
        assert!(stream.last_echo().elapsed() < SILENCE, "{name}: {client} talks");
        let dropped = packets(&lab, 1, reason);
        tighten(&lab);
        let changed = Instant::now();
        while stream.last_echo().elapsed() < SILENCE {
            assert!(changed.elapsed() < SETTLES_WITHIN, "{name}: {client} still talks");
            thread::sleep(Duration::from_millis(5));
        }
        let last = stream.last_echo();
        assert!(packets(&lab, 1, reason) > dropped, "{name}: cut packets are counted as {reason}");
        thread::sleep(SILENCE);
        assert_eq!(stream.last_echo(), last, "{name}: {client} talks again");
        let report = stream.abandon();
        assert!(report.echoed > 10 && report.broken.is_some(), "{name}: {report:?}");
        took.push((last.saturating_duration_since(changed), *name));
        loosen(&lab);
        lab.settle().unwrap();
    }
    for friend in friends {
        let report = friend.stop();
        assert!(report.sent > 100, "{report:?}");
        assert_eq!(
            (report.echoed, report.retransmitted, report.broken.clone()),
            (report.sent, 0, None),
            "{report:?}"
        );
    }
    let percentiles = |which: &str| {
        let mut took: Vec<_> =
            took.iter().filter(|(_, name)| name.contains(which)).map(|(took, _)| *took).collect();
        took.sort();
        // The nearest rank: the smallest value that this share of all does not exceed.
        let percentile = |p: usize| took.get((took.len() * p).div_ceil(100).max(1) - 1).copied();
        (took.len(), percentile(50).unwrap_or_default(), percentile(99).unwrap_or_default())
    };
    for which in TIGHTENINGS.iter().map(|t| t.name).chain([""]) {
        let (cuts, p50, p99) = percentiles(which);
        let which = if which.is_empty() { "all" } else { which };
        println!("file change to last packet, {which}: {cuts} cuts, p50 {p50:?}, p99 {p99:?}");
    }
}

#[test]
fn a_cut_connection_is_cut_in_both_directions() {
    const PORT: u16 = 45_000;
    let lab = lab_with(&["shop/db-1", "shop/web-1", "shop/web-2"]);
    let db = lab.pod("shop/db-1");
    let mut at_db = Sniffer::start(db.netns()).unwrap();
    let of_ingress = |lab: &Lab| {
        policy(lab, "db", "db", "policyTypes: [Ingress], ingress: [{ports: [{port: 53, protocol: UDP}]}]");
    };
    let of_egress = |lab: &Lab| {
        policy(lab, "web", "web", "policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]");
    };
    for (port, tighten) in (PORT..).zip([of_ingress, of_egress]) {
        let webs = ["shop/web-1", "shop/web-2"].map(|web| lab.pod(web));
        let live: Vec<_> = webs
            .iter()
            .flat_map(|web| FAMILIES.map(|family| (web, family)))
            .map(|(web, family)| {
                let mut stream = connect_from(web, at(web, family, port), at(&db, family, 80));
                exchange(&mut stream, b"live");
                stream
            })
            .collect();
        tighten(&lab);
        lab.settle().unwrap();
        for web in &webs {
            let mut at_web = Sniffer::start(web.netns()).unwrap();
            for family in FAMILIES {
                let (client, server) = (at(web, family, port), at(&db, family, 80));
                let ask = Packet::udp(client, at(&db, family, 53), b"open");
                vanish(web.netns(), &mut at_db, &[Packet::tcp(client, server, ACK, b"live")], &ask);
                let answer = Packet::udp(at(&db, family, 53), client, b"so is this");
                vanish(db.netns(), &mut at_web, &[Packet::tcp(server, client, ACK, b"live")], &answer);
            }
        }
        drop(live);
        for policy in ["shop/db", "shop/web"] {
            let _ = lab.delete("NetworkPolicy", policy); // one of them is there
        }
        lab.settle().unwrap();
    }
}
