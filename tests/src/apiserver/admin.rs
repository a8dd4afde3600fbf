//! The cluster's administrator and its controllers: whoever writes objects, over HTTP and past the proxy.

use std::{collections::BTreeMap, sync::Mutex};

use anyhow::{Context, Result};
use axum::http::{Request, header};
use kube::Client;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{Resource, key_of, resource::Target};

/// Blocking; every call is one or two requests.
pub struct Admin {
    client: Client,
    written: Mutex<BTreeMap<&'static str, u64>>,
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admin")
    }
}

impl Admin {
    pub(super) fn new(config: kube::Config) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = {
            let _inside = runtime.enter();
            Client::try_from(config)?
        };
        Ok(Self { client, written: Mutex::default(), runtime: Some(runtime) })
    }

    /// Creates the object or replaces it, its status included.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        self.block(self.apply_object(object))
    }

    /// Several at once, for speed.
    pub fn apply_all(&self, objects: impl IntoIterator<Item = Value>) -> Result<()> {
        let objects: Vec<_> = objects.into_iter().collect();
        self.block(async {
            let applied = futures::future::join_all(objects.iter().map(|object| self.apply_object(object)));
            applied.await.into_iter().try_for_each(|applied| applied.map(drop))
        })
    }

    /// Every document of a YAML text.
    pub fn apply_yaml(&self, yaml: &str) -> Result<()> {
        crate::kubelet::documents(yaml)?.iter().try_for_each(|object| self.apply(object).map(drop))
    }

    pub fn get(&self, kind: &str, key: &str) -> Result<Value> {
        let path = path_of(kind, key)?;
        self.block(self.call("GET", &path, None))
    }

    /// Changes what is there.
    pub fn edit(&self, kind: &str, key: &str, change: impl FnOnce(&mut Value)) -> Result<Value> {
        let mut object = self.get(kind, key)?;
        change(&mut object);
        self.apply(&object)
    }

    /// At once: no pod takes its time to end here.
    pub fn delete(&self, kind: &str, key: &str) -> Result<()> {
        let path = path_of(kind, key)?;
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        self.block(async {
            let deleted = self.call("DELETE", &path, Some(&options)).await?;
            // A real API server leaves the end of a namespace to a controller, which is not here.
            if deleted["spec"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty()) {
                let mut finalized = deleted;
                finalized["spec"]["finalizers"] = json!([]);
                self.call("PUT", &format!("{path}/finalize"), Some(&finalized)).await?;
            }
            Ok(())
        })
    }

    /// As [`Admin::delete`], by what it looks like.
    pub fn remove(&self, object: &Value) -> Result<()> {
        let (resource, namespace, name) = key_of(object)?;
        let key = if resource.namespaced { format!("{namespace}/{name}") } else { name };
        self.delete(resource.kind, &key)
    }

    /// Kinds of which something was written, with the version of the last write.
    pub fn written(&self) -> BTreeMap<&'static str, u64> {
        self.written.lock().expect("no holder panics").clone()
    }

    async fn apply_object(&self, object: &Value) -> Result<Value> {
        let (resource, namespace, name) = key_of(object)?;
        if resource.namespaced {
            self.ensure_namespace(&namespace).await?;
        }
        let collection = resource.collection(&namespace);
        let path = format!("{collection}/{name}");
        let stored = match self.call("GET", &path, None).await {
            Ok(known) => {
                let mut new = object.clone();
                for field in ["resourceVersion", "uid"] {
                    new["metadata"][field] = known["metadata"][field].clone();
                }
                self.call("PUT", &path, Some(&new)).await?
            }
            Err(error) if is(&error, 404) => self.call("POST", &collection, Some(object)).await?,
            Err(error) => return Err(error),
        };
        let Some(status) = object.get("status").filter(|status| stored.get("status") != Some(status)) else {
            return Ok(stored);
        };
        let mut with_status = stored;
        with_status["status"] = status.clone();
        self.call("PUT", &format!("{path}/status"), Some(&with_status)).await
    }

    /// Nothing is in a namespace that there is not.
    async fn ensure_namespace(&self, name: &str) -> Result<()> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        match self.call("GET", &format!("/api/v1/namespaces/{name}"), None).await {
            Err(error) if is(&error, 404) => {
                match self.call("POST", "/api/v1/namespaces", Some(&namespace)).await {
                    Err(error) if is(&error, 409) => Ok(()), // another thread was faster
                    made => made.map(drop),
                }
            }
            found => found.map(drop),
        }
    }

    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.map(Value::to_string).unwrap_or_default().into_bytes())?;
        let answer: Value = self.client.request(request).await.with_context(|| format!("{method} {path}"))?;
        if method != "GET" {
            self.note(path, &answer);
        }
        Ok(answer)
    }

    fn note(&self, path: &str, answer: &Value) {
        let version: Option<u64> =
            answer["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok());
        if let (Some(target), Some(version)) = (Target::parse(path), version) {
            let mut written = self.written.lock().expect("no holder panics");
            let last: &mut u64 = written.entry(target.resource.kind).or_default();
            *last = version.max(*last);
        }
    }

    fn block<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("it is only taken by drop").block_on(work)
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        // Dropping a runtime waits for its threads, which a test that is itself asynchronous must not.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn path_of(kind: &str, key: &str) -> Result<String> {
    let resource = Resource::of_kind(kind).with_context(|| format!("the API server knows no {kind}"))?;
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    Ok(format!("{}/{name}", resource.collection(namespace)))
}

/// Is it the API server's answer with this HTTP status?
fn is(error: &anyhow::Error, code: u16) -> bool {
    matches!(error.downcast_ref::<kube::Error>(), Some(kube::Error::Api(status)) if status.code == code)
}
