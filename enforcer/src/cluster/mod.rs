//! What we know of the cluster: one in-memory index.
pub mod object;
