//! What must hold: the pure compiler from the index to identities and rule sets.
pub mod model;
