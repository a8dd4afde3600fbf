//! `bulkhead`: wires the command line to the library.

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use bulkhead::{
    agent::{self, settings::Settings},
    allocator,
    cli::{self, terminal::Visible},
};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// NetworkPolicy, tenant isolation and a flow log for flannel clusters.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Enforce policy for the pods of this node.
    Agent(Box<Settings>),
    /// What the agent of this node enforces, and what it could not honour.
    Status(cli::status::Args),
    /// Pods of this node: where they hang, what isolates them, whether the kernel holds that.
    Endpoints(cli::endpoints::Args),
    /// Why a connection is allowed or denied, step by step.
    Explain(cli::explain::Args),
    /// Namespaces, pods and nodes that no policy covers.
    Coverage(cli::coverage::Args),
    /// Recent flow records: who talked to whom, and which policy decided.
    Flows(cli::flows::Args),
    /// What policy says about connections, from manifests alone.
    Simulate(cli::simulate::Args),
    /// Put the CNI plugin and its entry in place on this node, once.
    InstallCni(cli::install::Args),
    /// Leave this node as it was before bulkhead.
    Uninstall(cli::uninstall::Args),
}

fn main() -> ExitCode {
    allocator::use_one_arena();
    let command = read_arguments().command;
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("bulkhead: cannot start: {error}");
            return ExitCode::from(2);
        }
    };
    let result = match command {
        Command::Agent(settings) => {
            log_to_stderr();
            runtime.block_on(agent::run(*settings)).map(|()| ExitCode::SUCCESS)
        }
        Command::Status(args) => runtime.block_on(cli::status::run(&args, &mut Visible::new(io::stdout()))),
        Command::Endpoints(args) => {
            runtime.block_on(cli::endpoints::run(&args, &mut Visible::new(io::stdout())))
        }
        Command::Explain(args) => runtime.block_on(cli::explain::run(&args, &mut Visible::new(io::stdout()))),
        Command::Coverage(args) => runtime.block_on(cli::coverage::run(
            &args,
            &mut Visible::new(io::stdout()),
            &mut Visible::new(io::stderr()),
        )),
        Command::Flows(args) => {
            runtime.block_on(cli::flows::run(&args)).map(|()| ExitCode::SUCCESS).map_err(Into::into)
        }
        Command::InstallCni(args) => cli::install::run(&args, &mut Visible::new(io::stdout())),
        Command::Uninstall(args) => {
            runtime.block_on(cli::uninstall::run(&args, &mut Visible::new(io::stdout())))
        }
        Command::Simulate(args) => {
            cli::simulate::run(&args, &mut Visible::new(io::stdout().lock()), &mut Visible::new(io::stderr()))
        }
    };
    result.unwrap_or_else(|error| {
        // A reader that has seen enough (`| head`) is no failure.
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        // At worst nobody reads it.
        let _ = writeln!(Visible::new(io::stderr()), "bulkhead: {error:#}");
        ExitCode::from(2)
    })
}

/// `kubectl` finds its plugins by their file names: a link `kubectl-bulkhead` to this binary is `kubectl bulkhead`.
fn read_arguments() -> Cli {
    let mut command = Cli::command();
    let called = env::args_os().next().map(PathBuf::from);
    if called.is_some_and(|path| path.file_stem().is_some_and(|name| name == "kubectl-bulkhead")) {
        command = command.bin_name("kubectl bulkhead").display_name("kubectl bulkhead");
    }
    Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

/// stdout may be the flow log's.
fn log_to_stderr() {
    // What goes wrong with the API server is told by the source, once and not at every attempt.
    let default = || EnvFilter::new("info,kube_client=off");
    let filter = EnvFilter::try_from_env("BULKHEAD_LOG").unwrap_or_else(|_| default());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn no_flag_and_no_group_of_the_command_line_is_there_twice() {
        Cli::command().debug_assert();
    }
}
