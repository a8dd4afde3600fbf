//! Who reaches whom: whole matrices of pods, nodes and the world, by policy and by tenant, in both families,
//! on the same node and across nodes, and after every change of a policy, a label or a namespace.
#![expect(clippy::unwrap_used, reason = "tests")]

mod addresses;
mod expectation;
mod policies;
mod stage;
mod tenants;
mod transitions;
