//! One invocation of the binary.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::pod::Pod;

/// What a runtime sees of a plugin.
#[derive(Debug)]
pub struct Seen {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

pub struct Invocation {
    command: Command,
    stdin: String,
}

impl Invocation {
    /// A verb with an empty environment and no input, in the namespace the test runs in.
    pub fn bare(verb: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-cni"));
        command.env_clear().env("CNI_COMMAND", verb);
        Self { command, stdin: String::new() }
    }

    /// A verb as kubelet's runtime calls it, in the namespace of the pod's host.
    pub fn of(verb: &str, pod: &Pod, conf: &Value) -> Self {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", pod.host)).arg(env!("CARGO_BIN_EXE_bulkhead-cni"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("CNI_COMMAND", verb);
        Self { command, stdin: conf.to_string() }
            .with("CNI_CONTAINERID", "c0ffee")
            .with("CNI_IFNAME", "eth0")
            .with("CNI_NETNS", pod.netns().to_str().unwrap())
            .with("CNI_PATH", "/opt/cni/bin")
            .with("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_UID=11-22")
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub fn reading(mut self, stdin: impl Into<String>) -> Self {
        self.stdin = stdin.into();
        self
    }

    pub fn run(mut self) -> Seen {
        let mut child =
            self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A plugin that refuses by its environment alone need not read what it is sent.
        let _ = child.stdin.take().unwrap().write_all(self.stdin.as_bytes());
        let output = child.wait_with_output().unwrap();
        Seen {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Seen {
    /// Success with nothing to say.
    pub fn silent_success(&self) {
        assert_eq!((self.code, self.stdout.as_str(), self.stderr.as_str()), (Some(0), "", ""));
    }

    /// Success with a warning only.
    pub fn success_with_warning(&self, warning: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(0), ""), "{self:?}");
        assert!(self.stderr.contains(warning), "{self:?}");
    }

    pub fn answer(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// The error object; `(cniVersion, code, message and details)`.
    pub fn error(&self) -> (String, u64, String) {
        assert_eq!(self.code, Some(1), "{self:?}");
        let error: Value = serde_json::from_str(&self.stdout).unwrap();
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (text("cniVersion"), error["code"].as_u64().unwrap(), format!("{} {}", text("msg"), text("details")))
    }

    /// An error of this code whose text contains `part`.
    pub fn refused(&self, code: u64, part: &str) {
        let (_, got, text) = self.error();
        assert!(got == code && text.contains(part), "want {code} with {part:?}, got {self:?}");
    }
}

/// A network configuration for the agent on `socket`.
pub fn conf(version: &str, socket: &Path, previous: Option<&Value>) -> Value {
    let mut conf = json!({"cniVersion": version, "name": "cbr0", "type": "bulkhead-cni", "socket": socket});
    if let Some(previous) = previous {
        conf["prevResult"] = previous.clone();
    }
    conf
}
