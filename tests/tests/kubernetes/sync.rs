//! Everything is read, as the manifests source would read it, and changes arrive as they happen.

use std::time::Duration;

use bulkhead::{
    cluster::object::Kind,
    source::{Change, manifest},
};

use super::stage::{ALL, Stage, namespace, pod, policy};

#[test]
fn all_that_there_is_becomes_known_in_pages_and_then_the_source_is_synced() {
    let stage = Stage::synced();
    assert_eq!((stage.seen.names(), stage.seen.problems()), (ALL.map(str::to_owned).to_vec(), vec![]));
    for (kind, watch) in stage.watches() {
        assert_eq!((watch.synced, watch.relists, watch.last_error), (true, 0, None), "{kind}");
    }
    // Four pods are more than a page of three.
    assert_eq!(stage.api.faults().asked("pods", lab::apiserver::Call::NextPage), 1);
}

#[test]
fn objects_are_the_same_as_from_manifests() {
    let stage = Stage::synced();
    let directory = tempfile::tempdir().unwrap();
    for (number, object) in super::stage::cluster().iter().enumerate() {
        // As the API server has them: with UIDs and defaults.
        let kind = object["kind"].as_str().unwrap();
        let name = object["metadata"]["name"].as_str().unwrap();
        let key = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        };
        let stored = stage.api.admin().get(kind, &key).unwrap();
        std::fs::write(directory.path().join(format!("{number}.json")), stored.to_string()).unwrap();
    }
    let loaded = manifest::load(&[directory.path().to_owned()]);
    assert_eq!(loaded.problems, []);
    for located in loaded.objects {
        let mut object = located.object;
        if let bulkhead::cluster::object::Object::Pod(pod) = &mut object
            && pod.node.as_deref() != Some(super::stage::NODE)
        {
            pod.uid = None; // of other nodes' pods nobody asks for it
        }
        assert_eq!(stage.seen.objects.get(&object.reference()), Some(&object));
    }
}

#[test]
fn what_is_made_changed_and_deleted_is_told() {
    let mut stage = Stage::synced();
    stage.apply(&pod("shop/new", "node-2", ""));
    stage.until("there", |seen| seen.has("Pod", "shop/new"));
    let before = stage.seen.objects.clone();
    stage.apply(&pod("shop/new", "node-2", "10.244.2.12"));
    stage.until("changed", |seen| seen.objects != before);
    stage.delete("Pod", "shop/new");
    stage.delete("NetworkPolicy", "shop/guard");
    stage.until("gone", |seen| !seen.has("Pod", "shop/new") && !seen.has("NetworkPolicy", "shop/guard"));
}

#[test]
fn changes_that_come_together_are_told_together() {
    let mut stage = Stage::synced();
    let pods = (0..60).map(|number| pod(&format!("shop/many-{number}"), "node-2", ""));
    stage.api.admin().apply_all(pods).unwrap();
    stage.until("all there", |seen| seen.objects.len() >= ALL.len() + 60 && seen.has("Pod", "shop/many-59"));
    let changes: usize = stage.seen.updates.iter().map(Vec::len).sum();
    assert!(changes >= 60, "{changes}");
    assert!(stage.seen.updates.len() <= 30, "{} updates for {changes} changes", stage.seen.updates.len());
}

#[test]
fn a_write_that_changes_nothing_we_read_is_no_news() {
    let mut stage = Stage::synced();
    let events = |stage: &Stage| stage.watch(Kind::Pod).events;
    let before = events(&stage);
    stage.api.admin().edit("Pod", "shop/db", |pod| pod["status"]["message"] = "still well".into()).unwrap();
    stage.until_so("told by the API server", |stage| events(stage) > before);
    stage.apply(&pod("shop/new", "node-2", ""));
    stage.until("told", |seen| seen.has("Pod", "shop/new"));
    let [change] = &stage.seen.updates.concat()[..] else { panic!("{:?}", stage.seen.updates) };
    assert!(matches!(change, Change::Upsert(object) if &*object.reference().key.name == "new"), "{change:?}");
}

#[test]
fn a_watch_that_has_nothing_to_tell_but_bookmarks_stays_open() {
    let mut stage = Stage::synced();
    stage.until_so("watched", |stage| stage.watches().values().all(|watch| watch.connected));
    let opened = stage.api.faults().asked("nodes", lab::apiserver::Call::Watch);
    stage.for_a_while(Duration::from_secs(3)); // more than its patience with silence
    if stage.api.store().is_none() {
        return; // a real API server's bookmarks are a minute apart, and reopening is right
    }
    assert_eq!(stage.api.faults().asked("nodes", lab::apiserver::Call::Watch), opened);
    assert_eq!(stage.watch(Kind::Node).errors, 0);
}

#[test]
fn policies_that_a_newer_api_server_may_send_isolate_and_are_told() {
    let mut stage = Stage::synced();
    let Some(store) = stage.api.store().cloned() else {
        eprintln!("not against a real API server: it refuses what it does not know");
        return;
    };
    let mut strange = policy("shop/strange", 80);
    strange["spec"]["ingress"][0]["from"] = serde_json::json!([{"serviceSelector": {}}]);
    let resource = lab::apiserver::Resource::of_kind("NetworkPolicy").unwrap();
    store.put(resource, strange, true).unwrap();
    stage.until("told", |seen| !seen.problems.is_empty());
    assert_eq!(
        stage.seen.problems(),
        ["API server: NetworkPolicy shop/strange: spec.ingress[0].from[0].serviceSelector: unknown field \
             (its pods stay isolated for ingress; the unreadable part admits nothing)"]
    );
    stage.delete("NetworkPolicy", "shop/strange");
    stage.until("over", |seen| seen.problems.is_empty() && !seen.has("NetworkPolicy", "shop/strange"));
    stage.apply(&namespace("later", "red"));
    stage.until("told", |seen| seen.has("Namespace", "later"));
}
