//! What we know of the cluster: one in-memory index.
pub mod addresses;
mod claim;
pub mod compact;
pub mod index;
pub mod object;
pub mod packed;
pub mod service;
pub mod service_names;
pub mod shares;
pub mod touched;
mod words;

pub use addresses::Addresses;
pub use index::{Index, Owner};
pub use packed::PackedMap;
pub use service::{Backend, Frontend, Services};
pub use service_names::ServiceNames;
pub use touched::Touched;
