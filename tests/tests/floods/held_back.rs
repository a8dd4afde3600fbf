//! What an operator sees of a client that begins more than it may.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use lab::{
    Family,
    scrape::{get, samples},
    until,
};

use crate::stage::{PATIENCE, begun_within, look, plan, raise, refused};

const PER_SECOND: u64 = 20;
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9964);
const METRIC: &str = "bulkhead_packets_total{verdict=\"dropped\",reason=\"over-budget\"}";

/// A real client with an ordinary socket, and no flood at all.
#[test]
fn a_client_that_is_held_back_is_named_in_status_metrics_and_flows() {
    let lab = raise(plan(PER_SECOND));
    let (client, server, agent) = (lab.pod("shop/flooder"), lab.pod("shop/other"), lab.agent(1));
    let to = SocketAddr::new(server.ip(Family::V4), 80);
    let since = Instant::now();
    let connect = || TcpStream::connect_timeout(&to, Duration::from_millis(50));
    let mut connections = Vec::new();
    {
        let _inside = client.netns().enter().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut held_back = 0;
        while held_back < 20 {
            assert!(Instant::now() < deadline, "nothing is held back: {} connections", connections.len());
            match connect() {
                Ok(connection) => connections.push(connection),
                Err(_) => held_back += 1,
            }
        }
    }
    let (begun, most) = (connections.len() as u64, begun_within(PER_SECOND, since));
    assert!((1..=most).contains(&begun), "{begun} connections, at most {most}");

    let status = until(PATIENCE, || look(&lab), |status| refused(status, "shop/flooder") >= 20).unwrap();
    let packets = refused(&status, "shop/flooder");
    assert!(packets >= 20, "{:#}", status["endpoints"]);
    assert_eq!(refused(&status, "shop/other"), 0);
    let text = String::from_utf8(agent.output("status", &[]).unwrap().stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("Over budget")).unwrap_or_else(|| panic!("{text}"));
    assert!(
        line.contains("shop/flooder: ") && line.ends_with(" packets of new connections dropped"),
        "{line}"
    );
    let scraped = || {
        let (_, page) = get(lab.node(1).netns(), METRICS, "/metrics")?;
        Ok(samples(&page)?.get(METRIC).copied().unwrap_or_default())
    };
    let seen = until(PATIENCE, scraped, |seen| *seen >= 20.0).unwrap();
    assert!(seen >= 20.0, "{METRIC} {seen}");
    let told = || Ok(agent.flows(&["--verdict", "dropped"]).unwrap_or_default());
    let is_told =
        |line: &str| ["over-budget", "shop/flooder", "shop/other"].iter().all(|word| line.contains(word));
    let flows = until(PATIENCE, told, |flows| flows.lines().any(is_told)).unwrap();
    assert!(flows.lines().any(is_told), "{flows}");
}
