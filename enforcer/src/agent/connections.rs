//! The end of connections that nobody closes, and of drop counts that no packet reports any more.

use std::{hash::Hash, net::IpAddr};

use bulkhead_ebpf::abi::{ConnKey, DROP_EVENT_TICKS, DropCount, DropKey};

use super::node::{Node, error_chain};
use crate::{
    datapath::{connections::ConnTable, sweep},
    flow::{Pipeline, clock},
};

impl Node {
    /// Removes what has been silent for too long, reporting each end once.
    pub fn sweep_connections(&mut self, flows: &Pipeline) {
        let maps = self.tables.kernel();
        sweep_table(&mut maps.conns_v4(), flows);
        sweep_table(&mut maps.conns_v6(), flows);
        self.sweep_drops(flows);
        match self.tables.kernel_ref().lost() {
            Ok((events, _)) => {
                flows.lost_in_kernel(events.saturating_sub(self.lost_events));
                self.lost_events = events;
            }
            Err(error) => tracing::warn!(error = error_chain(&error), "lost events cannot be counted"),
        }
    }

    /// A flood that has ended leaves a count behind that no further packet reports.
    fn sweep_drops(&mut self, flows: &Pipeline) {
        let maps = self.tables.kernel();
        let now = sweep::tick(clock::monotonic());
        let mut silent = Vec::new();
        for entry in maps.drop_counts() {
            match entry {
                Ok((key, count)) if now.saturating_sub(count.tick) > 2 * DROP_EVENT_TICKS => {
                    silent.push((key, count));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(error = error_chain(&error), "drop counts may stay"),
            }
        }
        let drops = maps.drops();
        for (key, count) in silent {
            let _ = drops.remove(&key); // evicted meanwhile
            if count.count > 0 {
                report_drops(flows, &key, count);
            }
        }
    }
}

fn report_drops(flows: &Pipeline, key: &DropKey, count: DropCount) {
    if let Err(error) = flows.suppressed(key, count) {
        tracing::warn!(%error, "a drop count cannot be read");
    }
}

fn sweep_table<A>(table: &mut ConnTable<'_, A>, flows: &Pipeline)
where
    A: Copy + Into<IpAddr> + Hash,
    ConnKey<A>: aya::Pod,
{
    let now = std::time::Duration::from_nanos(clock::monotonic());
    let mut idle = Vec::new();
    for entry in table.entries() {
        match entry {
            Ok((key, conn)) if sweep::expired(key.protocol, &conn, now) => idle.push((key, conn)),
            Ok(_) => {}
            // The programs keep the table within bounds without us.
            Err(error) => tracing::warn!(error = error_chain(&error), "idle connections may stay"),
        }
    }
    for (key, seen) in idle {
        // Looked at again: a packet may have come since, and a live connection must not lose its entry.
        let Some(conn) = table.get(&key).filter(|conn| conn.last_seen == seen.last_seen) else { continue };
        if let Err(error) = table.remove(&key) {
            tracing::warn!(error = error_chain(&error), "an idle connection stays");
            continue;
        }
        if conn.state & bulkhead_ebpf::abi::CONN_ENDED == 0 && !sweep::is_only_a_verdict(&conn) {
            flows.ended(&key, &conn);
        }
    }
}
