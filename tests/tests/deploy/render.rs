//! The renderers that operators use: kubectl's kustomize, and Helm's engine.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::Command,
};

use lab::kubelet::documents;
use serde_json::Value;

/// Objects by kind and name.
pub type Objects = BTreeMap<(String, String), Value>;

pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// A directory below `deploy/kustomize`.
pub fn kustomize(directory: &str) -> Objects {
    let in_tools = tools().join("bin/kubectl");
    let kubectl = if in_tools.exists() { in_tools } else { "kubectl".into() };
    objects(&run(Command::new(kubectl).arg("kustomize").arg(deploy().join("kustomize").join(directory))))
}

/// The chart with these values, in the namespace that the manifests have.
pub fn chart(values: &Value) -> Objects {
    let mut command = Command::new(tools().join("bin/python3"));
    let helm = deploy().join("helm");
    command.arg(helm.join("render.py")).arg(helm.join("bulkhead")).args(["bulkhead", "bulkhead-system"]);
    objects(&run(command.arg(values.to_string())))
}

/// Where `deploy/toolchain.sh` puts what only these tests need.
fn tools() -> PathBuf {
    let home = env::var_os("HOME").expect("a home directory");
    env::var_os("BULKHEAD_RENDERERS")
        .map_or_else(|| Path::new(&home).join(".cache/bulkhead-renderers"), Into::into)
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; run deploy/toolchain.sh"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn objects(yaml: &str) -> Objects {
    let text = |object: &Value, pointer| object.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
    let all = documents(yaml).unwrap();
    let count = all.len();
    let by_name: Objects =
        all.into_iter().map(|o| ((text(&o, "/kind"), text(&o, "/metadata/name")), o)).collect();
    assert_eq!(by_name.len(), count, "no object is there twice");
    by_name
}
