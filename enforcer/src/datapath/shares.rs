//! How the entries of a connection table are shared out when they become few.
//!
//! The kernel's table evicts whatever has been quiet for longest, whosever it is. So the agent makes room before it is
//! full, and takes it from those who have most: above half of the table connections that nobody has answered go, above
//! seven eighths others too, always the quietest first, until the largest owners are down to what is left for them when
//! everybody smaller has kept all (max-min fairness). Who has less than that loses nothing.

use std::collections::HashMap;

use bulkhead_ebpf::abi::{CONN_ENDED, CONN_REPLIED, CONN_RESET, Conn};

/// Ages in powers of two of a tick, more than a connection may be silent for.
const AGES: usize = 20;
/// First those whose loss is felt least: over, or unanswered, the oldest first; then those that were answered.
const KINDS: usize = 2 * AGES;

type ByKind = [usize; KINDS];

/// Of one table, at one moment.
#[derive(Debug)]
pub struct Census {
    /// Tick of the moment.
    now: u32,
    /// By what [`Conn::origin`] says: who opened it, or who was asked by somebody from elsewhere.
    owners: HashMap<u16, ByKind>,
    total: usize,
}

/// Entries that are to go.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Surplus(HashMap<u16, ByKind>);

impl Census {
    pub fn at(now: u32) -> Self {
        Self { now, owners: HashMap::new(), total: 0 }
    }

    pub fn count(&mut self, conn: &Conn) {
        self.owners.entry(conn.origin).or_insert([0; KINDS])[kind(conn, self.now)] += 1;
        self.total += 1;
    }

    pub fn total(&self) -> usize {
        self.total
    }

    /// Half of the table is in use: worth looking at more often.
    pub fn is_pressing(&self, capacity: usize) -> bool {
        self.total > capacity / 2
    }

    /// What must go so that others find room.
    pub fn surplus(mut self, capacity: usize) -> Surplus {
        let mut surplus = Surplus::default();
        if self.is_pressing(capacity) {
            self.give_up(capacity / 2, AGES, &mut surplus);
            self.give_up(capacity - capacity / 8, KINDS, &mut surplus);
        }
        surplus
    }

    /// Cuts the largest owners until all fit into `room`, as far as their entries of the first `kinds` go.
    fn give_up(&mut self, room: usize, kinds: usize, surplus: &mut Surplus) {
        let level = level(self.owners.values().map(|kinds| kinds.iter().sum()).collect(), room);
        for (owner, has) in &mut self.owners {
            let mut over = has.iter().sum::<usize>().saturating_sub(level);
            for (kind, has) in has[..kinds].iter_mut().enumerate() {
                let gives = over.min(*has);
                if gives > 0 {
                    surplus.0.entry(*owner).or_insert([0; KINDS])[kind] += gives;
                    *has -= gives;
                    over -= gives;
                }
            }
        }
    }
}

impl Surplus {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this entry is one of them; then it is one less that has to go. `now`: as for the census, so that the
    /// entry is of the same age.
    pub fn takes(&mut self, conn: &Conn, now: u32) -> bool {
        let Some(left) = self.0.get_mut(&conn.origin).map(|kinds| &mut kinds[kind(conn, now)]) else {
            return false;
        };
        let takes = *left > 0;
        *left -= usize::from(takes);
        takes
    }
}

fn kind(conn: &Conn, now: u32) -> usize {
    if conn.state & (CONN_ENDED | CONN_RESET) != 0 {
        return 0;
    }
    let age = now.saturating_sub(conn.last_seen).checked_ilog2().map_or(0, |bits| bits as usize + 1);
    let youth = AGES - 1 - age.min(AGES - 1);
    if conn.state & CONN_REPLIED == 0 { youth } else { AGES + youth }
}

/// The most that each may have so that all fit into `room`; who has less leaves the rest to the others.
fn level(mut sizes: Vec<usize>, room: usize) -> usize {
    sizes.sort_unstable();
    let (mut left, count) = (room, sizes.len());
    for (index, size) in sizes.into_iter().enumerate() {
        let fair = left / (count - index);
        if size > fair {
            return fair;
        }
        left -= size;
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 10_000;
    const FLOODER: u16 = 9;

    type Case<'a> = (&'a str, &'a [(usize, Conn)], &'a [usize]);

    fn conn(origin: u16, state: u8, age: u32) -> Conn {
        Conn { origin, state, last_seen: NOW - age, ..Conn::default() }
    }

    /// How many of each kind of entry go.
    fn cut(capacity: usize, entries: &[(usize, Conn)]) -> Vec<usize> {
        let mut census = Census::at(NOW);
        for (number, conn) in entries {
            (0..*number).for_each(|_| census.count(conn));
        }
        let mut surplus = census.surplus(capacity);
        let gone = |(number, conn): &(usize, Conn)| (0..*number).filter(|_| surplus.takes(conn, NOW)).count();
        entries.iter().map(gone).collect()
    }

    #[test]
    fn room_is_taken_from_who_has_most_and_first_what_is_missed_least() {
        let flood = |age| conn(FLOODER, 0, age);
        let talk = |owner, age| conn(owner, CONN_REPLIED, age);
        let cases: [Case<'_>; 9] = [
            ("half a table needs nothing", &[(500, flood(20))], &[0]),
            ("one who has more than half", &[(100, talk(1, 9000)), (800, flood(20))], &[0, 400]),
            ("the oldest first", &[(300, flood(1)), (300, flood(40))], &[0, 100]),
            ("what is over first of all", &[(400, flood(4)), (300, conn(FLOODER, CONN_ENDED, 0))], &[0, 200]),
            (
                "answered ones stay where unanswered ones do",
                &[(300, talk(FLOODER, 900)), (600, flood(0))],
                &[0, 400],
            ),
            (
                "a busy node loses nothing that was answered",
                &[(500, talk(1, 3)), (370, talk(2, 900))],
                &[0, 0],
            ),
            ("until it is nearly full", &[(600, talk(1, 3)), (370, talk(2, 900))], &[95, 0]),
            (
                "two who flood are cut to the same",
                &[(100, talk(1, 0)), (300, flood(5)), (500, conn(8, 0, 5))],
                &[0, 100, 300],
            ),
            (
                "a flood that is answered, the oldest first",
                &[(50, talk(1, 9000)), (400, talk(FLOODER, 0)), (550, talk(FLOODER, 30))],
                &[0, 0, 125],
            ),
        ];
        for (case, entries, want) in cases {
            assert_eq!(cut(1000, entries), want, "{case}");
        }
    }

    #[test]
    fn everybody_gets_what_the_smaller_ones_leave() {
        for (sizes, room, want) in [
            (vec![], 10, usize::MAX),
            (vec![3, 4], 10, usize::MAX),
            (vec![30], 10, 10),
            (vec![2, 30], 10, 8),
            (vec![30, 2, 30], 10, 4),
            (vec![1, 1, 1], 0, 0),
        ] {
            assert_eq!(level(sizes.clone(), room), want, "{sizes:?} in {room}");
        }
    }

    #[test]
    fn the_age_of_an_entry_from_the_future_is_nothing() {
        assert_eq!(kind(&Conn { last_seen: NOW + 5, ..Conn::default() }, NOW), AGES - 1);
        assert_eq!(kind(&Conn { last_seen: 0, ..Conn::default() }, u32::MAX), 0);
    }
}
