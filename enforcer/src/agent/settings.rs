//! The agent's settings: flags, or the environment variable of the same name.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use bulkhead_ebpf::abi::{ABI_VERSION, LET_DHCP, LET_TUNNELS, ORIGINS};
use clap::{Args, ValueEnum};

use crate::{
    flow::{
        self,
        export::{FileSettings, Target},
    },
    policy,
    source::running::Choice,
};

/// Everything has a default.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Name of this node as in the Pods' `spec.nodeName`; default: the host name.
    #[arg(long, env = "BULKHEAD_NODE_NAME", default_value_t = host_name())]
    pub node_name: String,
    /// Directory of Kubernetes manifests (Namespaces, Pods, Nodes, `NetworkPolicies`,
    /// Services, `EndpointSlices`), which is watched instead of an API server.
    #[arg(long, env = "BULKHEAD_MANIFESTS", value_name = "DIR", conflicts_with = "kubeconfig")]
    pub manifests: Option<PathBuf>,
    /// How to reach the API server; default: the service account of the pod that the agent runs in.
    #[arg(long, env = "BULKHEAD_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Directory on a bpffs for the pins of programs, maps and links.
    #[arg(long, env = "BULKHEAD_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/bulkhead")]
    pub bpffs: PathBuf,
    /// Unix socket for the CNI plugin and the command line.
    #[arg(long, env = "BULKHEAD_SOCKET", value_name = "PATH", default_value = bulkhead_cni::config::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Directory for what must outlive the agent: endpoints and numbers.
    #[arg(long, env = "BULKHEAD_STATE", value_name = "DIR", default_value = "/var/lib/bulkhead")]
    pub state: PathBuf,
    /// Where Prometheus metrics and the kubelet's probes are answered (/metrics, /healthz, /readyz), or `none`.
    /// Pods reach their own node, so an address other than loopback is open to them too.
    #[arg(
        long,
        env = "BULKHEAD_METRICS_ADDRESS",
        value_name = "ADDRESS:PORT|none",
        default_value = "127.0.0.1:9964"
    )]
    pub metrics_address: MetricsAddress,
    #[command(flatten)]
    pub chain: crate::chain::Settings,
    /// Directory of libcni's cache (`results` below it), in which the runtime remembers the pods that already run.
    #[arg(long, env = "BULKHEAD_CNI_CACHE_DIR", value_name = "DIR", default_value = "/var/lib/cni")]
    pub cni_cache_dir: PathBuf,
    #[command(flatten)]
    pub flow: FlowSettings,
    #[command(flatten)]
    pub policy: PolicySettings,
    /// Connections tracked per address family.
    #[arg(long, env = "BULKHEAD_MAX_CONNECTIONS", value_name = "N", default_value_t = 1 << 18,
          value_parser = clap::value_parser!(u32).range(1024..=1 << 26))]
    pub max_connections: u32,
    /// What pods may send although it is not a pod's to send; nothing by default.
    #[arg(
        long,
        env = "BULKHEAD_LET_PODS_SEND",
        value_enum,
        value_delimiter = ',',
        value_name = "tunnels,dhcp"
    )]
    pub let_pods_send: Vec<Let>,
    /// Connections that one pod may begin per second, and twice as many at once; it may be asked four times as many. What
    /// it has begun goes on; what would be more is dropped and counted. 0: no limit.
    #[arg(long, env = "BULKHEAD_NEW_CONNECTIONS", value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(..=1_000_000_000))]
    pub new_connections: u32,
    /// Twelve neighbouring bits of packet marks by which packets to Services and nodes are known after
    /// translation. Nobody else on the node may use these bits.
    #[arg(long, env = "BULKHEAD_MARK_MASK", value_name = "MASK", default_value = "0xfff00000",
          value_parser = mark_mask)]
    pub mark_mask: u32,
    /// For tests of upgrades, in debug builds only: this agent's layout under another version's name.
    #[cfg(debug_assertions)]
    #[arg(long, hide = true)]
    pub pretend_abi: Option<u32>,
}

impl Settings {
    /// The version of the maps' layout that the pins are named after.
    pub fn abi(&self) -> u32 {
        #[cfg(debug_assertions)]
        if let Some(pretended) = self.pretend_abi {
            return pretended;
        }
        ABI_VERSION
    }
}

impl Settings {
    pub fn source(&self) -> Choice {
        match &self.manifests {
            Some(directory) => Choice::Manifests(directory.clone()),
            None => Choice::Kubernetes { kubeconfig: self.kubeconfig.clone() },
        }
    }
}

/// Decimal, or hexadecimal after `0x`.
fn mark_mask(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0x");
    let mask = digits.map_or_else(|| text.parse(), |digits| u32::from_str_radix(digits, 16));
    let mask = mask.map_err(|_| "it is no 32-bit number".to_owned())?;
    let neighbours = mask.checked_shr(mask.trailing_zeros()).unwrap_or_default();
    if neighbours == ORIGINS - 1 {
        Ok(mask)
    } else {
        Err("it is not twelve neighbouring bits, such as 0xfff00000".to_owned())
    }
}

/// `None`: nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsAddress(pub Option<SocketAddr>);

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            text => text.parse().map(|address| Self(Some(address))).map_err(|_| {
                "it is neither `none` nor an address with a port, such as 127.0.0.1:9964 or [::]:9964"
                    .to_owned()
            }),
        }
    }
}

/// Where the flow log goes.
#[derive(Clone, Debug, Args)]
pub struct FlowSettings {
    /// `none`, `stdout`, or a file for JSON lines.
    #[arg(long, env = "BULKHEAD_FLOW_LOG", value_name = "none|stdout|FILE", default_value = "none")]
    pub flow_log: String,
    /// The file is rotated at this size, in bytes.
    #[arg(long, env = "BULKHEAD_FLOW_LOG_MAX_BYTES", value_name = "N", default_value_t = 64 << 20,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub flow_log_max_bytes: u64,
    /// Files kept at most, the current one included.
    #[arg(long, env = "BULKHEAD_FLOW_LOG_FILES", value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub flow_log_files: u16,
    /// Records kept in memory for `bulkhead flows`.
    #[arg(long, env = "BULKHEAD_FLOW_RING", value_name = "N", default_value_t = 1 << 14,
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub flow_ring: u32,
}

impl FlowSettings {
    pub fn of_node(&self, node_name: &str) -> flow::Settings {
        let target = match self.flow_log.as_str() {
            "none" => Target::None,
            "stdout" => Target::Stdout,
            path => Target::File(FileSettings {
                path: path.into(),
                max_bytes: self.flow_log_max_bytes,
                files: self.flow_log_files.into(),
            }),
        };
        flow::Settings { node_name: node_name.to_owned(), target, ring: self.flow_ring as usize }
    }
}

/// Settings that change verdicts; `simulate` has the same.
#[derive(Clone, Debug, Args)]
pub struct PolicySettings {
    /// Namespace label whose value is the tenant, or `none`.
    #[arg(long, env = "BULKHEAD_TENANT_LABEL", value_name = "KEY|none", default_value = policy::DEFAULT_TENANT_LABEL)]
    pub tenant_label: String,
    /// May pods always reach their own node?
    #[arg(long, env = "BULKHEAD_LOCAL_NODE_EGRESS", value_enum, default_value_t = LocalNodeEgress::Allow)]
    pub local_node_egress: LocalNodeEgress,
    /// UDP port of the overlay's tunnels, to which no pod may send where no pod is known to be; 0: no tunnel.
    #[arg(long, env = "BULKHEAD_TUNNEL_PORT", value_name = "PORT", default_value_t = policy::DEFAULT_TUNNEL_PORT)]
    pub tunnel_port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Let {
    /// IP in IP, GRE, L2TP and their like to wherever policy allows, and ESP and AH to nodes. The overlay's own
    /// tunnel port stays closed.
    Tunnels,
    /// As DHCP servers.
    Dhcp,
}

impl Let {
    /// As the programs know it.
    pub fn bit(self) -> u16 {
        match self {
            Self::Tunnels => LET_TUNNELS,
            Self::Dhcp => LET_DHCP,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LocalNodeEgress {
    /// Yes, as the Kubernetes documentation says.
    Allow,
    /// Only where a policy allows it.
    Policy,
}

impl From<&PolicySettings> for policy::Settings {
    fn from(settings: &PolicySettings) -> Self {
        let label = &settings.tenant_label;
        Self {
            tenant_label: (label != "none").then(|| label.clone()),
            local_node_egress: settings.local_node_egress == LocalNodeEgress::Allow,
            backends_elsewhere_judged: true,
            tunnel_port: settings.tunnel_port,
        }
    }
}

fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_mask_is_twelve_neighbouring_bits() {
        for (text, want) in [
            ("0xfff00000", Some(0xfff0_0000)),
            ("0xfff", Some(0xfff)),
            ("4095", Some(0xfff)),
            ("0x000fff00", Some(0x000f_ff00)),
            ("0", None),
            ("0x0", None),
            ("0x7ff", None),
            ("0x1fff", None),
            ("0xff0f0000", None),
            ("0xfff000000", None),
            ("-1", None),
            ("fff", None),
            ("", None),
        ] {
            assert_eq!(mark_mask(text).ok(), want, "{text:?}");
        }
    }
}
