//! `bulkhead status`.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use bulkhead_cni::config::DEFAULT_SOCKET;

use crate::{agent::status::Status, api};

/// Exit status: 0 the agent has answered, 2 nobody to ask.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// The agent's socket.
    #[arg(long, env = "BULKHEAD_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Json,
    #[default]
    Table,
}

pub async fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let status = ask(&args.socket).await?;
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &status)?;
            writeln!(out)?;
        }
        Output::Table => out.write_all(status.render().as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn ask(socket: &Path) -> anyhow::Result<Status> {
    let answer = api::status(socket).await?;
    serde_json::from_value(answer).context("the agent's answer is of another version")
}
