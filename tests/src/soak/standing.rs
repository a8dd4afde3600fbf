//! How far each node's agent is known to have come: what its kernel holds is at least that new.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use bulkhead::{api, cluster::object::Kind};
use serde_json::Value;

use super::history::Versions;
use crate::{agent::Agent, topology::Lab};

/// Between two looks at an agent.
const PACE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Standing {
    /// By node.
    known: Vec<Mutex<Versions>>,
}

impl Standing {
    pub fn of(nodes: usize) -> Self {
        let known = (0..nodes).map(|_| Mutex::default()).collect();
        Self { known }
    }

    /// Of each node.
    pub fn now(&self) -> Vec<Versions> {
        self.known.iter().map(|node| node.lock().expect("no holder panics").clone()).collect()
    }

    /// Follows one node's agent, over all its lives, until told to end.
    pub fn follow(&self, lab: &Lab, node: usize, end: &AtomicBool) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        while !end.load(Ordering::Relaxed) {
            let agent = &lab.agents()[node];
            // An agent that is not there, or starts, says nothing; what it had in force stays.
            if let Ok(status) = runtime.block_on(api::status(&agent.socket())) {
                self.note(node, &status);
            }
            thread::sleep(PACE);
        }
        Ok(())
    }

    fn note(&self, node: usize, status: &Value) {
        let Some(versions) = in_force(status) else { return };
        let mut known = self.known[node].lock().expect("no holder panics");
        for (kind, version) in versions {
            let before = known.entry(kind).or_default();
            *before = version.max(*before);
        }
    }

    /// Waits until every node has come this far.
    pub fn reach(&self, versions: &Versions, agents: &[Agent], within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        let there = |known: &Versions| {
            versions.iter().all(|(kind, version)| known.get(kind).is_some_and(|known| known >= version))
        };
        loop {
            let known = self.now();
            let late: Vec<_> = (0..known.len()).filter(|node| !there(&known[*node])).collect();
            if late.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let status = agents[late[0]].status();
                bail!("node-{} has not come to {versions:?}: {:?}, {status:#?}", late[0] + 1, known[late[0]]);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// `None`: not all that the watches have told is in the kernel.
fn in_force(status: &Value) -> Option<Versions> {
    let source = &status["source"];
    let taken_in = source["learned"].as_u64() >= source["sent"].as_u64();
    if source["synced"] != true || !taken_in || !status["datapath"]["error"].is_null() {
        return None;
    }
    let version = |kind: Kind| Some((kind, source["watches"][kind.to_string()]["version"].as_u64()?));
    Some(Kind::ALL.into_iter().filter_map(version).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_taken_in_and_in_the_kernel_counts() {
        let status = json!({
            "source": {"synced": true, "learned": 7, "sent": 7, "watches": {"Pod": {"version": 12}, "Node": {}}},
            "datapath": {"error": null},
        });
        assert_eq!(in_force(&status), Some([(Kind::Pod, 12)].into()));
        for (pointer, value) in [
            ("/source/synced", json!(false)),
            ("/source/learned", json!(6)),
            ("/datapath/error", json!("a map is full")),
        ] {
            let mut other = status.clone();
            *other.pointer_mut(pointer).expect("it is there") = value;
            assert_eq!(in_force(&other), None, "{pointer}");
        }
    }
}
