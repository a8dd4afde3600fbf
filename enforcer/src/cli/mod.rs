//! How people ask: one file per subcommand.
pub mod flows;
pub mod simulate;
pub mod status;
