//! Metrics and health of a live agent: numbers that must move do.

use std::net::SocketAddr;

use lab::{
    Family, Lab, Outcome, Plan, PodSpec, Transport,
    matrix::SETTLES_WITHIN,
    probe::attempt,
    scrape::{get, samples},
    until,
};

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9964);

fn scraped(lab: &Lab) -> anyhow::Result<std::collections::BTreeMap<String, f64>> {
    let (code, page) = get(lab.node(1).netns(), ADDRESS, "/metrics")?;
    anyhow::ensure!(code == 200 && page.ends_with("# EOF\n"), "{code}: {page}");
    samples(&page)
}

#[test]
fn metrics_move_with_what_happens_and_probes_answer() {
    let lab = Plan::bulkhead().nodes(1).raise().unwrap();
    lab.namespace("shop", &[]).unwrap();
    let pod = |key| PodSpec::new(key).serve(Transport::Tcp, 80);
    let pods = lab.start_pods([pod("shop/web"), pod("shop/db")]).unwrap();
    let node = lab.node(1).netns();
    assert_eq!(get(node, ADDRESS, "/healthz").unwrap(), (200, "alive\n".to_owned()));
    assert_eq!(get(node, ADDRESS, "/readyz").unwrap(), (200, "ready\n".to_owned()));

    let before = scraped(&lab).unwrap();
    assert!(before["bulkhead_cni_add_seconds_count{code=\"0\"}"] >= 2.0);
    for (name, want) in [
        ("bulkhead_ready", 1.0_f64),
        ("bulkhead_source_synced", 1.0),
        ("bulkhead_kernel_up_to_date", 1.0),
        ("bulkhead_source_objects{kind=\"Pod\"}", 2.0),
        ("bulkhead_endpoints{state=\"not_up_to_date\"}", 0.0),
    ] {
        assert_eq!(
            before.get(name).copied().map(f64::to_bits),
            Some(want.to_bits()),
            "{name} of {before:#?}"
        );
    }

    lab.policy("shop/deny", "*", "policyTypes: [Ingress]").unwrap();
    lab.settle().unwrap();
    let to = SocketAddr::new(pods[1].ip(Family::V4), 80);
    let outcome =
        attempt(pods[0].netns(), to, Transport::Tcp, std::time::Duration::from_millis(300)).unwrap();
    assert_eq!(outcome, Outcome::Silent);
    // A scrape may be half a second old.
    let moved = [
        "bulkhead_packets_total{verdict=\"dropped\",reason=\"policy-denied\"}",
        "bulkhead_policy_to_kernel_seconds_count",
        "bulkhead_plan_seconds_count",
        "bulkhead_write_seconds_count",
        "bulkhead_updates_total",
        "bulkhead_map_entries{map=\"RULES\"}",
        "bulkhead_flow_events_total",
    ];
    let still = |now: &std::collections::BTreeMap<String, f64>| {
        moved.into_iter().filter(|name| now[*name] <= before[*name]).collect::<Vec<_>>()
    };
    let now = until(SETTLES_WITHIN, || scraped(&lab), |now| still(now).is_empty()).unwrap();
    assert_eq!(still(&now), Vec::<&str>::new(), "{now:#?}");
    assert!(now["bulkhead_map_entries{map=\"RULES\"}"] < now["bulkhead_map_capacity{map=\"RULES\"}"]);
    assert!(now["bulkhead_policy_to_kernel_seconds_sum"] > 0.0);

    lab.manifests().write_text("broken.yaml", "kind: [").unwrap();
    lab.settle().unwrap();
    let problems = || Ok(scraped(&lab)?["bulkhead_source_problems"]);
    let seen = until(SETTLES_WITHIN, problems, |problems| *problems > 0.5).unwrap();
    assert_eq!(seen.to_bits(), 1_f64.to_bits());
}
