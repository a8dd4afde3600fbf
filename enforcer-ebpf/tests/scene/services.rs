//! Services: what a pod sends to a frontend, and what becomes of it when the node has translated it.
#![expect(clippy::too_many_lines, reason = "the table of cases is long")]

use bulkhead_ebpf::{
    decide::Hook::{FromPod, ToOverlay, ToPod},
    packet::{TCP_ACK as ACK, TCP_FIN, TCP_RST as RST, TCP_SYN as SYN},
    reason::Reason,
};

use super::{
    A, B, Case, Host, Node, RULES_A, RULES_A_AGAIN, RULES_B, RULES_HOST, RULES_INGRESS, RULES_NONE,
    RULES_OPEN, Remote,
    Step::{Marked, Packet, Policy, Tenant as Tenancy, Translated},
    Tenant, Unknown, Vip, World, between,
};

const SYN_ACK: u8 = SYN | ACK;
const FIN: u8 = TCP_FIN | ACK;

pub fn services(cases: &mut Vec<Case>, v6: bool) {
    use Reason as R;
    let to = |source, destination| between(source, destination, v6);
    let (av, ab, hb, ar) = (to(A, Vip), to(A, B), to(Host, B), to(A, Remote));
    let mut case = |name, steps| cases.push(Case { name, v6, steps });

    case(
        "a frontend is allowed for its backends, by address, port and protocol",
        vec![
            Packet(A, FromPod, av.tcp(9, 80, SYN), R::Allowed),
            Packet(A, ToPod, av.reply().tcp(80, 9, SYN_ACK), R::Tracked),
            Packet(A, FromPod, av.tcp(9, 80, ACK), R::Tracked),
            Packet(A, FromPod, av.tcp(9, 81, SYN), R::PolicyDenied),
            Packet(A, FromPod, av.udp(9, 80), R::PolicyDenied),
            // The rule that lets A speak to anyone at port 443 is about the backends' ports, not this one.
            Packet(A, FromPod, av.tcp(9, 443, SYN), R::PolicyDenied),
            Policy(A, RULES_OPEN, 2),
            Packet(A, FromPod, av.tcp(8, 443, SYN), R::Allowed),
        ],
    );
    case(
        "a node port is not the node",
        vec![
            Packet(A, FromPod, to(A, Host).tcp(9, 30080, SYN), R::Allowed),
            Packet(A, FromPod, to(A, Host).tcp(9, 30081, SYN), R::PolicyDenied),
            Packet(A, FromPod, to(A, Host).tcp(9, 30082, SYN), R::Allowed),
        ],
    );
    case(
        "another node's node port is that node's, but no way round a tenant's boundary",
        vec![
            Packet(A, FromPod, to(A, Node).tcp(9, 30080, SYN), R::PolicyDenied),
            Packet(A, FromPod, to(A, Node).tcp(9, 443, SYN), R::Allowed),
            Policy(A, RULES_OPEN, 2),
            Packet(A, FromPod, to(A, Node).tcp(8, 30080, SYN), R::Allowed),
            Packet(A, FromPod, to(A, Node).tcp(8, 30081, SYN), R::Allowed),
            Tenancy(A, 7, 0),
            Packet(A, FromPod, to(A, Node).tcp(7, 30080, SYN), R::Allowed),
            Packet(A, FromPod, to(A, Node).tcp(7, 30081, SYN), R::TenantBoundary),
            Packet(A, FromPod, to(A, Node).tcp(7, 22, SYN), R::Allowed),
            Packet(A, FromPod, to(A, Node).udp(7, 30081), R::Allowed),
        ],
    );
    case(
        "behind no Service is a tunnel",
        vec![
            Policy(A, RULES_OPEN, 1),
            Packet(A, FromPod, av.udp(9, 53), R::Allowed),
            Packet(A, FromPod, av.udp(9, 54), R::Tunnel),
            Packet(A, FromPod, to(A, Host).udp(9, 30054), R::Tunnel),
            Packet(A, FromPod, to(A, Node).udp(9, 30054), R::Tunnel),
            Packet(A, FromPod, to(A, Unknown).udp(9, 30054), R::Tunnel),
            Packet(A, FromPod, to(A, World).udp(9, 30054), R::Tunnel),
            Packet(A, FromPod, to(A, Node).tcp(9, 30054, SYN), R::Allowed),
            Packet(A, FromPod, ar.udp(9, 30054), R::Allowed),
            // Neither by an answer to who came in by that port.
            Packet(A, ToPod, to(Host, A).udp(30054, 7), R::Allowed),
            Policy(A, RULES_OPEN, 2),
            Packet(A, FromPod, to(A, Host).udp(7, 30054), R::Tunnel),
        ],
    );
    case(
        "a tenant needs the Service's door, open as its own rules may be",
        vec![
            Tenancy(A, 7, 0),
            Packet(A, FromPod, av.tcp(9, 80, SYN), R::Allowed),
            Packet(A, FromPod, av.tcp(9, 81, SYN), R::TenantBoundary),
            Policy(A, RULES_NONE, 2),
            Packet(A, FromPod, av.tcp(8, 80, SYN), R::TenantBoundary),
        ],
    );
    case(
        "a Service that is not allowed any more is cut",
        vec![
            Packet(A, FromPod, av.tcp(9, 80, SYN), R::Allowed),
            Packet(A, FromPod, av.tcp(9, 80, ACK), R::Tracked),
            Policy(A, RULES_NONE, 2),
            Packet(A, FromPod, av.tcp(9, 80, ACK), R::PolicyDenied),
            Packet(A, ToPod, av.reply().tcp(80, 9, ACK), R::PolicyDenied),
        ],
    );

    case(
        "the backend on this node decides, at both ends",
        vec![
            Translated(B, ToPod, ab.tcp(9, 80, SYN), Some(A), R::Allowed),
            Translated(B, ToPod, ab.tcp(9, 80, ACK), Some(A), R::Tracked),
            Packet(B, FromPod, ab.reply().tcp(80, 9, SYN_ACK), R::Tracked),
            Policy(B, RULES_OPEN, 2),
            Translated(B, ToPod, ab.tcp(9, 80, ACK), Some(A), R::Tracked),
            Translated(B, ToPod, ab.tcp(8, 81, SYN), Some(A), R::PolicyDenied),
            Policy(A, RULES_OPEN, 2),
            Translated(B, ToPod, ab.tcp(8, 81, SYN), Some(A), R::Allowed),
            Policy(B, RULES_B, 3),
            Translated(B, ToPod, ab.tcp(7, 81, SYN), Some(A), R::PolicyDenied),
        ],
    );
    case(
        "it does so without the mark, which others may have overwritten",
        vec![
            Policy(B, RULES_OPEN, 1),
            Translated(B, ToPod, ab.tcp(8, 81, SYN), None, R::PolicyDenied),
            Translated(B, ToPod, ab.tcp(9, 80, SYN), None, R::Allowed),
        ],
    );
    case(
        "the source's new rules cut at the backend, and let on what they allow",
        vec![
            Translated(B, ToPod, ab.tcp(9, 80, SYN), Some(A), R::Allowed),
            Policy(A, RULES_OPEN, 2),
            Translated(B, ToPod, ab.tcp(9, 80, ACK), Some(A), R::Tracked),
            Packet(B, FromPod, ab.reply().tcp(80, 9, ACK), R::Tracked),
            Policy(A, RULES_NONE, 3),
            Translated(B, ToPod, ab.tcp(9, 80, ACK), Some(A), R::PolicyDenied),
            Translated(B, ToPod, ab.tcp(9, 80, FIN), Some(A), R::PolicyDenied),
        ],
    );
    case(
        "behind masquerading is the pod that sent it, not the node",
        vec![
            Translated(B, ToPod, hb.tcp(9, 80, SYN), Some(A), R::Allowed),
            Translated(B, ToPod, hb.tcp(9, 80, ACK), Some(A), R::Tracked),
            Packet(B, FromPod, hb.reply().tcp(80, 9, SYN_ACK), R::Tracked),
            Translated(B, ToPod, hb.tcp(9, 81, SYN), Some(A), R::PolicyDenied),
            Packet(B, ToPod, hb.tcp(9, 82, SYN), R::Allowed), // the node itself
            // B admits the node and nobody else, at the next packet of either direction.
            Policy(B, RULES_HOST, 2),
            Packet(B, FromPod, hb.reply().tcp(80, 9, ACK), R::PolicyDenied),
            Translated(B, ToPod, hb.tcp(9, 80, ACK), Some(A), R::PolicyDenied),
            Packet(B, ToPod, hb.tcp(9, 82, ACK), R::Tracked),
            Packet(B, FromPod, hb.reply().tcp(82, 9, ACK), R::Tracked),
        ],
    );
    case(
        "its egress counts behind masquerading too",
        vec![
            Policy(B, RULES_OPEN, 1),
            Translated(B, ToPod, hb.tcp(9, 81, SYN), Some(A), R::PolicyDenied),
            Translated(B, ToPod, hb.tcp(9, 80, SYN), Some(A), R::Allowed),
            Policy(A, RULES_NONE, 2),
            Translated(B, ToPod, hb.tcp(9, 80, ACK), Some(A), R::PolicyDenied),
        ],
    );
    case(
        "a pod reaches itself through a Service if policy lets it",
        vec![
            Translated(A, ToPod, to(Host, A).tcp(9, 80, SYN), Some(A), R::PolicyDenied),
            Policy(A, RULES_OPEN, 2),
            Translated(A, ToPod, to(Host, A).tcp(9, 80, SYN), Some(A), R::Allowed),
        ],
    );
    case(
        "who came in from elsewhere under the node's address is not the node",
        vec![
            Translated(B, ToPod, hb.tcp(9, 80, SYN), None, R::PolicyDenied),
            Policy(B, RULES_OPEN, 2),
            Translated(B, ToPod, hb.tcp(9, 80, SYN), None, R::Allowed),
            Packet(B, FromPod, hb.reply().tcp(80, 9, SYN_ACK), R::Tracked),
            Policy(B, RULES_HOST, 3),
            Packet(B, FromPod, hb.reply().tcp(80, 9, ACK), R::PolicyDenied),
            Translated(B, ToPod, hb.tcp(9, 80, ACK), None, R::PolicyDenied),
        ],
    );

    case(
        "the backend on another node decides on the way there",
        vec![
            Packet(A, FromPod, av.tcp(9, 80, SYN), R::Allowed),
            Translated(A, ToOverlay, ar.tcp(9, 80, SYN), Some(A), R::Allowed),
            Translated(A, ToOverlay, ar.tcp(9, 80, ACK), Some(A), R::Tracked),
            Translated(A, ToOverlay, to(A, Tenant).tcp(9, 81, SYN), Some(A), R::PolicyDenied),
            Translated(A, ToOverlay, ar.udp(9, 80), None, R::Allowed),
            Translated(A, ToOverlay, to(A, World).udp(9, 80), None, R::PolicyDenied),
            Policy(A, RULES_OPEN, 2),
            Translated(A, ToOverlay, ar.tcp(9, 80, ACK), Some(A), R::Tracked),
            Policy(A, RULES_NONE, 3),
            Translated(A, ToOverlay, ar.tcp(9, 80, ACK), Some(A), R::PolicyDenied),
            Translated(A, ToOverlay, ar.tcp(9, 80, FIN), Some(A), R::PolicyDenied),
        ],
    );
    case(
        "an entry that the table lost is made again by any segment",
        vec![Translated(A, ToOverlay, ar.tcp(9, 80, ACK), Some(A), R::Allowed)],
    );
    case(
        "what was judged at the pod goes on",
        vec![
            Packet(A, FromPod, ar.tcp(9, 80, SYN), R::Allowed),
            Translated(A, ToOverlay, ar.tcp(9, 80, SYN), None, R::Tracked),
            Translated(A, ToOverlay, ar.tcp(9, 80, ACK), None, R::Tracked),
            Packet(A, ToPod, to(Remote, A).tcp(7, 8080, SYN), R::Allowed),
            Packet(A, FromPod, ar.tcp(8080, 7, SYN_ACK), R::Tracked),
            Translated(A, ToOverlay, ar.tcp(8080, 7, SYN_ACK), None, R::Tracked),
            Translated(A, ToOverlay, ar.tcp(8080, 7, ACK), None, R::Tracked),
        ],
    );
    case(
        "masqueraded on the way to another node",
        vec![
            Translated(A, ToOverlay, to(Host, Remote).tcp(9, 80, SYN), Some(A), R::Allowed),
            Translated(A, ToOverlay, to(Host, Tenant).tcp(9, 81, SYN), Some(A), R::PolicyDenied),
            Policy(A, RULES_NONE, 2),
            Translated(A, ToOverlay, to(Host, Remote).tcp(9, 80, ACK), Some(A), R::PolicyDenied),
        ],
    );
    case(
        "a port used again for another connection",
        vec![
            Translated(A, ToOverlay, ar.tcp(9, 80, SYN), Some(A), R::Allowed),
            Translated(A, ToOverlay, ar.tcp(9, 80, RST), Some(A), R::Tracked),
            Translated(A, ToOverlay, ar.tcp(9, 80, SYN), Some(A), R::Tracked),
            Translated(A, ToOverlay, ar.tcp(9, 80, ACK), Some(A), R::Tracked),
            Policy(A, RULES_A, 2),
            Translated(A, ToOverlay, ar.tcp(9, 80, ACK), Some(A), R::Tracked),
        ],
    );
    case(
        "a masqueraded port used again by another pod",
        vec![
            Policy(B, RULES_B, 11),
            Translated(A, ToOverlay, to(Host, Remote).udp(9, 80), Some(A), R::Allowed),
            Translated(A, ToOverlay, to(Host, Remote).udp(9, 80), Some(B), R::PolicyDenied),
            Translated(A, ToOverlay, to(Host, Remote).udp(9, 80), Some(A), R::Tracked),
            Translated(A, ToOverlay, to(Host, Remote).tcp(9, 80, SYN), Some(A), R::Allowed),
            Translated(A, ToOverlay, to(Host, Remote).tcp(9, 80, SYN), Some(B), R::PolicyDenied),
            Policy(B, RULES_OPEN, 12),
            Translated(A, ToOverlay, to(Host, Remote).udp(9, 80), Some(B), R::Allowed),
            Translated(A, ToOverlay, to(Host, Remote).udp(9, 80), Some(B), R::Tracked),
            Policy(B, RULES_B, 13),
            Translated(A, ToOverlay, to(Host, Remote).udp(9, 80), Some(B), R::PolicyDenied),
        ],
    );
    case(
        "a masqueraded port used again by another pod, to a backend on this node",
        vec![
            Policy(A, RULES_OPEN, 2),
            Policy(B, RULES_B, 11),
            Translated(A, ToPod, to(Host, A).udp(9, 80), Some(A), R::Allowed),
            Translated(A, ToPod, to(Host, A).udp(9, 80), Some(A), R::Tracked),
            Translated(A, ToPod, to(Host, A).udp(9, 80), Some(B), R::PolicyDenied),
            Translated(A, ToPod, to(Host, A).tcp(9, 80, SYN), Some(A), R::Allowed),
            Translated(A, ToPod, to(Host, A).tcp(9, 80, ACK), Some(B), R::NotTracked),
            Translated(A, ToPod, to(Host, A).tcp(9, 80, ACK), Some(A), R::Tracked),
        ],
    );
    case(
        "a backend cannot make what is sent to it through a Service an answer",
        vec![
            Policy(B, RULES_OPEN, 11),
            Packet(B, FromPod, ab.reply().udp(80, 9), R::Allowed),
            Packet(A, FromPod, av.tcp(9, 80, SYN), R::Allowed),
            Translated(B, ToPod, ab.udp(9, 80), Some(A), R::PolicyDenied),
            Packet(B, FromPod, ab.reply().tcp(81, 9, SYN), R::Allowed),
            Translated(B, ToPod, ab.tcp(9, 81, SYN), Some(A), R::PolicyDenied),
            Packet(B, FromPod, ab.reply().tcp(81, 9, SYN_ACK), R::Tracked),
            Translated(B, ToPod, ab.tcp(9, 81, ACK), Some(A), R::PolicyDenied),
            // What the pod may do by itself it may do here too.
            Policy(A, RULES_OPEN, 2),
            Translated(B, ToPod, ab.udp(9, 80), Some(A), R::Tracked),
            Packet(A, ToPod, ab.reply().udp(80, 9), R::Allowed),
            // And it may answer.
            Policy(A, RULES_INGRESS, 3),
            Packet(A, ToPod, ab.reply().udp(80, 9), R::Tracked),
            Translated(B, ToPod, ab.udp(9, 80), Some(A), R::Tracked),
        ],
    );
    case(
        "nor behind masquerading",
        vec![
            Policy(B, RULES_OPEN, 11),
            Packet(B, FromPod, hb.reply().udp(80, 9), R::Allowed),
            Translated(B, ToPod, hb.udp(9, 80), Some(A), R::PolicyDenied),
            // A pod's answer by a port of the node that is no Service's.
            Translated(B, ToPod, hb.udp(9, 80), None, R::Tracked),
            // An answer from behind a node port.
            Packet(B, FromPod, hb.reply().tcp(7, 30080, SYN), R::Allowed),
            Translated(B, ToPod, hb.tcp(30080, 7, SYN_ACK), Some(A), R::Tracked),
            Policy(A, RULES_OPEN, 2),
            Translated(B, ToPod, hb.udp(9, 80), Some(A), R::Tracked),
        ],
    );
    case(
        "an old verdict of the pod's own hook does not count for what it sends through a Service",
        vec![
            Packet(A, FromPod, ar.udp(9, 80), R::Allowed),
            Translated(A, ToOverlay, ar.udp(9, 80), None, R::Tracked),
            Packet(A, ToPod, to(Remote, A).tcp(7, 8080, SYN), R::Allowed),
            Translated(A, ToOverlay, ar.tcp(8080, 7, SYN_ACK), None, R::Tracked),
            // The pod's own hook judges again what comes by it ...
            Policy(A, RULES_A_AGAIN, 2),
            Packet(A, FromPod, ar.udp(9, 80), R::Tracked),
            Translated(A, ToOverlay, ar.udp(9, 80), None, R::Tracked),
            Policy(A, RULES_NONE, 3),
            // ... but nothing but this hook what comes by kube-proxy.
            Translated(A, ToOverlay, ar.udp(9, 80), Some(A), R::PolicyDenied),
            Translated(A, ToOverlay, ar.tcp(8080, 7, ACK), Some(A), R::PolicyDenied),
            Policy(A, RULES_INGRESS, 4),
            Translated(A, ToOverlay, ar.tcp(8080, 7, ACK), Some(A), R::Tracked),
            Translated(A, ToOverlay, ar.udp(9, 80), Some(A), R::PolicyDenied),
        ],
    );
    case(
        "a fragment of a masqueraded packet that has lost where it came in is still the pod's",
        vec![
            Marked(B, ToPod, hb.tcp(9, 81, SYN), A, R::PolicyDenied),
            Marked(B, ToPod, hb.tcp(9, 80, SYN), A, R::Allowed),
            Marked(A, ToOverlay, to(Host, Tenant).tcp(9, 81, SYN), A, R::PolicyDenied),
        ],
    );
    case(
        "others on the way to another node are none of ours",
        vec![
            Packet(A, ToOverlay, to(Host, Remote).tcp(9, 80, SYN), R::Foreign),
            Translated(A, ToOverlay, to(Host, Remote).tcp(9, 80, SYN), None, R::Foreign),
            Packet(A, ToOverlay, to(World, Remote).tcp(9, 80, SYN), R::Foreign),
            Packet(A, ToOverlay, ar.tcp(9, 80, SYN)[..40].to_vec(), R::Foreign),
            Packet(A, ToOverlay, vec![0xff; 60], R::Foreign),
        ],
    );
}
