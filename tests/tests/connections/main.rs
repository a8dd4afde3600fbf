//! Connections that live on, and those that must not: cuts, replies, errors, fragments, ends, heirs.
#![expect(clippy::unwrap_used, reason = "tests")]

mod cuts;
mod edits;
mod flips;
mod fragments;
mod heirs;
mod icmp;
mod nodes;
mod pmtu;
mod sctp;
mod simultaneous;
mod stage;
mod tcp;
