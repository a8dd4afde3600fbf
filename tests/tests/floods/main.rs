//! What one pod does at any rate costs another nothing. Floods are as fast as the machine makes them, and nothing here
//! depends on how fast that is.
#![expect(clippy::unwrap_used, reason = "tests")]

mod allowed;
mod denied;
mod held_back;
mod killed;
mod outside;
mod reasons;
mod services;
mod several;
mod stage;
