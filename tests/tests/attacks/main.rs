//! What root in a pod can put on the wire from a raw socket, against live pods whose policies would admit it: none
//! of it arrives, all of it is counted and told. Beside it, what looks like it and is lawful, and passes.
#![expect(clippy::unwrap_used, reason = "tests")]

mod discovery;
mod frame;
mod large;
mod lawful;
mod link;
mod network;
mod ordinary;
mod proof;
mod stage;
mod transport;
mod tunnel;
