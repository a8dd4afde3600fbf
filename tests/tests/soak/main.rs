//! A short soak with everything on; `lab soak` is the long one.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{process::Command, time::SystemTime};

use lab::soak::{self, Options, clock};

/// Of pairs whose right outcome is known, in hundredths of all that were asked.
const CERTAIN: u64 = 60;

#[test]
fn under_churn_load_and_chaos_no_verdict_is_wrong_and_nothing_grows() {
    let options = Options { minutes: 0.75, actors: 3, quiet_every: 15, ..Options::default() };
    let report = soak::run(&options).unwrap();
    report.print();
    report.verdict().unwrap();
    let count = |what| report.counts.get(what).copied().unwrap_or(0);
    // It must have been worth it, however slow the machine is.
    for (what, least) in [
        ("changes", 50),
        ("pods started", 5),
        ("connections", 1_000),
        ("complete matrices", 3),
        ("denials looked up in the flow log", 20),
        ("kills", 1),
        ("API flaps", 1),
    ] {
        assert!(count(what) >= least, "{what}: {} of {least}\n{:#?}", count(what), report.counts);
    }
    let asked = count("probes reached") + count("probes denied");
    assert!(
        count("probes reached") > asked / 10 && count("probes denied") > asked / 10,
        "{:#?}",
        report.counts
    );
    assert!(count("probes with one right outcome") > asked * CERTAIN / 100, "{:#?}", report.counts);
}

#[test]
fn agents_that_enforce_something_else_are_found_out() {
    let options = Options {
        minutes: 0.0,
        actors: 1,
        chaos: vec![soak::Chaos::None],
        agent_arg: ["--tenant-label", "none"].map(String::from).into(),
        ..Options::default()
    };
    let report = soak::run(&options).unwrap();
    assert!(report.wrongs > 100, "tenants are open to each other: {:?}", report.counts);
    assert!(report.wrong[0].contains("Reached, which no state explains"), "{}", report.wrong[0]);
    assert!(report.verdict().is_err());
}

#[test]
fn a_programs_wall_clock_is_set_without_the_machines() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("clock");
    for away in [0, 315_360_000, -86_400] {
        clock::set(&file, away).unwrap();
        let date = Command::new("date").arg("+%s").envs(clock::environment(&file).unwrap()).output().unwrap();
        let told: i64 = String::from_utf8(date.stdout).unwrap().trim().parse().unwrap();
        let now = i64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
        assert!((told - now - away).abs() < 60, "{told} at {now}, {away} s away");
    }
}
