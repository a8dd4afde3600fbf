//! Random clusters made to be awkward, and a second evaluator to hold the compiler and the kernel to.
//!
//! Everything is a pure function of a seed: a failing case is repeated by its number. A part of the library rather
//! than a feature of it: a second set of features would build the eBPF programs a second time.

pub mod edits;
pub mod generate;
pub mod naive;
pub mod shrink;

pub use generate::Case;
pub use shrink::smallest;
