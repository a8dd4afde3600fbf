//! An API server that says no: what was known stays, and what was never read is waited for.

use std::time::Duration;

use bulkhead::cluster::object::Kind;
use lab::apiserver::{Call, Fault, What};

use super::stage::{ALL, Stage, pod};

#[test]
fn errors_of_the_server_are_tried_again() {
    for code in [429, 500, 503, 504] {
        let mut stage = Stage::begin(|api| {
            api.faults().add(Fault::new(What::Refuse(code)).at(Call::List).times(8));
            api.faults().add(Fault::new(What::Refuse(code)).at(Call::NextPage).times(2));
            api.faults().add(Fault::new(What::Refuse(code)).at(Call::Watch).times(8));
        });
        stage.until("synced", |seen| seen.synced);
        assert_eq!(stage.seen.names(), ALL, "{code}");
        stage.apply(&pod("shop/new", "node-2", ""));
        stage.until("watched", |seen| seen.has("Pod", "shop/new"));
        assert!(stage.watches().values().map(|watch| watch.errors).sum::<u64>() >= 18, "{code}");
    }
}

#[test]
fn a_kind_that_may_not_be_read_keeps_the_source_from_being_synced() {
    let mut stage = Stage::begin(|api| api.faults().add(Fault::new(What::Refuse(403)).on("networkpolicies")));
    stage.until("told of", |seen| !seen.problems.is_empty());
    stage.until_so("the rest read", |stage| {
        stage.watches().iter().filter(|(_, watch)| watch.synced).count() == 5
    });
    stage.for_a_while(Duration::from_millis(300));
    assert!(!stage.seen.synced);
    assert_eq!(
        stage.seen.problems(),
        [
            "API server: NetworkPolicy objects cannot be watched: the API server answers: said the proxy (403) \
             (until they are read nothing new is enforced and no pod is admitted)"
        ]
    );
    stage.api.faults().lift();
    stage.until("synced", |seen| seen.synced && seen.problems.is_empty());
    assert_eq!(stage.seen.names(), ALL);
}

#[test]
fn a_kind_that_may_no_longer_be_read_stays_as_it_was() {
    let mut stage = Stage::synced();
    stage.api.faults().add(Fault::new(What::Refuse(403)).on("networkpolicies"));
    stage.api.proxy().restart().unwrap();
    stage.until("told of", |seen| seen.problems().iter().any(|problem| problem.contains("(403)")));
    stage.delete("NetworkPolicy", "shop/guard");
    stage.apply(&pod("shop/new", "node-2", ""));
    stage.until("the others go on", |seen| seen.has("Pod", "shop/new"));
    stage.for_a_while(Duration::from_millis(300));
    assert!(stage.seen.synced && stage.seen.has("NetworkPolicy", "shop/guard"));
    let problems = stage.seen.problems();
    assert!(
        problems.iter().all(|p| p.contains("NetworkPolicy") && p.contains("stays in force")),
        "{problems:?}"
    );
    assert!(!stage.watch(Kind::NetworkPolicy).connected && stage.watch(Kind::Pod).connected);
    stage.api.faults().lift();
    stage.until("read again", |seen| !seen.has("NetworkPolicy", "shop/guard") && seen.problems.is_empty());
}

#[test]
fn a_token_that_has_expired_is_read_again() {
    let mut stage = Stage::synced();
    stage.api.faults().accept_only("the-next-token");
    stage.api.proxy().restart().unwrap();
    stage.until("told of", |seen| seen.problems().iter().any(|problem| problem.contains("(401)")));
    stage.delete("Pod", "shop/job");
    stage.for_a_while(Duration::from_millis(300));
    assert_eq!(stage.seen.names(), ALL, "what was known stays");
    let refused = stage.api.faults().unauthorized();
    assert!(refused < 200, "{refused} requests with a token that is no good");
    stage.kubeconfig.write_token("the-next-token").unwrap();
    stage.until("watched again", |seen| !seen.has("Pod", "shop/job") && seen.problems.is_empty());
    assert_eq!(stage.watch(Kind::Pod).relists, 0);
}
