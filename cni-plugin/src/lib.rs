//! The chained CNI plugin: what a runtime asks for comes in by environment and standard input, the agent is told,
//! and what the specification wants back goes out.
//!
//! ```text
//! environment + stdin → request ─┐
//!                       config  ─┴→ command (add, del, check, gc, status, version) → stdout, or error
//!                                    │            ▲
//!                  previous, sandbox ┘            └── agent (Unix socket, `protocol`)
//! ```
//!
//! Standard output belongs to the protocol; warnings go to standard error, where runtimes log them.

#![forbid(unsafe_code)]

pub mod agent;
pub mod command;
pub mod config;
pub mod error;
pub mod kubernetes;
pub mod previous;
pub mod protocol;
pub mod request;
pub mod sandbox;
pub mod version;
