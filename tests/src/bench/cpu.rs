//! Who runs where. Client and server share one CPU, so that the path's whole cost shows instead of hiding in
//! the other CPU's idle time; agents and everything else have the rest, as on a node with some to spare.

use std::thread;

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

#[derive(Debug)]
pub struct Cpus {
    bench: usize,
    others: Vec<usize>,
}

impl Cpus {
    /// The CPU to measure on, by default the last that this process may use.
    pub fn choose(wanted: Option<usize>) -> Result<Self> {
        let allowed = sched_getaffinity(this_thread()).context("cannot read the CPU affinity")?;
        let mut others: Vec<_> =
            (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect();
        let last = *others.last().context("a process has a CPU")?;
        let bench = wanted.unwrap_or(last);
        ensure!(others.contains(&bench), "CPU {bench} is not one of {others:?}");
        if others.len() > 1 {
            others.retain(|cpu| *cpu != bench);
        }
        Ok(Self { bench, others })
    }

    pub fn bench(&self) -> usize {
        self.bench
    }

    /// Runs `work`, and the threads it starts, on the CPU to measure on.
    pub fn on_bench<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on(&[self.bench], work)
    }

    /// Runs `work`, and the threads and processes it starts, on the other CPUs (if there are others).
    pub fn off_bench<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on(&self.others, work)
    }
}

fn on<T: Send>(cpus: &[usize], work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let mut set = CpuSet::new();
    cpus.iter().try_for_each(|cpu| set.set(*cpu))?;
    let pinned = || {
        sched_setaffinity(this_thread(), &set).context("cannot choose CPUs")?;
        work()
    };
    thread::scope(|scope| scope.spawn(pinned).join()).expect("a measurement does not panic")
}

fn this_thread() -> Pid {
    Pid::from_raw(0)
}
