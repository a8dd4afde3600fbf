//! The node agent and the operator's command line.
//!
//! ```text
//! source ─▶ cluster ─▶ policy ─▶ datapath ─▶ kernel
//!                        ▲           │
//!                    endpoint      flow ─▶ exporters
//! ```
pub mod api;
pub mod cli;
pub mod cluster;
pub mod flow;
pub mod policy;
