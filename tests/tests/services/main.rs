//! Services with real packets: what kube-proxy does on a flannel node, and what policies mean for it.
//!
//! In every test both families and both transports are asked, with traffic that the bridge shows to iptables and
//! with traffic that it does not.
#![expect(clippy::unwrap_used, reason = "tests")]

mod adopted;
mod edges;
mod egress;
mod flat;
mod ingress;
mod live;
mod policed;
mod stage;
