//! A node with a pod that floods, and neighbours who talk.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::Result;
use lab::{AgentOptions, Family, Lab, Plan, Pod, PodSpec, Transport, until};
use serde_json::Value;

/// For what must happen, on a loaded machine.
pub const PATIENCE: Duration = Duration::from_mins(2);
/// Of one connection attempt and one answer: long enough for TCP to try again a few times.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// Entries of each connection table, and connections per second of each pod unless told otherwise.
pub const CONNECTIONS: u64 = 32_768;
const PER_SECOND: u64 = 1500;

/// `shop/web` may speak to `shop/db`, and nobody else may; `shop/flooder` may send what it likes, `shop/jailed` nothing.
pub fn node() -> Lab {
    raise(plan(PER_SECOND))
}

/// One node with small tables, whose pods may begin so many connections per second.
pub fn plan(per_second: u64) -> Plan {
    let arguments =
        ["--max-connections", &CONNECTIONS.to_string(), "--new-connections", &per_second.to_string()];
    let arguments = arguments.map(str::to_owned).to_vec();
    Plan::bulkhead().nodes(1).agent(AgentOptions { arguments, ..AgentOptions::default() })
}

/// As [`node`].
pub fn raise(plan: Plan) -> Lab {
    let lab = plan.raise().unwrap();
    lab.namespace("shop", &[]).unwrap();
    let pod = |name: &str| PodSpec::new(&format!("shop/{name}")).label("app", name).serve(Transport::Tcp, 80);
    lab.start_pods(["flooder", "jailed", "web", "other", "db"].map(pod)).unwrap();
    lab.policy(
        "shop/db",
        "db",
        "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]",
    )
    .unwrap();
    lab.policy("shop/jail", "jailed", "policyTypes: [Egress]").unwrap();
    lab.settle().unwrap();
    lab
}

/// How many connections a pod can have begun since then: two seconds' worth are saved up.
pub fn begun_within(per_second: u64, since: Instant) -> u64 {
    per_second * (since.elapsed().as_secs() + 1 + 2) + 1
}

/// Between two looks at a flood.
pub const PAUSE: Duration = Duration::from_millis(500);

/// `bulkhead status`, asked again while the machine is too busy to answer.
pub fn look(lab: &Lab) -> Result<Value> {
    let asked = || Ok(lab.agent(1).status());
    until(PATIENCE, asked, Result::is_ok)?
}

/// A TCP conversation that can be left alone.
pub struct Talk(TcpStream);

impl Talk {
    pub fn begin(from: &Pod, to: &Pod, family: Family) -> Self {
        let _inside = from.netns().enter().unwrap();
        let to = SocketAddr::new(to.ip(family), 80);
        let stream = TcpStream::connect_timeout(&to, ANSWERS_WITHIN)
            .unwrap_or_else(|error| panic!("{} to {to}: {error}", from.key()));
        stream.set_read_timeout(Some(ANSWERS_WITHIN)).unwrap();
        let mut talk = Self(stream);
        talk.go_on();
        talk
    }

    /// One message there and back.
    pub fn go_on(&mut self) {
        const MESSAGE: &[u8] = b"still there?";
        self.0.write_all(MESSAGE).unwrap();
        let mut echo = [0; MESSAGE.len()];
        self.0.read_exact(&mut echo).unwrap_or_else(|error| panic!("a conversation was cut: {error}"));
        assert_eq!(echo, MESSAGE);
    }
}

/// Packets that the flooder was refused, as status tells.
pub fn refused(status: &Value, pod: &str) -> u64 {
    let endpoints = status["endpoints"].as_array().unwrap();
    let endpoint = endpoints.iter().find(|endpoint| endpoint["pod"] == pod);
    endpoint.unwrap_or_else(|| panic!("no {pod} in {status:#}"))["refused"].as_u64().unwrap()
}

pub fn count(status: &Value, field: &str) -> u64 {
    status["datapath"][field].as_u64().unwrap_or_else(|| panic!("no {field} in {status:#}"))
}

/// Resident memory of the agent, in kB.
pub fn memory(lab: &Lab) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", lab.agent(1).pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// How many kB more the agent may take in a flood: its ring of records, the queue to the log, and a look at its tables.
pub const MORE_MEMORY: u64 = 48 * 1024;

/// Packets decided for this reason.
pub fn packets(status: &Value, reason: &str) -> u64 {
    status["datapath"]["packets"][reason].as_u64().unwrap_or_else(|| panic!("no {reason} in {status:#}"))
}
