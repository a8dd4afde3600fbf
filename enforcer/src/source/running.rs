//! The one source of an agent, whichever it is.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use bulkhead_cni::protocol::PodName;
use tokio::sync::mpsc;

use super::{
    Update,
    kubernetes::{AccessError, Fetched, Kubernetes, Pace, WatchStatus},
    manifest::{WatchError, Watcher},
};
use crate::cluster::object::Kind;

/// Where the cluster's objects come from.
#[derive(Clone, Debug)]
pub enum Choice {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// The API server of this kubeconfig, else of the cluster that the agent is a pod of.
    Kubernetes { kubeconfig: Option<PathBuf> },
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Manifests(#[from] WatchError),
    #[error(transparent)]
    Kubernetes(#[from] AccessError),
}

pub enum Source {
    Manifests { watcher: Watcher, directory: PathBuf },
    Kubernetes(Kubernetes),
}

impl Source {
    pub async fn start(
        choice: &Choice,
        node: &str,
        updates: mpsc::Sender<Update>,
        fetched: mpsc::Sender<Fetched>,
    ) -> Result<Self, StartError> {
        Ok(match choice {
            Choice::Manifests(directory) => {
                let watcher = Watcher::start(directory, updates)?;
                Self::Manifests { watcher, directory: directory.clone() }
            }
            Choice::Kubernetes { kubeconfig } => {
                let (kubeconfig, pace) = (kubeconfig.as_deref(), Pace::default());
                Self::Kubernetes(Kubernetes::start(kubeconfig, node, pace, updates, fetched).await?)
            }
        })
    }

    /// As in status.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Manifests { .. } => "manifests",
            Self::Kubernetes(_) => "kubernetes",
        }
    }

    /// Directory or address.
    pub fn place(&self) -> String {
        match self {
            Self::Manifests { directory, .. } => Path::display(directory).to_string(),
            Self::Kubernetes(kubernetes) => kubernetes.server().to_owned(),
        }
    }

    /// Knows where objects are described, if they are in files.
    pub fn watcher(&self) -> Option<&Watcher> {
        match self {
            Self::Manifests { watcher, .. } => Some(watcher),
            Self::Kubernetes(_) => None,
        }
    }

    /// Of the API server, where there is one.
    pub fn client(&self) -> Option<kube::Client> {
        match self {
            Self::Manifests { .. } => None,
            Self::Kubernetes(kubernetes) => Some(kubernetes.client()),
        }
    }

    /// By kind; empty where there are none.
    pub fn watches(&self) -> BTreeMap<Kind, WatchStatus> {
        match self {
            Self::Manifests { .. } => BTreeMap::new(),
            Self::Kubernetes(kubernetes) => kubernetes.health().watches(),
        }
    }

    /// Updates that were sent; `None`: not counted.
    pub fn sent(&self) -> Option<u64> {
        match self {
            Self::Manifests { .. } => None,
            Self::Kubernetes(kubernetes) => Some(kubernetes.health().sent()),
        }
    }

    /// Pods may have changed without our being told.
    pub fn is_behind(&self) -> bool {
        match self {
            Self::Manifests { .. } => false,
            Self::Kubernetes(kubernetes) => !kubernetes.health().is_current(Kind::Pod),
        }
    }

    /// Asks for one pod by name; whether that will be answered.
    pub fn fetch(&self, pod: &PodName) -> bool {
        match self {
            Self::Manifests { .. } => false,
            Self::Kubernetes(kubernetes) => {
                kubernetes.fetch(pod.clone());
                true
            }
        }
    }
}
