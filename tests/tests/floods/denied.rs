//! Floods that policy denies: they cost counters, not events, and nobody's records.

use lab::{
    Family, Outcome, Transport,
    flood::{Flood, Kind},
    probe::attempt,
    until,
};
use serde_json::Value;

use crate::stage::{MORE_MEMORY, PATIENCE, Talk, count, look, memory, node, packets};

#[test]
fn a_denied_flood_is_counted_whole_and_hides_nobody_elses_drops() {
    let lab = node();
    let (jailed, web, db) = (lab.pod("shop/jailed"), lab.pod("shop/web"), lab.pod("shop/db"));
    let other = lab.pod("shop/other");
    let agent = lab.agent(1);
    let before = memory(&lab);
    for family in Family::BOTH {
        let mut quiet = Talk::begin(&web, &db, family);
        for kind in [Kind::Syn, Kind::Udp, Kind::Icmp] {
            let had = count(&look(&lab).unwrap(), "lostDetail");
            let flood = Flood::start_gently(&jailed, family, kind).unwrap();
            let status = until(PATIENCE, || look(&lab), |status| count(status, "lostDetail") > had).unwrap();
            assert!(count(&status, "lostDetail") > had, "{family} {kind}: everything was told one by one");
            let to = std::net::SocketAddr::new(db.ip(family), 80);
            let asked =
                attempt(other.netns(), to, Transport::Tcp, std::time::Duration::from_millis(100)).unwrap();
            assert_eq!(asked, Outcome::Silent);
            Talk::begin(&web, &db, family);
            flood.stop().unwrap();
        }
        quiet.go_on();
        let source = other.ip(family).to_string();
        let of_other = |record: &Value| is_denied(record) && record["flow"]["IP"]["source"] == *source;
        let log = until(PATIENCE, || agent.flow_log(), |log| log.iter().any(of_other)).unwrap();
        assert!(log.iter().any(of_other), "{family}: another pod's drop is not in the log");
    }
    // All of it is in the log sooner or later: each by itself, or as one of many.
    let denied = packets(&look(&lab).unwrap(), "policy-denied");
    // Two processors may count one kind of drop at once and lose one.
    let nearly = denied - denied / 100;
    let log = until(PATIENCE, || agent.flow_log(), |log| told(log) >= nearly).unwrap();
    let told = told(&log);
    assert!((nearly..=denied).contains(&told), "{denied} drops counted, {told} told of");
    assert!(log.iter().any(|record| record["flow"]["extensions"]["value"]["mixed"] == true));
    let status = look(&lab).unwrap();
    assert_eq!((count(&status, "lostEvents"), &status["flows"]["lostInExport"]), (0, &0.into()));
    let after = memory(&lab);
    assert!(after < before + MORE_MEMORY, "the agent had {before} kB before and has {after} kB");
}

fn is_denied(record: &Value) -> bool {
    record["flow"]["extensions"]["value"]["reason"] == "policy-denied"
}

fn told(log: &[Value]) -> u64 {
    let counts = log.iter().filter(|record| is_denied(record));
    counts.filter_map(|record| record["flow"]["extensions"]["value"]["aggregated"].as_u64()).sum()
}
