//! The ring keeps the newest, filters, and tells a slow follower what it missed.

use super::*;
use crate::api::FlowQuery;
use crate::flow::{
    Pipeline, Settings,
    export::Target,
    filter::Filter,
    reader::Source,
    record::{Content, Line, Lost, LostSource, Verdict},
    ring::{Item, Ring},
};
use bulkhead_ebpf::abi::Event;
use serde_json::{Value, json};
use std::{io, time::Duration};
use tokio::sync::{mpsc, watch};

fn item(event: &Event) -> Arc<Item> {
    Arc::new(Item::Flow(flow(event)))
}

/// Record number `second` of a test.
fn numbered(second: u64) -> Arc<Item> {
    item(&Event { time: second * SECOND, ..new_connection() })
}

fn times(lines: &[Line]) -> Vec<Timestamp> {
    lines.iter().map(|line| line.time).collect()
}

#[test]
fn the_ring_keeps_the_newest_records() {
    let ring = Ring::new("node-a", 3);
    (1..=5).for_each(|second| ring.push(numbered(second)));
    assert_eq!(ring.len(), 3);
    assert_eq!(times(&ring.last(&Filter::default(), 10)), [wall(3), wall(4), wall(5)]);
    assert_eq!(times(&ring.last(&Filter::default(), 2)), [wall(4), wall(5)]);
    assert_eq!(times(&ring.last(&Filter::default(), 0)), []);
}

#[test]
fn filters_pick_records() {
    let allowed = Event { time: SECOND, ..new_connection() };
    let denied = Event { time: 2 * SECOND, ..dropped() };
    let dns = Event {
        time: 3 * SECOND,
        protocol: 17,
        destination_port_be: 53_u16.to_be_bytes(),
        ..new_connection()
    };
    let ping = Event {
        time: 4 * SECOND,
        protocol: 1,
        source_port_be: [0; 2],
        destination_port_be: [8, 0],
        ..new_connection()
    };
    let ring = Ring::new("node-a", 10);
    for event in [allowed, denied, dns, ping] {
        ring.push(item(&event));
    }

    let any = Filter::default;
    let text = |text: &str| Some(text.to_owned());
    let cases = [
        ("everything", any(), vec![1, 2, 3, 4]),
        ("the source's namespace", Filter { namespace: text("evil"), ..any() }, vec![2]),
        ("the destination's namespace", Filter { namespace: text("shop"), ..any() }, vec![1, 2, 3, 4]),
        ("a pod by name", Filter { pod: text("intruder"), ..any() }, vec![2]),
        ("a pod by full name", Filter { pod: text("shop/front-0"), ..any() }, vec![1, 3, 4]),
        ("a pod of another namespace", Filter { pod: text("evil/front-0"), ..any() }, vec![]),
        (
            "namespace and pod are one end's",
            Filter { namespace: text("shop"), pod: text("intruder"), ..any() },
            vec![],
        ),
        ("dropped", Filter { verdict: Some(Verdict::Dropped), ..any() }, vec![2]),
        ("forwarded", Filter { verdict: Some(Verdict::Forwarded), ..any() }, vec![1, 3, 4]),
        ("destination port", Filter { port: Some(53), ..any() }, vec![3]),
        ("source port", Filter { port: Some(40_000), ..any() }, vec![1, 2, 3]),
        ("an ICMP type is no port", Filter { port: Some(8 << 8), ..any() }, vec![]),
        ("protocol", Filter { protocol: Some(17), ..any() }, vec![3]),
        ("since", Filter { since: Some(wall(3)), ..any() }, vec![3, 4]),
        ("all together", Filter { port: Some(80), verdict: Some(Verdict::Dropped), ..any() }, vec![2]),
    ];
    for (case, filter, want) in cases {
        let want: Vec<_> = want.into_iter().map(wall).collect();
        assert_eq!(times(&ring.last(&filter, 10)), want, "{case}");
        let over_the_wire: Filter = serde_json::from_str(&serde_json::to_string(&filter).unwrap()).unwrap();
        assert_eq!(over_the_wire, filter, "{case}");
    }
}

#[tokio::test]
async fn a_follower_goes_on_where_the_answer_ended() {
    let ring = Ring::new("node-a", 10);
    (1..=3).for_each(|second| ring.push(numbered(second)));
    let query = FlowQuery { last: Some(2), follow: true, filter: Value::Null };
    let mut answers = ring.answer(query).unwrap();
    ring.push(item(&Event { time: 4 * SECOND, ..dropped() }));
    ring.push(numbered(5));
    for second in 2..=5 {
        assert_eq!(answers.recv().await.unwrap()["time"], wall(second).to_string());
    }
    drop(ring);
    assert_eq!(answers.recv().await, None);
}

#[tokio::test]
async fn an_answer_without_follow_ends() {
    let ring = Ring::new("node-a", 10);
    (1..=3).for_each(|second| ring.push(numbered(second)));
    let query = FlowQuery { filter: json!({"since": wall(2)}), ..FlowQuery::default() };
    let mut answers = ring.answer(query).unwrap();
    for second in 2..=3 {
        assert_eq!(answers.recv().await.unwrap()["time"], wall(second).to_string());
    }
    assert_eq!(answers.recv().await, None);

    let nonsense = FlowQuery { filter: json!({"colour": "red"}), ..FlowQuery::default() };
    assert!(ring.answer(nonsense).unwrap_err().contains("colour"));
}

#[tokio::test]
async fn a_slow_follower_is_told_how_many_it_lost() {
    let ring = Ring::new("node-a", 1);
    let mut follower = ring.follow(Filter::default());
    (1..=4100).for_each(|second| ring.push(numbered(second)));
    let lost = Content::LostEvents(Lost { source: LostSource::Follower, num_events_lost: 4 });
    assert_eq!(follower.next().await.unwrap().content, lost);
    assert_eq!(follower.next().await.unwrap().time, wall(5));
}

#[test]
fn lost_records_are_shown_whatever_the_filter() {
    let ring = Ring::new("node-a", 10);
    let lost = Lost { source: LostSource::Kernel, num_events_lost: 12 };
    ring.push(Arc::new(Item::Lost(wall(1), lost)));
    let lines = ring.last(&Filter { port: Some(1), ..Filter::default() }, 10);
    assert_eq!(
        serde_json::to_value(&lines).unwrap(),
        json!([{
            "lost_events": {"source": "PERF_EVENT_RING_BUFFER", "num_events_lost": "12"},
            "node_name": "node-a", "time": "2026-01-02T03:04:06.000000000Z",
        }])
    );
}

/// Stands in for the kernel's ring buffer.
struct Channel(mpsc::UnboundedReceiver<Vec<u8>>);

impl Source for Channel {
    async fn drain(&mut self, limit: usize, each: &mut (dyn FnMut(&[u8]) + Send)) -> io::Result<()> {
        let Some(first) = self.0.recv().await else { return std::future::pending().await };
        each(&first);
        for _ in 1..limit {
            let Ok(event) = self.0.try_recv() else { break };
            each(&event);
        }
        Ok(())
    }
}

#[tokio::test]
async fn events_become_named_records_and_garbage_is_counted() {
    let (kernel, events) = mpsc::unbounded_channel();
    let (swap, snapshots) = watch::channel(Arc::new(Names::default()));
    let settings = Settings { node_name: "node-a".into(), target: Target::None, ring: 100 };
    let handle = Pipeline::start(Channel(events), snapshots, &settings).unwrap();
    tokio::task::yield_now().await;

    // The reader already waits: names that come before the event must still count.
    swap.send(Arc::new(names())).unwrap();
    let mut follower = handle.pipeline.ring().follow(Filter::default());
    kernel.send(raw(&dropped())).unwrap();
    kernel.send(vec![0xff; 136]).unwrap();
    kernel.send(Vec::new()).unwrap();

    let mut next =
        async || tokio::time::timeout(Duration::from_secs(5), follower.next()).await.unwrap().unwrap();
    let Content::Flow(record) = next().await.content else { panic!("a flow comes first") };
    assert_eq!((record.source.pod_name.as_str(), record.verdict), ("intruder", Verdict::Dropped));
    let lost = Content::LostEvents(Lost { source: LostSource::Kernel, num_events_lost: 2 });
    assert_eq!(next().await.content, lost);
    handle.pipeline.lost_in_kernel(3);
    let lost = Content::LostEvents(Lost { source: LostSource::Kernel, num_events_lost: 3 });
    assert_eq!(next().await.content, lost);
    handle.stop().await;
}
