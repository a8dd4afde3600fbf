//! Random pairs asked all the time, and now and then everybody about everybody; every outcome is judged.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use bulkhead::policy::testkit::generate::Random;

use super::{
    Soak,
    judge::{Question, Span},
    stage::{DOORS, end, standing},
};
use crate::{
    pod::Pod,
    probe::{Attempt, Outcome, attempt_all},
};

/// How long an exchange may take before its silence is taken for a denial.
const PATIENCE: Duration = Duration::from_millis(900);
/// Exchanges under way at once, in a round of random probes and when everybody is asked.
const ROUND: usize = 24;
const AT_ONCE: usize = 750;

/// Who asks whom, and what.
#[derive(Clone)]
pub struct Asked {
    pub from: Arc<Pod>,
    pub question: Question,
}

impl Asked {
    pub fn new(from: &Arc<Pod>, to: &Arc<Pod>, door: usize, ipv4: bool) -> Self {
        let (transport, port) = DOORS[door];
        let question = Question { from: end(from), to: end(to), transport, ipv4, port };
        Self { from: Arc::clone(from), question }
    }

    fn attempt(&self) -> Attempt<'_> {
        let question = &self.question;
        let to = SocketAddr::new(question.address(&question.to), question.port);
        Attempt { from: self.from.netns(), to, transport: question.transport }
    }

    pub fn name(&self) -> String {
        let family = if self.question.ipv4 { "IPv4" } else { "IPv6" };
        let Question { from, to, transport, port, .. } = &self.question;
        format!(
            "{} (node-{}) -> {}:{port} (node-{}) {transport} {family}",
            from.key,
            from.node + 1,
            to.key,
            to.node + 1
        )
    }
}

/// Random pairs until the end.
pub fn roam(soak: &Soak<'_>, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    let pods = standing(soak.lab);
    while !soak.is_over() {
        let _open = soak.gate.read().expect("no holder panics");
        let mut round = Vec::new();
        while round.len() < ROUND {
            let (from, to) = (&pods[random.below(pods.len())], &pods[random.below(pods.len())]);
            if from.key() != to.key() {
                round.push(Asked::new(from, to, random.below(DOORS.len()), random.chance(50)));
            }
        }
        ask(soak, &round)?;
        let now = Instant::now();
        let mut asked = soak.asked.lock().expect("no holder panics");
        asked.extend(round.iter().map(|asked| (asked.name(), now)));
    }
    Ok(())
}

/// Asks all at once and judges each outcome.
pub fn ask(soak: &Soak<'_>, round: &[Asked]) -> Result<Vec<Outcome>> {
    let began = Instant::now();
    let from = soak.standing.now();
    let attempts: Vec<_> = round.iter().map(Asked::attempt).collect();
    let outcomes = attempt_all(&attempts, PATIENCE)?;
    let span = Span { from, to: soak.history.catch_up()? };
    for (asked, outcome) in round.iter().zip(&outcomes) {
        if soak.excuses.cover(&asked.question, began) {
            soak.tally.count("probes excused");
            continue;
        }
        judge(soak, asked, &span, *outcome);
    }
    Ok(outcomes)
}

fn judge(soak: &Soak<'_>, asked: &Asked, span: &Span, outcome: Outcome) {
    let possible = asked.question.possible(&soak.history, span);
    soak.tally.count(if outcome == Outcome::Reached { "probes reached" } else { "probes denied" });
    soak.tally.count(if possible.is_certain() { "probes with one right outcome" } else { "probes with two" });
    if !possible.explains(outcome) {
        soak.tally.wrong(|| {
            format!(
                "{}: {outcome:?}, which no state explains ({possible:?})\nspan {span:?}\n{}{}",
                asked.name(),
                asked.question.considered(&soak.history, span),
                soak.circumstances(asked)
            )
        });
    }
}

/// Everybody asks everybody at every door in both families, while nothing changes.
pub fn ask_everybody(soak: &Soak<'_>) -> Result<Vec<(Asked, Outcome)>> {
    let pods = standing(soak.lab);
    let pairs = pods.iter().flat_map(|from| pods.iter().map(move |to| (from, to)));
    let pairs: Vec<_> = pairs.filter(|(from, to)| from.key() != to.key()).collect();
    let all: Vec<_> = (0..DOORS.len())
        .flat_map(|door| [true, false].map(|ipv4| (door, ipv4)))
        .flat_map(|(door, ipv4)| pairs.iter().map(move |(from, to)| Asked::new(from, to, door, ipv4)))
        .collect();
    let mut answers = Vec::with_capacity(all.len());
    for some in all.chunks(AT_ONCE) {
        let outcomes = ask(soak, some)?;
        answers.extend(some.iter().cloned().zip(outcomes));
    }
    soak.tally.count("complete matrices");
    Ok(answers)
}
