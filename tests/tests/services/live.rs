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
    stage::{Door, Row, Stage},
};

/// What was under way when a change came into force has arrived by then, on a loaded machine.
const UNDER_WAY: Duration = Duration::from_millis(100);

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
    let answered = || conversations.each_ref().map(Conversation::is_answered);
    let heard = || Family::BOTH.map(|family| denied.heard_from(client.ip(family)));
    assert_eq!(answered(), [true; 2]);
    lead(&denied, 9090);
    let before = heard();
    assert_eq!((answered(), heard()), ([false; 2], before), "the new backend is not allowed");
    lead(&allowed, 8080);
    assert_eq!(answered(), [true; 2], "back at the allowed one");
    lead(&denied, 9090);
    set_egress(stage, &json!([{"to": [pods("app", "far")]}]));
    assert_eq!(answered(), [true; 2], "the new backend is allowed");
}

pub fn tightening_cuts(stage: &Stage) {
    set_egress(stage, &json!([{"to": [pods("app", "far"), pods("app", "local")]}]));
    let rows: Vec<Row> = ["shop/far-a", "shop/far-b", "shop/local"]
        .into_iter()
        .flat_map(|service| DOORS.map(|door| ("client", service, door, Outcome::Reached)))
        .collect();
    stage.expect("egress to all backends", &rows);
    let client = stage.pod("client");
    let ways: Vec<_> = rows
        .iter()
        .flat_map(|(_, service, door, _)| Family::BOTH.map(|family| (*service, *door, family)))
        .collect();
    let live = ways.into_iter().map(|(service, door, family)| {
        let at = |transport| stage.at(service, door, family, transport);
        let stream = Stream::start(client.netns(), at(Transport::Tcp), Duration::from_millis(2)).unwrap();
        let datagrams = Conversation::start(&client, at(Transport::Udp));
        assert!(datagrams.is_answered(), "{service} {door:?} {family}");
        ((service, door, family), stream, datagrams)
    });
    let live: Vec<_> = live.collect();
    thread::sleep(UNDER_WAY);
    set_egress(stage, &json!([{"to": [pods("copy", "b")]}]));
    let in_force = Instant::now();
    thread::sleep(2 * UNDER_WAY);
    for (way, stream, datagrams) in live {
        let stays = way.0 == "shop/far-b";
        assert_eq!(datagrams.is_answered(), stays, "datagrams to {way:?}");
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
