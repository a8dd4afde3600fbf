//! Random clusters made to be awkward, and a second evaluator to hold the compiler and the kernel to.
//!
//! Everything is a pure function of a seed: a failing case is repeated by its number.

pub mod generate;
pub mod naive;

pub use generate::Case;
