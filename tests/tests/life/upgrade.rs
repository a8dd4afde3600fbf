//! Another layout of the maps takes over, and gives back.

use std::{collections::BTreeSet, fs};

use bulkhead_ebpf::abi::ABI_VERSION;
use lab::{Family, Outcome, Plan, Transport, agent::Agent};
use serde_json::json;

use crate::shop::{Shop, status};

/// A layout that this build has never heard of.
const NEXT: u32 = ABI_VERSION + 1;

fn versions(agent: &Agent) -> BTreeSet<String> {
    let entries = fs::read_dir(agent.bpffs()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The new agent has taken over, and nothing of the old one is left.
fn taken_over(agent: &Agent, version: u32) -> serde_json::Value {
    let alone = |status: &serde_json::Value| {
        status["datapath"]["abi"] == version
            && status["datapath"]["predecessors"] == json!([])
            && status["running"]["learning"] == 0
    };
    let status = status(agent, "takes over", alone);
    assert_eq!(versions(agent), [format!("v{version}")].into(), "{}", agent.log());
    status
}

fn end(agent: &Agent) {
    assert!(agent.terminate().unwrap().success(), "{}", agent.log());
}

#[test]
fn an_upgrade_with_another_layout_and_the_way_back_are_noticed_by_nobody() {
    let shop = Shop::open(Plan::bulkhead());
    for agent in shop.lab.agents() {
        end(agent);
        agent.start_with(&["--pretend-abi", &NEXT.to_string()]).unwrap();
        let status = taken_over(agent, NEXT);
        let adoption = &status["datapath"]["adoption"];
        assert!(adoption["connectionsCarried"].as_u64() > Some(0), "{adoption}");
    }
    shop.goes_on("after the upgrade");
    for agent in shop.lab.agents() {
        end(agent);
        agent.start().unwrap(); // it has never heard of that version: the sockets tell
        let status = taken_over(agent, ABI_VERSION);
        assert_eq!(status["datapath"]["adoption"]["connectionsCarried"], 0);
        assert!(status["running"]["imported"].as_u64() > Some(0), "{}", status["running"]);
    }
    shop.goes_on("after the downgrade");
    let late = shop.lab.start_pod(lab::PodSpec::new("shop/late").label("app", "late")).unwrap();
    let to = std::net::SocketAddr::new(shop.lab.pod("shop/db").ip(Family::V4), 80);
    let asked = lab::probe::attempt(late.netns(), to, Transport::Tcp, std::time::Duration::from_millis(400));
    assert_eq!(asked.unwrap(), Outcome::Silent, "and new pods are judged");
    shop.close();
}
