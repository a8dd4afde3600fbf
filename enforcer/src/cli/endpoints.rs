//! `bulkhead endpoints`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use bulkhead_cni::config::DEFAULT_SOCKET;

use super::status::{self, Output};
use crate::agent::status::Endpoint;

/// Pods of this node: where they hang, what isolates them, and whether the kernel holds that.
///
/// Exit status: 0 the agent has answered, 2 nobody to ask.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Only pods of this namespace.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Only this pod, as NAME or NAMESPACE/NAME.
    #[arg(short, long)]
    pub pod: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// The agent's socket.
    #[arg(long, env = "BULKHEAD_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

pub async fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let endpoints = status::ask(&args.socket).await?.endpoints;
    print(args, endpoints, out)?;
    Ok(ExitCode::SUCCESS)
}

fn print(args: &Args, mut endpoints: Vec<Endpoint>, out: &mut impl Write) -> anyhow::Result<()> {
    endpoints.retain(|endpoint| args.wants(&endpoint.pod));
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &endpoints)?;
            writeln!(out)?;
        }
        Output::Table => writeln!(out, "{}", Endpoint::table(&endpoints))?,
    }
    Ok(())
}

impl Args {
    fn wants(&self, key: &str) -> bool {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
            && self.pod.as_deref().is_none_or(|wanted| wanted == name || wanted == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints() -> Vec<Endpoint> {
        let endpoint = |id, pod: &str| Endpoint {
            id,
            pod: pod.to_owned(),
            interface: format!("veth{id}"),
            addresses: vec![format!("10.244.1.{id}")],
            ingress: vec!["shop/deny".to_owned()],
            tenant: (id == 2).then(|| "red".to_owned()),
            identity: 256,
            rule_set: 3,
            generation: id + 5,
            wanted_generation: Some(7),
            up_to_date: id == 2,
            ..Endpoint::default()
        };
        vec![endpoint(1, "shop/cart"), endpoint(2, "shop/db"), endpoint(3, "ops/cart")]
    }

    fn printed(output: Output, namespace: Option<&str>, pod: Option<&str>) -> String {
        let (namespace, pod) = (namespace.map(str::to_owned), pod.map(str::to_owned));
        let mut out = Vec::new();
        print(&Args { namespace, pod, output, socket: PathBuf::new() }, endpoints(), &mut out)
            .expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_namespace_and_a_pod_narrow_the_list() {
        for (namespace, pod, want) in [
            (None, None, vec![1, 2, 3]),
            (Some("shop"), None, vec![1, 2]),
            (None, Some("cart"), vec![1, 3]),
            (None, Some("ops/cart"), vec![3]),
            (Some("shop"), Some("cart"), vec![1]),
            (Some("shop"), Some("ops/cart"), vec![]),
        ] {
            let json: Vec<Endpoint> =
                serde_json::from_str(&printed(Output::Json, namespace, pod)).expect("JSON");
            let ids: Vec<_> = json.iter().map(|endpoint| endpoint.id).collect();
            assert_eq!(ids, want, "{namespace:?} {pod:?}");
        }
    }

    #[test]
    fn the_table_says_what_is_wanted_where_the_kernel_has_something_else() {
        let table = printed(Output::Table, Some("shop"), None);
        let cells = |line: &str| {
            line.split("  ").map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect()
        };
        let lines: Vec<Vec<String>> = table.lines().map(cells).collect();
        let row = |text: &str| text.split('|').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            lines[1],
            row("1|shop/cart|veth1|10.244.1.1|256|-|isolated: shop/deny|open|6 (wanted 7)|NOT UP TO DATE")
        );
        assert_eq!(lines[2], row("2|shop/db|veth2|10.244.1.2|256|red|isolated: shop/deny|open|7|enforced"));
    }
}
