//! The API server as a source.
//!
//! ```text
//! watch (one task per kind) ─ News ─▶ collect (mirror) ─ Update ─▶ agent
//! fetch (one pod, at ADD) ─── News ─▶                  ─ Fetched ▶
//! ```
//! Every kind is listed in pages and then watched; a watch that breaks goes on from where it stood, and one that
//! cannot is listed anew. What that means for enforcement is the business of `mirror`.
//!
//! Why not kube's own `watcher`: on an event that it cannot decode it goes on behind it, and the change is lost
//! until the next list. Here whatever does not decode ends the watch, which goes on from the last good event.

use std::{path::Path, time::Duration};

use bulkhead_cni::protocol::PodName;
use tokio::sync::{mpsc, oneshot, watch as flag};

use self::{
    access::Access,
    collect::Collector,
    mirror::KINDS,
    watch::{Follower, News},
};
use super::Update;
use crate::cluster::object::{Key, Kind};

mod access;
mod call;
mod collect;
mod health;
mod item;
mod keep;
mod mirror;
mod offline;
mod pace;
mod version;
mod watch;

pub use access::AccessError;
pub use call::read_event;
pub use health::{Health, WatchStatus};
pub use offline::Offline;
pub use pace::Pace;

/// News that the collector has not taken yet; a page is one.
const UNTAKEN: usize = 64;
/// How long other kinds wait for the namespaces, without which pods have to be kept back.
const NAMESPACES_FIRST: Duration = Duration::from_secs(5);

/// Answer to [`Kubernetes::fetch`]; what was fetched is in an [`Update`] that was sent before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    pub pod: PodName,
    /// Why the pod is not known better than before.
    pub result: Result<(), String>,
}

/// A running source. Its tasks end when the receiver of its updates is dropped.
pub struct Kubernetes {
    access: Access,
    pace: Pace,
    health: Health,
    news: mpsc::Sender<(Kind, News)>,
    fetched: mpsc::Sender<Fetched>,
}

impl Kubernetes {
    /// Watches the API server of this kubeconfig, else that of the cluster in which this process is a pod. Returns
    /// at once, whether or not the API server answers.
    pub async fn start(
        kubeconfig: Option<&Path>,
        node: &str,
        pace: Pace,
        updates: mpsc::Sender<Update>,
        fetched: mpsc::Sender<Fetched>,
    ) -> Result<Self, AccessError> {
        let access = Access::new(kubeconfig).await?;
        let health = Health::default();
        let (news_in, news) = mpsc::channel(UNTAKEN);
        let (namespaces, namespaces_listed) = flag::channel(false);
        let collector = Collector::new(node, pace, health.clone(), updates, namespaces);
        tokio::spawn(collector.run(news));
        for kind in KINDS {
            health.note(kind, |_| {});
            let follower = Follower { kind, access: access.clone(), pace, news: news_in.clone() };
            let mut namespaces_listed = namespaces_listed.clone();
            tokio::spawn(async move {
                if kind == Kind::Pod {
                    let listed = namespaces_listed.wait_for(|listed| *listed);
                    let _ = tokio::time::timeout(NAMESPACES_FIRST, listed).await;
                }
                follower.run().await;
            });
        }
        Ok(Self { access, pace, health, news: news_in, fetched })
    }

    /// Where the API server is.
    pub fn server(&self) -> &str {
        self.access.server()
    }

    pub fn client(&self) -> kube::Client {
        self.access.client()
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Asks for one pod and its namespace by name. The answer comes within [`Pace::fetch`].
    pub fn fetch(&self, pod: PodName) {
        let (access, news, fetched) = (self.access.clone(), self.news.clone(), self.fetched.clone());
        let within = self.pace.fetch;
        tokio::spawn(async move {
            let result = match tokio::time::timeout(within, fetch(&access, &pod, &news)).await {
                Ok(result) => result,
                Err(_) => Err(format!("the API server does not answer within {} ms", within.as_millis())),
            };
            let _ = fetched.send(Fetched { pod, result }).await; // the agent may be ending
        });
    }
}

async fn fetch(access: &Access, pod: &PodName, news: &mpsc::Sender<(Kind, News)>) -> Result<(), String> {
    let client = access.client();
    let (pod_key, namespace_key) = (Key::new(&pod.namespace, &pod.name), Key::new("", &pod.namespace));
    let (namespace, item) = tokio::try_join!(
        call::object(&client, Kind::Namespace, &namespace_key),
        call::object(&client, Kind::Pod, &pod_key),
    )
    .map_err(|error| error.to_string())?;
    if let (Some(crate::cluster::object::Object::Pod(found)), Some(wanted)) = (&item.object, &pod.uid)
        && found.uid.as_deref().is_some_and(|uid| uid != wanted)
    {
        return Err(format!("pod {pod_key} is another one by now, not {wanted}"));
    }
    let ending = "the agent is ending";
    let (told, all_told) = oneshot::channel();
    news.send((Kind::Pod, News::Fetched(vec![namespace, item], told))).await.map_err(|_| ending)?;
    all_told.await.map_err(|_| ending.to_owned())
}

#[cfg(test)]
mod tests;
