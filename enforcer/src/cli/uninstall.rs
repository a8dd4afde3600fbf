//! `bulkhead uninstall`: the node as it was, in an order in which no pod start fails and no packet is lost.
//!
//! ```text
//! entry out of the chain ─▶ programs off the interfaces, maps ─▶ plugin ─▶ socket, state (, flow log)
//! ```
//! A step that fails keeps no other from being tried; what failed is said at the end.

use std::{
    fs, io,
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use bulkhead_cni::config::DEFAULT_SOCKET;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    chain::{self, Directories, Place, Removed},
    datapath::removal,
};

/// A link without a pin goes after a grace period of the kernel's, milliseconds on an idle machine.
const LETS_GO_WITHIN: Duration = Duration::from_secs(5);

/// What the agent keeps in its state directory.
const STATE: [&str; 5] = ["boot-id", "boot-id.next", "endpoints", "numbers.json", "numbers.next"];

/// Exit status: 0 nothing of bulkhead is left; 1 something is, and the output says what; 2 refused, nothing was done.
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct Args {
    #[command(flatten)]
    pub directories: Directories,
    /// The agent's socket.
    #[arg(long, env = "BULKHEAD_SOCKET", value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Directory of the pins.
    #[arg(long, env = "BULKHEAD_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/bulkhead")]
    pub bpffs: PathBuf,
    /// Directory of the agent's state.
    #[arg(long, env = "BULKHEAD_STATE", value_name = "DIR", default_value = "/var/lib/bulkhead")]
    pub state: PathBuf,
    /// The flow log; stays without --purge-logs.
    #[arg(long, env = "BULKHEAD_FLOW_LOG", value_name = "FILE", default_value = "none")]
    pub flow_log: String,
    /// Remove the flow log and its rotated files as well.
    #[arg(long)]
    pub purge_logs: bool,
    /// Leave the plugin's binary: CRI-O ends a pod with the configuration it was started with, and so needs the
    /// binary until the last pod that bulkhead has enforced is gone.
    #[arg(long)]
    pub keep_plugin: bool,
    /// Go on while an agent serves the socket. It keeps running, and puts back what it looks after.
    #[arg(long)]
    pub force: bool,
    /// Afterwards wait for SIGTERM: a `DaemonSet`'s container must not end.
    #[arg(long)]
    pub stay: bool,
}

pub async fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    if !args.force && UnixStream::connect(&args.socket).is_ok() {
        let socket = args.socket.display();
        writeln!(
            out,
            "an agent serves {socket}: end it first (in a cluster, delete its DaemonSet), or use --force"
        )?;
        return Ok(ExitCode::from(2));
    }
    let removed = remove(args);
    for line in &removed.done {
        writeln!(out, "{line}")?;
    }
    for line in &removed.failed {
        writeln!(out, "FAILED  {line}")?;
    }
    if !removed.failed.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    writeln!(out, "nothing of bulkhead is left on this node")?;
    if args.stay {
        out.flush()?;
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    }
    Ok(ExitCode::SUCCESS)
}

fn remove(args: &Args) -> Removed {
    let mut removed = Removed::default();
    let place = Place::find(&args.directories);
    let unnamed = chain::remove(&place, &mut removed);

    let unpinned = removal::remove_all(&args.bpffs);
    if unpinned.links + unpinned.others > 0 {
        let (links, others, bpffs) = (unpinned.links, unpinned.others, args.bpffs.display());
        removed.done.push(format!("removed {links} links, {others} programs and maps from {bpffs}"));
    }
    removed.failed.extend(unpinned.failed.iter().map(|(path, error)| format!("{}: {error}", path.display())));
    match detached() {
        Ok(running) => removed.failed.extend(running.into_iter().map(|(interface, program)| {
            format!("{interface}: {program} still runs there: a process, an agent for one, holds on to it")
        })),
        Err(error) => removed.failed.push(format!("cannot ask which programs run: {error}")),
    }

    if unnamed && !args.keep_plugin {
        chain::remove_plugin(&place, &mut removed);
    }
    remove_socket(&args.socket, &mut removed);
    remove_state(&args.state, &mut removed);
    if args.purge_logs {
        for path in flow_logs(&args.flow_log) {
            removed.file(&path);
        }
    }
    removed
}

/// Waits until the kernel has let go of the programs; returns those that still run.
fn detached() -> io::Result<Vec<(String, String)>> {
    let deadline = Instant::now() + LETS_GO_WITHIN;
    loop {
        let running = removal::still_attached()?;
        if running.is_empty() || Instant::now() > deadline {
            return Ok(running);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn remove_socket(socket: &Path, removed: &mut Removed) {
    removed.file(socket);
    if let Some(directory) = socket.parent() {
        removed.empty_directory(directory);
    }
}

/// Only what is known to be ours: the directory's name came from outside.
fn remove_state(state: &Path, removed: &mut Removed) {
    for path in STATE.map(|name| state.join(name)) {
        if path.is_dir() {
            removed.note(format!("removed {}", path.display()), fs::remove_dir_all(&path));
        } else {
            removed.file(&path);
        }
    }
    removed.empty_directory(state);
}

/// The file and its rotated ones.
fn flow_logs(setting: &str) -> Vec<PathBuf> {
    if matches!(setting, "none" | "stdout") {
        return Vec::new();
    }
    let path = Path::new(setting);
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let name = name.to_string_lossy();
    let rotated = |entry: &fs::DirEntry| {
        let file = entry.file_name();
        let number =
            file.to_str().and_then(|file| file.strip_prefix(&*name)?.strip_prefix('.')?.parse::<u32>().ok());
        number.is_some()
    };
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(io::Result::ok);
    std::iter::once(path.to_owned()).chain(entries.filter(rotated).map(|entry| entry.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("listed").flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_known_state_goes_and_the_directory_with_it_if_nothing_else_is_there() {
        for (others, left) in
            [(vec![], None), (vec!["somebody-elses"], Some(vec!["somebody-elses".to_owned()]))]
        {
            let directory = tempfile::tempdir().expect("tempdir");
            let state = directory.path().join("bulkhead");
            fs::create_dir_all(state.join("endpoints")).expect("made");
            for name in ["endpoints/1.json", "numbers.json"].into_iter().chain(others) {
                fs::write(state.join(name), "{}").expect("written");
            }
            let mut removed = Removed::default();
            remove_state(&state, &mut removed);
            assert_eq!(removed.failed, Vec::<String>::new());
            assert_eq!(state.exists().then(|| names(&state)), left);
        }
    }

    #[test]
    fn a_flow_log_is_its_file_and_the_rotated_ones() {
        let directory = tempfile::tempdir().expect("tempdir");
        for name in ["flows.log", "flows.log.1", "flows.log.12", "flows.log.gz", "flows.log2", "other.log.1"]
        {
            fs::write(directory.path().join(name), "").expect("written");
        }
        let setting = directory.path().join("flows.log").display().to_string();
        let mut found = flow_logs(&setting);
        found.sort();
        assert_eq!(
            found,
            ["flows.log", "flows.log.1", "flows.log.12"].map(|name| directory.path().join(name))
        );
        for no_file in ["none", "stdout"] {
            assert_eq!(flow_logs(no_file), Vec::<PathBuf>::new());
        }
    }
}
