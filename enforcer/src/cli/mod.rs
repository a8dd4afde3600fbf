//! How people ask: one file per subcommand.
pub mod coverage;
pub mod endpoints;
pub mod explain;
pub mod flows;
mod manifests;
pub mod simulate;
pub mod status;
