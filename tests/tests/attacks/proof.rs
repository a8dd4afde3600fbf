//! The table, against pods with bulkhead and, to see that an arrival would be seen, without it.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

use lab::{Family, Plan, until};

use crate::{
    discovery, lawful, link, network,
    stage::{Attempt, LAST_PORT, Stage, Way},
    transport,
};

/// How long a drop may wait for its record: it is aggregated for 5 s, and collected when it has been quiet for 10 s.
const LOGGED_WITHIN: Duration = Duration::from_secs(20);
const ETHERNET_MTU: usize = 1500;

/// Every attempt on every way that it makes sense on; the way's place first.
fn attempts(stage: &Stage) -> Vec<(usize, Attempt)> {
    let on = |way: &Way| {
        let link = match (way.near, way.family) {
            (true, _) => link::attempts(way),
            (false, Family::V4) => Vec::new(),
            (false, Family::V6) => discovery::far(way),
        };
        [link, network::attempts(way), transport::attempts(way)].into_iter().flatten().collect::<Vec<_>>()
    };
    let ways = stage.ways.iter().enumerate();
    ways.flat_map(|(place, way)| on(way).into_iter().map(move |attempt| (place, attempt))).collect()
}

fn name(stage: &Stage, place: usize, attempt: &Attempt) -> String {
    let way = &stage.ways[place];
    format!("{} to a {} pod: {}", way.family, if way.near { "near" } else { "far" }, attempt.name)
}

/// Names of the attempts of which something has arrived at the victim.
fn arrived(stage: &mut Stage, attempts: &[(usize, Attempt)]) -> BTreeSet<String> {
    let mut arrived = BTreeSet::new();
    for (place, attempt) in attempts {
        let victim = if attempt.at_node {
            &mut stage.at_node
        } else {
            &mut stage.at_victims[usize::from(!stage.ways[*place].near)]
        };
        if attempt.arrivals.iter().any(|frame| victim.has_seen(frame)) {
            arrived.insert(name(stage, *place, attempt));
        }
    }
    arrived
}

#[test]
fn what_a_pod_forges_arrives_nowhere_and_is_counted_and_logged() {
    let mut stage = Stage::raise(Plan::bulkhead());
    let attempts = attempts(&stage);
    let (mut sent, mut all) = (BTreeMap::<String, u64>::new(), 0);
    let mut uncounted = Vec::new();
    let mut before = stage.packets();
    for (place, attempt) in &attempts {
        let frames = u64::try_from(attempt.frames.len()).unwrap();
        stage.send(&attempt.lead);
        stage.send(&attempt.frames);
        // What came before is through and counted, so that nothing of it is taken for this.
        let now = stage.counted(attempt.reason, before[attempt.reason] + frames);
        let moved = now[attempt.reason] - before[attempt.reason];
        if moved < frames {
            let others: Vec<_> = now.iter().filter(|(reason, count)| before[*reason] < **count).collect();
            let name = name(&stage, *place, attempt);
            uncounted.push(format!("{name}: {moved} of {frames} as {}; moved: {others:?}", attempt.reason));
        }
        before = now;
        all += frames;
        if attempt.told {
            *sent.entry(attempt.reason.to_owned()).or_default() += frames;
        }
    }
    stage.sees_through(LAST_PORT);
    assert_eq!(arrived(&mut stage, &attempts), BTreeSet::new(), "arrived");
    assert_eq!(uncounted, Vec::<String>::new(), "not counted");

    lawful_passes(&mut stage);

    let all_told = |logged: &BTreeMap<String, u64>| {
        sent.iter().all(|(reason, frames)| logged.get(reason).is_some_and(|told| told >= frames))
    };
    let logged = until(LOGGED_WITHIN, || Ok(stage.logged()), all_told).unwrap();
    assert!(all_told(&logged), "sent {sent:#?}, logged {logged:#?}");
    println!(
        "{} attempts, {all} frames, 0 arrivals, {} logged: {sent:?}",
        attempts.len(),
        sent.values().sum::<u64>()
    );
}

/// Between the same pods under the same policies.
fn lawful_passes(stage: &mut Stage) {
    for way in &stage.ways {
        let place = usize::from(!way.near);
        for (name, frames) in lawful::frames(way) {
            stage.send(&frames);
            stage.at_victims[place].await_all(&frames, &format!("{name}, {way:?}"));
        }
        lawful::stream(&stage.root, way.to.at(80));
        lawful::datagram(&stage.root, way.me.at(0), way.to.at(53));
    }
    // On the same node nobody has had to cut them.
    assert!(stage.at_victims[0].largest() > 4 * ETHERNET_MTU, "{}", stage.at_victims[0].largest());
}

/// Else the first proof would prove nothing.
#[test]
fn without_bulkhead_it_arrives() {
    let mut stage = Stage::raise(Plan::flat());
    let attempts = attempts(&stage);
    for (_, attempt) in &attempts {
        stage.send(&attempt.lead);
        stage.send(&attempt.frames);
        thread::sleep(Duration::from_millis(1)); // room in the receivers' backlog
    }
    stage.sees_through(LAST_PORT);
    let arrived = arrived(&mut stage, &attempts);
    let seen = attempts.iter().filter(|(_, attempt)| attempt.seen);
    let want: BTreeSet<_> = seen.map(|(place, attempt)| name(&stage, *place, attempt)).collect();
    println!("{} of {} attempts arrive", arrived.len(), attempts.len());
    let difference: Vec<_> = want.symmetric_difference(&arrived).collect();
    assert!(difference.is_empty(), "either lost or heard, against what is said of them: {difference:#?}");
}
