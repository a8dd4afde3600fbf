//! What we know of the cluster: one in-memory index.
mod claim;
pub mod compact;
pub mod index;
pub mod object;
pub mod service;
pub mod service_names;
pub mod shares;
pub mod touched;
mod words;

pub use index::{Index, Owner};
pub use service::{Backend, Frontend, Services};
pub use service_names::ServiceNames;
pub use touched::Touched;
