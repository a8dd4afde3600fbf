//! Floods that policy allows: what a pod begins is bounded, whatever it sends.

use std::thread;

use lab::{
    Family,
    flood::{Flood, Kind},
    until,
};

use crate::stage::{
    CONNECTIONS, MORE_MEMORY, PATIENCE, PAUSE, Talk, count, look, memory, node, packets, refused,
};

/// Begun while a flood goes on.
const NEW_TALKS: usize = 20;

#[test]
fn a_flood_of_any_kind_costs_a_neighbour_neither_a_conversation_nor_a_new_one() {
    let lab = node();
    let (flooder, web, db) = (lab.pod("shop/flooder"), lab.pod("shop/web"), lab.pod("shop/db"));
    let agent = lab.agent(1);
    let before = memory(&lab);
    for family in Family::BOTH {
        let mut quiet = Talk::begin(&web, &db, family);
        for kind in Kind::ALL {
            let had = refused(&look(&lab).unwrap(), "shop/flooder");
            let flood = Flood::start_gently(&flooder, family, kind).unwrap();
            let status =
                until(PATIENCE, || look(&lab), |status| refused(status, "shop/flooder") > had).unwrap();
            assert!(refused(&status, "shop/flooder") > had, "{family} {kind}: nothing was too much");
            for _ in 0..NEW_TALKS {
                Talk::begin(&web, &db, family);
            }
            assert!(flood.stop().unwrap() > 0);
        }
        quiet.go_on();
    }
    let status = look(&lab).unwrap();
    assert_eq!((refused(&status, "shop/web"), refused(&status, "shop/db")), (0, 0));
    assert!(packets(&status, "over-budget") >= refused(&status, "shop/flooder"));
    let after = memory(&lab);
    assert!(after < before + MORE_MEMORY, "the agent had {before} kB before and has {after} kB");
    // The flood is in the log, in the flooder's name and not packet by packet.
    let log = until(PATIENCE, || agent.flow_log(), |log| log.iter().any(is_over_budget)).unwrap();
    let told = log.iter().find(|record| is_over_budget(record)).expect("the log tells of it");
    assert_eq!(told["flow"]["source"]["pod_name"], "flooder", "{told:#}");
}

fn is_over_budget(record: &serde_json::Value) -> bool {
    record["flow"]["extensions"]["value"]["reason"] == "over-budget"
}

#[test]
fn a_flood_that_fills_the_table_takes_its_own_entries_and_not_a_quiet_conversations() {
    let lab = node();
    let (flooder, web, db) = (lab.pod("shop/flooder"), lab.pod("shop/web"), lab.pod("shop/db"));
    let mut quiet = Talk::begin(&web, &db, Family::V4);
    let flood = Flood::start_gently(&flooder, Family::V4, Kind::Udp).unwrap();
    let status = until(PATIENCE, || look(&lab), |status| count(status, "shedConnections") > 0).unwrap();
    assert!(count(&status, "shedConnections") > 0, "nothing made room: {:#}", status["datapath"]);
    // Until more has been begun than the table holds.
    let go_on = || {
        Talk::begin(&web, &db, Family::V4);
        thread::sleep(PAUSE);
        look(&lab)
    };
    let status = until(PATIENCE, go_on, |status| count(status, "shedConnections") > CONNECTIONS / 2).unwrap();
    assert!(count(&status, "shedConnections") > CONNECTIONS / 2, "{:#}", status["datapath"]);
    let fill = &status["datapath"]["maps"]["CONNS_V4"];
    assert_eq!(fill["capacity"], CONNECTIONS);
    assert!(fill["entries"].as_u64().unwrap() < CONNECTIONS, "{fill}");
    quiet.go_on();
    flood.stop().unwrap();
    let status = look(&lab).unwrap();
    assert_eq!(count(&status, "evictedConnections"), 0, "{:#}", status["datapath"]);
}
