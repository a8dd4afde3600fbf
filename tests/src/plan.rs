//! What kind of lab to raise.

use std::env;

use anyhow::Result;

use crate::{agent::AgentOptions, proxy::ProxyMode, topology::Lab};

/// `LAB_SOURCE=kubernetes`: every lab with agents has an API server, whatever its test asks for.
fn asked_for_api_server() -> bool {
    env::var_os("LAB_SOURCE").is_some_and(|source| source == "kubernetes")
}

/// Nodes, and what is on each of them.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) nodes: u8,
    /// Length of the prefix of a node's IPv4 pods.
    pub(crate) pod_bits: u8,
    pub(crate) agent: Option<AgentOptions>,
    /// Agents wait for [`Lab::install`], and the pods of before are wired by flannel alone.
    pub(crate) later: bool,
    pub(crate) proxy: Option<ProxyMode>,
    pub(crate) bridge_nf: Option<bool>,
    pub(crate) api_server: bool,
}

impl Plan {
    /// Flannel alone: every pod reaches every pod.
    pub fn flat() -> Self {
        Self {
            nodes: 2,
            pod_bits: 24,
            agent: None,
            later: false,
            proxy: None,
            bridge_nf: None,
            api_server: asked_for_api_server(),
        }
    }

    /// With an agent on each node and `bulkhead-cni` last in the chain.
    pub fn bulkhead() -> Self {
        Self { agent: Some(AgentOptions::default()), ..Self::flat() }
    }

    /// Flannel alone, until [`Lab::install`] brings agents and plugin to the cluster that runs.
    pub fn installed_later() -> Self {
        Self { later: true, ..Self::bulkhead() }
    }

    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// Room for a thousand pods on each node instead of 250.
    #[must_use]
    pub fn wide(mut self) -> Self {
        self.pod_bits = 22;
        self
    }

    /// Settings of the agents; makes a flat plan one with agents.
    #[must_use]
    pub fn agent(mut self, options: AgentOptions) -> Self {
        self.agent = Some(options);
        self
    }

    /// With kube-proxy's part and flannel's masquerading on each node; neither is there otherwise, so that a lab
    /// without Services has no connection tracking of the kernel in its way.
    #[must_use]
    pub fn proxy(mut self, mode: ProxyMode) -> Self {
        self.proxy = Some(mode);
        self
    }

    /// As [`Node::bridge_nf`](crate::node::Node::bridge_nf), on every node.
    #[must_use]
    pub fn bridge_nf(mut self, on: bool) -> Self {
        self.bridge_nf = Some(on);
        self
    }

    /// The agents watch an API server, which is told all that goes into the lab's manifests.
    #[must_use]
    pub fn api_server(mut self) -> Self {
        self.api_server = true;
        self
    }

    pub fn raise(self) -> Result<Lab> {
        Lab::raise(&self)
    }
}
