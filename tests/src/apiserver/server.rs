//! The lab's own API server: the part of Kubernetes' HTTP interface that a source and a test need.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use futures::stream;
use serde_json::{Value, json};

use super::{
    resource::{Resource, Target},
    store::{Changed, Json, Refusal, Store},
    task::Task,
};

/// Between two bookmarks of a watch that has nothing else to tell; Kubernetes: about a minute.
const BOOKMARKS: Duration = Duration::from_millis(500);

/// Serves HTTP on the loopback device until dropped.
#[derive(Debug)]
pub struct Server {
    store: Arc<Store>,
    task: Task,
}

impl Server {
    pub fn start() -> Result<Self> {
        let store = Arc::new(Store::default());
        let app = Router::new().fallback(serve).with_state(Arc::clone(&store));
        let task = Task::serve("apiserver", || Ok(std::net::TcpListener::bind("127.0.0.1:0")?), app)?;
        Ok(Self { store, task })
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub fn address(&self) -> SocketAddr {
        self.task.address()
    }
}

type Parameters = BTreeMap<String, String>;

async fn serve(State(store): State<Arc<Store>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let parameters = parameters(uri.query().unwrap_or_default());
    answer(&store, &method, uri.path(), &parameters, &body).unwrap_or_else(|refusal| {
        let code = StatusCode::from_u16(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json_response(code, refusal.body().to_string())
    })
}

/// None of those that are read here needs an escape.
fn parameters(query: &str) -> Parameters {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn answer(
    store: &Arc<Store>,
    method: &Method,
    path: &str,
    parameters: &Parameters,
    body: &[u8],
) -> Result<Response, Refusal> {
    let nothing = || Refusal::new(404, "NotFound", "the server could not find the requested resource");
    let target = Target::parse(path).ok_or_else(nothing)?;
    let Target { resource, namespace, name, status } = target;
    let scope = namespace.as_deref();
    let parse =
        || serde_json::from_slice::<Value>(body).map_err(|e| Refusal::new(400, "BadRequest", e.to_string()));
    let ok = |json: Json| json_response(StatusCode::OK, json.to_string());
    match (method.as_str(), name) {
        ("GET", None) if parameters.get("watch").is_some_and(|w| w == "true" || w == "1") => {
            Ok(watch(Arc::clone(store), resource, namespace, parameters))
        }
        ("GET", None) => list(store, resource, scope, parameters),
        ("GET", Some(name)) => Ok(ok(store.get(resource, scope.unwrap_or_default(), &name)?)),
        ("POST", None) => {
            let mut object = parse()?;
            if resource.namespaced {
                object["metadata"]["namespace"] = scope.unwrap_or("default").into();
            }
            object.as_object_mut().map(|object| object.remove("status"));
            Ok(json_response(StatusCode::CREATED, store.put(resource, object, true)?.to_string()))
        }
        ("PUT", Some(name)) => {
            let known = parsed(&store.get(resource, scope.unwrap_or_default(), &name)?);
            Ok(ok(store.put(resource, merged(known, parse()?, status), false)?))
        }
        ("PATCH", Some(name)) => {
            let known = parsed(&store.get(resource, scope.unwrap_or_default(), &name)?);
            let mut patched = known.clone();
            patch(&mut patched, &parse()?);
            Ok(ok(store.put(resource, merged(known, patched, status), false)?))
        }
        ("DELETE", Some(name)) => Ok(ok(store.delete(resource, scope.unwrap_or_default(), &name)?)),
        _ => Err(Refusal::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )),
    }
}

fn parsed(json: &Json) -> Value {
    serde_json::from_str(json).expect("the store holds JSON")
}

/// The status is changed by itself, and nothing else with it.
fn merged(known: Value, new: Value, status: bool) -> Value {
    let (mut base, other) = if status { (known, new) } else { (new, known) };
    match other.get("status") {
        Some(value) => base["status"] = value.clone(),
        None => _ = base.as_object_mut().map(|base| base.remove("status")),
    }
    base
}

/// RFC 7386.
fn patch(target: &mut Value, patch_: &Value) {
    let Value::Object(changes) = patch_ else {
        *target = patch_.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, change) in changes {
        if change.is_null() {
            target.as_object_mut().map(|target| target.remove(key));
        } else {
            patch(&mut target[key], change);
        }
    }
}

fn list(
    store: &Store,
    resource: Resource,
    namespace: Option<&str>,
    parameters: &Parameters,
) -> Result<Response, Refusal> {
    let limit = parameters.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(0);
    let next = parameters.get("continue").filter(|next| !next.is_empty());
    let page = store.list(resource, namespace, limit, next.map(String::as_str))?;
    let mut metadata = json!({"resourceVersion": page.version.to_string()});
    if let Some(next) = &page.next {
        metadata["continue"] = next.as_str().into();
        metadata["remainingItemCount"] = page.left.into();
    }
    let head = json!({
        "kind": format!("{}List", resource.kind), "apiVersion": resource.api_version, "metadata": metadata,
    });
    let head = head.to_string();
    let mut body = String::with_capacity(page.items.iter().map(|item| item.len() + 1).sum::<usize>() + 200);
    body.push_str(head.trim_end_matches('}'));
    body.push_str("},\"items\":[");
    for (place, item) in page.items.iter().enumerate() {
        if place > 0 {
            body.push(',');
        }
        body.push_str(item);
    }
    body.push_str("]}");
    Ok(json_response(StatusCode::OK, body))
}

struct Watching {
    store: Arc<Store>,
    resource: Resource,
    namespace: Option<String>,
    version: u64,
    bookmarks: bool,
    ends: Instant,
    over: bool,
}

fn watch(
    store: Arc<Store>,
    resource: Resource,
    namespace: Option<String>,
    parameters: &Parameters,
) -> Response {
    let number = |name: &str| parameters.get(name).and_then(|text| text.parse().ok());
    let changed = store.changed();
    let state = Watching {
        store,
        resource,
        namespace,
        version: number("resourceVersion").unwrap_or(0),
        bookmarks: parameters.get("allowWatchBookmarks").is_some_and(|b| b == "true"),
        ends: Instant::now() + Duration::from_secs(number("timeoutSeconds").unwrap_or(300)),
        over: false,
    };
    let lines = stream::unfold((state, changed), |(mut state, mut changed)| async move {
        loop {
            changed.mark_unchanged();
            if let Some(lines) = state.next() {
                return Some((Ok::<_, Infallible>(lines), (state, changed)));
            }
            if state.over {
                return None;
            }
            let left = state.ends.saturating_duration_since(Instant::now());
            if tokio::time::timeout(BOOKMARKS.min(left), changed.changed()).await.is_err() {
                if left <= BOOKMARKS {
                    return None;
                }
                if let Some(line) = state.bookmark() {
                    return Some((Ok(line), (state, changed)));
                }
            }
        }
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
}

impl Watching {
    fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        match self.store.since(self.resource, self.version) {
            Ok((changes, version)) => {
                self.version = version;
                let fits = |changed: &&Changed| {
                    self.namespace.as_ref().is_none_or(|namespace| changed.namespace == *namespace)
                };
                let lines: String = changes.iter().filter(fits).map(line).collect();
                (!lines.is_empty()).then(|| lines.into())
            }
            Err(refusal) => {
                self.over = true;
                Some(format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", refusal.body()).into())
            }
        }
    }

    fn bookmark(&self) -> Option<Bytes> {
        let object = json!({
            "kind": self.resource.kind, "apiVersion": self.resource.api_version,
            "metadata": {"resourceVersion": self.version.to_string(), "creationTimestamp": null},
        });
        self.bookmarks.then(|| format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n").into())
    }
}

fn line(changed: &Changed) -> String {
    format!("{{\"type\":\"{}\",\"object\":{}}}\n", changed.what, changed.object)
}

fn json_response(code: StatusCode, body: String) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
