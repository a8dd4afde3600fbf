//! Which tracked connections have been silent for too long.
//!
//! The programs never expire an entry: the table is an LRU, and the agent removes what is over, so that
//! ends are reported and idle entries make room. TCP and UDP ages follow netfilter's defaults
//! (Documentation/networking/nf_conntrack-sysctl.rst), so that bulkhead is never the first to forget.

use std::time::Duration;

use bulkhead_ebpf::abi::{self, Conn};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;

const VERDICT_SILENCE: Duration = Duration::from_mins(10);

/// A clock tick of the connection table: 2^30 ns.
const TICK: Duration = Duration::from_nanos(1 << 30);

/// The table's time of a `CLOCK_MONOTONIC` time in nanoseconds.
pub fn tick(now: u64) -> u32 {
    u32::try_from(now >> 30).unwrap_or(u32::MAX)
}

/// Made on the way to another node, only to remember a verdict: it counts nothing and never sees an answer. Whatever
/// the protocol, the next packet can make it again.
pub fn is_only_a_verdict(conn: &Conn) -> bool {
    let opener_counts = conn.sides & abi::CONN_OPENER == (conn.sides & abi::CONN_COUNTER) >> 1;
    conn.state & abi::CONN_TRANSLATED != 0 && opener_counts
}

/// How long an entry in this state may be silent.
fn allowed_silence(protocol: u8, state: u8) -> Duration {
    let replied = state & abi::CONN_REPLIED != 0;
    let closed = state & (abi::CONN_RESET | abi::CONN_ENDED) != 0;
    let half_closed = state & (abi::CONN_FIN | abi::CONN_FIN << 1) != 0;
    Duration::from_secs(match protocol {
        TCP if closed => 10,
        TCP if !replied => 120,
        TCP if half_closed => 600,
        TCP => 432_000,
        UDP if replied => 180,
        UDP | ICMP | ICMP6 => 30,
        _ => 600,
    })
}

/// `now`: `CLOCK_MONOTONIC`.
pub fn expired(protocol: u8, conn: &Conn, now: Duration) -> bool {
    let allowed =
        if is_only_a_verdict(conn) { VERDICT_SILENCE } else { allowed_silence(protocol, conn.state) };
    now.saturating_sub(TICK * conn.last_seen) > allowed + TICK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_expires_by_protocol_and_state() {
        let replied = abi::CONN_REPLIED;
        for (case, protocol, state, silence, want) in [
            ("an established TCP connection is kept for days", TCP, replied, 400_000, false),
            ("but not for ever", TCP, replied, 432_100, true),
            ("a SYN without answer", TCP, 0, 130, true),
            ("a SYN still being retried", TCP, 0, 100, false),
            ("closed", TCP, replied | abi::CONN_ENDED, 13, true),
            ("just closed: late packets still come", TCP, replied | abi::CONN_ENDED, 5, false),
            ("one side closed", TCP, replied | abi::CONN_FIN, 60, false),
            ("UDP without answer", UDP, 0, 40, true),
            ("UDP with answers", UDP, replied, 40, false),
            ("UDP with answers, silent", UDP, replied, 190, true),
            ("echo", ICMP, replied, 40, true),
        ] {
            let conn = Conn { state, last_seen: 1000, ..Conn::default() };
            let now = TICK * 1000 + Duration::from_secs(silence);
            assert_eq!(expired(protocol, &conn, now), want, "{case}");
        }
    }

    #[test]
    fn a_verdict_from_the_way_to_another_node_has_an_age_of_its_own() {
        let verdict = |sides| Conn { state: abi::CONN_TRANSLATED, sides, last_seen: 1000, ..Conn::default() };
        let after = |seconds| TICK * 1000 + Duration::from_secs(seconds);
        for sides in [0, abi::CONN_OPENER | abi::CONN_COUNTER] {
            assert!(is_only_a_verdict(&verdict(sides)));
            assert!(!expired(TCP, &verdict(sides), after(590)) && expired(TCP, &verdict(sides), after(610)));
        }
        // Seen at the backend's own interface: a connection like others.
        assert!(
            !is_only_a_verdict(&verdict(abi::CONN_COUNTER)) && !is_only_a_verdict(&verdict(abi::CONN_OPENER))
        );
        assert!(expired(TCP, &verdict(abi::CONN_COUNTER), after(130)));
    }

    #[test]
    fn a_clock_before_the_last_packet_expires_nothing() {
        let conn = Conn { last_seen: 1000, ..Conn::default() };
        assert!(!expired(UDP, &conn, Duration::from_secs(3)));
    }
}
