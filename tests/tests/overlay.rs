//! The way to other nodes is watched wherever it leads.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{fs, net::SocketAddr, time::Duration};

use lab::{Family, Lab, Outcome, Plan, PodSpec, Transport, probe::attempt, until};
use serde_json::{Value, json};

/// The agent looks every two seconds.
const PATIENCE: Duration = Duration::from_secs(8);

fn ways(status: &Value) -> Value {
    status["ways"].clone()
}

/// Packets of the node itself on their way to other nodes: only `to_overlay` counts them.
fn foreign(lab: &Lab) -> u64 {
    lab.agent(1).status().unwrap()["datapath"]["packets"]["foreign"].as_u64().unwrap_or(0)
}

/// The node speaks to the pod of the other node, and the program on the way sees it in either family.
fn is_watched(lab: &Lab) -> bool {
    Family::BOTH.into_iter().all(|family| {
        let before = foreign(lab);
        let far = SocketAddr::new(lab.pod("shop/far").ip(family), 80);
        let reached = attempt(lab.node(1).netns(), far, Transport::Tcp, Duration::from_secs(1)).unwrap();
        assert_eq!(reached, Outcome::Reached, "{family:?}");
        foreign(lab) > before
    })
}

#[test]
fn a_renewed_or_stripped_overlay_device_is_guarded_again() {
    let lab = Plan::bulkhead().raise().unwrap();
    lab.namespace("shop", &[]).unwrap();
    lab.start_pod(PodSpec::new("shop/far").on(2).serve(Transport::Tcp, 80)).unwrap();
    let both = json!([
        {"interface": "flannel.1", "error": ""},
        {"interface": "flannel-v6.1", "error": ""},
    ]);
    let status = until(PATIENCE, || lab.agent(1).status(), |status| ways(status) == both).unwrap();
    assert_eq!(ways(&status), both);
    assert!(is_watched(&lab));

    lab.node(1).renew_overlay(lab.nodes()).unwrap();
    assert!(until(PATIENCE, || Ok(is_watched(&lab)), |watched| *watched).unwrap(), "after a renewal");

    let version = format!("v{}", bulkhead_ebpf::abi::ABI_VERSION);
    let links = lab.dir().join("bpf").join("node-1").join(version).join("links");
    let pins = fs::read_dir(&links).unwrap().map(|entry| entry.unwrap().path());
    let pins: Vec<_> = pins.filter(|path| path.to_string_lossy().ends_with("-to_overlay")).collect();
    assert!(pins.len() >= 2, "{pins:?}");
    // A link goes with its last pin.
    for pin in &pins {
        fs::remove_file(pin).unwrap();
    }
    assert!(until(PATIENCE, || Ok(is_watched(&lab)), |watched| *watched).unwrap(), "after the programs went");
}
