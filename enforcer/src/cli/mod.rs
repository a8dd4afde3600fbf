//! How people ask: one file per subcommand.
pub mod flows;
pub mod install;
pub mod simulate;
pub mod status;
pub mod uninstall;
