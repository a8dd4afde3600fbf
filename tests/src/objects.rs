//! The cluster's objects as an operator changes them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{matrix::SETTLES_WITHIN, patience::until, topology::Lab};

/// How long a full node may take, on a loaded machine: a program on an interface costs two of the kernel's grace periods.
const ADOPTS_WITHIN: Duration = Duration::from_mins(1);

impl Lab {
    /// Writes one Namespace with these labels.
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        self.manifests().write(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        )
    }

    /// Writes every object of a YAML text (several documents allowed), as `kubectl apply` would store them.
    pub fn apply(&self, yaml: &str) -> Result<Vec<Value>> {
        self.manifests().apply(yaml)
    }

    /// Changes a stored object, as `kubectl edit` does; `key` as for [`Lab::delete`].
    pub fn edit(&self, kind: &str, key: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        self.manifests().edit(kind, key, change)
    }

    /// Gives a stored object this label, or another value of it.
    pub fn label(&self, kind: &str, key: &str, (label, value): (&str, &str)) -> Result<()> {
        self.edit(kind, key, |object| object["metadata"]["labels"][label] = value.into())
    }

    /// Stores a policy for the pods of its namespace with this `app`, or all (`*`); `rules` is the rest of its
    /// `spec` in YAML's flow style.
    pub fn policy(&self, key: &str, app: &str, rules: &str) -> Result<()> {
        let (namespace, name) = key.split_once('/').context("a policy's key is namespace/name")?;
        let selector = if app == "*" { String::new() } else { format!("matchLabels: {{app: {app}}}") };
        self.apply(&format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
              metadata: {{name: {name}, namespace: {namespace}}}, \
              spec: {{podSelector: {{{selector}}}, {rules}}}}}"
        ))?;
        Ok(())
    }

    /// Removes an object; `key` is `namespace/name`, or `name` for what has no namespace.
    pub fn delete(&self, kind: &str, key: &str) -> Result<()> {
        self.manifests().delete(kind, key)
    }

    /// Waits until every agent has looked its node over, and every pod there is an endpoint.
    pub fn adopted(&self) -> Result<()> {
        for agent in self.agents() {
            let done = |status: &Value| {
                let running = &status["running"];
                running["surveyed"] == true
                    && running["adopting"] == 0
                    && running["unadopted"].as_array().is_some_and(Vec::is_empty)
            };
            let status = until(ADOPTS_WITHIN, || agent.status(), done)?;
            ensure!(done(&status), "not all pods are adopted: {:#}", status["running"]);
        }
        Ok(())
    }

    /// Waits until every agent that runs has taken in the manifests as they are now, and so has its kernel.
    ///
    /// An agent that has read one more object of a kind that it only counts has read all that was there before.
    pub fn settle(&self) -> Result<()> {
        const KIND: &str = "ConfigMap";
        if self.has_api() {
            return self.settle_with_api();
        }
        let number = self.manifests().mark(KIND)?;
        for agent in self.agents().iter().filter(|agent| agent.runs()) {
            let seen = |status: &Value| status["source"]["ignored"][KIND].as_u64().unwrap_or_default();
            let status = until(SETTLES_WITHIN, || agent.status(), |status| seen(status) >= number.into())?;
            ensure!(seen(&status) >= number.into(), "an agent has not seen the last change: {status:#}");
            ensure!(status["datapath"]["error"].is_null(), "the kernel does not follow: {status:#}");
        }
        Ok(())
    }

    /// An agent whose watches have come as far as the last write of each kind, and that has taken in all updates of
    /// these watches, has read all that there is.
    fn settle_with_api(&self) -> Result<()> {
        let written = self.api().admin().written();
        let seen = |status: &Value| {
            let source = &status["source"];
            let version = |kind: &str| source["watches"][kind]["version"].as_u64().unwrap_or_default();
            written.iter().all(|(kind, version_)| version(kind) >= *version_)
                && source["learned"].as_u64() >= source["sent"].as_u64()
        };
        for agent in self.agents() {
            let status = until(SETTLES_WITHIN, || agent.status(), |status| seen(status))?;
            ensure!(seen(&status), "an agent has not seen the last change {written:?}: {status:#}");
            ensure!(status["datapath"]["error"].is_null(), "the kernel does not follow: {status:#}");
        }
        Ok(())
    }
}
