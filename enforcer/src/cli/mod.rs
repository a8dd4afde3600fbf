//! How people ask: one file per subcommand.
pub mod coverage;
pub mod endpoints;
pub mod explain;
pub mod flows;
pub mod install;
mod manifests;
pub mod simulate;
pub mod status;
pub mod terminal;
pub mod uninstall;
