//! Programs on their way to interfaces while the owner goes on: an ADD waits for the kernel, and nobody waits for the ADD.

use std::collections::BTreeMap;

use bulkhead_cni::protocol::Sandbox;
use tokio::sync::mpsc;

use super::node::{Node, error_chain};
use crate::{
    datapath::{
        DatapathError,
        programs::{Fitted, Fitting, Role},
    },
    endpoint::Endpoint,
};

/// Why programs are put on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A pod starts, and waits for it.
    Start,
    /// Somebody has taken them off.
    Repair,
    Adoption,
}

/// An ADD that waits for the programs on its interface.
#[derive(Debug)]
pub struct Begun {
    pub ifindex: u32,
    /// The endpoint that it has made.
    pub id: u32,
    /// What the attachment was before: to go back to.
    pub before: Option<Endpoint>,
}

/// Threads that wait for the kernel; at most one job per interface.
pub struct Attacher {
    results: mpsc::UnboundedSender<Fitted>,
    under_way: BTreeMap<u32, Purpose>,
}

impl Attacher {
    /// Results come out of the channel; each must be told to [`Node::attached`].
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Fitted>) {
        let (results, received) = mpsc::unbounded_channel();
        (Self { results, under_way: BTreeMap::new() }, received)
    }

    /// What for something is being put on the interface; `None`: nothing is.
    pub fn purpose(&self, ifindex: u32) -> Option<Purpose> {
        self.under_way.get(&ifindex).copied()
    }

    fn begin(&mut self, ifindex: u32, fitting: Fitting, purpose: Purpose) {
        self.under_way.insert(ifindex, purpose);
        let results = self.results.clone();
        // Nobody receives when the agent stops: the pins hold what has been attached.
        tokio::task::spawn_blocking(move || _ = results.send(fitting.carry_out()));
    }
}

impl Node {
    /// [`Node::attached`] is to be told how it went, unless there is an error at once.
    pub(super) fn begin_attaching(
        &mut self,
        role: Role,
        sandbox: &Sandbox,
        purpose: Purpose,
    ) -> Result<(), DatapathError> {
        let fitting = self.programs.fitting(role, &sandbox.host_ifname, sandbox.host_ifindex)?;
        self.attacher.begin(sandbox.host_ifindex, fitting, purpose);
        Ok(())
    }

    /// Takes in what was attached; gives the interface's index, and why not all was.
    pub fn attached(&mut self, fitted: Fitted) -> (u32, Result<(), String>) {
        let ifindex = fitted.ifindex;
        let result = self.programs.take(fitted).map_err(|error| error_chain(&error));
        if result.is_ok() {
            self.bare.remove(&ifindex);
        }
        match self.attacher.under_way.remove(&ifindex) {
            Some(Purpose::Repair) => {
                let error = result.as_ref().err();
                tracing::error!(ifindex, error, "a program was missing on a pod's interface");
                if error.is_none() {
                    self.meters.repaired();
                }
            }
            Some(Purpose::Adoption) => {
                if let Err(error) = &result {
                    // Its rules are in place; the next round tries again.
                    tracing::error!(ifindex, error, "pod is not enforced");
                }
                self.adoption_attached(ifindex);
            }
            Some(Purpose::Start) | None => {}
        }
        (ifindex, result)
    }
}
