//! `bulkhead install-cni`: what an init container does before the agent looks after it.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Context;
use bulkhead_cni::config::DEFAULT_SOCKET;

use crate::chain::{Chain, Installation, Mode};

/// Exit status: 0 done, or left to the agent because the configuration is not there yet or not readable; 1 the plugin
/// or the entry could not be written.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub installation: Installation,
    /// The agent's socket, as the plugin will look for it.
    #[arg(long, env = "BULKHEAD_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let mut chain =
        Chain::new(Mode::Auto, &args.installation, &args.socket).context("where is bulkhead-cni?")?;
    let status = chain.tend();
    let installed = std::path::Path::new(&status.plugin).exists();
    if installed {
        writeln!(out, "plugin    {}", status.plugin)?;
    }
    for list in &status.chained {
        writeln!(out, "chained   {}/{list}", status.directory)?;
    }
    for list in &status.unused {
        writeln!(
            out,
            "unused    {}/{list}: no runtime reads it while the first one is there",
            status.directory
        )?;
    }
    for problem in &status.problems {
        writeln!(out, "problem   {problem}")?;
    }
    if status.chained.is_empty() {
        writeln!(out, "the agent puts the entry in as soon as there is a configuration that can take it")?;
    }
    Ok(if installed && !status.failed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
