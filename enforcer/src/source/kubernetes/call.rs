//! Single requests: a page of a list, the lines of a watch, one object.

use std::{borrow::Cow, future::Future, io, pin::Pin, time::Duration};

use futures::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use kube::{
    Client,
    api::{ListParams, WatchParams},
    core::{Request, Status, params::GetParams},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::{
    item::{Item, NoItem},
    version::Version,
};
use crate::{
    cluster::object::{Key, Kind},
    source::Change,
};

/// Of a page, in bytes: 500 objects of the largest size that etcd stores by default would be more, but then
/// nobody could read them.
const LARGEST_PAGE: u64 = 256 << 20;
/// Of a watch's event, in bytes; etcd stores 1.5 MiB by default.
const LARGEST_EVENT: u64 = 16 << 20;

/// Why a request did not bring what it was for.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The API server's own answer.
    #[error("the API server answers: {} ({})", .0.message, .0.code)]
    Refused(Box<Status>),
    #[error("the API server cannot be reached: {}", chain(.0))]
    Unreachable(#[source] kube::Error),
    #[error("the connection broke: {0}")]
    Broken(#[source] io::Error),
    #[error("the API server is silent for {} s", .0.as_secs_f32())]
    Silent(Duration),
    #[error(transparent)]
    Malformed(#[from] NoItem),
    #[error("the API server's answer is too large")]
    TooLarge,
}

impl CallError {
    /// What the answer refers to is no longer there: everything has to be listed anew.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 410)
    }

    pub fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 401)
    }

    /// Trying again from the same place may bring the same again.
    pub fn is_about_the_place(&self) -> bool {
        match self {
            Self::Malformed(_) | Self::TooLarge => true,
            // A version that the API server has not come to: after a restore of an older state it never may.
            Self::Refused(status) => status.code == 504 || status.code == 400,
            _ => false,
        }
    }
}

impl From<kube::Error> for CallError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(status),
            error => Self::Unreachable(error),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.dedup_by(|next, last| last.contains(next.as_str()));
    texts.join(": ")
}

/// Where all objects of a kind are.
const fn collection(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace => "/api/v1/namespaces",
        Kind::Pod => "/api/v1/pods",
        Kind::Node => "/api/v1/nodes",
        Kind::Service => "/api/v1/services",
        Kind::NetworkPolicy => "/apis/networking.k8s.io/v1/networkpolicies",
        Kind::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
    }
}

/// Part of a list.
pub(super) struct Page {
    pub items: Vec<Item>,
    pub version: String,
    /// How to ask for the next part; `None`: this is the last one.
    pub next: Option<String>,
}

#[derive(Deserialize)]
struct RawPage<'p> {
    metadata: RawListMetadata,
    /// Null: an empty list, as Go writes it.
    #[serde(borrow)]
    items: Option<Vec<&'p RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawListMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(rename = "continue", default)]
    next: String,
}

/// The first page asks for the latest state, as etcd has it. `resourceVersion=0` would spare etcd, but then the
/// API server passes over the limit and sends everything in one piece (300 MB for 100,000 pods), and after a
/// reconnect to a replica that lags behind it would bring back states that are over.
pub(super) async fn page(
    client: &Client,
    kind: Kind,
    size: u32,
    next: Option<&str>,
    within: Duration,
) -> Result<Page, CallError> {
    let parameters =
        ListParams { limit: Some(size), continue_token: next.map(str::to_owned), ..ListParams::default() };
    let request = Request::new(collection(kind)).list(&parameters).map_err(kube::Error::BuildRequest)?;
    let body = timed(within, async {
        let body = client.request_stream(request).await?;
        read_whole(body).await
    })
    .await?;
    Page::read(kind, &body)
}

impl Page {
    fn read(kind: Kind, body: &[u8]) -> Result<Self, CallError> {
        let raw: RawPage = parse(body)?;
        if raw.metadata.resource_version.is_empty() {
            return Err(NoItem::Object("a list without a resourceVersion".to_owned()).into());
        }
        let items = raw.items.unwrap_or_default();
        let items = items.into_iter().map(|item| Item::read(kind, item.get())).collect::<Result<_, _>>()?;
        let next = Some(raw.metadata.next).filter(|next| !next.is_empty());
        Ok(Self { items, version: raw.metadata.resource_version, next })
    }
}

pub(super) async fn object(client: &Client, kind: Kind, key: &Key) -> Result<Item, CallError> {
    let path = match kind {
        Kind::Namespace | Kind::Node => collection(kind).to_owned(),
        kind => {
            let (root, plural) = collection(kind).rsplit_once('/').expect("a path has slashes");
            format!("{root}/namespaces/{}/{plural}", key.namespace)
        }
    };
    let request = Request::new(path).get(&key.name, &GetParams::default());
    let body = client.request_stream(request.map_err(kube::Error::BuildRequest)?).await?;
    let body = read_whole(body).await?;
    Ok(Item::read(kind, text(&body)?)?)
}

/// What a watch tells next.
#[derive(Debug, PartialEq)]
pub(super) enum Told {
    Upsert(Item, String),
    Delete(Item, String),
    Mark(String),
}

/// An open watch. After an error or its end it is done: what it would tell next may be missing something.
pub(super) struct Watch {
    kind: Kind,
    lines: Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
    /// A healthy API server says something, at least a bookmark, about once in a minute.
    silence: Duration,
}

#[derive(Deserialize)]
struct RawEvent<'e> {
    #[serde(rename = "type", borrow)]
    what: Cow<'e, str>,
    #[serde(borrow)]
    object: &'e RawValue,
}

#[derive(Deserialize)]
struct RawObject<'o> {
    #[serde(borrow)]
    metadata: RawMetadata<'o>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMetadata<'o> {
    #[serde(borrow)]
    resource_version: Cow<'o, str>,
}

impl Watch {
    /// `seconds`: when the API server is to end it.
    pub async fn open(
        client: &Client,
        kind: Kind,
        from: &str,
        seconds: u32,
        within: Duration,
        silence: Duration,
    ) -> Result<Self, CallError> {
        let parameters = WatchParams { timeout: Some(seconds), bookmarks: true, ..WatchParams::default() };
        let request =
            Request::new(collection(kind)).watch(&parameters, from).map_err(kube::Error::BuildRequest)?;
        let lines = timed(within, async { Ok(client.request_stream(request).await?) }).await?;
        Ok(Self { kind, lines: Box::pin(lines), line: Vec::new(), silence })
    }

    /// `None`: the API server ended it, perhaps in the middle of a line.
    pub async fn next(&mut self) -> Result<Option<Told>, CallError> {
        loop {
            self.line.clear();
            let mut bounded = (&mut self.lines).take(LARGEST_EVENT);
            let reading = bounded.read_until(b'\n', &mut self.line);
            timeout(self.silence, reading)
                .await
                .map_err(|_| CallError::Silent(self.silence))?
                .map_err(CallError::Broken)?;
            if self.line.last() != Some(&b'\n') {
                return if self.line.len() as u64 == LARGEST_EVENT {
                    Err(CallError::TooLarge)
                } else {
                    Ok(None)
                };
            }
            if !self.line.trim_ascii().is_empty() {
                return Told::read(self.kind, &self.line).map(Some);
            }
        }
    }
}

impl Told {
    /// One line of a watch.
    pub fn read(kind: Kind, line: &[u8]) -> Result<Self, CallError> {
        let event: RawEvent = parse(line)?;
        let json = event.object.get();
        if event.what == "ERROR" {
            let status: Status = serde_json::from_str(json).map_err(NoItem::Json)?;
            return Err(CallError::Refused(Box::new(status)));
        }
        let metadata = serde_json::from_str::<RawObject>(json).map_err(NoItem::Json)?.metadata;
        let version = metadata.resource_version.into_owned();
        match event.what.as_ref() {
            "ADDED" | "MODIFIED" => Ok(Self::Upsert(Item::read(kind, json)?, version)),
            "DELETED" => Ok(Self::Delete(Item::read(kind, json)?, version)),
            "BOOKMARK" if !version.is_empty() => Ok(Self::Mark(version)),
            other => Err(NoItem::Object(format!("an event {other:?}")).into()),
        }
    }

    /// Where a watch goes on after this.
    pub fn version(&self) -> &str {
        match self {
            Self::Upsert(_, version) | Self::Delete(_, version) | Self::Mark(version) => version,
        }
    }
}

/// What one line of a watch changes; `None`: nothing yet. The error is what status says of it. The fuzzer's way in.
pub fn read_event(kind: Kind, line: &[u8]) -> Result<Option<Change>, String> {
    Ok(match Told::read(kind, line).map_err(|error| error.to_string())? {
        // What is described and not safe to use counts as gone.
        Told::Upsert(Item { object: None, reference, .. }, _) | Told::Delete(Item { reference, .. }, _) => {
            Some(Change::Delete(reference))
        }
        Told::Upsert(Item { object: Some(object), .. }, _) => Some(Change::Upsert(object)),
        Told::Mark(_) => None,
    })
}

impl From<Told> for super::mirror::Event {
    fn from(told: Told) -> Self {
        match told {
            Told::Upsert(item, _) => Self::Upsert(item),
            Told::Delete(item, _) => Self::Delete(item),
            Told::Mark(version) => Self::Mark(Version::new(&version)),
        }
    }
}

async fn read_whole(body: impl AsyncBufRead) -> Result<Vec<u8>, CallError> {
    let mut bytes = Vec::new();
    let body = std::pin::pin!(body);
    body.take(LARGEST_PAGE).read_to_end(&mut bytes).await.map_err(CallError::Broken)?;
    if bytes.len() as u64 == LARGEST_PAGE { Err(CallError::TooLarge) } else { Ok(bytes) }
}

async fn timed<T>(
    within: Duration,
    call: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    timeout(within, call).await.unwrap_or(Err(CallError::Silent(within)))
}

fn text(bytes: &[u8]) -> Result<&str, NoItem> {
    std::str::from_utf8(bytes).map_err(|_| NoItem::Object("it is no UTF-8".to_owned()))
}

fn parse<'b, T: Deserialize<'b>>(bytes: &'b [u8]) -> Result<T, NoItem> {
    Ok(serde_json::from_str(text(bytes)?)?)
}
