//! The clusters that are compared: flannel alone, the same again (what differs between two equals is noise),
//! and flannel with bulkhead under few and under many rules.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::RULES;
use crate::{
    agent::AgentOptions,
    patience::until,
    plan::Plan,
    pod::{Pod, PodSpec},
    probe::{Family, Outcome, Transport, attempt},
    topology::Lab,
};

/// Where pods echo for the check of verdicts.
const ECHO: u16 = 80;
/// How long verdicts may take until they are what the policy says.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);
/// How long one attempt waits for an answer.
const PATIENCE: Duration = Duration::from_millis(300);
/// Many rules are this many blocks of addresses, each by as many ports as it takes.
const BLOCKS: usize = 100;

/// A cluster of two nodes with a client and two servers.
pub struct Mode {
    pub name: String,
    pub lab: Lab,
    /// On node 1.
    pub client: Arc<Pod>,
    /// On node 1.
    pub near: Arc<Pod>,
    /// On node 2.
    pub far: Arc<Pod>,
    /// Rules in the kernel of node 1; none in a flat cluster.
    pub rules: Option<u64>,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rules {
            None => write!(f, "{}: flannel alone", self.name),
            Some(rules) => write!(f, "{}: {rules} entries in node 1's rule trie", self.name),
        }
    }
}

/// All of them, the reference first.
pub fn raise(family: Family) -> Result<Vec<Mode>> {
    let flat = ["flat", "flat again"].into_iter().map(|name| Mode::flat(name.to_owned()));
    let guarded = RULES.into_iter().map(|rules| Mode::guarded(rules, true, family));
    // As an agent is by default.
    let unlogged = std::iter::once_with(|| Mode::guarded(1, false, family));
    flat.chain(guarded).chain(unlogged).collect()
}

impl Mode {
    fn flat(name: String) -> Result<Self> {
        Self::start(name, Plan::flat().raise()?)
    }

    fn guarded(rules: usize, flow_log: bool, family: Family) -> Result<Self> {
        // A client may begin as many connections as one CPU can: it is their cost that is measured.
        let arguments = ["--new-connections", "1000000"].map(str::to_owned).to_vec();
        let options = AgentOptions { flow_log, arguments, ..AgentOptions::default() };
        let lab = Plan::bulkhead().agent(options).raise()?;
        lab.namespace("bench", &[])?;
        lab.manifests().write(&policy(rules))?;
        let name = match rules {
            1 if !flow_log => "no flow log".to_owned(),
            1 => "1 rule".to_owned(),
            rules => format!("{rules} rules"),
        };
        let mut mode = Self::start(name, lab)?;
        mode.check_verdicts(family)?;
        mode.rules = Some(mode.rules_in_kernel()?);
        ensure!(
            mode.rules.is_some_and(|held| held >= 2 * rules as u64),
            "the kernel holds {:?} rules instead of {rules} in each direction",
            mode.rules
        );
        Ok(mode)
    }

    fn start(name: String, lab: Lab) -> Result<Self> {
        let pod = |name: &str, node| {
            let key = format!("bench/{name}");
            lab.start_pod(PodSpec::new(&key).on(node).label("app", "bench").serve(Transport::Tcp, ECHO))
        };
        let (client, near, far) = (pod("client", 1)?, pod("near", 1)?, pod("far", 2)?);
        Ok(Self { name, lab, client, near, far, rules: None })
    }

    /// A measurement of what does not judge would be worth nothing: who may, reaches, and who may not, does not.
    fn check_verdicts(&self, family: Family) -> Result<()> {
        let stranger = self.lab.start_pod(PodSpec::new("bench/stranger"))?;
        for server in [&self.near, &self.far] {
            let ask = |from: &Pod| {
                attempt(from.netns(), SocketAddr::new(server.ip(family), ECHO), Transport::Tcp, PATIENCE)
            };
            let verdicts = || Ok((ask(&self.client)?, ask(&stranger)?));
            let wanted = (Outcome::Reached, Outcome::Silent);
            let seen = until(SETTLES_WITHIN, verdicts, |seen| *seen == wanted)?;
            ensure!(seen == wanted, "{}: client and stranger to {}: {seen:?}", self.name, server.key());
        }
        self.lab.stop_pod(&stranger.key())
    }

    fn rules_in_kernel(&self) -> Result<u64> {
        let status = self.lab.agent(1).status()?;
        status.pointer("/datapath/rules").and_then(Value::as_u64).context("no rules in bulkhead status")
    }
}

/// Isolates every pod of the bench in both directions; of its rules, the last one admits the others.
fn policy(rules: usize) -> Value {
    let mut peers = vec![json!({
        "peers": [{"podSelector": {"matchLabels": {"app": "bench"}}}],
        "ports": [],
    })];
    if rules > 1 {
        let blocks = (0..BLOCKS).map(|n| json!({"ipBlock": {"cidr": format!("198.18.{n}.0/24")}}));
        let ports = (0..rules / BLOCKS).map(|n| json!({"protocol": "TCP", "port": 20_000 + 7 * n}));
        let many = json!({"peers": blocks.collect::<Vec<_>>(), "ports": ports.collect::<Vec<_>>()});
        peers.insert(0, many);
    }
    let rules = |side: &str| -> Vec<_> {
        peers.iter().map(|rule| json!({side: rule["peers"], "ports": rule["ports"]})).collect()
    };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "bench", "name": "bench"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "bench"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": rules("from"),
            "egress": rules("to"),
        },
    })
}
