//! Changes under traffic that goes through Services.

use std::{
    thread,
    time::{Duration, Instant},
};

use lab::{Family, Outcome, Stream, Transport};
use serde_json::json;

use crate::{
    flat::{self, Conversation},
    policed::{DOORS, pods, set_egress},
    stage::{Door, Stage},
};

/// What was under way when a change came into force has arrived by then, on a loaded machine.
pub const UNDER_WAY: Duration = Duration::from_millis(100);

pub fn fragments_follow_the_verdict(stage: &Stage) {
    set_egress(stage, &json!([{"to": [pods("copy", "a"), pods("app", "local")]}]));
    let client = stage.pod("client");
    for (service, doors, admitted) in [
        ("shop/far-a", &DOORS[..], true),
        ("shop/local", &DOORS[..], true),
        ("shop/far-b", &DOORS[..1], false),
    ] {
        for (door, family) in doors.iter().flat_map(|door| Family::BOTH.map(|family| (*door, family))) {
            let to = stage.at(service, door, family, Transport::Udp);
            let datagrams = Conversation::start(&client, to);
            let right =
                if admitted { datagrams.is_answered_in_pieces() } else { datagrams.is_silent_in_pieces() };
            assert!(right, "{service} {door:?} {family}");
        }
    }
}

pub fn endpoints_may_change(stage: &Stage) {
    set_egress(stage, &json!([{"to": [pods("app", "far")]}]));
    flat::endpoints_change_under_traffic(stage);
}

/// The client's end of a UDP conversation stays what it is while the Service leads it from an allowed backend to one
/// that is not, and back.
pub fn an_old_conversation_is_no_way_to_a_new_backend(stage: &Stage) {
    let (allowed, denied) = (stage.pod("far-a"), stage.pod("far-b"));
    let client = stage.pod("client");
    let lead = |pod: &lab::Pod, port| {
        stage.place("shop/moving", &Family::BOTH.map(|family| (pod.ip(family), port)));
        stage.refresh();
    };
    set_egress(stage, &json!([{"to": [pods("copy", "a")]}]));
    lead(&allowed, 8080);
    let conversations = Family::BOTH.map(|family| {
        Conversation::start(&client, stage.at("shop/moving", Door::Cluster, family, Transport::Udp))
    });
    let answered = || conversations.iter().all(Conversation::is_answered);
    let heard = || Family::BOTH.map(|family| denied.heard_from(client.ip(family)));
    assert!(answered());
    lead(&denied, 9090);
    let before = heard();
    assert!(conversations.iter().all(Conversation::is_silent), "the new backend is not allowed");
    assert_eq!(heard(), before);
    lead(&allowed, 8080);
    assert!(answered(), "back at the allowed one");
    lead(&denied, 9090);
    set_egress(stage, &json!([{"to": [pods("app", "far")]}]));
    assert!(answered(), "the new backend is allowed");
}

/// Conversations of both kinds with several Services, through every door, in both families.
pub type Live = Vec<((&'static str, Door, Family), Stream, Conversation)>;

fn converse(stage: &Stage) -> Live {
    converse_with(stage, &["shop/far-a", "shop/far-b", "shop/local"])
}

pub fn converse_with(stage: &Stage, services: &[&'static str]) -> Live {
    let client = stage.pod("client");
    let ways = services
        .iter()
        .copied()
        .flat_map(|service| DOORS.map(|door| (service, door)))
        .flat_map(|(service, door)| Family::BOTH.map(|family| (service, door, family)));
    let begin = |(service, door, family)| {
        let at = |transport| stage.at(service, door, family, transport);
        let stream = Stream::start(client.netns(), at(Transport::Tcp), Duration::from_millis(2)).unwrap();
        let datagrams = Conversation::start(&client, at(Transport::Udp));
        assert!(datagrams.is_answered(), "{service} {door:?} {family}");
        ((service, door, family), stream, datagrams)
    };
    ways.map(begin).collect()
}

/// Services work while the agent is gone and when another one has taken over, and no conversation suffers.
pub fn nothing_notices_a_new_agent(stage: &Stage) {
    set_egress(stage, &json!([{"to": [pods("app", "far"), pods("app", "local")]}]));
    let live = converse(stage);
    let rows = [
        ("client", "shop/far-a", Door::Cluster, Outcome::Reached),
        ("client", "shop/local", Door::External, Outcome::Reached),
        ("client", "shop/outside", Door::Cluster, Outcome::Silent),
    ];
    let agent = stage.lab.agent(1);
    agent.kill9();
    stage.expect("without the agent", &rows);
    assert!(live.iter().all(|(_, _, datagrams)| datagrams.is_answered()));
    agent.start().unwrap();
    stage.lab.settle().unwrap();
    stage.expect("with a new agent", &rows);
    for (way, stream, datagrams) in live {
        assert!(datagrams.is_answered(), "{way:?}");
        let report = stream.stop();
        assert_eq!((report.broken.clone(), report.retransmitted), (None, 0), "{way:?}: {report:?}");
    }
}

pub fn tightening_cuts(stage: &Stage) {
    set_egress(stage, &json!([{"to": [pods("app", "far"), pods("app", "local")]}]));
    let live = converse(stage);
    thread::sleep(UNDER_WAY);
    set_egress(stage, &json!([{"to": [pods("copy", "b")]}]));
    let in_force = Instant::now();
    thread::sleep(2 * UNDER_WAY);
    for (way, stream, datagrams) in live {
        let stays = way.0 == "shop/far-b";
        let right = if stays { datagrams.is_answered() } else { datagrams.is_silent() };
        assert!(right, "datagrams to {way:?}");
        let silent_since = stream.last_echo();
        let report = stream.abandon();
        assert!(report.echoed > 0, "{way:?}: {report:?}");
        if stays {
            assert_eq!(report.retransmitted, 0, "{way:?} notices nothing: {report:?}");
            assert!(silent_since > in_force + UNDER_WAY, "{way:?} goes on: {report:?}");
        } else {
            assert!(silent_since < in_force + UNDER_WAY, "{way:?} is cut: {report:?}");
        }
    }
}
