//! Where the API server is, and how this agent proves who it is.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};

/// A refused token or certificate is read again, but not more often than this.
const RENEWS_AT_MOST_EVERY: Duration = Duration::from_millis(500);
/// Of one connection attempt.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("cannot use kubeconfig {path}")]
    Kubeconfig { path: PathBuf, source: KubeconfigError },
    #[error(
        "there is no source of the cluster's objects: neither --manifests nor --kubeconfig is given, and \
         this is no pod with a service account"
    )]
    Nowhere(#[source] InClusterError),
    #[error("cannot use the settings for the API server")]
    Client(#[source] kube::Error),
    #[error("cannot start a task")]
    Task(#[source] io::Error),
}

/// Makes clients; a clone shares the current one.
#[derive(Clone)]
pub(super) struct Access {
    kubeconfig: Option<PathBuf>,
    server: String,
    current: Arc<Mutex<(Client, Instant)>>,
}

impl Access {
    /// By this kubeconfig, else by the service account of the pod that this process runs in.
    pub async fn new(kubeconfig: Option<&Path>) -> Result<Self, AccessError> {
        let config = config(kubeconfig).await?;
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(AccessError::Client)?;
        let current = Arc::new(Mutex::new((client, Instant::now())));
        Ok(Self { kubeconfig: kubeconfig.map(Path::to_owned), server, current })
    }

    pub fn server(&self) -> &str {
        &self.server
    }

    pub fn client(&self) -> Client {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Reads everything anew: the API server no longer accepts what was read before. (A token's file is read
    /// every minute anyway; this is for one that was replaced or revoked.)
    pub async fn renew(&self) {
        let age = self.current.lock().unwrap_or_else(PoisonError::into_inner).1.elapsed();
        if age < RENEWS_AT_MOST_EVERY {
            return;
        }
        let renewed = match config(self.kubeconfig.as_deref()).await {
            Ok(config) => Client::try_from(config).map_err(AccessError::Client),
            Err(error) => Err(error),
        };
        match renewed {
            Ok(client) => {
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = (client, Instant::now());
            }
            Err(error) => tracing::warn!(%error, "the credentials cannot be read again"),
        }
    }
}

async fn config(kubeconfig: Option<&Path>) -> Result<Config, AccessError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let failed = |source| AccessError::Kubeconfig { path: path.to_owned(), source };
            let read = Kubeconfig::read_from(path).map_err(failed)?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(read, &options).await.map_err(failed)?
        }
        None => Config::incluster().map_err(AccessError::Nowhere)?,
    };
    config.connect_timeout = Some(CONNECT_WITHIN);
    // Watches and fetches have their own patience.
    config.default_retry = false;
    Ok(config)
}
