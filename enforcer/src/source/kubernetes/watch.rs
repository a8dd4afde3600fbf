//! One kind, listed and watched for ever: whatever fails is tried again, from where it stood.

use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::{
    access::Access,
    call::{self, CallError, Watch},
    item::Item,
    mirror::Event,
    pace::Pace,
    version::Version,
};
use crate::cluster::object::Kind;

/// So often the same place may fail before everything is listed anew.
const ATTEMPTS_AT_A_PLACE: u32 = 3;

/// What a kind's task says.
#[derive(Debug)]
pub(super) enum News {
    Told(Box<Event>),
    /// Objects by name; answered when all that they change was told.
    Fetched(Vec<Item>, oneshot::Sender<()>),
    /// The watch is open: what happens from now on is told as it happens.
    Connected,
    /// It is not open any more.
    Closed,
    Failed(String),
}

/// Nobody listens any more.
struct Over;

pub(super) struct Follower {
    pub kind: Kind,
    pub access: Access,
    pub pace: Pace,
    pub news: mpsc::Sender<(Kind, News)>,
}

enum Ended {
    /// As agreed.
    Politely,
    Failed(CallError),
}

impl Follower {
    /// Returns when nobody listens any more.
    pub async fn run(self) {
        let _over = self.follow().await;
    }

    async fn follow(&self) -> Result<(), Over> {
        let mut from: Option<String> = None;
        let mut pauses = self.pace.pauses();
        let mut attempts = 0;
        loop {
            let begun = Instant::now();
            let place = from.clone();
            let ended = match &mut from {
                Some(version) => self.watch(version).await?,
                None => match self.list().await? {
                    Ok(version) => {
                        from = Some(version);
                        continue;
                    }
                    Err(error) => Ended::Failed(error),
                },
            };
            if begun.elapsed() >= self.pace.good {
                pauses = self.pace.pauses();
            }
            match ended {
                Ended::Politely if begun.elapsed() >= self.pace.good => continue,
                Ended::Politely => self.tell(News::Closed).await?,
                Ended::Failed(error) => {
                    attempts = if error.is_about_the_place() && from == place { attempts + 1 } else { 0 };
                    if error.is_gone() || attempts >= ATTEMPTS_AT_A_PLACE {
                        (from, attempts) = (None, 0);
                    }
                    if error.is_unauthorized() {
                        self.access.renew().await;
                    }
                    // To be told to list anew is no failure.
                    let news = if error.is_gone() { News::Closed } else { News::Failed(error.to_string()) };
                    self.tell(news).await?;
                }
            }
            tokio::time::sleep(pauses.next().expect("there is no last attempt")).await;
        }
    }

    /// A complete list, page by page; its version.
    async fn list(&self) -> Result<Result<String, CallError>, Over> {
        self.told(Event::Begin).await?;
        let (client, mut next) = (self.access.client(), None::<String>);
        loop {
            let Pace { page: size, answer, .. } = self.pace;
            match call::page(&client, self.kind, size, next.as_deref(), answer).await {
                Ok(page) => {
                    self.told(Event::Page(page.items)).await?;
                    next = page.next;
                    if next.is_none() {
                        self.told(Event::End(Version::new(&page.version))).await?;
                        return Ok(Ok(page.version));
                    }
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Watches from a version, and keeps it up to what was told.
    async fn watch(&self, from: &mut String) -> Result<Ended, Over> {
        let (client, seconds) = (self.access.client(), self.pace.watch_seconds());
        let Pace { answer, silence, .. } = self.pace;
        let mut watch = match Watch::open(&client, self.kind, from, seconds, answer, silence).await {
            Ok(watch) => watch,
            Err(error) => return Ok(Ended::Failed(error)),
        };
        self.tell(News::Connected).await?;
        loop {
            match watch.next().await {
                Ok(Some(told)) => {
                    told.version().clone_into(from);
                    self.told(told.into()).await?;
                }
                Ok(None) => return Ok(Ended::Politely),
                Err(error) => return Ok(Ended::Failed(error)),
            }
        }
    }

    async fn told(&self, event: Event) -> Result<(), Over> {
        self.tell(News::Told(Box::new(event))).await
    }

    async fn tell(&self, news: News) -> Result<(), Over> {
        self.news.send((self.kind, news)).await.map_err(|_| Over)
    }
}
