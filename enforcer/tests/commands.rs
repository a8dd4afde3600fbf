//! The command line as it is called: as a plugin of kubectl, and by CI.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const BULKHEAD: &str = env!("CARGO_BIN_EXE_bulkhead");

fn run(program: impl AsRef<Path>, arguments: &[&str]) -> Output {
    Command::new(program.as_ref()).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn under_the_name_of_a_kubectl_plugin_usage_says_so_and_commands_are_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let plugin = directory.path().join("kubectl-bulkhead");
    symlink(BULKHEAD, &plugin).unwrap();
    for (arguments, plugin_usage, usage) in [
        (&["--help"][..], "Usage: kubectl bulkhead <COMMAND>", "Usage: bulkhead <COMMAND>"),
        (
            &["explain", "--help"],
            "Usage: kubectl bulkhead explain [OPTIONS] <FROM> <TO>",
            "Usage: bulkhead explain [OPTIONS] <FROM> <TO>",
        ),
    ] {
        let (as_plugin, plain) = (run(&plugin, arguments), run(BULKHEAD, arguments));
        assert!(text(&as_plugin.stdout).contains(plugin_usage), "{}", text(&as_plugin.stdout));
        assert!(text(&plain.stdout).contains(usage), "{}", text(&plain.stdout));
        assert_eq!((as_plugin.status.code(), plain.status.code()), (Some(0), Some(0)));
    }
    let unknown = run(&plugin, &["expain"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("Usage: kubectl bulkhead"), "{}", text(&unknown.stderr));

    let socket = directory.path().join("nobody.sock");
    let asked = ["status", "--socket", socket.to_str().unwrap()];
    let (as_plugin, plain) = (run(&plugin, &asked), run(BULKHEAD, &asked));
    assert_eq!((as_plugin.status.code(), &as_plugin.stderr), (Some(2), &plain.stderr));

    // kubectl itself, where there is one.
    let path = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&path).any(|directory| directory.join("kubectl").is_file()) {
        let found = env::join_paths([directory.path().to_owned()].into_iter().chain(env::split_paths(&path)));
        let answer =
            Command::new("kubectl").args(["bulkhead", "--help"]).env("PATH", found.unwrap()).output();
        let answer = answer.unwrap();
        assert!(text(&answer.stdout).contains("Usage: kubectl bulkhead <COMMAND>"), "{answer:?}");
    }
}

const NAMESPACES: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {bulkhead.io/tenant: red}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: bare}}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {nodeName: n1, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: proxy, namespace: shop}
spec: {nodeName: n1, hostNetwork: true, containers: []}
";
const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
";

#[test]
fn coverage_of_manifests_fails_a_build_on_the_gaps_that_it_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("objects.yaml"), format!("{NAMESPACES}---{POLICY}")).unwrap();
    let manifests = directory.path().to_str().unwrap();
    for (arguments, code) in [
        (&[][..], 0),
        (&["--fail-on-gap"], 1),
        (&["--fail-on-gap=namespaces"], 1),
        (&["--fail-on-gap=ingress"], 0),
        (&["--fail-on-gap=ingress,egress"], 1),
        (&["--fail-on-gap=nodes"], 0),
        (&["--fail-on-gap", "--exclude-namespace", "bare"], 0),
        (&["--fail-on-gap=everything"], 2),
    ] {
        let output = run(BULKHEAD, &[&["coverage", "-f", manifests], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
    }
    let output = run(BULKHEAD, &["coverage", "-f", manifests, "-o", "json"]);
    let coverage: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(coverage["namespaces"][1]["tenant"], "red");
    assert_eq!(coverage["namespaces"][1]["hostNetwork"][0], "proxy");
    assert_eq!(coverage["namespaces"][1]["open"][0]["pod"], "cart");
    let table = run(BULKHEAD, &["coverage", "-f", manifests]);
    let table = text(&table.stdout);
    for line in [
        "Namespaces      2, 1 without any policy",
        "Pods            1, 0 open to anyone (ingress), 1 free to reach anyone (egress); 1 more on the host's network",
        "Nodes           0; no pod of the agent is known",
    ] {
        assert!(table.contains(line), "{line} is not in\n{table}");
    }
    let missing = run(BULKHEAD, &["coverage", "-f", "/nowhere/at/all"]);
    assert_eq!(missing.status.code(), Some(2), "a mistyped path is no evidence");
}
