//! The packet decision, as a `no_std` library without aya types: the kernel programs, host tests,
//! property tests and fuzzers all run this code.
//!
//! ```text
//! frame ─ decide ─┬─ guard    the pod speaks for itself: MAC, ARP, addresses, no tunnels
//!                 ├─ neighbour  discovery and group membership, to the last byte
//!                 ├─ fast     most packets end here: their connection is tracked and allowed
//!                 ├─ family   network header of IPv4 or IPv6 ─▶ flow: ports, fragment, connection key
//!                 ├─ track    the connection's entry, this end's word in it ─▶ rules: may it begin?
//!                 ├─ related  ICMP errors about a tracked connection
//!                 ├─ origin   the pod of this node behind a packet that a Service's translation has changed
//!                 ├─ overlay  what leaves for another node: its pod's egress, if that is still to be judged
//!                 ├─ budget   no pod takes all of what pods share
//!                 └─ report   counters and events
//! ```
//!
//! What it reads and writes stands behind [`packet::Packet`] and [`tables::Tables`].
#![no_std]
#![expect(clippy::inline_always, reason = "the kernel allows no more than 512 bytes of stack over all calls")]
#![expect(clippy::cast_possible_truncation, reason = "words are taken apart; a checked cast could panic")]
#![expect(clippy::many_single_char_names, reason = "the bytes of an address have no better names")]

#[cfg(any(test, feature = "host"))]
extern crate std;

pub mod abi;
mod budget;
pub mod decide;
pub mod family;
mod fast;
pub mod flow;
mod guard;
#[cfg(any(test, feature = "host"))]
pub mod host;
mod neighbour;
mod origin;
mod overlay;
pub mod packet;
pub mod reason;
mod related;
mod report;
pub mod rules;
pub mod tables;
mod track;
