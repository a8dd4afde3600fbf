//! Floods through a Service: translated on their way, remembered at both of their addresses, and paid for once.

use std::{fs, net::SocketAddr, time::Instant};

use lab::{
    Family, Lab, PodSpec, ProxyMode, Transport,
    flood::{Flood, Kind},
    until,
};

use serde_json::Value;

use crate::stage::{CONNECTIONS, PATIENCE, Talk, begun_within, look, plan, raise, refused};

const PER_SECOND: u64 = 200;
/// Together they begin more at once, and more per second, than one pod may be asked.
const FLOODERS: [&str; 6] = ["shop/one", "shop/two", "shop/three", "shop/four", "shop/five", "shop/six"];

#[test]
fn a_flood_through_a_service_is_paid_for_by_who_sends_it_and_bounded_everywhere() {
    let lab = raise(plan(PER_SECOND).proxy(ProxyMode::Nftables));
    let pod = |key: &str| PodSpec::new(key).serve(Transport::Udp, 53).serve(Transport::Tcp, 80);
    lab.start_pods(FLOODERS.map(pod)).unwrap();
    lab.start_pod(pod("shop/backend").label("app", "backend")).unwrap();
    lab.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: echo, namespace: shop}, spec: {\
          clusterIP: 10.96.0.53, clusterIPs: [10.96.0.53], selector: {app: backend}, \
          ports: [{name: dns, port: 53, protocol: UDP}]}}",
    )
    .unwrap();
    lab.publish_endpoints().unwrap();
    lab.settle().unwrap();
    lab.sync_proxies().unwrap();
    let (web, db, backend) = (lab.pod("shop/web"), lab.pod("shop/db"), lab.pod("shop/backend"));
    let mut quiet = [Talk::begin(&web, &db, Family::V4), Talk::begin(&web, &backend, Family::V4)];
    let service: SocketAddr = "10.96.0.53:53".parse().unwrap();
    let since = Instant::now();
    let start = |key: &str| Flood::start_upon(service, &lab.pod(key), Kind::Udp).unwrap();
    let floods = FLOODERS.map(start);
    let entries = |status: &Value| status["datapath"]["maps"]["CONNS_V4"]["entries"].as_u64().unwrap();
    let is_over = |status: &Value| {
        FLOODERS.iter().all(|key| refused(status, key) > 1000) && entries(status) > PER_SECOND
    };
    let status = until(PATIENCE, || look(&lab), is_over).unwrap();
    assert!(is_over(&status), "{:#}", status["endpoints"]);
    // Asked for more than its own budget, and nothing of it was on its account.
    assert_eq!(refused(&status, "shop/backend"), 0);
    Talk::begin(&web, &backend, Family::V4);
    let most = FLOODERS.len() as u64 * begun_within(PER_SECOND, since);
    for flood in floods {
        assert!(flood.stop().unwrap() > 0);
    }
    // As sent, and as translated. More has not come to the node's own table of connections either.
    let entries = entries(&status);
    assert!(entries < CONNECTIONS && entries <= 2 * most + 100, "{entries} of {most}");
    let tracked = of_the_kernel(&lab);
    assert!(tracked > 0 && tracked <= most + 100, "{tracked} tracked by the kernel, of {most}");
    quiet.iter_mut().for_each(Talk::go_on);
}

/// Entries of the node's connection tracking.
fn of_the_kernel(lab: &Lab) -> u64 {
    let _inside = lab.node(1).netns().enter().unwrap();
    fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap().trim().parse().unwrap()
}
