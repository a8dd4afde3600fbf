//! Connections that break, stall and lie: nothing is lost, and nothing is deleted that is still there.

use std::time::Duration;

use bulkhead::{cluster::object::Kind, source::Change};
use lab::apiserver::{Call, Fault, What};

use super::stage::{ALL, Stage, pod, policy};

fn deletions(stage: &Stage) -> Vec<String> {
    let changes = stage.seen.updates.iter().flatten();
    let deleted = changes.filter_map(|change| match change {
        Change::Delete(reference) => Some(reference.to_string()),
        Change::Upsert(_) => None,
    });
    deleted.collect()
}

/// Makes one thing, changes one and deletes one.
fn change_everything(stage: &Stage) {
    stage.apply(&pod("shop/new", "node-2", "10.244.2.99"));
    stage.apply(&policy("shop/guard", 443));
    stage.delete("Pod", "shop/job");
}

/// What [`change_everything`] does has arrived, and nothing besides.
fn assert_changed(stage: &mut Stage) {
    stage.until("up to date", |seen| {
        let changed = seen.updates.iter().flatten().any(|c| c.kind() == Kind::NetworkPolicy);
        changed && seen.has("Pod", "shop/new") && !seen.has("Pod", "shop/job")
    });
    let want = ALL.map(|name| if name == "Pod shop/job" { "Pod shop/new" } else { name });
    assert_eq!(stage.seen.names(), want);
    assert_eq!(deletions(stage), ["Pod shop/job"]);
    stage.until("without a problem", |seen| seen.problems.is_empty());
}

#[test]
fn an_api_server_that_stops_and_starts_again_has_deleted_nothing() {
    let mut stage = Stage::synced();
    stage.api.proxy().stop();
    stage.until("told of", |seen| seen.problems.len() == 6);
    let problem = &stage.seen.problems()[0];
    assert!(problem.contains("objects cannot be watched") && problem.contains("stays in force"), "{problem}");
    change_everything(&stage); // past the proxy
    stage.for_a_while(Duration::from_millis(300));
    assert_eq!(stage.seen.updates, [] as [Vec<Change>; 0]);
    stage.api.proxy().restart().unwrap();
    assert_changed(&mut stage);
    assert_eq!(stage.watch(Kind::Pod).relists, 0, "the watch went on from where it stood");
}

#[test]
fn watches_that_are_reset_again_and_again_lose_nothing() {
    let mut stage = Stage::synced();
    stage.api.faults().add(Fault::new(What::Reset(700)).at(Call::Watch));
    stage.api.proxy().restart().unwrap();
    for number in 0..12 {
        stage.apply(&pod(&format!("shop/extra-{number}"), "node-2", ""));
        stage.for_a_while(Duration::from_millis(30));
    }
    stage.until("all there", |seen| (0..12).all(|n| seen.has("Pod", &format!("shop/extra-{n}"))));
    assert_eq!(deletions(&stage), [] as [&str; 0]);
    assert!(stage.watch(Kind::Pod).errors > 3, "{:?}", stage.watch(Kind::Pod));
}

#[test]
fn watches_that_end_in_the_middle_of_a_line_lose_nothing() {
    let mut stage = Stage::synced();
    stage.api.faults().add(Fault::new(What::EndAfter(500)).at(Call::Watch).times(30));
    stage.api.proxy().restart().unwrap();
    change_everything(&stage);
    stage.for_a_while(Duration::from_millis(300));
    assert!(stage.api.faults().asked("pods", Call::Watch) > 1);
    stage.api.faults().lift();
    assert_changed(&mut stage);
}

#[test]
fn an_event_that_is_cut_off_is_not_passed_over() {
    let mut stage = Stage::synced();
    stage.api.faults().add(Fault::new(What::Garble("shop")).at(Call::Watch).times(12));
    stage.api.proxy().restart().unwrap();
    change_everything(&stage);
    stage.until_so("noticed", |stage| stage.watch(Kind::Pod).errors > 0);
    assert_changed(&mut stage);
}

#[test]
fn an_event_that_stays_unreadable_leads_to_a_new_list() {
    let mut stage = Stage::synced();
    stage.api.faults().add(Fault::new(What::Garble("shop")).on("pods").at(Call::Watch));
    stage.api.proxy().restart().unwrap();
    change_everything(&stage);
    assert_changed_but_for_watch(&mut stage);
    assert!(stage.watch(Kind::Pod).relists > 0);
}

fn assert_changed_but_for_watch(stage: &mut Stage) {
    stage.until("up to date", |seen| seen.has("Pod", "shop/new") && !seen.has("Pod", "shop/job"));
    assert_eq!(deletions(stage), ["Pod shop/job"]);
}

#[test]
fn events_that_come_twice_do_no_harm() {
    let mut stage = Stage::synced();
    stage.api.faults().add(Fault::new(What::Twice).at(Call::Watch));
    stage.api.proxy().restart().unwrap();
    change_everything(&stage);
    assert_changed(&mut stage);
}

#[test]
fn a_watch_that_falls_silent_without_ending_is_opened_again() {
    let mut stage = Stage::synced();
    stage.api.faults().add(Fault::new(What::Silent).at(Call::Watch).times(6));
    stage.api.proxy().restart().unwrap();
    stage.until_so("silent", |stage| stage.api.faults().asked("pods", Call::Watch) >= 2);
    change_everything(&stage);
    assert_changed(&mut stage);
    assert_eq!(stage.watch(Kind::Pod).relists, 0);
}

#[test]
fn a_watch_without_bookmarks_misses_nothing() {
    let mut stage = Stage::synced();
    stage.api.faults().add(Fault::new(What::NoBookmarks).at(Call::Watch));
    stage.api.proxy().restart().unwrap();
    stage.for_a_while(Duration::from_millis(2500)); // longer than silence is borne
    change_everything(&stage);
    assert_changed(&mut stage);
}

#[test]
fn a_slow_api_server_is_waited_for() {
    let mut stage = Stage::begin(|api| {
        api.faults().add(Fault::new(What::Drip(200, Duration::from_millis(20))));
    });
    stage.until("synced", |seen| seen.synced);
    assert_eq!(stage.seen.names(), ALL);
    stage.seen.updates.clear();
    change_everything(&stage);
    assert_changed(&mut stage);
}

#[test]
fn a_list_that_drips_too_slowly_is_given_up_and_tried_again() {
    let mut stage = Stage::begin(|api| {
        api.faults()
            .add(Fault::new(What::Drip(1, Duration::from_millis(50))).on("pods").at(Call::List).times(1));
        api.faults().add(Fault::new(What::Hang).on("nodes").at(Call::List).times(1));
    });
    stage.until("told of", |seen| seen.problems().iter().any(|problem| problem.contains("silent for 2 s")));
    stage.until("synced", |seen| seen.synced);
    assert_eq!(stage.seen.names(), ALL);
}

#[test]
fn half_a_first_list_is_no_state() {
    let mut stage = Stage::begin(|api| {
        api.faults().add(Fault::new(What::Reset(300)).on("pods").at(Call::NextPage).times(3));
        api.faults().add(Fault::new(What::EndAfter(300)).on("pods").at(Call::NextPage).times(2));
    });
    stage.until_so("given up", |stage| stage.api.faults().asked("pods", Call::NextPage) >= 2);
    // One that was on the first page ends before the list is read to its end.
    stage.delete("Pod", "shop/db");
    stage.until("synced", |seen| seen.synced);
    assert!(stage.api.faults().asked("pods", Call::List) >= 3);
    assert!(!stage.seen.has("Pod", "shop/db"));
    assert_eq!(stage.seen.names().len(), ALL.len() - 1);
}

#[test]
fn half_a_new_list_changes_nothing() {
    let mut stage = Stage::synced();
    // The watches find their version gone, and the new list breaks on its second page.
    stage.api.faults().add(Fault::new(What::Refuse(410)).at(Call::Watch).times(6));
    stage.api.faults().add(Fault::new(What::Reset(300)).on("pods").at(Call::NextPage));
    stage.api.proxy().stop();
    change_everything(&stage);
    stage.api.proxy().restart().unwrap();
    stage.until_so("tried", |stage| stage.api.faults().asked("pods", Call::NextPage) >= 3);
    // Neither is gone what the list has not shown, nor is there what its first page has shown.
    assert!(
        stage.seen.has("Pod", "shop/job") && !stage.seen.has("Pod", "shop/new"),
        "{:?}",
        stage.seen.names()
    );
    stage.api.faults().lift();
    assert_changed(&mut stage);
    let with_pods: Vec<_> =
        stage.seen.updates.iter().filter(|update| update.iter().any(|c| c.kind() == Kind::Pod)).collect();
    assert_eq!(with_pods.len(), 1, "a new list is taken over in one step: {with_pods:?}");
}

#[test]
fn a_version_that_is_gone_in_the_middle_of_a_watch_leads_to_a_new_list() {
    let mut stage = Stage::synced();
    stage.api.faults().add(Fault::new(What::GoneMidway).at(Call::Watch).times(6));
    stage.api.proxy().restart().unwrap();
    change_everything(&stage);
    stage.until_so("listed anew", |stage| stage.watch(Kind::Pod).relists > 0);
    assert_changed(&mut stage);
}

#[test]
fn a_history_that_was_compacted_while_we_were_away_leads_to_a_new_list() {
    let mut stage = Stage::synced();
    let Some(store) = stage.api.store().cloned() else {
        eprintln!("not against a real API server: its history cannot be compacted from here");
        return;
    };
    stage.api.proxy().stop();
    change_everything(&stage);
    store.compact();
    stage.api.proxy().restart().unwrap();
    assert_changed(&mut stage);
    stage.until_so("listed anew", |stage| stage.watches().values().all(|watch| watch.relists == 1));
}

#[test]
fn a_list_whose_rest_has_expired_begins_anew() {
    let mut stage = Stage::begin(|api| {
        api.faults().add(Fault::new(What::Refuse(410)).on("pods").at(Call::NextPage).times(2));
    });
    stage.until("synced", |seen| seen.synced);
    assert_eq!(stage.api.faults().asked("pods", Call::List), 3);
    assert_eq!(stage.seen.names(), ALL);
}

#[test]
fn an_api_server_that_comes_and_goes_ends_up_known_as_it_is() {
    let mut stage = Stage::synced();
    for round in 0..6 {
        stage.api.proxy().stop();
        stage.apply(&pod(&format!("shop/round-{round}"), "node-2", ""));
        stage.for_a_while(Duration::from_millis(30));
        stage.api.proxy().restart().unwrap();
        stage.for_a_while(Duration::from_millis(30));
        if round > 0 {
            stage.delete("Pod", &format!("shop/round-{}", round - 1));
        }
    }
    change_everything(&stage);
    stage.until("up to date", |seen| {
        seen.has("Pod", "shop/round-5") && !seen.has("Pod", "shop/round-4") && seen.has("Pod", "shop/new")
    });
    stage.until("up to date", |seen| !seen.has("Pod", "shop/job") && seen.problems.is_empty());
    assert!(stage.seen.names().iter().filter(|name| name.contains("round")).count() == 1);
}
