//! How people ask: one file per subcommand.
pub mod flows;
