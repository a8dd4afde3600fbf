//! The packet decision, as a `no_std` library without aya types: the kernel programs, host tests,
//! property tests and fuzzers all run this code.
//!
//! ```text
//! frame ─ parse ─▶ headers ─ guard ─▶ truthful ─ conn ─▶ tracked? ─ rules ─▶ verdict + reason
//! ```
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod reason;
