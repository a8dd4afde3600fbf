//! `bulkhead coverage`.

use std::{fmt::Write as _, io::Write, path::PathBuf, process::ExitCode};

use anyhow::Context;
use bulkhead_cni::config::DEFAULT_SOCKET;
use comfy_table::{Table, presets};

use super::{manifests, status::Output};
use crate::{
    agent::settings::PolicySettings,
    api,
    policy::{
        Settings,
        coverage::{Coverage, Gap, NodeState},
    },
};

/// Namespaces and pods without any policy, pods on the host's network, nodes that do not enforce: the evidence that
/// CIS Kubernetes Benchmark 5.3.2 asks for.
///
/// Asks the agent of this node, which knows the whole cluster, or reads manifests (-f).
///
/// Exit status: 0 answered, 1 there is a gap that --fail-on-gap is about, 2 nobody to ask.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Manifests: a YAML or JSON file, or a directory of them (not its subdirectories); repeatable.
    #[arg(short, long = "filename", value_name = "PATH")]
    pub filenames: Vec<PathBuf>,
    /// Exit with 1 if there is a gap: without a value, a namespace without any policy, a pod without an ingress
    /// policy, or a node known not to enforce.
    #[arg(long, value_enum, value_name = "GAP", value_delimiter = ',', require_equals = true, num_args = 0..,
          default_missing_values = ["namespaces", "ingress", "nodes"])]
    pub fail_on_gap: Vec<Gap>,
    /// Leave this namespace out; repeatable.
    #[arg(long, value_name = "NAMESPACE")]
    pub exclude_namespace: Vec<String>,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// The agent's socket.
    #[arg(long, env = "BULKHEAD_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    #[command(flatten)]
    pub policy: PolicySettings,
}

/// The answer on `out`; what is wrong with manifests on `err`.
pub async fn run(args: &Args, out: &mut impl Write, err: &mut impl Write) -> anyhow::Result<ExitCode> {
    let mut coverage = if args.filenames.is_empty() {
        let answer = api::coverage(&args.socket).await?;
        serde_json::from_value(answer).context("the agent's answer is of another version")?
    } else {
        Coverage::of(&manifests::index(&args.filenames, err)?, &Settings::from(&args.policy))
    };
    coverage.without(&args.exclude_namespace);
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &coverage)?;
            writeln!(out)?;
        }
        Output::Table => out.write_all(render(&coverage).as_bytes())?,
    }
    let gap = args.fail_on_gap.iter().any(|gap| coverage.has(*gap));
    Ok(ExitCode::from(u8::from(gap)))
}

/// For people; everything is in the JSON form.
fn render(coverage: &Coverage) -> String {
    let mut out = String::new();
    let totals = &coverage.totals;
    let mut line = |name: &str, value: String| {
        writeln!(out, "{name:<16}{value}").expect("a string takes everything");
    };
    line(
        "Namespaces",
        format!("{}, {} without any policy", totals.namespaces, totals.namespaces_without_policy),
    );
    line(
        "Pods",
        format!(
            "{}, {} open to anyone (ingress), {} free to reach anyone (egress); {} more on the host's network",
            totals.pods, totals.open_ingress, totals.open_egress, totals.host_network
        ),
    );
    line(
        "Nodes",
        if coverage.agents_known {
            format!("{}, {} not enforcing", totals.nodes, totals.nodes_without_agent)
        } else {
            format!(
                "{}; no pod of the agent is known, so nothing can be said about other nodes",
                totals.nodes
            )
        },
    );
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "NAMESPACE",
        "TENANT",
        "POLICIES",
        "PODS",
        "OPEN INGRESS",
        "OPEN EGRESS",
        "HOST NETWORK",
    ]);
    for namespace in &coverage.namespaces {
        let open = |is_open: fn(&crate::policy::coverage::OpenPod) -> bool| {
            namespace.open.iter().filter(|pod| is_open(pod)).count().to_string()
        };
        table.add_row([
            namespace.name.clone(),
            namespace.tenant.clone().unwrap_or_else(|| "-".to_owned()),
            if namespace.policies == 0 { "NONE".to_owned() } else { namespace.policies.to_string() },
            namespace.pods.to_string(),
            open(|pod| pod.ingress),
            open(|pod| pod.egress),
            namespace.host_network.len().to_string(),
        ]);
    }
    write!(out, "\n{table}\n").expect("a string takes everything");

    let mut gaps = Table::new();
    gaps.load_preset(presets::NOTHING).set_header(["NOT COVERED", "NODE", "WHY"]);
    for namespace in &coverage.namespaces {
        for pod in &namespace.open {
            let why = match (pod.ingress, pod.egress) {
                (true, true) => "no policy isolates it",
                (true, false) => "no ingress policy",
                _ => "no egress policy",
            };
            let node = pod.node.as_deref().unwrap_or("-");
            gaps.add_row([&format!("{}/{}", namespace.name, pod.pod), node, why]);
        }
        for pod in &namespace.host_network {
            gaps.add_row([
                &format!("{}/{pod}", namespace.name),
                "-",
                "host network: no policy can be about it",
            ]);
        }
    }
    for node in &coverage.nodes {
        if matches!(node.state, NodeState::NoAgent | NodeState::NotReady) {
            gaps.add_row(["the node", &node.name, &node.because]);
        }
    }
    if gaps.row_count() > 0 {
        write!(out, "\n{gaps}\n").expect("a string takes everything");
    }
    out
}
