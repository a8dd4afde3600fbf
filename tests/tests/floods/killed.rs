//! An agent that dies while a pod floods.

use std::{
    thread,
    time::{Duration, Instant},
};

use lab::{
    Family,
    flood::{Flood, Kind},
    until,
};

use crate::stage::{
    CONNECTIONS, MORE_MEMORY, PATIENCE, Talk, begun_within, count, look, memory, plan, raise, refused,
};

const PER_SECOND: u64 = 2500;
/// With tables half full, on a loaded machine.
const STARTS_WITHIN: Duration = Duration::from_mins(1);

#[test]
fn an_agent_that_is_killed_in_a_flood_comes_back_and_only_the_flooder_has_lost_anything() {
    let lab = raise(plan(PER_SECOND));
    let (flooder, web, db) = (lab.pod("shop/flooder"), lab.pod("shop/web"), lab.pod("shop/db"));
    let agent = lab.agent(1);
    let before = memory(&lab);
    let begin = |_| Talk::begin(&web, &db, Family::V4);
    let mut quiet: Vec<_> = (0..50).map(begin).collect();
    let flood = Flood::start_gently(&flooder, Family::V4, Kind::Udp).unwrap();
    // Something is saved up no more, and the table is pressed.
    let pressed = |status: &_| refused(status, "shop/flooder") > 0 && count(status, "shedConnections") > 0;
    let status = until(PATIENCE, || look(&lab), pressed).unwrap();
    assert!(pressed(&status), "{:#}", status["datapath"]);

    let (had, killed, sent) = (refused(&look(&lab).unwrap(), "shop/flooder"), Instant::now(), flood.sent());
    agent.kill9();
    // Long enough that the budget tells, wherever the rate of the flood is.
    let alone = || {
        quiet.push(begin(0));
        thread::sleep(Duration::from_millis(100));
        flood.sent() - sent
    };
    let mut more = std::iter::repeat_with(alone);
    let is_clear = |more: &u64| *more > 2 * begun_within(PER_SECOND, killed) || killed.elapsed() > PATIENCE;
    let more = more.find(is_clear).unwrap();
    let most = begun_within(PER_SECOND, killed);
    assert!(more > 2 * most, "the flood is too slow to tell: {more} of {most}");
    let starts = Instant::now();
    agent.start().unwrap();
    let took = starts.elapsed();
    assert!(took < STARTS_WITHIN, "{took:?}");
    let status = look(&lab).unwrap();
    let refused = refused(&status, "shop/flooder") - had;
    assert!(refused >= more - most, "{refused} of {more} refused without an agent; {most} may begin");

    // The new one finds what the old one has left, and makes room again.
    let makes_room = |status: &_| count(status, "shedConnections") > 0;
    let status = until(PATIENCE, || look(&lab), makes_room).unwrap();
    assert!(makes_room(&status), "{:#}", status["datapath"]);
    let fill = status["datapath"]["maps"]["CONNS_V4"]["entries"].as_u64().unwrap();
    assert!((CONNECTIONS / 4..=CONNECTIONS).contains(&fill), "{fill}");
    Talk::begin(&web, &db, Family::V4);
    assert!(flood.stop().unwrap() > 0);
    println!("an agent killed in a flood starts again in {took:?}, with {fill} entries");
    for talk in &mut quiet {
        talk.go_on();
    }
    let after = memory(&lab);
    assert!(after < before + MORE_MEMORY, "the agent had {before} kB before and has {after} kB");
}
