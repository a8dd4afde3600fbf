//! An agent with another layout of the maps takes over from one whose programs are on the interfaces: upgrade and
//! downgrade alike.
//!
//! ```text
//! maps filled ─▶ connections ─▶ from_pod everywhere ─▶ to_pod ─▶ to_overlay ─▶ connections of meanwhile ─▶ old pins go
//! ```
//! Until the maps say all that the API says, the predecessor's programs go on enforcing what it knew last (fail static);
//! then each link gets our program in one step. Killed on the way, the next start goes on where this one stopped: each
//! interface has the programs of one of the two, and both enforce.

use std::thread;

use super::node::{Node, PACKET_UNDER_WAY, error_chain};
use crate::{
    datapath::{
        kernel::Maps,
        programs::{Programs, Role},
    },
    endpoint::Endpoint,
    flow::clock,
};

/// While links change hands, packets marked under one set of records are read under the other: each endpoint keeps its
/// mark. Where the predecessor cannot be understood, what is masqueraded in that moment may be taken for somebody else's.
pub fn keep_marks(programs: &Programs, maps: &mut Maps, endpoints: &[Endpoint]) {
    for predecessor in programs.predecessors() {
        let known = |record: &bulkhead_ebpf::abi::Endpoint| {
            endpoints.iter().any(|e| (e.id, e.sandbox.host_ifindex) == (record.id, record.ifindex))
        };
        let kept = predecessor.endpoints().and_then(|records| {
            records.iter().filter(|record| known(record)).try_for_each(|r| maps.keep_mark(r))
        });
        if let Err(error) = kept {
            tracing::warn!(
                version = predecessor.version,
                error = error_chain(&error),
                "marks are given anew"
            );
        }
    }
}

impl Node {
    /// Another version's programs are on the interfaces, and our maps are not complete.
    pub(super) fn is_succeeding(&self) -> bool {
        !self.health.succeeded && !self.programs.predecessors().is_empty()
    }

    /// Takes over as soon as the kernel holds what the API says.
    pub(super) fn succeed(&mut self) {
        let complete =
            self.source.synced && self.health.error.is_none() && self.health.first_written.is_some();
        if self.health.succeeded || !complete {
            return;
        }
        if self.programs.predecessors().is_empty() {
            self.health.succeeded = true;
            return;
        }
        let versions: Vec<u32> = self.programs.predecessors().iter().map(|p| p.version).collect();
        tracing::info!(?versions, "takes over from another version");
        let began = clock::monotonic();
        let mut all: Vec<Endpoint> = self.endpoints.iter().cloned().collect();
        for endpoint in &mut all {
            endpoint.adopted = true;
            // A file that cannot be written says less than the record: it only ends learning earlier after a restart.
            if let Err(error) = self.store.save(endpoint) {
                tracing::warn!(
                    error = error_chain(&error),
                    "an endpoint's file does not say that it is learnt about"
                );
            }
            self.endpoints.insert(endpoint.clone());
        }
        self.enforce();
        if self.health.error.is_some() {
            return; // tried again at the next tick
        }
        self.inherit_connections(&all, None);
        self.attach_all(Role::Sender, &all);
        thread::sleep(PACKET_UNDER_WAY);
        self.attach_all(Role::Pod, &all);
        self.health.succeeded = true;
        if self.guard_ways() {
            self.enforce();
        }
        self.inherit_connections(&all, Some(began));
        for endpoint in &all {
            self.go_on_learning(endpoint);
        }
        tracing::info!(?versions, "has taken over");
    }

    /// From the predecessors' tables; from the pods' sockets, where a table cannot be read.
    fn inherit_connections(&mut self, all: &[Endpoint], replace: Option<u64>) {
        let mut understood = true;
        for predecessor in self.programs.predecessors().to_vec() {
            match predecessor.carry_connections(self.tables.kernel(), replace) {
                Ok(carried) => {
                    understood &= predecessor.is_understood();
                    self.programs.adoption.connections_carried += carried;
                }
                Err(error) => {
                    understood = false;
                    let version = predecessor.version;
                    tracing::warn!(version, error = error_chain(&error), "its connections cannot be read");
                }
            }
        }
        if !understood {
            self.read_sockets(all, replace);
        }
    }
}
