//! The table, against pods with bulkhead and, to see that an arrival would be seen, without it.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use bulkhead::flow::clock::Timestamp;
use lab::{Family, Plan, until};

use crate::{
    discovery, lawful, link, network,
    stage::{Attempt, LAST_PORT, Stage, Told, Way},
    transport,
};

/// How long a drop may wait for its record: it is aggregated for 5 s, and collected when it has been quiet for 10 s.
const LOGGED_WITHIN: Duration = Duration::from_mins(1);
/// After which one more drop of a kind is told of at once, and not only counted.
const TOLD_ANEW: Duration = Duration::from_millis(5600);
/// How far the clock of events may be off: the kernel's coarse one, put in terms of another.
const CLOCKS: i64 = 1_000_000_000;
const ETHERNET_MTU: usize = 1500;

/// Every attempt on every way that it makes sense on; the way's place first.
fn attempts(ways: &[Way]) -> Vec<(usize, Attempt)> {
    let on = |way: &Way| {
        let link = match (way.near, way.family) {
            (true, _) => link::attempts(way),
            (false, Family::V4) => Vec::new(),
            (false, Family::V6) => discovery::far(way),
        };
        [link, network::attempts(way), transport::attempts(way)].into_iter().flatten().collect::<Vec<_>>()
    };
    let ways = ways.iter().enumerate();
    ways.flat_map(|(place, way)| on(way).into_iter().map(move |attempt| (place, attempt))).collect()
}

/// More pods than there are attempts on one way that end for the same reason.
const HANDS: usize = 16;

/// An attempt by one of several pods. Where frames have no addresses that could be read, drops of one pod for one reason
/// are one kind; so each attempt is made by a pod that has not made another for this reason in a while, and its record
/// is known by pod, reason and time.
struct Made {
    name: String,
    pod: String,
    attempt: Attempt,
    /// When it began, and when all of it was counted.
    during: [Timestamp; 2],
}

impl Made {
    fn is_told_by(&self, told: &Told) -> bool {
        let [begun, ended] = self.during;
        told.pod == self.pod
            && told.reason == self.attempt.reason
            && (begun.0 - CLOCKS..ended.0 + CLOCKS).contains(&told.time.0)
    }
}

/// Which pod makes which attempt: the first that has none for the same reason on the same way.
fn deal(attempts: &[(usize, Attempt)]) -> Vec<usize> {
    let mut dealt = BTreeMap::<_, usize>::new();
    let next = |(place, attempt): &(usize, Attempt)| {
        let next = dealt.entry((*place, attempt.reason)).or_default();
        *next += 1;
        *next - 1
    };
    attempts.iter().map(next).collect()
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
    let mut stage = Stage::with_hands(Plan::bulkhead(), HANDS);
    let of_hands: Vec<_> = stage.hands.iter().map(|hand| attempts(&hand.ways)).collect();
    let hands = deal(&of_hands[0]);
    let attempts = hands.iter().enumerate().map(|(n, hand)| of_hands[*hand][n].clone());
    let attempts: Vec<_> = attempts.collect();
    let (mut made, mut uncounted, mut last) = (Vec::<Made>::new(), Vec::new(), BTreeMap::new());
    let mut before = stage.packets();
    for ((place, attempt), hand) in attempts.iter().zip(&hands) {
        let name = name(&stage, *place, attempt);
        let frames = u64::try_from(attempt.frames.len()).unwrap();
        if let Some(last) = last.get(&(*hand, attempt.reason)) {
            thread::sleep(TOLD_ANEW.saturating_sub(Instant::elapsed(last)));
        }
        let begun = Timestamp::now();
        stage.hands[*hand].send(&attempt.lead);
        stage.hands[*hand].send(&attempt.frames);
        // What came before is through and counted, so that nothing of it is taken for this.
        let now = stage.counted(attempt.reason, before[attempt.reason] + frames);
        let moved = now[attempt.reason] - before[attempt.reason];
        if moved < frames {
            let others: Vec<_> = now.iter().filter(|(reason, count)| before[*reason] < **count).collect();
            uncounted.push(format!("{name}: {moved} of {frames} as {}; moved: {others:?}", attempt.reason));
        }
        before = now;
        last.insert((*hand, attempt.reason), Instant::now());
        let pod = stage.hands[*hand].pod.key();
        made.push(Made { name, pod, attempt: attempt.clone(), during: [begun, Timestamp::now()] });
    }
    stage.sees_through(LAST_PORT);
    assert_eq!(arrived(&mut stage, &attempts), BTreeSet::new(), "arrived");
    assert_eq!(uncounted, Vec::<String>::new(), "not counted");

    lawful_passes(&mut stage);

    let told = until(LOGGED_WITHIN, || Ok(stage.logged()), |told| untold(&made, told).is_empty()).unwrap();
    assert_eq!(untold(&made, &told), Vec::<String>::new(), "not logged");
    let frames = |told: bool| -> usize {
        made.iter().filter(|made| made.attempt.told || !told).map(|made| made.attempt.frames.len()).sum()
    };
    println!(
        "{} attempts, {} frames, 0 arrivals; {} attempts told of by records of their own, and all of their {} frames",
        made.len(),
        frames(false),
        made.iter().filter(|made| made.attempt.told).count(),
        frames(true),
    );
}

/// What the log does not tell of: attempts without a record, and pods of whose drops it has not all.
fn untold(made: &[Made], told: &[Told]) -> Vec<String> {
    let (mut missing, mut sent) = (Vec::new(), BTreeMap::<_, u64>::new());
    for made in made {
        let own = told.iter().filter(|told| made.is_told_by(told)).count();
        if (own > 0) != made.attempt.told {
            missing.push(format!("{} by {}: {own} records", made.name, made.pod));
        }
        if made.attempt.told {
            *sent.entry((&made.pod, made.attempt.reason)).or_default() += made.attempt.frames.len() as u64;
        }
    }
    for ((pod, reason), frames) in sent {
        let of_pod = told.iter().filter(|told| told.pod == *pod && told.reason == reason);
        let count: u64 = of_pod.map(|told| told.packets).sum();
        if count < frames {
            missing.push(format!("{count} of {frames} of {pod} as {reason}"));
        }
    }
    missing
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
    let attempts = attempts(&stage.ways);
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
