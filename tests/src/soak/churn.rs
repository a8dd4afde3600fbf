//! Changes at a steady rate: policies and labels, and pods that come, ask, are asked, and go.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use bulkhead::policy::testkit::generate::Random;

use super::{
    Soak,
    edits::{self, Edit},
    probes::{Asked, ask},
    stage::{APPS, DOORS, NAMESPACES, TIERS, served, standing},
};
use crate::{chain::PluginError, pod::PodSpec};

/// Guests under way at once, at most.
pub const HOSTS: usize = 12;
/// CNI's "try again later".
const TRY_AGAIN: u64 = 11;

/// Gives turns at a rate; those that nobody could take in time are lost.
#[derive(Debug)]
pub struct Turns {
    began: Instant,
    every: Duration,
    given: AtomicU64,
}

impl Turns {
    /// `rate` per second; 0: none at all.
    pub fn new(rate: f64) -> Self {
        let every = if rate > 0.0 { Duration::from_secs_f64(1.0 / rate) } else { Duration::MAX };
        Self { began: Instant::now(), every, given: AtomicU64::new(0) }
    }

    /// Whether it is somebody's turn; does not wait.
    pub fn take(&self) -> bool {
        self.take_after(self.began.elapsed())
    }

    fn take_after(&self, time: Duration) -> bool {
        let due = time.as_nanos() / self.every.as_nanos();
        let due = u64::try_from(due).unwrap_or(u64::MAX);
        let take = |given| (given < due).then_some(due.min(given + 1).max(due.saturating_sub(HOSTS as u64)));
        self.given.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// Edits until the end.
pub fn edit(soak: &Soak<'_>, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    let turns = Turns::new(soak.options.policy_rate);
    while !soak.is_over() {
        if !turns.take() {
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        let _open = soak.gate.read().expect("no holder panics");
        let edit = edits::draw(&mut random, soak.options.actors);
        carry_out(soak, &edit)?;
        soak.history.catch_up()?;
    }
    Ok(())
}

fn carry_out(soak: &Soak<'_>, edit: &Edit) -> Result<()> {
    let lab = soak.lab;
    match edit {
        Edit::Policy(policy) => lab.manifests().write(policy)?,
        Edit::NoPolicy(key) => {
            if !soak.history.has_policy(key) {
                return Ok(());
            }
            lab.delete("NetworkPolicy", key)?;
        }
        Edit::PodLabel { pod, key, value } => lab.label("Pod", pod, (key, value))?,
        Edit::Team { namespace, .. } | Edit::Tenant { namespace, .. } | Edit::Door { namespace, .. } => {
            lab.edit("Namespace", namespace, |object| edits::edit_namespace(edit, object))?;
        }
    }
    soak.tally.count("changes");
    soak.tally.count(match edit {
        Edit::Policy(_) | Edit::NoPolicy(_) => "policies written",
        Edit::PodLabel { .. } => "pods relabelled",
        Edit::Team { .. } => "namespaces relabelled",
        Edit::Tenant { .. } | Edit::Door { .. } => "tenants changed",
    });
    Ok(())
}

/// One guest after the other until the end.
pub fn host(soak: &Soak<'_>, turns: &Turns, number: usize) -> Result<()> {
    let mut random = Random(soak.seed ^ (0x6e57 + number as u64));
    let mut visits = 0;
    while !soak.is_over() {
        if !turns.take() {
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        let _open = soak.gate.read().expect("no holder panics");
        visits += 1;
        visit(soak, &mut random, &format!("guest-{number}-{visits}"))?;
    }
    Ok(())
}

/// Starts, asks and is asked before it has done anything else, and goes.
fn visit(soak: &Soak<'_>, random: &mut Random, name: &str) -> Result<()> {
    let key = format!("{}/{name}", random.pick(&NAMESPACES));
    let spec = PodSpec::new(&key).on(if random.chance(50) { 1 } else { 2 });
    let spec = spec.label("app", random.pick(&APPS)).label("tier", random.pick(&TIERS));
    let started = {
        let _chain = soak.starts.read().expect("no holder panics");
        soak.lab.start_pod(served(spec, random.below(2)))
    };
    let guest = match started {
        Ok(guest) => guest,
        Err(error) => {
            let later =
                error.downcast_ref::<PluginError>().is_some_and(|error| error.code == Some(TRY_AGAIN));
            soak.tally.count(if later { "starts to be tried again" } else { "starts failed" });
            if !later {
                soak.tally.wrong(|| format!("{key} cannot start: {error:#}"));
            }
            return soak.lab.delete("Pod", &key);
        }
    };
    soak.tally.count("pods started");
    let others = standing(soak.lab);
    let mut round = Vec::new();
    for _ in 0..4 {
        let other = &others[random.below(others.len())];
        round.push(Asked::new(&guest, other, random.below(DOORS.len()), random.chance(50)));
        round.push(Asked::new(other, &guest, random.below(DOORS.len()), random.chance(50)));
    }
    ask(soak, &round)?;
    let _chain = soak.starts.read().expect("no holder panics");
    soak.lab.stop_pod(&key)?;
    soak.tally.count("pods stopped");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_at_their_rate_and_do_not_pile_up() {
        let turns = Turns::new(10.0);
        let taken = |time| (0..100).filter(|_| turns.take_after(time)).count();
        assert_eq!([0, 250, 250, 310].map(|millis| taken(Duration::from_millis(millis))), [0, 2, 0, 1]);
        let piled = taken(Duration::from_mins(1));
        assert!((HOSTS..=HOSTS + 2).contains(&piled), "{piled}");
        assert!(!Turns::new(0.0).take());
    }
}
