//! What operators and machines are told is what packets meet.
#![expect(clippy::unwrap_used, reason = "tests")]

mod explained;
mod hostile;
mod watched;
