//! The compiler against semantics.md line by line, against a second evaluator, and against itself.
mod coverage;
mod explain;
mod incremental;
mod properties;
mod semantics;
mod services;
mod shape;
mod shop;
