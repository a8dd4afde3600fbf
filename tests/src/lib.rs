//! A cluster to experiment on: flannel-shaped nodes in network namespaces of one machine.
//!
//! ```text
//! netns ─▶ node ─▶ topology (Lab) ◀─ agent              what is there
//!          chain ─▶ pod ◀─ kubelet, objects             what starts, and what holds
//!          endpoints ─▶ services ─▶ proxy               what stands behind a Service, and the way there
//!          server ◀─▶ probe ─▶ matrix, survey, traffic  what is asked
//!                       scrape                         what machines are told
//!                       raw ─▶ sniffer, flood           what is made by hand, and what arrives
//!          bench                                        what it costs
//!          soak                                         how long it holds, whatever happens
//!          image                                        what a cluster gets
//! ```
//!
//! Everything that a [`Lab`] makes carries its name and goes when it is dropped, also by a panic; what a killed
//! process leaves, the next lab's start (or `lab sweep`) removes.

pub mod agent;
pub mod apiserver;
pub mod bench;
pub mod binaries;
pub mod chain;
pub mod demo;
pub mod endpoints;
pub mod flood;
pub mod flowlog;
pub mod image;
pub mod kubelet;
pub mod links;
pub mod matrix;
pub mod netns;
pub mod node;
pub mod objects;
pub mod patience;
pub mod plan;
pub mod pod;
pub mod probe;
pub mod proxy;
pub mod raw;
pub mod scrape;
pub mod server;
pub mod services;
pub mod sniffer;
pub mod soak;
pub mod survey;
pub mod topology;
pub mod traffic;

pub use agent::{AgentOptions, FailurePolicy};
pub use flowlog::Blocked;
pub use matrix::Matrix;
pub use patience::until;
pub use plan::Plan;
pub use pod::{Pod, PodSpec, Start};
pub use probe::{Family, Outcome, Transport};
pub use proxy::ProxyMode;
pub use survey::{Question, Survey};
pub use topology::Lab;
pub use traffic::{Knock, Stream};
