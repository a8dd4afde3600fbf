//! Six watches that are not in step: what one of them tells too early or too late opens nothing.

use std::time::Duration;

use bulkhead::{
    cluster::{
        Index, Owner,
        object::{Kind, Object},
    },
    source::Change,
};
use lab::apiserver::{Call, Fault, What};

use super::stage::{NODE, Stage, namespace, pod};

/// One kind's watch tells nothing for now.
fn deafen(stage: &mut Stage, resource: &'static str) {
    stage.api.faults().add(Fault::new(What::Silent).on(resource).at(Call::Watch));
    let before = stage.api.faults().asked(resource, Call::Watch);
    stage.api.proxy().restart().unwrap();
    stage.until_so("deaf", |stage| stage.api.faults().asked(resource, Call::Watch) > before);
}

#[test]
fn a_pod_is_not_known_before_its_namespace_whose_tenant_it_has() {
    let mut stage = Stage::synced();
    deafen(&mut stage, "namespaces");
    stage.apply(&namespace("fresh", "red"));
    stage.apply(&pod("fresh/web", "node-2", "10.244.2.50"));
    stage.apply(&pod("shop/marker", "node-2", ""));
    stage.until("told of later pods", |seen| seen.has("Pod", "shop/marker"));
    stage.for_a_while(Duration::from_millis(100));
    assert!(!stage.seen.has("Pod", "fresh/web"));
    stage.api.faults().lift();
    stage.until("known", |seen| seen.has("Pod", "fresh/web"));
    assert!(stage.seen.has("Namespace", "fresh"));
}

#[test]
fn a_namespace_is_not_forgotten_before_its_last_pod() {
    let mut stage = Stage::synced();
    stage.apply(&namespace("brief", "red"));
    stage.apply(&pod("brief/web", "node-2", "10.244.2.50"));
    stage.until("known", |seen| seen.has("Pod", "brief/web"));
    deafen(&mut stage, "pods");
    stage.delete("Pod", "brief/web");
    stage.delete("Namespace", "brief");
    stage.apply(&namespace("marker", "red"));
    stage.until("told of later namespaces", |seen| seen.has("Namespace", "marker"));
    stage.for_a_while(Duration::from_millis(100));
    assert!(stage.seen.has("Namespace", "brief") && stage.seen.has("Pod", "brief/web"));
    stage.api.faults().lift();
    stage.until("gone", |seen| !seen.has("Namespace", "brief") && !seen.has("Pod", "brief/web"));
}

/// Who owns the address after each update.
fn owners(stage: &Stage, first: &[Object], address: &str) -> Vec<String> {
    let mut index = Index::new(Some(NODE.to_owned()));
    for object in first {
        index.apply(object.clone());
    }
    let owner = |index: &Index| match index.owner(address.parse().unwrap()) {
        Some(Owner::Pod(pod)) => pod.key.to_string(),
        Some(Owner::Contested) => "contested".to_owned(),
        Some(_) => "a node".to_owned(),
        None => "nobody".to_owned(),
    };
    let mut owners = vec![owner(&index)];
    for update in &stage.seen.updates {
        for change in update.clone() {
            match change {
                Change::Upsert(object) => _ = index.apply(object),
                Change::Delete(reference) => _ = index.delete(&reference),
            }
        }
        owners.push(owner(&index));
    }
    owners.dedup();
    owners
}

type Act = fn(&Stage, &serde_json::Value);

#[test]
fn an_address_that_moves_is_contested_or_nobodys_but_never_the_wrong_pods() {
    const ADDRESS: &str = "10.244.2.10"; // of shop/web-1
    let heir = pod("shop/heir", "node-2", ADDRESS);
    let cases: [(&str, Act, &[&[&str]]); 4] = [
        (
            "the old pod's end is told after the new pod's address",
            |stage, heir| {
                stage.apply(heir);
                stage.delete("Pod", "shop/web-1");
            },
            &[&["shop/web-1", "contested", "shop/heir"], &["shop/web-1", "shop/heir"]],
        ),
        (
            "the old pod has ended before",
            |stage, heir| {
                stage.delete("Pod", "shop/web-1");
                stage.apply(heir);
            },
            &[&["shop/web-1", "nobody", "shop/heir"], &["shop/web-1", "shop/heir"]],
        ),
        (
            "the old pod has run to completion and stays as an object",
            |stage, heir| {
                let done = |pod: &mut serde_json::Value| pod["status"]["phase"] = "Succeeded".into();
                stage.api.admin().edit("Pod", "shop/web-1", done).unwrap();
                stage.apply(heir);
            },
            &[&["shop/web-1", "nobody", "shop/heir"], &["shop/web-1", "shop/heir"]],
        ),
        (
            "the old pod is made again under its name, without the address",
            |stage, heir| {
                stage.delete("Pod", "shop/web-1");
                stage.apply(&pod("shop/web-1", "node-2", ""));
                stage.apply(heir);
            },
            &[&["shop/web-1", "nobody", "shop/heir"], &["shop/web-1", "shop/heir"]],
        ),
    ];
    for (case, act, allowed) in cases {
        for cut_off in [false, true] {
            let mut stage = Stage::synced();
            let first: Vec<Object> = stage.seen.objects.values().cloned().collect();
            if cut_off {
                stage.api.proxy().stop();
            }
            act(&stage, &heir);
            if cut_off {
                stage.api.store().inspect(|store| store.compact()); // so that a list tells it
                stage.api.proxy().restart().unwrap();
            }
            let is_over = |stage: &Stage| owners(stage, &first, ADDRESS).last().unwrap() == "shop/heir";
            stage.until_so(case, is_over);
            let owners = owners(&stage, &first, ADDRESS);
            let owners: Vec<&str> = owners.iter().map(String::as_str).collect();
            assert!(allowed.contains(&&owners[..]), "{case}: {owners:?}");
        }
    }
}

#[test]
fn of_a_new_list_the_end_of_one_pod_and_the_address_of_the_next_are_one_step() {
    let mut stage = Stage::synced();
    let Some(store) = stage.api.store().cloned() else {
        eprintln!("not against a real API server: its history cannot be compacted from here");
        return;
    };
    let first: Vec<Object> = stage.seen.objects.values().cloned().collect();
    stage.api.proxy().stop();
    stage.apply(&pod("shop/aaa-heir", "node-2", "10.244.2.11"));
    stage.delete("Pod", "shop/job");
    store.compact();
    stage.api.proxy().restart().unwrap();
    stage.until("told", |seen| seen.has("Pod", "shop/aaa-heir"));
    assert_eq!(owners(&stage, &first, "10.244.2.11"), ["shop/job", "shop/aaa-heir"]);
    assert!(stage.watch(Kind::Pod).relists == 1);
}
