//! What we know of the cluster: one in-memory index.
pub mod index;
pub mod object;

pub use index::{Index, Owner};
