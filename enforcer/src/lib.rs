//! The node agent and the operator's command line.
//!
//! ```text
//! source ─▶ cluster ─▶ policy ─▶ datapath ─▶ kernel
//!                        ▲           │
//!                    endpoint      flow ─▶ exporters
//! ```
pub mod agent;
pub mod allocator;
pub mod api;
pub mod cli;
pub mod cluster;
pub mod datapath;
pub mod endpoint;
pub mod events;
pub mod flow;
pub mod metrics;
pub mod policy;
pub mod source;
