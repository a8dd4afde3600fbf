//! What machines watch: Prometheus metrics and the kubelet's probes over HTTP.
//!
//! ```text
//! agent ─▶ meters ─┐
//! status ──────────┴▶ exposition ─▶ server: /metrics, /healthz, /readyz
//! ```

pub mod exposition;
pub mod meters;
pub mod server;
#[cfg(test)]
mod tests;

pub use meters::{Backlog, Meters};
