//! What must hold: the pure compiler from the index to identities and rule sets.
//!
//! ```text
//! index ─ scope ─▶ Scope ─ compile ─▶ Compiled ─ RuleSet::entries ─▶ Entries ─ lookup ─▶ verdict
//! index ─ touched ─▶ Compiler ─▶ Delta of the same Compiled        (the agent: change by change)
//! ```
//! No I/O and no clock: the agent, `bulkhead simulate` and the tests run the same code.
mod classify;
pub mod compile;
pub mod compiler;
pub mod coverage;
mod entries;
pub mod evaluate;
pub mod explain;
mod frontends;
pub mod lookup;
pub mod model;
mod ports;
mod prefixes;
pub mod probe;
pub mod question;
pub mod scope;
mod service;
pub mod tenant;
pub mod testkit;
#[cfg(test)]
mod tests;
pub mod translated;

pub use compile::compile;
pub use compiler::{Compiler, Delta};
pub use evaluate::Simulator;
pub use probe::{Answer, Probe, ProbeError};
pub use scope::scope;

/// What the operator decides for the whole agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Namespace label whose value is the tenant; `None`: no tenants.
    pub tenant_label: Option<String>,
    /// A pod may always reach its own node (semantics 30).
    pub local_node_egress: bool,
    /// What goes through a Service to a pod of another node is judged on its way there. Otherwise that pod is one
    /// of those backends that must all be allowed.
    pub backends_elsewhere_judged: bool,
    /// UDP port of the overlay's tunnels; 0: none.
    pub tunnel_port: u16,
}

/// flannel's.
pub const DEFAULT_TUNNEL_PORT: u16 = 8472;

pub const DEFAULT_TENANT_LABEL: &str = "bulkhead.io/tenant";

impl Default for Settings {
    fn default() -> Self {
        Self {
            tenant_label: Some(DEFAULT_TENANT_LABEL.to_owned()),
            local_node_egress: true,
            backends_elsewhere_judged: true,
            tunnel_port: DEFAULT_TUNNEL_PORT,
        }
    }
}
