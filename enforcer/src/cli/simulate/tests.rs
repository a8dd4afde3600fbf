#![expect(clippy::unwrap_used, reason = "tests")]

use clap::Parser;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

/// A shop whose database admits only the cart, a stranger of another tenant, and a finished job.
const SHOP: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {tenant: red}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: evil, labels: {tenant: blue}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.0.1.0/24}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: cart, namespace: shop, labels: {app: cart}}, spec: {nodeName: n1}, status: {podIP: 10.0.1.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, spec: {nodeName: n1}, status: {podIP: 10.0.1.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: spy, namespace: evil}, spec: {nodeName: n1}, status: {podIP: 10.0.1.4}}
---
{apiVersion: v1, kind: Pod, metadata: {name: job, namespace: evil}, status: {podIP: 10.0.1.5, phase: Succeeded}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: cart}}}], ports: [{port: 5432}]}]
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: cart}}
";

struct Ran {
    status: ExitCode,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

fn files(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (file, text) in files {
        fs::write(directory.path().join(file), text).unwrap();
    }
    directory
}

/// Runs with `DIR/` standing for the directory of the files.
fn try_simulate(directory: &TempDir, args: &str) -> anyhow::Result<Ran> {
    let args = args.split_whitespace().map(|arg| match arg.strip_prefix("DIR/") {
        Some(file) => directory.path().join(file).into_os_string(),
        None => arg.into(),
    });
    let Cli { args } = Cli::try_parse_from(["simulate".into()].into_iter().chain(args))?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = run(&args, &mut out, &mut err)?;
    Ok(Ran { status, out: String::from_utf8(out)?, err: String::from_utf8(err)? })
}

fn simulate(directory: &TempDir, args: &str) -> Ran {
    try_simulate(directory, args).unwrap()
}

fn verdict(directory: &TempDir, args: &str) -> Value {
    let ran = simulate(directory, &format!("-f DIR/m.yaml -o json {args}"));
    assert_eq!(ran.status, ExitCode::SUCCESS, "{}", ran.out);
    ran.json()["verdict"].clone()
}

#[test]
fn one_question_has_one_answer() {
    let shop = files(&[("m.yaml", SHOP)]);
    let ran = simulate(&shop, "-f DIR/ --from shop/cart --to shop/db --port 5432 -o json");
    let want = json!({
        "probe": {"src": "shop/cart", "dst": "shop/db", "protocol": "TCP", "port": 5432},
        "verdict": "allow",
        "egress": {"verdict": "allow", "by": "not isolated"},
        "ingress": {"verdict": "allow", "by": "shop/db ingress rule 0"},
    });
    assert_eq!((ran.status, ran.json()), (ExitCode::SUCCESS, want));
    assert_eq!(ran.err, "not used: 1 of kind Deployment\n");
}

#[test]
fn arguments_change_the_question() {
    let shop = files(&[("m.yaml", SHOP)]);
    for (args, want) in [
        ("--from shop/cart --to shop/db --port 5433", "deny"),
        ("--from shop/cart --to shop/db --port 5432 --protocol UDP", "deny"),
        ("--from shop/cart --to shop/db --protocol ICMP", "deny"),
        ("--from shop/db --to shop/cart --protocol ICMP", "allow"),
        ("--from ip:192.0.2.99 --to shop/db --port 5432", "deny"),
        ("--from node:n1 --to shop/db --port 5432", "allow"),
        ("--from evil/spy --to shop/cart --port 80", "allow"),
        ("--from evil/spy --to shop/cart --port 80 --tenant-label tenant", "deny"),
        ("--from evil/spy --to shop/cart --port 80 --tenant-label none", "allow"),
    ] {
        assert_eq!(verdict(&shop, args), want, "{args}");
    }
}

#[test]
fn the_own_node_can_be_put_under_policy() {
    let closed = "\n---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: shut, namespace: shop}, spec: {policyTypes: [Egress]}}\n";
    let shop = files(&[("m.yaml", &(SHOP.to_owned() + closed))]);
    for (setting, want) in [("allow", "allow"), ("policy", "deny")] {
        let args = format!("--from shop/cart --to node:n1 --port 80 --local-node-egress {setting}");
        assert_eq!(verdict(&shop, &args), want, "{setting}");
    }
}

#[test]
fn answers_keep_the_order_of_the_probes_and_errors_their_place() {
    let probes = json!([
        {"src": "shop/cart", "dst": "shop/db", "protocol": "TCP", "port": 5432, "id": 7},
        {"src": "shop/nobody", "dst": "shop/db", "protocol": "TCP", "port": 5432},
        {"src": "evil/spy", "dst": "shop/db", "protocol": "TCP", "port": 5432},
        {"src": "shop/cart", "dst": "shop/db", "protocol": "IPX", "port": 1},
    ]);
    let lines: Vec<String> = probes.as_array().unwrap().iter().map(Value::to_string).collect();
    let shop = files(&[("m.yaml", SHOP), ("array", &probes.to_string()), ("lines", &lines.join("\n"))]);
    for file in ["array", "lines"] {
        let ran = simulate(&shop, &format!("-f DIR/m.yaml --probes DIR/{file} -o json"));
        assert_eq!(ran.status, ExitCode::from(1));
        let answers = ran.json();
        let answers = answers.as_array().unwrap();
        let asked: Vec<&Value> = answers.iter().map(|a| &a["probe"]).collect();
        assert_eq!(asked, probes.as_array().unwrap().iter().collect::<Vec<_>>());
        let told: Vec<&str> = answers.iter().map(|a| a["verdict"].as_str().unwrap_or("none")).collect();
        assert_eq!(told, ["allow", "none", "deny", "none"]);
        assert_eq!(answers[1]["error"], "unknown pod shop/nobody");
        assert!(
            answers[3]["error"].as_str().unwrap().starts_with("protocol: unknown variant `IPX`"),
            "{ran:?}",
            ran = ran.out
        );
    }
}

#[test]
fn no_probes_have_no_answers() {
    let shop = files(&[("m.yaml", SHOP), ("none", "[]"), ("empty", "")]);
    for file in ["none", "empty"] {
        let ran = simulate(&shop, &format!("-f DIR/m.yaml --probes DIR/{file} -o json"));
        assert_eq!((ran.status, ran.json()), (ExitCode::SUCCESS, json!([])));
    }
}

#[test]
fn a_matrix_shows_every_pair_of_pods_that_have_an_address() {
    let shop = files(&[("m.yaml", SHOP)]);
    let ran = simulate(&shop, "-f DIR/m.yaml --matrix --port 5432");
    let rows: Vec<Vec<&str>> = ran.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows,
        [
            vec!["FROM", "\\", "TO", "evil/spy", "shop/cart", "shop/db"],
            vec!["evil/spy", "allow", "allow", "-"],
            vec!["shop/cart", "allow", "allow", "allow"],
            vec!["shop/db", "allow", "allow", "allow"],
        ]
    );
    assert_eq!(simulate(&shop, "-f DIR/m.yaml --matrix -o json").json().as_array().unwrap().len(), 9);
}

#[test]
fn a_table_names_who_decided() {
    let shop = files(&[("m.yaml", SHOP)]);
    let ran = simulate(&shop, "-f DIR/m.yaml --from evil/spy --to shop/db --port 5432");
    let row = ran.out.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        row,
        "evil/spy shop/db TCP/5432 deny allow: not isolated deny: isolated by shop/db, no rule allows"
    );
}

#[test]
fn what_is_wrong_with_the_manifests_is_told_beside_the_answer() {
    let shop = files(&[("m.yaml", &SHOP.replace("port: 5432", "port: 0"))]);
    let ran = simulate(&shop, "-f DIR/m.yaml --from shop/cart --to shop/db --port 5432 -o json");
    assert_eq!(ran.json()["verdict"], "deny");
    assert!(
        ran.err.contains("m.yaml:21: NetworkPolicy shop/db: spec.ingress[0].ports[0].port: 0 is not"),
        "{}",
        ran.err
    );
}

#[test]
fn what_cannot_be_asked_is_an_error() {
    let shop = files(&[("m.yaml", SHOP), ("bad", "[{]")]);
    for args in [
        "-f DIR/gone.yaml --matrix",
        "-f DIR/m.yaml --probes DIR/gone",
        "-f DIR/m.yaml --probes DIR/bad",
        "-f DIR/m.yaml",
        "--matrix",
        "-f DIR/m.yaml --from shop/cart",
        "-f DIR/m.yaml --from shop/cart --to shop/db",
        "-f DIR/m.yaml --from shop --to shop/db --port 1",
        "-f DIR/m.yaml --matrix --probes DIR/bad",
    ] {
        assert!(try_simulate(&shop, args).is_err(), "{args}");
    }
}

/// A cart on each of two nodes and a client whose egress admits the old one.
const SERVICE: &str = "
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.0.1.0/24}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, spec: {podCIDR: 10.0.2.0/24}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: old, namespace: shop, labels: {app: old}}, spec: {nodeName: n1}, status: {podIP: 10.0.1.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: new, namespace: shop, labels: {app: new}}, spec: {nodeName: n2}, status: {podIP: 10.0.2.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: shop, labels: {app: client}}, spec: {nodeName: n1}, status: {podIP: 10.0.1.4}}
---
{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop}, spec: {clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: none, namespace: shop}, spec: {clusterIP: 10.96.0.11, ports: [{port: 80}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client, namespace: shop}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: old}}}], ports: [{port: 8080}]}]
---
";

fn with_backends(backends: &str) -> TempDir {
    let slice = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: cart-1, namespace: shop, labels: {{kubernetes.io/service-name: cart}}}}\n\
         addressType: IPv4\nendpoints: [{{addresses: [{backends}]}}]\nports: [{{port: 8080}}]\n"
    );
    files(&[("m.yaml", &format!("{SERVICE}{slice}"))])
}

#[test]
fn a_service_is_answered_for_all_of_its_backends() {
    let said = |backends: &str, end: &str| {
        let args = format!("-f DIR/m.yaml -o json --from shop/client --to {end}");
        let answer = simulate(&with_backends(backends), &args).json();
        (answer["verdict"].clone(), answer["egress"]["by"].clone(), answer["ingress"]["by"].clone())
    };
    let (old, new, both) = ("10.0.1.2", "10.0.2.3", "10.0.1.2, 10.0.2.3");
    let by_address = "ip:10.96.0.10 --port 80";
    for (backends, end, verdict, egress, ingress) in [
        (
            old,
            by_address,
            "allow",
            "service shop/cart: shop/client egress rule 0",
            "service shop/cart: not isolated",
        ),
        (
            old,
            "node:n1 --port 30080",
            "allow",
            "service shop/cart: shop/client egress rule 0",
            "service shop/cart: not isolated",
        ),
        (
            both,
            by_address,
            "deny",
            "service shop/cart: 1 of 2 backends allowed; 10.0.2.3:8080: isolated by shop/client, no rule allows",
            "service shop/cart: not isolated",
        ),
        (
            new,
            by_address,
            "deny",
            "service shop/cart: 0 of 1 backends allowed; 10.0.2.3:8080: isolated by shop/client, no rule allows",
            "service shop/cart: not isolated",
        ),
        (
            "10.0.1.2, unreadable",
            by_address,
            "deny",
            "service shop/cart, not all of whose endpoints can be read: isolated by shop/client, no rule allows",
            "service shop/cart: not isolated",
        ),
        (old, "ip:10.96.0.11 --port 80", "deny", "service shop/none has no endpoints", "not reached"),
        // Not the Service's port, another node's address: no Service is reached there.
        (old, "ip:10.96.0.10 --port 8080", "deny", "isolated by shop/client, no rule allows", "not a pod"),
        (old, "node:n2 --port 30080", "deny", "isolated by shop/client, no rule allows", "not a pod"),
        (old, "node:n1 --port 30081", "allow", "own node", "not a pod"),
    ] {
        let want = (json!(verdict), json!(egress), json!(ingress));
        assert_eq!(said(backends, end), want, "{backends} {end}");
    }
}

#[test]
fn a_pod_that_reaches_itself_through_a_service_is_subject_to_policy() {
    let directory = with_backends("10.0.1.4");
    let answer =
        simulate(&directory, "-f DIR/m.yaml -o json --from shop/client --to ip:10.96.0.10 --port 80").json();
    assert_eq!(
        (answer["verdict"].clone(), answer["egress"]["by"].clone()),
        (
            json!("deny"),
            json!(
                "service shop/cart: 0 of 1 backends allowed; 10.0.1.4:8080: isolated by shop/client, no rule allows"
            )
        )
    );
    let direct = "--from shop/client --to shop/client --port 8080";
    assert_eq!(verdict(&directory, direct), "allow", "but never leaves itself otherwise");
}
