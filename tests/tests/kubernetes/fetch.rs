//! A pod that is asked for by name, because CNI ADD comes before its watch.

use std::time::{Duration, Instant};

use bulkhead::cluster::object::{Kind, Object, ObjectRef, Pod};
use bulkhead_cni::protocol::PodName;
use lab::apiserver::{Call, Fault, What};

use super::stage::{ALL, Stage, namespace, pod};

fn name(key: &str, uid: Option<&str>) -> PodName {
    let (namespace, name) = key.split_once('/').unwrap();
    PodName { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.map(str::to_owned) }
}

fn known<'s>(stage: &'s Stage, key: &str) -> Option<&'s Pod> {
    let (namespace, name) = key.split_once('/').unwrap();
    let reference = ObjectRef { kind: Kind::Pod, key: bulkhead::cluster::object::Key::new(namespace, name) };
    match stage.seen.objects.get(&reference)? {
        Object::Pod(pod) => Some(pod),
        _ => None,
    }
}

/// A source whose watches of pods and namespaces tell nothing.
fn deaf() -> Stage {
    let mut stage = Stage::synced();
    for resource in ["pods", "namespaces"] {
        stage.api.faults().add(Fault::new(What::Silent).on(resource).at(Call::Watch));
    }
    stage.api.proxy().restart().unwrap();
    let before = stage.api.faults().asked("pods", Call::Watch);
    stage.until_so("deaf", |stage| stage.api.faults().asked("pods", Call::Watch) > before);
    stage
}

#[test]
fn a_pod_that_its_watch_has_not_told_is_known_by_name_with_its_namespace() {
    let mut stage = deaf();
    stage.apply(&namespace("fresh", "red"));
    let made = stage.api.admin().apply(&pod("fresh/late", "node-1", "")).unwrap();
    let uid = made["metadata"]["uid"].as_str().unwrap();
    assert_eq!(stage.fetch(&name("fresh/late", Some(uid))), Ok(()));
    stage.until("known", |seen| seen.has("Pod", "fresh/late") && seen.has("Namespace", "fresh"));
    assert_eq!(known(&stage, "fresh/late").unwrap().uid.as_deref(), Some(uid));
}

#[test]
fn what_was_fetched_is_not_overwritten_by_what_the_watch_tells_of_earlier() {
    let mut stage = deaf();
    for label in ["one", "two", "three"] {
        let mut pod = pod("shop/late", "node-1", "");
        pod["metadata"]["labels"]["app"] = label.into();
        stage.apply(&pod);
    }
    assert_eq!(stage.fetch(&name("shop/late", None)), Ok(()));
    stage.until("known", |seen| seen.has("Pod", "shop/late"));
    stage.seen.updates.clear();
    // Now the watch catches up.
    stage.api.faults().lift();
    stage.apply(&pod("shop/after", "node-1", ""));
    stage.until("caught up", |seen| seen.has("Pod", "shop/after"));
    let told = stage.seen.updates.concat();
    assert_eq!(told.len(), 1, "only what is new: {told:?}");
    assert_eq!(known(&stage, "shop/late").unwrap().labels.get("app").unwrap().as_ref(), "three");
    // And goes on with what comes later.
    stage.delete("Pod", "shop/late");
    stage.until("gone", |seen| !seen.has("Pod", "shop/late"));
}

#[test]
fn what_was_fetched_is_not_deleted_by_a_list_from_before() {
    let mut stage = deaf();
    // A list of before the pod, told page by page, is under way when the pod is made and fetched.
    stage.api.faults().lift();
    stage.api.faults().add(Fault::new(What::Refuse(410)).on("pods").at(Call::Watch).times(1));
    stage
        .api
        .faults()
        .add(Fault::new(What::Drip(100, Duration::from_millis(30))).on("pods").at(Call::List).times(1));
    let lists = stage.api.faults().asked("pods", Call::List);
    let relists = stage.watch(Kind::Pod).relists;
    stage.api.proxy().restart().unwrap();
    stage.until_so("listing", |stage| stage.api.faults().asked("pods", Call::List) > lists);
    stage.for_a_while(Duration::from_millis(50));
    stage.apply(&pod("shop/late", "node-1", ""));
    assert_eq!(stage.fetch(&name("shop/late", None)), Ok(()));
    stage.until("known", |seen| seen.has("Pod", "shop/late"));
    stage.until_so("listed", |stage| stage.watch(Kind::Pod).relists > relists);
    stage.for_a_while(Duration::from_millis(100));
    assert!(stage.seen.has("Pod", "shop/late"));
    let deleted =
        stage.seen.updates.iter().flatten().filter(|c| matches!(c, bulkhead::source::Change::Delete(_)));
    assert_eq!(deleted.count(), 0);
}

#[test]
fn a_pod_that_was_made_again_under_its_name_replaces_the_old_one() {
    let mut stage = deaf();
    let old = known(&stage, "shop/web-0").unwrap().clone();
    stage.delete("Pod", "shop/web-0");
    let mut again = pod("shop/web-0", "node-1", "");
    again["metadata"]["labels"]["app"] = "other".into();
    let made = stage.api.admin().apply(&again).unwrap();
    let uid = made["metadata"]["uid"].as_str().unwrap().to_owned();
    let refused = stage.fetch(&name("shop/web-0", old.uid.as_deref())).unwrap_err();
    assert!(refused.contains("is another one by now"), "{refused}");
    assert_eq!(stage.fetch(&name("shop/web-0", Some(&uid))), Ok(()));
    stage.until("replaced", |seen| {
        seen.objects
            .values()
            .any(|object| matches!(object, Object::Pod(pod) if pod.uid.as_deref() == Some(&uid)))
    });
    let new = known(&stage, "shop/web-0").unwrap();
    assert_eq!((new.labels.get("app").map(AsRef::as_ref), new.ips.len()), (Some("other"), 0));
    assert_eq!(stage.seen.names(), ALL);
}

#[test]
fn a_pod_that_the_api_server_does_not_know_is_not_waited_for() {
    let mut stage = Stage::synced();
    let error = stage.fetch(&name("shop/nobody", None)).unwrap_err();
    assert!(error.contains("404"), "{error}");
}

#[test]
fn an_api_server_that_is_away_or_silent_is_not_waited_for_long() {
    let mut stage = Stage::synced();
    stage.api.faults().add(Fault::new(What::Hang).at(Call::Get));
    let begun = Instant::now();
    let error = stage.fetch(&name("shop/web-0", None)).unwrap_err();
    assert_eq!(error, "the API server does not answer within 1500 ms");
    assert!(begun.elapsed() >= Duration::from_millis(1500));
    stage.api.proxy().stop();
    let error = stage.fetch(&name("shop/web-0", None)).unwrap_err();
    assert!(error.contains("cannot be reached"), "{error}");
    assert_eq!(stage.seen.names(), ALL);
}
