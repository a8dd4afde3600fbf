//! What a pod may begin, and who pays for it.
#![expect(clippy::too_many_lines, reason = "the table of cases is long")]

use bulkhead_ebpf::{
    abi::Limits,
    decide::Hook::{FromPod, ToPod},
    host::frames::udp,
    packet::{TCP_RST, TCP_SYN, UDP},
    reason::Reason as R,
};

use super::{
    A, B, Case, Host, RULES_OPEN, Remote,
    Step::{self, Marked, Packet, Policy, Translated},
    World, between,
};

const HOUR: u64 = 3600 * 1_000_000_000;

/// Prices in hours: nothing is earned while a test runs.
fn limits(cost: u64, savings: u64) -> Step {
    Step::Limits(Limits { entry_cost: cost * HOUR, savings: savings * HOUR })
}

pub fn budgets(cases: &mut Vec<Case>, v6: bool) {
    let mut case = |name, steps| cases.push(Case { name, v6, steps });
    let to = |source, destination| between(source, destination, v6);
    let (ar, ra) = (to(A, Remote), to(Remote, A));

    case(
        "what a pod begins beyond its budget is dropped, and what it has begun goes on",
        vec![
            limits(1, 1),
            Packet(A, FromPod, ar.udp(1, 2), R::Allowed),
            Packet(A, FromPod, ar.tcp(3, 4, TCP_SYN), R::Allowed),
            Packet(A, FromPod, ar.udp(5, 6), R::OverBudget),
            Packet(A, FromPod, ar.tcp(7, 8, TCP_SYN), R::OverBudget),
            Packet(A, FromPod, ar.echo(false, 9), R::OverBudget),
            Packet(A, FromPod, ar.udp(1, 2), R::Tracked),
            Packet(A, ToPod, ra.udp(2, 1), R::Tracked),
            Packet(A, FromPod, ar.tcp(3, 4, TCP_SYN), R::Tracked),
            // What was dropped has left no entry.
            Packet(A, ToPod, ra.udp(6, 5), R::PolicyDenied),
        ],
    );
    case(
        "a budget fills up again",
        vec![
            limits(1, 0),
            Packet(A, FromPod, ar.udp(1, 2), R::Allowed),
            Packet(A, FromPod, ar.udp(3, 4), R::OverBudget),
            limits(1, 1),
            Packet(A, FromPod, ar.udp(3, 4), R::Allowed),
            Packet(A, FromPod, ar.udp(5, 6), R::OverBudget),
        ],
    );
    case(
        "without a limit there is none",
        vec![
            limits(0, 0),
            Packet(A, FromPod, ar.udp(1, 2), R::Allowed),
            Packet(A, FromPod, ar.udp(3, 4), R::Allowed),
        ],
    );
    case(
        "what a pod begins, what it is asked, and what another does are apart",
        vec![
            Policy(B, RULES_OPEN, 1),
            limits(1, 0),
            Packet(A, FromPod, ar.udp(1, 2), R::Allowed),
            Packet(A, FromPod, ar.udp(3, 4), R::OverBudget),
            Packet(A, ToPod, ra.tcp(1, 8080, TCP_SYN), R::Allowed),
            Packet(A, ToPod, ra.tcp(2, 8080, TCP_SYN), R::OverBudget),
            Packet(B, FromPod, to(B, Remote).udp(1, 2), R::Allowed),
            Packet(B, FromPod, to(B, Remote).udp(3, 4), R::OverBudget),
        ],
    );
    case(
        "a receiver has room for several senders",
        vec![
            limits(4, 3),
            Packet(A, ToPod, ra.tcp(1, 8080, TCP_SYN), R::Allowed),
            Packet(A, ToPod, ra.tcp(2, 8080, TCP_SYN), R::Allowed),
            Packet(A, ToPod, ra.tcp(3, 8080, TCP_SYN), R::Allowed),
            Packet(A, ToPod, ra.tcp(4, 8080, TCP_SYN), R::Allowed),
            Packet(A, ToPod, ra.tcp(5, 8080, TCP_SYN), R::OverBudget),
        ],
    );
    case(
        "the node's own probes cost nothing, and what comes in masqueraded does",
        vec![
            Policy(A, RULES_OPEN, 1),
            limits(1, 0),
            Packet(A, ToPod, to(Host, A).tcp(1, 1, TCP_SYN), R::Allowed),
            Packet(A, ToPod, to(Host, A).tcp(2, 1, TCP_SYN), R::Allowed),
            Translated(A, ToPod, to(Host, A).tcp(3, 1, TCP_SYN), None, R::Allowed),
            Translated(A, ToPod, to(Host, A).tcp(4, 1, TCP_SYN), None, R::OverBudget),
            Packet(A, ToPod, to(Host, A).tcp(5, 1, TCP_SYN), R::Allowed),
        ],
    );
    case(
        "what a pod of this node sent by a Service was paid for there",
        vec![
            Policy(A, RULES_OPEN, 11),
            Policy(B, RULES_OPEN, 12),
            limits(1, 0),
            Marked(B, ToPod, to(Host, B).tcp(1, 80, TCP_SYN), A, R::Allowed),
            Marked(B, ToPod, to(Host, B).tcp(2, 80, TCP_SYN), A, R::Allowed),
            Packet(B, ToPod, to(Remote, B).tcp(3, 80, TCP_SYN), R::Allowed),
        ],
    );
    case(
        "what policy denies is denied, and costs nothing",
        vec![
            limits(1, 0),
            Packet(A, FromPod, to(A, World).udp(1, 2), R::PolicyDenied),
            Packet(A, FromPod, ar.udp(1, 2), R::Allowed),
            Packet(A, FromPod, to(A, World).udp(1, 2), R::PolicyDenied),
        ],
    );
    let fragment = |id: u8, first: bool, payload: &[u8]| {
        let at: u16 = if first { 0 } else { 24 };
        if v6 {
            let [high, low] = (at | u16::from(first)).to_be_bytes();
            return ar.frame(44, &[&[UDP, 0, high, low, 0, 0, 0, id], payload].concat());
        }
        let mut frame = ar.frame(UDP, payload);
        let [high, low] = ((at / 8) | (u16::from(first) << 13)).to_be_bytes();
        (frame[19], frame[20], frame[21]) = (id, high, low);
        frame
    };
    let first = udp(1, 2, &[0; 16]);
    case(
        "a datagram in fragments takes an entry each time",
        vec![
            limits(1, 2),
            Packet(A, FromPod, ar.udp(1, 2), R::Allowed),
            Packet(A, FromPod, fragment(1, true, &first), R::Tracked),
            Packet(A, FromPod, fragment(2, true, &first), R::Tracked),
            Packet(A, FromPod, fragment(3, true, &first), R::OverBudget),
            Packet(A, FromPod, fragment(2, false, &[0; 8]), R::Fragment),
            Packet(A, FromPod, fragment(3, false, &[0; 8]), R::FragmentNotTracked),
            Packet(A, FromPod, ar.udp(1, 2), R::Tracked),
        ],
    );
    // An end that is begun anew is told of anew.
    case(
        "a connection under the key of an old one is another one",
        vec![
            limits(1, 1),
            Packet(A, FromPod, ar.tcp(1, 2, TCP_SYN), R::Allowed),
            Packet(A, ToPod, ra.tcp(2, 1, TCP_RST), R::Tracked),
            Packet(A, FromPod, ar.tcp(1, 2, TCP_SYN), R::Allowed),
            Packet(A, ToPod, ra.tcp(2, 1, TCP_RST), R::Tracked),
            Packet(A, FromPod, ar.tcp(1, 2, TCP_SYN), R::OverBudget),
        ],
    );
}
