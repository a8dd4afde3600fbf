//! Several pods that flood at once.

use std::thread;

use lab::{
    Family, PodSpec, Transport,
    flood::{Flood, Kind},
    until,
};

use crate::stage::{CONNECTIONS, PATIENCE, PAUSE, Talk, count, look, node, refused};

const FLOODERS: [&str; 3] = ["shop/flooder", "shop/second", "rival/third"];

#[test]
fn pods_of_two_tenants_that_flood_at_once_take_from_each_other_and_from_nobody_else() {
    let lab = node();
    lab.namespace("rival", &[("bulkhead.io/tenant", "rival")]).unwrap();
    lab.label("Namespace", "shop", ("bulkhead.io/tenant", "shop")).unwrap();
    let pod = |key| PodSpec::new(key).serve(Transport::Tcp, 80);
    lab.start_pods(["shop/second", "rival/third", "rival/quiet", "rival/peer"].map(pod)).unwrap();
    lab.settle().unwrap();
    let (web, db) = (lab.pod("shop/web"), lab.pod("shop/db"));
    let (asks, answers) = (lab.pod("rival/quiet"), lab.pod("rival/peer"));
    let begin = |_| [Talk::begin(&web, &db, Family::V4), Talk::begin(&asks, &answers, Family::V4)];
    let mut quiet: Vec<_> = (0..50).flat_map(begin).collect();
    let floods = FLOODERS.map(|key| Flood::start_gently(&lab.pod(key), Family::V4, Kind::Udp).unwrap());
    // Until more has been begun than the table holds.
    let go_on = || {
        begin(0);
        thread::sleep(PAUSE);
        look(&lab)
    };
    let status = until(PATIENCE, go_on, |status| count(status, "shedConnections") > CONNECTIONS / 2).unwrap();
    assert!(count(&status, "shedConnections") > CONNECTIONS / 2, "{:#}", status["datapath"]);
    let fill = status["datapath"]["maps"]["CONNS_V4"]["entries"].as_u64().unwrap();
    assert!(fill < CONNECTIONS, "{fill}");
    for key in FLOODERS {
        assert!(refused(&status, key) > 0, "{key} has a budget of its own: {:#}", status["endpoints"]);
    }
    for key in ["shop/web", "shop/db", "rival/quiet", "rival/peer"] {
        assert_eq!(refused(&status, key), 0, "{key}");
    }
    quiet.iter_mut().for_each(Talk::go_on);
    for flood in floods {
        assert!(flood.stop().unwrap() > 0);
    }
    let status = look(&lab).unwrap();
    assert_eq!(count(&status, "evictedConnections"), 0, "{:#}", status["datapath"]);
}
