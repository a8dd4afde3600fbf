//! The node agent and the operator's command line.
//!
//! ```text
//! source ─▶ cluster ─▶ policy ─▶ datapath ─▶ kernel
//!                        ▲           │
//!                    endpoint      flow ─▶ exporters
//! ```
//! `chain` keeps the CNI plugin where the runtime calls it, so that `endpoint` hears of pods.
#![deny(unsafe_code)] // each exception says why

pub mod agent;
pub mod allocator;
pub mod api;
pub mod chain;
pub mod cli;
pub mod cluster;
pub mod datapath;
pub mod endpoint;
pub mod events;
pub mod flow;
pub mod metrics;
pub mod others;
pub mod policy;
mod private;
pub mod source;
