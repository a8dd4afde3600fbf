//! The packet decision, as a `no_std` library without aya types: the kernel programs, host tests,
//! property tests and fuzzers all run this code.
//!
//! ```text
//! frame ─ decide ─┬─ guard    the pod speaks for itself: MAC, ARP, discovery, addresses
//!                 ├─ fast     most packets end here: their connection is tracked and allowed
//!                 ├─ family   network header of IPv4 or IPv6 ─▶ flow: ports, fragment, connection key
//!                 ├─ track    the connection's entry, this end's word in it ─▶ rules: may it begin?
//!                 ├─ related  ICMP errors about a tracked connection
//!                 └─ report   counters and events
//! ```
//!
//! What it reads and writes stands behind [`packet::Packet`] and [`tables::Tables`].
#![no_std]

#[cfg(any(test, feature = "host"))]
extern crate std;

pub mod abi;
pub mod decide;
pub mod family;
mod fast;
pub mod flow;
mod guard;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod packet;
pub mod reason;
mod related;
mod report;
pub mod rules;
pub mod tables;
mod track;
