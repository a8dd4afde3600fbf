//! The chained CNI plugin.
pub mod protocol;
