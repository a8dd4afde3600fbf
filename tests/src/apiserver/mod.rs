//! An API server for agents to watch: ours, or etcd and kube-apiserver where there are any, with faults in between.
//!
//! ```text
//! test ─ admin ─▶ server (store, or kube-apiserver) ◀─ proxy (faults) ◀─ agents, by kubeconfig
//! ```

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

mod admin;
mod envtest;
mod fault;
mod proxy;
mod resource;
mod server;
mod store;
mod task;
mod tls;

pub use admin::Admin;
pub use envtest::Envtest;
pub use fault::{Call, Fault, Faults, What};
pub use proxy::{Listen, Proxy};
pub use resource::{RESOURCES, Resource};
pub use server::Server;
pub use store::Store;
pub use tls::Tls;

/// Everything that a test needs of a cluster's control plane.
#[derive(Debug)]
pub struct ApiServer {
    admin: Admin,
    proxy: Proxy,
    backend: Backend,
}

/// Who answers.
#[derive(Debug)]
enum Backend {
    Ours(Server),
    /// When `KUBEBUILDER_ASSETS` names a directory with `etcd` and `kube-apiserver`.
    Real(#[expect(dead_code, reason = "it ends when it is dropped")] Envtest),
}

impl ApiServer {
    /// Reached by agents on the loopback device. `dir` is for what a real API server keeps.
    pub fn start(dir: &Path) -> Result<Self> {
        let listen: Listen = Arc::new(|at| TcpListener::bind(at).context("cannot listen"));
        Self::start_at(dir, SocketAddr::from(([127, 0, 0, 1], 0)), listen)
    }

    /// Reached by agents where `listen` says.
    pub fn start_at(dir: &Path, at: SocketAddr, listen: Listen) -> Result<Self> {
        let (backend, config) = if let Some(assets) = Envtest::assets() {
            let real = Envtest::start(&assets, dir)?;
            let config = real.config()?;
            (Backend::Real(real), config)
        } else {
            let ours = Server::start()?;
            let config = kube::Config::new(format!("http://{}", ours.address()).parse()?);
            (Backend::Ours(ours), config)
        };
        let admin = Admin::new(config.clone())?;
        let proxy = Proxy::start(config, at, listen)?;
        Ok(Self { admin, proxy, backend })
    }

    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    pub fn faults(&self) -> &Faults {
        self.proxy.faults()
    }

    /// Our own server's store; `None`: a real one answers.
    pub fn store(&self) -> Option<&Arc<Store>> {
        match &self.backend {
            Backend::Ours(server) => Some(server.store()),
            Backend::Real(_) => None,
        }
    }

    /// Writes a kubeconfig for agents, and the token that it names, which may be replaced later.
    pub fn kubeconfig(&self, dir: &Path) -> Result<Kubeconfig> {
        Kubeconfig::write(dir, &json!({"server": format!("http://{}", self.proxy.address())}))
    }
}

/// Where an agent finds the API server.
#[derive(Clone, Debug)]
pub struct Kubeconfig {
    pub path: PathBuf,
    token: PathBuf,
}

impl Kubeconfig {
    /// With the first token; `cluster` says how the API server is reached.
    pub fn write(dir: &Path, cluster: &Value) -> Result<Self> {
        let kubeconfig = Self { path: dir.join("kubeconfig"), token: dir.join("token") };
        kubeconfig.write_token("the-first-token")?;
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": "agent", "user": {"tokenFile": kubeconfig.token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "agent"}}],
        });
        fs::write(&kubeconfig.path, text.to_string())?;
        Ok(kubeconfig)
    }

    /// As the kubelet does when a token is about to expire.
    pub fn write_token(&self, token: &str) -> Result<()> {
        let aside = self.token.with_extension("new");
        fs::write(&aside, token)?;
        Ok(fs::rename(&aside, &self.token)?)
    }
}

/// `namespace/name`, or `name` for what has no namespace.
pub(crate) fn key_of(object: &Value) -> Result<(Resource, String, String)> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").context("an object has no kind")?;
    let resource = Resource::of_kind(kind).with_context(|| format!("the API server knows no {kind}"))?;
    let name = text("/metadata/name").context("an object has no name")?;
    let namespace = text("/metadata/namespace").filter(|_| resource.namespaced);
    let namespace = namespace.unwrap_or(if resource.namespaced { "default" } else { "" });
    Ok((resource, namespace.to_owned(), name.to_owned()))
}
