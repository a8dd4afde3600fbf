//! The real binary, run as a runtime runs it: real network namespaces and veth pairs, and an agent that plays a part.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its stage must stop")]

mod add;
mod agent;
mod plugin;
mod pod;
mod verbs;
