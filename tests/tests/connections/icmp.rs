//! ICMP: echoes are connections, errors belong to the packet that they quote.

use lab::{
    Family, Lab,
    node::{WORLD_V4, WORLD_V6},
    raw::{Packet, Trouble},
    sniffer::Sniffer,
};

use crate::stage::{ARRIVES_WITHIN, FAMILIES, arrive, at, lab_with, packets, policy, vanish};

/// The db admits the webs and begins nothing itself; nobody may begin anything with the webs.
const ISOLATED: [(&str, &str); 2] = [
    ("db", "policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]"),
    ("web", "policyTypes: [Ingress]"),
];

fn isolate(lab: &Lab) {
    for (app, rules) in ISOLATED {
        policy(lab, app, app, rules);
    }
    lab.settle().unwrap();
}

#[test]
fn echo_replies_pass_and_unsolicited_ones_do_not() {
    let lab = lab_with(&["shop/db-1", "shop/web-1", "shop/web-2"]);
    isolate(&lab);
    let db = lab.pod("shop/db-1");
    let mut at_db = Sniffer::start(db.netns()).unwrap();
    for (web, node) in [("shop/web-1", 1), ("shop/web-2", 2)] {
        let web = lab.pod(web);
        let mut at_web = Sniffer::start(web.netns()).unwrap();
        for family in FAMILIES {
            let (own, its) = (web.ip(family), db.ip(family));
            arrive(web.netns(), &mut at_db, &[Packet::echo_request(own, its, 1)]);
            let answer = Packet::echo_reply(its, own, 1); // by the db's own stack
            assert!(at_web.sees(&answer, ARRIVES_WITHIN).unwrap(), "{answer:?}");
            // The policies admit the web's packets to the db, but not as replies to what was never asked.
            let before = packets(&lab, node, "not-tracked");
            let unsolicited = Packet::echo_reply(own, its, 2);
            vanish(web.netns(), &mut at_db, &[unsolicited], &Packet::echo_request(own, its, 3));
            let after = packets(&lab, node, "not-tracked");
            assert!(after > before, "{family}");
            // Neither may the db ask, nor answer where nobody asked.
            let closed = [Packet::echo_request(its, own, 4), Packet::echo_reply(its, own, 5)];
            vanish(db.netns(), &mut at_web, &closed, &Packet::echo_reply(its, own, 3));
        }
    }
}

#[test]
fn an_error_passes_exactly_if_it_quotes_a_tracked_packet() {
    let lab = lab_with(&["shop/db-1", "shop/web-1", "shop/web-2"]);
    isolate(&lab);
    let db = lab.pod("shop/db-1");
    let mut at_db = Sniffer::start(db.netns()).unwrap();
    for (web, node) in [("shop/web-1", 1), ("shop/web-2", 2)] {
        let web = lab.pod(web);
        let mut at_web = Sniffer::start(web.netns()).unwrap();
        for family in FAMILIES {
            let its = db.ip(family);
            let datagram = |port| Packet::udp(at(&web, family, port), at(&db, family, 53), b"tracked?");
            let echo = |id| Packet::echo_request(web.ip(family), its, id);
            let tracked = [datagram(40_000), echo(1)];
            arrive(web.netns(), &mut at_db, &tracked);
            let router = match family {
                Family::V4 => WORLD_V4.into(),
                Family::V6 => WORLD_V6.into(),
            };
            let host = lab.node(node).ip(family);
            for (from, reporter) in [(db.netns(), its), (lab.world(), router), (lab.node(node).netns(), host)]
            {
                for trouble in [Trouble::PortUnreachable, Trouble::TimeExceeded, Trouble::TooBig(1400)] {
                    let related = tracked.each_ref().map(|quoted| Packet::error(reporter, trouble, quoted));
                    arrive(from, &mut at_web, &related);
                    let before = (1..=2).map(|node| packets(&lab, node, "error-not-tracked")).sum::<u64>();
                    let invented =
                        [datagram(40_001), echo(9)].map(|quoted| Packet::error(reporter, trouble, &quoted));
                    // Behind them one that quotes a tracked packet, and that differs from those before.
                    let mut longer = datagram(40_000);
                    longer.payload.extend([0; 4]);
                    vanish(from, &mut at_web, &invented, &Packet::error(reporter, trouble, &longer));
                    let after = (1..=2).map(|node| packets(&lab, node, "error-not-tracked")).sum::<u64>();
                    assert!(after >= before + 2, "{reporter} {trouble:?}: {before} to {after}");
                }
            }
        }
    }
}

#[test]
fn a_rule_with_ports_admits_no_echo_and_one_without_does() {
    let lab = lab_with(&["shop/db-1", "shop/web-1", "shop/web-2"]);
    let db = lab.pod("shop/db-1");
    let mut at_db = Sniffer::start(db.netns()).unwrap();
    for (id, rule) in [(1, "{ports: [{port: 53, protocol: UDP}, {}]}"), (2, "{}")] {
        policy(&lab, "db", "db", &format!("policyTypes: [Ingress], ingress: [{rule}]"));
        lab.settle().unwrap();
        for web in ["shop/web-1", "shop/web-2"].map(|web| lab.pod(web)) {
            for family in FAMILIES {
                let echo = Packet::echo_request(web.ip(family), db.ip(family), id);
                let datagram = Packet::udp(at(&web, family, 40_000 + id), at(&db, family, 53), b"open");
                if id == 1 {
                    vanish(web.netns(), &mut at_db, &[echo], &datagram);
                } else {
                    arrive(web.netns(), &mut at_db, &[echo, datagram]);
                }
            }
        }
    }
}
