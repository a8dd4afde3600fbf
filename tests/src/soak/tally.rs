//! What a soak has done so far, and what was wrong.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard},
};

/// Wrong verdicts that are told with all that is known; the rest is counted.
const TOLD: usize = 5;

#[derive(Debug, Default)]
pub struct Tally(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    counts: BTreeMap<&'static str, u64>,
    wrong: Vec<String>,
    wrongs: u64,
}

impl Tally {
    pub fn count(&self, what: &'static str) {
        self.add(what, 1);
    }

    pub fn add(&self, what: &'static str, number: u64) {
        *self.lock().counts.entry(what).or_default() += number;
    }

    /// The largest number so far.
    pub fn most(&self, what: &'static str, number: u64) {
        let mut inner = self.lock();
        let most = inner.counts.entry(what).or_default();
        *most = number.max(*most);
    }

    /// A verdict that nothing explains, a lost byte, a state that is not reached. `tell` is asked for the first few.
    pub fn wrong(&self, tell: impl FnOnce() -> String) {
        let told = {
            let mut inner = self.lock();
            inner.wrongs += 1;
            inner.wrong.len() < TOLD
        };
        if told {
            let text = tell(); // takes its time: not under the lock
            eprintln!("\nWRONG: {text}\n");
            self.lock().wrong.push(text);
        }
    }

    /// How many, and the first few.
    pub fn wrongs(&self) -> (u64, Vec<String>) {
        let inner = self.lock();
        (inner.wrongs, inner.wrong.clone())
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.lock().counts.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder panics")
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        let counts: Vec<_> = inner.counts.iter().map(|(what, number)| format!("{number} {what}")).collect();
        write!(f, "{}; {} wrong", counts.join(", "), inner.wrongs)
    }
}
