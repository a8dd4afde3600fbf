//! The end of connections that nobody closes, room for those of everybody, and drop counts that no packet reports any
//! more.

use std::{hash::Hash, net::IpAddr, time::Duration};

use bulkhead_ebpf::abi::{CONN_ENDED, CONN_REPLIED, Conn, ConnKey, DROP_EVENT_TICKS, DropCount, DropKey};

use super::node::{Node, error_chain};
use crate::{
    datapath::{
        DatapathError,
        connections::ConnTable,
        kernel::Tally,
        shares::{Census, Surplus},
        sweep,
    },
    flow::{Pipeline, clock},
};

/// Entries of one table that are removed in one look at most, so that neither memory nor time goes with the table.
const AT_ONCE: usize = 1 << 15;

/// The connection tables as last seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracked {
    pub v4: Table,
    pub v6: Table,
}

/// Counts are since the agent started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Table {
    pub entries: usize,
    pub capacity: usize,
    /// Removed so that others find room.
    pub shed: u64,
    /// The kernel has thrown out at least this many: its table was full.
    pub evicted: u64,
    removed: u64,
    /// Entered and not there any more when first looked at.
    before: Option<u64>,
    is_pressing: bool,
}

impl Tracked {
    /// A table fills up.
    pub fn is_pressing(&self) -> bool {
        self.v4.is_pressing || self.v6.is_pressing
    }
}

impl Table {
    /// `entered`: read before the entries were counted, so that what was entered meanwhile makes the difference smaller.
    fn look(&mut self, entered: u64, entries: usize) {
        self.entries = entries;
        let gone = entered.saturating_sub(entries as u64);
        let before = *self.before.get_or_insert(gone);
        self.evicted = self.evicted.max(gone.saturating_sub(before + self.removed));
    }
}

impl Node {
    /// Removes what has been silent for too long, reporting each end once, and what leaves others no room.
    pub fn sweep_connections(&mut self, flows: &Pipeline) {
        let tally = match self.tables.kernel_ref().tally() {
            Ok(tally) => tally,
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "lost events cannot be counted");
                Tally::default()
            }
        };
        let maps = self.tables.kernel();
        let [v4, v6] = tally.entered;
        told(sweep_table(&mut maps.conns_v4(), flows, v4, &mut self.tracked.v4));
        told(sweep_table(&mut maps.conns_v6(), flows, v6, &mut self.tracked.v6));
        self.sweep_drops(flows);
        flows.lost_in_kernel(tally.lost_events.saturating_sub(self.lost_events));
        self.lost_events = self.lost_events.max(tally.lost_events);
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

fn told(swept: Result<(), DatapathError>) {
    if let Err(error) = swept {
        tracing::warn!(error = error_chain(&error), "connections stay as they are");
    }
}

fn sweep_table<A>(
    table: &mut ConnTable<'_, A>,
    flows: &Pipeline,
    entered: u64,
    seen: &mut Table,
) -> Result<(), DatapathError>
where
    A: Copy + Into<IpAddr> + Hash,
    ConnKey<A>: aya::Pod,
{
    let now = Duration::from_nanos(clock::monotonic());
    let tick = sweep::tick(clock::monotonic());
    let mut census = Census::at(tick);
    let mut idle = Vec::new();
    let (mut removed, mut stayed) = (0_u64, 0);
    for entry in table.entries() {
        let (key, conn) = entry?;
        if idle.len() < AT_ONCE && sweep::expired(key.protocol, &conn, now) {
            idle.push((key, conn.last_seen));
        } else {
            census.count(&conn);
        }
    }
    for (key, last_seen) in idle.drain(..) {
        // Looked at again: a packet may have come since, and a live connection must not lose its entry.
        let conn = table.get(&key).filter(|conn| conn.last_seen == last_seen);
        if conn.is_some_and(|conn| end(table, flows, &key, &conn)) {
            removed += 1;
        } else {
            stayed += 1;
        }
    }
    let capacity = table.capacity()?;
    (seen.capacity, seen.is_pressing) = (capacity, census.is_pressing(capacity));
    let mut entries = census.total() + stayed;
    let surplus = census.surplus(capacity);
    if !surplus.is_empty() {
        let shed = shed(table, flows, surplus, tick)?;
        entries = entries.saturating_sub(shed);
        seen.shed += shed as u64;
        removed += shed as u64;
    }
    seen.removed += removed;
    seen.look(entered, entries);
    Ok(())
}

/// Whose share is too large loses what was found to be too much. That nobody had answered is told as a number only.
fn shed<A>(
    table: &mut ConnTable<'_, A>,
    flows: &Pipeline,
    mut surplus: Surplus,
    tick: u32,
) -> Result<usize, DatapathError>
where
    A: Copy + Into<IpAddr> + Hash,
    ConnKey<A>: aya::Pod,
{
    let mut chosen = Vec::new();
    for entry in table.entries() {
        let (key, conn) = entry?;
        if chosen.len() == AT_ONCE {
            break;
        }
        if surplus.takes(&conn, tick) {
            chosen.push((key, conn.state & CONN_REPLIED != 0));
        }
    }
    let mut shed = 0;
    for (key, is_told) in chosen {
        let conn = if is_told { table.get(&key) } else { None };
        shed += usize::from(match conn {
            Some(conn) => end(table, flows, &key, &conn),
            None => table.remove(&key).is_ok(),
        });
    }
    Ok(shed)
}

/// Removes an entry and reports its end, unless that has been done; whether it is gone.
fn end<A>(table: &mut ConnTable<'_, A>, flows: &Pipeline, key: &ConnKey<A>, conn: &Conn) -> bool
where
    A: Copy + Into<IpAddr> + Hash,
    ConnKey<A>: aya::Pod,
{
    if let Err(error) = table.remove(key) {
        tracing::warn!(error = error_chain(&error), "an idle connection stays");
        return false;
    }
    if conn.state & CONN_ENDED == 0 && !sweep::is_only_a_verdict(conn) {
        flows.ended(key, conn);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_there_nor_was_removed_has_been_evicted() {
        let mut table = Table::default();
        // Of before the agent's time nobody knows.
        table.look(5000, 1000);
        assert_eq!(table.evicted, 0);
        // 500 more came, as many expired.
        table.removed = 500;
        table.look(5500, 1000);
        assert_eq!(table.evicted, 0);
        // 3000 came, and the table has room for 2000.
        table.look(8500, 2000);
        assert_eq!(table.evicted, 2000);
        // What was entered while the entries were counted hides some, and is no reason to take anything back.
        table.look(8500, 2100);
        assert_eq!(table.evicted, 2000);
        table.look(9000, 2000);
        assert_eq!(table.evicted, 2500);
    }
}
