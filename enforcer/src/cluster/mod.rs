//! What we know of the cluster: one in-memory index.
pub mod compact;
pub mod index;
pub mod object;
pub mod service;
pub mod service_names;
pub mod touched;

pub use index::{Index, Owner};
pub use service::{Backend, Frontend, Services};
pub use service_names::ServiceNames;
pub use touched::Touched;
