//! Floods that come from outside the cluster, in many names.

use std::net::SocketAddr;

use lab::{
    Family,
    flood::{Flood, Kind},
    until,
};

use crate::stage::{PATIENCE, Talk, count, look, packets, plan, raise, refused};

const PER_SECOND: u64 = 100;

#[test]
fn a_flood_from_outside_costs_its_receiver_what_it_may_be_asked_and_nobody_else_anything() {
    let lab = raise(plan(PER_SECOND));
    // Answers end there.
    lab.world().ip("route add blackhole 198.18.0.0/16\nroute add blackhole 2001:db8:18::/112\n").unwrap();
    let (web, db, other) = (lab.pod("shop/web"), lab.pod("shop/db"), lab.pod("shop/other"));
    let open = lab.pod("shop/flooder");
    for family in Family::BOTH {
        let table = if family == Family::V4 { "CONNS_V4" } else { "CONNS_V6" };
        let mut quiet = [Talk::begin(&web, &db, family), Talk::begin(&web, &open, family)];
        // One that denies it remembers nothing of it, and tells of it in bounds.
        let before = look(&lab).unwrap();
        let flood =
            Flood::start_from_afar(SocketAddr::new(db.ip(family), 80), lab.world(), Kind::Syn).unwrap();
        let denied = |status: &_| {
            count(status, "lostDetail") > count(&before, "lostDetail")
                && packets(status, "policy-denied") > packets(&before, "policy-denied") + 5000
        };
        let status = until(PATIENCE, || look(&lab), denied).unwrap();
        assert!(denied(&status), "{family}: {:#}", status["datapath"]);
        Talk::begin(&web, &db, family);
        flood.stop().unwrap();
        let status = look(&lab).unwrap();
        assert_eq!(refused(&status, "shop/db"), 0);
        let entries = status["datapath"]["maps"][table]["entries"].as_u64().unwrap();
        assert!(entries < 100, "{family}: {entries} entries");

        // One that allows it may be asked so much and no more.
        let had = refused(&status, "shop/flooder");
        let flood =
            Flood::start_from_afar(SocketAddr::new(open.ip(family), 80), lab.world(), Kind::Syn).unwrap();
        let over = |status: &_| refused(status, "shop/flooder") > had + 1000;
        let status = until(PATIENCE, || look(&lab), over).unwrap();
        assert!(over(&status), "{family}: {:#}", status["endpoints"]);
        // What it begins itself is on another account, and others have their own.
        Talk::begin(&open, &other, family);
        Talk::begin(&web, &db, family);
        quiet.iter_mut().for_each(Talk::go_on);
        flood.stop().unwrap();
        let status = look(&lab).unwrap();
        for key in ["shop/web", "shop/db", "shop/other"] {
            assert_eq!(refused(&status, key), 0, "{family}: {key}");
        }
        assert_eq!(count(&status, "evictedConnections"), 0);
    }
}
