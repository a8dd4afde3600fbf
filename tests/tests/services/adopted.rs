//! Conversations through Services that are older than bulkhead: translated by rules that nobody of us has seen at work.

use std::{
    thread,
    time::{Duration, Instant},
};

use lab::{Family, Outcome, Plan, ProxyMode, Stream, Transport, agent::Agent};
use serde_json::json;

use crate::{
    flat::Conversation,
    live::{UNDER_WAY, converse_with},
    policed::{pods, set_egress, set_ingress},
    stage::{Door, Stage},
};

#[test]
fn conversations_through_services_survive_the_installation_or_are_cut_with_iptables() {
    adopted(ProxyMode::Iptables);
}

#[test]
fn conversations_through_services_survive_the_installation_or_are_cut_with_nftables() {
    adopted(ProxyMode::Nftables);
}

/// Packets are marked, translated and masqueraded while one version's programs give way to another's.
#[test]
fn conversations_through_services_survive_an_upgrade_with_another_layout() {
    let stage = Stage::raise(Plan::bulkhead(), ProxyMode::Iptables);
    stage.bridge_nf(true);
    set_egress(&stage, &json!([{"to": [pods("copy", "a"), pods("app", "local"), pods("app", "client")]}]));
    set_ingress(&stage, "local", &json!([{"from": [pods("app", "client")]}]));
    set_ingress(&stage, "client", &json!([{"from": [pods("app", "client")]}]));
    let live = converse_with(&stage, &["shop/far-a", "shop/local", "shop/self"]);
    for agent in stage.lab.agents() {
        assert!(agent.terminate().unwrap().success());
        let next = bulkhead_ebpf::abi::ABI_VERSION + 1;
        agent.start_with(&["--pretend-abi", &next.to_string()]).unwrap();
    }
    stage.lab.settle().unwrap();
    stage.expect(
        "with another layout",
        &[
            ("client", "shop/far-a", Door::Cluster, Outcome::Reached),
            ("client", "shop/far-b", Door::Cluster, Outcome::Silent),
            ("stranger", "shop/local", Door::External, Outcome::Silent),
        ],
    );
    let now = Instant::now();
    thread::sleep(UNDER_WAY);
    let of = |agent: &Agent| agent.flows(&["--verdict", "dropped"]).unwrap();
    let drops: String = stage.lab.agents().iter().map(of).collect();
    for (way, stream, datagrams) in live {
        assert!(datagrams.is_answered(), "datagrams to {way:?}\n{drops}");
        let talks = stream.last_echo() > now;
        let report = stream.stop();
        let told = (report.broken.clone(), report.retransmitted, talks);
        assert_eq!(told, (None, 0, true), "{way:?}: {report:?}\n{drops}");
    }
}

fn adopted(mode: ProxyMode) {
    let stage = Stage::raise(Plan::installed_later(), mode);
    stage.bridge_nf(true);
    let client = stage.pod("client");
    let live = converse_with(&stage, &["shop/far-a", "shop/far-b", "shop/local", "shop/self"]);
    let stranger = stage.pod("stranger");
    let strangers: Vec<_> = [("world", stage.lab.world()), ("stranger", stranger.netns())]
        .into_iter()
        .flat_map(|(who, netns)| Family::BOTH.map(|family| (who, netns, family)))
        .map(|(who, netns, family)| {
            let to = stage.at("shop/local", Door::NodePort(1), family, Transport::Tcp);
            ((who, family), Stream::start(netns, to, Duration::from_millis(2)).unwrap())
        })
        .collect();
    // The client may ask all but far-b; only the client may ask local and itself.
    set_egress(&stage, &json!([{"to": [pods("copy", "a"), pods("app", "local"), pods("app", "client")]}]));
    set_ingress(&stage, "local", &json!([{"from": [pods("app", "client")]}]));
    set_ingress(&stage, "client", &json!([{"from": [pods("app", "client")]}]));
    stage.lab.install().unwrap();
    stage.lab.adopted().unwrap();
    stage.lab.settle().unwrap();
    thread::sleep(UNDER_WAY);
    let in_force = Instant::now();
    thread::sleep(2 * UNDER_WAY);
    let drops: Vec<_> =
        stage.lab.agents().iter().map(|agent| agent.flows(&["--verdict", "dropped"]).unwrap()).collect();
    for ((service, door, family), stream, datagrams) in live {
        let way = format!("{service} {door:?} {family}");
        let stays = service != "shop/far-b";
        let silent_since = stream.last_echo();
        assert!(if stays { datagrams.is_answered() } else { datagrams.is_silent() }, "datagrams to {way}");
        let report = stream.abandon();
        assert!(report.echoed > 0, "{way}: {report:?}");
        if stays {
            let seen = (report.retransmitted, silent_since > in_force);
            assert_eq!(seen, (0, true), "{way} goes on: {report:?}\n{}", drops.concat());
        } else {
            assert!(silent_since < in_force, "{way} is cut: {report:?}");
        }
    }
    for (way, stream) in strangers {
        let silent_since = stream.last_echo();
        let report = stream.abandon();
        assert!(report.echoed > 0 && silent_since < in_force, "{way:?} is cut: {report:?}");
    }
    // And new ones are judged like any other pod's.
    for (service, reached) in [("shop/far-a", true), ("shop/far-b", false), ("shop/local", true)] {
        for family in Family::BOTH {
            let to = stage.at(service, Door::Cluster, family, Transport::Udp);
            let datagrams = Conversation::start(&client, to);
            assert!(
                if reached { datagrams.is_answered() } else { datagrams.is_silent() },
                "{service} {family}"
            );
        }
    }
}
