//! Connections that live on, and those that must not: cuts, replies, errors, fragments, ends.
#![expect(clippy::unwrap_used, reason = "tests")]

mod cuts;
mod edits;
mod fragments;
mod icmp;
mod pmtu;
mod sctp;
mod stage;
mod tcp;
