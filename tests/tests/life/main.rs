//! What an agent has to live through: upgrades, faults of the node, and its own death at any moment. Whatever happens,
//! what policies allow goes on and nothing else comes through.
#![expect(clippy::unwrap_used, reason = "tests")]

mod faults;
mod shop;
mod upgrade;
