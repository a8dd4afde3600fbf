//! Tells the API server, slowly: a warning that comes and goes, or a thousand at once, must cost it little.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{Namespace, Node, ObjectReference, Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client, Resource,
    core::{ApiResource, DynamicObject},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use sha2::{Digest, Sha256};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::Warning;
use crate::{
    cluster::object::{Kind, ObjectRef},
    metrics::Meters,
};

/// How often is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The first word of an agent waits up to this long, by its node's name: a broken policy that comes while all
    /// agents start is no reason for all to speak at once.
    pub jitter: Duration,
    /// Between two requests to the API server.
    pub gap: Duration,
    /// A condition whose words have changed is told again after this: later than the recorder's six minutes, within
    /// which it counts under the old words.
    pub change: Duration,
    /// One that stays is told again after this: the API server forgets Events after an hour.
    pub repeat: Duration,
    /// Rest after a failure, doubled by each further one, eightfold at most.
    pub rest: Duration,
    /// For one answer.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            jitter: Duration::from_secs(10),
            gap: Duration::from_secs(2),
            change: Duration::from_mins(7),
            repeat: Duration::from_mins(30),
            rest: Duration::from_secs(30),
            patience: Duration::from_secs(10),
        }
    }
}

/// What was said last about a condition, and when.
struct Told {
    note: String,
    at: Instant,
}

/// Where the agent puts what is to be told, from an API server's client; `None`: nobody to tell (manifests), and
/// warnings are in status and metrics alone. Must be called inside a tokio runtime.
pub fn start(
    client: Option<Client>,
    node: &str,
    meters: &Meters,
) -> Option<watch::Sender<BTreeSet<Warning>>> {
    let (wanted, seen) = watch::channel(BTreeSet::new());
    tokio::spawn(run(client?, node.to_owned(), seen, meters.clone(), Pace::default()));
    Some(wanted)
}

/// Publishes what `wanted` holds until its sender is gone. Without rights to write Events it tries rarely, and says so
/// in the log and in `bulkhead_events_total`.
pub async fn run(
    client: Client,
    node: String,
    mut wanted: watch::Receiver<BTreeSet<Warning>>,
    meters: Meters,
    pace: Pace,
) {
    sleep(delay(&node, pace.jitter)).await;
    let reporter = Reporter { controller: "bulkhead".to_owned(), instance: Some(node) };
    let recorder = Recorder::new(client.clone(), reporter);
    let mut told: BTreeMap<(ObjectRef, &'static str), Told> = BTreeMap::new();
    let mut failures = 0;
    loop {
        let now = Instant::now();
        // Kept beyond the condition's end: one that flaps is not news each time.
        told.retain(|_, said| now - said.at < pace.repeat);
        let next =
            wanted.borrow_and_update().iter().find(|warning| is_due(warning, &told, now, &pace)).cloned();
        let Some(warning) = next else {
            let due = told.values().map(|said| said.at + pace.change).filter(|at| *at > now).min();
            let wait = due.unwrap_or(now + pace.repeat).saturating_duration_since(now).max(pace.gap);
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                () = sleep(wait) => {}
            }
            continue;
        };
        match timeout(pace.patience, tell(&client, &recorder, &warning)).await {
            Ok(Ok(outcome)) => {
                failures = 0;
                meters.event(outcome);
                told.insert(key(&warning), Told { note: warning.note, at: Instant::now() });
                sleep(pace.gap).await;
            }
            failed => {
                meters.event("failed");
                let error = failed.map_or_else(
                    |_| "no answer in time".to_owned(),
                    |result| result.err().map(|error| error.to_string()).unwrap_or_default(),
                );
                tracing::warn!(about = %warning.about, reason = warning.reason, error, "an Event was not written");
                sleep(pace.rest * 2_u32.pow(failures)).await;
                failures = (failures + 1).min(3);
            }
        }
        if wanted.has_changed().is_err() {
            return;
        }
    }
}

fn key(warning: &Warning) -> (ObjectRef, &'static str) {
    (warning.about.clone(), warning.reason)
}

fn is_due(
    warning: &Warning,
    told: &BTreeMap<(ObjectRef, &'static str), Told>,
    now: Instant,
    pace: &Pace,
) -> bool {
    told.get(&key(warning)).is_none_or(|said| said.note != warning.note && now - said.at >= pace.change)
}

/// Between nothing and `most`, always the same for a node.
fn delay(node: &str, most: Duration) -> Duration {
    let [share, ..]: [u8; 32] = Sha256::digest(node).into();
    most.mul_f64(f64::from(share) / 255.0)
}

/// `sent`, or `suppressed` if the object is gone.
async fn tell(client: &Client, recorder: &Recorder, warning: &Warning) -> Result<&'static str, kube::Error> {
    let Some(reference) = reference(client, &warning.about).await? else { return Ok("suppressed") };
    let event = Event {
        type_: EventType::Warning,
        reason: warning.reason.to_owned(),
        note: Some(warning.note.clone()),
        action: warning.action.to_owned(),
        secondary: None,
    };
    recorder.publish(&event, &reference).await?;
    Ok("sent")
}

/// With the object's UID, by which `kubectl describe` finds its Events; it is asked for when there is something to
/// tell, rather than kept for every object. Where reading is forbidden the Event goes without. `None`: the object is
/// gone.
async fn reference(client: &Client, about: &ObjectRef) -> Result<Option<ObjectReference>, kube::Error> {
    let resource = resource(about.kind);
    let (namespace, name) = (about.key.namespace.as_ref(), about.key.name.as_ref());
    let uid = if about.kind == Kind::Node {
        // As the kubelet does: its Events about a node bear the node's name in place of the UID.
        Some(name.to_owned())
    } else {
        let api: Api<DynamicObject> = match namespace {
            "" => Api::all_with(client.clone(), &resource),
            namespace => Api::namespaced_with(client.clone(), namespace, &resource),
        };
        match api.get_metadata_opt(name).await {
            Ok(Some(object)) => object.metadata.uid,
            Ok(None) => return Ok(None),
            Err(kube::Error::Api(status)) if status.is_forbidden() => None,
            Err(error) => return Err(error),
        }
    };
    Ok(Some(ObjectReference {
        api_version: Some(resource.api_version),
        kind: Some(resource.kind),
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()),
        uid,
        ..ObjectReference::default()
    }))
}

fn resource(kind: Kind) -> ApiResource {
    fn of<K: Resource<DynamicType = ()>>() -> ApiResource {
        ApiResource::erase::<K>(&())
    }
    match kind {
        Kind::Namespace => of::<Namespace>(),
        Kind::Pod => of::<Pod>(),
        Kind::Node => of::<Node>(),
        Kind::NetworkPolicy => of::<NetworkPolicy>(),
        Kind::Service => of::<Service>(),
        Kind::EndpointSlice => of::<EndpointSlice>(),
    }
}
