//! The agent of one node: started, asked, killed and started again.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bulkhead_cni::protocol::{CniAnswer, CniRequest};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{binaries, node::Node};

/// How long an agent may take from its start until it serves ADD.
const READY_WITHIN: Duration = Duration::from_mins(2);
/// How long an agent may take to end after SIGTERM.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// What the plugin does when the agent does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailurePolicy {
    Closed,
    Open,
}

#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub failure_policy: FailurePolicy,
    /// The plugin's patience, in seconds.
    pub timeout_seconds: u32,
    /// The agent keeps itself in the chain (`--chain auto`), and the runtime reads the node's configurations at every
    /// pod start; otherwise the list is complete from the beginning.
    pub keeps_chain: bool,
    /// The flow log is written to a file; `false`: as by default, only the latest records are kept in memory.
    pub flow_log: bool,
    /// The agent has these capabilities and no others, as in a container; `None`: all of root's.
    pub capabilities: Option<Vec<String>>,
    /// More arguments for `bulkhead agent`.
    pub arguments: Vec<String>,
    /// More variables in its environment; by node (from 1), because what they name may be a node's own.
    pub environment: BTreeMap<u8, Vec<(String, String)>>,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            failure_policy: FailurePolicy::Closed,
            timeout_seconds: 10,
            keeps_chain: false,
            flow_log: true,
            capabilities: None,
            arguments: Vec::new(),
            environment: BTreeMap::new(),
        }
    }
}

impl AgentOptions {
    /// The plugin's entry in the configuration list.
    pub fn cni_entry(&self, socket: &Path) -> Value {
        let policy = match self.failure_policy {
            FailurePolicy::Closed => "closed",
            FailurePolicy::Open => "open",
        };
        json!({
            "type": "bulkhead-cni", "socket": socket,
            "failurePolicy": policy, "timeoutSeconds": self.timeout_seconds,
        })
    }
}

/// One node's agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    node: Arc<Node>,
    binary: PathBuf,
    /// What runs it with fewer capabilities.
    confined: Vec<String>,
    bpffs: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    process: Mutex<Option<Child>>,
}

impl Agent {
    /// `source`: the flag and the path of where the cluster's objects come from.
    pub(crate) fn new(
        node: &Arc<Node>,
        bpffs: &Path,
        source: (&str, &Path),
        options: &AgentOptions,
    ) -> Result<Self> {
        let dir = node.dir();
        let bpffs = bpffs.join(node.name());
        fs::create_dir_all(&bpffs)?;
        let mut arguments = vec!["agent".to_owned(), "--node-name".into(), node.name()];
        for (flag, path) in [
            source,
            ("--bpffs", &bpffs),
            ("--socket", &dir.join("agent.sock")),
            ("--state", &dir.join("state")),
            ("--cni-conf-dir", &node.cni_configurations()),
            ("--cni-bin-dir", &node.cni_plugins()),
            ("--cni-cache-dir", &dir.join("cni-cache")),
        ] {
            arguments.extend([flag.to_owned(), path.display().to_string()]);
        }
        if options.flow_log {
            let file = dir.join("flows.jsonl").display().to_string();
            arguments.extend(["--flow-log".to_owned(), file]);
        }
        if options.keeps_chain {
            arguments.extend(["--chain", "auto"].map(String::from));
        }
        arguments.extend(options.arguments.iter().cloned());
        let confined = options.capabilities.as_ref().map(|capabilities| confined_to(capabilities));
        Ok(Self {
            node: Arc::clone(node),
            binary: binaries::agent()?,
            bpffs,
            confined: confined.unwrap_or_default(),
            arguments,
            environment: options.environment.get(&node.number()).cloned().unwrap_or_default(),
            process: Mutex::default(),
        })
    }

    /// Where its pins are, in a directory per version of the maps' layout.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    pub fn socket(&self) -> PathBuf {
        self.node.dir().join("agent.sock")
    }

    /// What the agent printed, over all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub fn log_file(&self) -> PathBuf {
        self.node.dir().join("agent.log")
    }

    pub fn flow_log_file(&self) -> PathBuf {
        self.node.dir().join("flows.jsonl")
    }

    /// Records of the flow log so far, without a last line that is still being written.
    pub fn flow_log(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.flow_log_file()).unwrap_or_default();
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).with_context(|| format!("not a flow record: {line}")))
            .collect()
    }

    /// Starts the agent and waits until it serves.
    pub fn start(&self) -> Result<()> {
        self.start_with(&[])
    }

    /// As [`Agent::start`], with more arguments for this life.
    pub fn start_with(&self, arguments: &[&str]) -> Result<()> {
        self.spawn(arguments)?;
        self.await_ready()
    }

    /// Starts the agent, which may be unable to serve yet.
    pub fn start_unready(&self) -> Result<()> {
        self.spawn(&[])
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> Result<()> {
        let mut process = self.process();
        ensure!(process.is_none(), "the agent of {} already runs", self.node.name());
        let log = OpenOptions::new().create(true).append(true).open(self.log_file())?;
        let binary = self.binary.display().to_string();
        let command_line: Vec<_> =
            self.confined.iter().chain([&binary]).chain(&self.arguments).cloned().collect();
        let child = self
            .node
            .netns()
            .command(&command_line[0])?
            .args(&command_line[1..])
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(File::open("/dev/null")?)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", self.binary.display()))?;
        *process = Some(child);
        Ok(())
    }

    /// Waits until it serves.
    pub fn await_ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if matches!(self.ask(&CniRequest::Status), Ok(CniAnswer::Ok)) {
                return Ok(());
            }
            let ended = match self.process().as_mut() {
                Some(child) => child.try_wait()?,
                None => bail!("the agent of {} was not started", self.node.name()),
            };
            if let Some(status) = ended {
                self.process().take();
                bail!("the agent of {} ended ({status}):\n{}", self.node.name(), tail(&self.log()));
            }
            if Instant::now() > deadline {
                bail!("the agent of {} does not serve:\n{}", self.node.name(), tail(&self.log()));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// One request over the agent's socket.
    pub fn ask(&self, request: &CniRequest) -> Result<CniAnswer> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    pub fn runs(&self) -> bool {
        self.process().is_some()
    }

    /// How it ended, if it did so by itself.
    pub fn ended(&self) -> Result<Option<ExitStatus>> {
        match self.process().as_mut() {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.process().as_ref().context("the agent does not run")?.id())
    }

    /// SIGKILL: no goodbye. Nothing if it does not run.
    pub fn kill9(&self) {
        if let Some(mut child) = self.process().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and its exit status.
    pub fn terminate(&self) -> Result<ExitStatus> {
        let mut child = self.process().take().context("the agent does not run")?;
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
        let deadline = Instant::now() + ENDS_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        child.kill()?;
        child.wait()?;
        bail!("the agent of {} ignored SIGTERM:\n{}", self.node.name(), tail(&self.log()))
    }

    /// `bulkhead status -o json`.
    pub fn status(&self) -> Result<Value> {
        let answer = self.command("status", &["-o", "json"])?;
        serde_json::from_str(&answer).with_context(|| format!("bulkhead status printed {answer}"))
    }

    /// `bulkhead flows` with these arguments, as it prints.
    pub fn flows(&self, arguments: &[&str]) -> Result<String> {
        self.command("flows", arguments)
    }

    /// `bulkhead uninstall` with more arguments, on this node and for this agent's places.
    pub fn uninstall(&self, arguments: &[&str]) -> Result<Output> {
        let given = ["--bpffs", "--socket", "--state", "--flow-log", "--cni-conf-dir", "--cni-bin-dir"];
        let places = self.arguments.windows(2).filter(|pair| given.contains(&&*pair[0])).flatten();
        let mut command = self.node.netns().command(&self.binary)?;
        Ok(command.arg("uninstall").args(places).args(arguments).output()?)
    }

    /// A command of the operator against this agent, for people to copy.
    pub fn command_line(&self, verb: &str) -> String {
        format!("{} {verb} --socket {}", self.binary.display(), self.socket().display())
    }

    /// A command of the operator against this agent, whatever comes of it.
    pub fn output(&self, verb: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.binary);
        Ok(command.arg(verb).args(arguments).arg("--socket").arg(self.socket()).output()?)
    }

    fn command(&self, verb: &str, arguments: &[&str]) -> Result<String> {
        let output = self.output(verb, arguments)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "bulkhead {verb} {arguments:?}: {}: {error}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().expect("no holder panics")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// `setpriv` (util-linux), so that a program started by it as root has these capabilities.
fn confined_to(capabilities: &[String]) -> Vec<String> {
    let added = capabilities.iter().map(|name| format!("+{}", name.to_lowercase()));
    let set = std::iter::once("-all".to_owned()).chain(added).collect::<Vec<_>>().join(",");
    vec!["setpriv".into(), format!("--bounding-set={set}"), "--inh-caps=-all".into(), "--no-new-privs".into()]
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().rev().take(20).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
