//! By TLS, as the API server of every cluster is reached.

use std::time::Duration;

use bulkhead::cluster::object::Kind;
use lab::apiserver::{Kubeconfig, Tls};
use tempfile::TempDir;

use super::stage::{ALL, Stage};

#[test]
fn a_cluster_is_read_by_tls_and_a_token_that_is_renewed() {
    let dir = TempDir::new().unwrap();
    let mut tls = None;
    let mut stage = Stage::begin_by(|api| {
        api.faults().accept_only("the-first-token");
        let tls = tls.insert(Tls::before(api.proxy().address(), dir.path()).unwrap());
        Kubeconfig::write(dir.path(), &tls.cluster()).unwrap()
    });
    stage.until("synced", |seen| seen.synced);
    assert_eq!(stage.seen.names(), ALL);
    stage.api.faults().accept_only("the-next-token");
    stage.kubeconfig.write_token("the-next-token").unwrap();
    stage.api.proxy().restart().unwrap();
    stage.delete("Pod", "shop/job");
    stage.until("watched again", |seen| !seen.has("Pod", "shop/job") && seen.problems.is_empty());
    assert_eq!(stage.watch(Kind::Pod).relists, 0);
}

#[test]
fn an_api_server_of_another_authority_is_not_believed() {
    let [ours, theirs] = [(), ()].map(|()| TempDir::new().unwrap());
    let mut servers = Vec::new();
    let mut stage = Stage::begin_by(|api| {
        servers.extend([&ours, &theirs].map(|dir| Tls::before(api.proxy().address(), dir.path()).unwrap()));
        let mut cluster = servers[1].cluster();
        cluster["certificate-authority"] = servers[0].cluster()["certificate-authority"].take();
        Kubeconfig::write(ours.path(), &cluster).unwrap()
    });
    stage.until("told of", |seen| seen.problems().iter().any(|problem| problem.contains("certificate")));
    stage.for_a_while(Duration::from_millis(500));
    assert!(!stage.seen.synced && stage.seen.names().is_empty(), "{:#?}", stage.seen);
}
