//! The decision on the host: the table of cases, what is reported, and properties over arbitrary frames.
#![expect(clippy::unwrap_used, reason = "tests")]

mod scene;

use std::collections::BTreeSet;

use bulkhead_ebpf::{
    abi::{
        CONN_ENDED, CONN_REPLIED, DROP_EVENT_COST, DROP_EVENT_SAVINGS, DROP_EVENT_TICKS, EGRESS,
        ENDPOINT_ADOPTED, EVENT_DROP, EVENT_END, EVENT_NEW, EndWord, Endpoint, INGRESS, Limits, PolicyWord,
        ServiceKey, TenantWord,
    },
    decide::{Hook, decide},
    host::{Frame, Memory},
    packet::{TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP},
    reason::Reason,
    tables::Inserted,
};
use proptest::prelude::*;
use scene::{
    A, B, Block, Case, Host, IFINDEX, Moving, Node, OpenTenant, Remote, Sight, Step, Tenant, Unknown, Who,
    World, between, cases, endpoint, memory, octets,
};

const ALL: [Who; 11] = [A, B, Remote, Tenant, OpenTenant, Moving, Host, Node, Block, World, Unknown];

fn see(memory: &Memory, hook: Hook, frame: &[u8]) -> Reason {
    decide(&Frame::new(frame, IFINDEX), memory, hook)
}

fn run(case: &Case) -> Result<(), String> {
    let mut memory = memory();
    let mut pods = [endpoint(A), endpoint(B)];
    let mut gone = false;
    for (number, step) in case.steps.iter().enumerate() {
        let index = |who: &Who| usize::from(*who == B);
        match step {
            Step::Policy(who, rule_set, generation) => {
                pods[index(who)].policy = PolicyWord::new(*rule_set, *generation);
            }
            Step::Tenant(who, tenant, view) => {
                pods[index(who)].tenant = TenantWord::new(*tenant, *view);
            }
            Step::Adopted(who) => pods[index(who)].flags |= ENDPOINT_ADOPTED,
            Step::Gone => gone = true,
            Step::Limits(limits) => memory.limits = *limits,
            Step::Packet(..) | Step::Translated(..) | Step::Marked(..) => {
                let Some(Sight { who, hook, bytes, came_in_by, mark, want }) = step.sight() else { continue };
                memory.endpoints = scene::endpoints(pods, (!gone).then_some(who));
                let before = memory.counter(want);
                let frame = Frame { came_in_by, mark: mark.into(), ..Frame::new(bytes, IFINDEX) };
                let got = decide(&frame, &memory, hook);
                if got != want || memory.counter(want) != before + 1 {
                    return Err(format!(
                        "{} (v6: {}), step {number}: {got:?}, not {want:?}",
                        case.name, case.v6
                    ));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn every_case_comes_to_its_verdict() {
    let wrong: Vec<_> =
        [false, true].into_iter().flat_map(cases).filter_map(|case| run(&case).err()).collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_reason_is_reached_by_some_case() {
    let reached: BTreeSet<_> = [false, true]
        .into_iter()
        .flat_map(cases)
        .flat_map(|case| case.steps)
        .filter_map(|step| step.sight().map(|sight| sight.want))
        .collect();
    assert_eq!(reached, Reason::ALL.into_iter().collect());
}

#[test]
fn a_tag_beside_the_frame_is_a_tag() {
    let frame = between(A, Remote, false).udp(1, 2);
    let tagged = Frame { vlan_tagged: true, ..Frame::new(&frame, IFINDEX) };
    assert_eq!(decide(&tagged, &memory(), Hook::FromPod), Reason::Vlan);
}

#[test]
fn a_connection_is_told_of_at_its_begin_and_end_with_counts() {
    let memory = memory();
    let ab = between(A, B, false);
    for (hook, frame) in [
        (Hook::FromPod, ab.tcp(999, 80, TCP_SYN)),
        (Hook::ToPod, ab.reply().tcp(80, 999, TCP_SYN | TCP_ACK)),
        (Hook::FromPod, ab.tcp(999, 80, TCP_ACK | TCP_FIN)),
    ] {
        assert!(!see(&memory, hook, &frame).is_drop());
    }
    memory.now.set(memory.now.get() + 77);
    assert_eq!(see(&memory, Hook::ToPod, &ab.reply().tcp(80, 999, TCP_ACK | TCP_FIN)), Reason::Tracked);
    assert_eq!(see(&memory, Hook::FromPod, &ab.tcp(999, 80, TCP_ACK)), Reason::Tracked);
    let events = memory.take_events();
    let [new, end] = &events[..] else { panic!("{events:?}") };
    assert_eq!((new.kind, new.direction, new.rule, new.rule_set), (EVENT_NEW, EGRESS, 11, scene::RULES_A));
    assert_eq!((new.remote_identity, new.endpoint, new.tcp_flags, new.is_reply), (301, 1, TCP_SYN, 0));
    assert_eq!((new.source_mac, new.destination_mac), (A.mac(), B.mac()));
    assert_eq!((end.kind, end.direction, end.rule), (EVENT_END, EGRESS, 11));
    assert_eq!((end.packets, end.bytes), ([2, 2], [108, 108]));
    assert_eq!((end.started, end.time), (1 << 40, (1 << 40) + 77));
    assert_eq!((end.source, end.destination), (new.source, new.destination));
    assert_eq!(end.source_port_be, 999u16.to_be_bytes());
    assert_eq!(end.destination_port_be, 80u16.to_be_bytes());
    assert_eq!(new.source[..4], octets(A.address(false)).0);
    let conns = memory.conns_v4();
    let conn = conns.values().next().unwrap();
    assert_eq!((conns.len(), conn.sides), (1, 0));
    assert_eq!(conn.ends, [EndWord::new(1, 11), EndWord(0)]);
    assert_eq!(conn.state & (CONN_REPLIED | CONN_ENDED), CONN_REPLIED | CONN_ENDED);
    assert_eq!(conn.packets, [3, 2]);
}

#[test]
fn a_reset_ends_a_connection_once() {
    let memory = memory();
    let ra = between(Remote, A, true);
    assert_eq!(see(&memory, Hook::ToPod, &ra.tcp(5, 8080, TCP_SYN)), Reason::Allowed);
    for _ in 0..2 {
        assert_eq!(see(&memory, Hook::FromPod, &ra.reply().tcp(8080, 5, TCP_RST)), Reason::Tracked);
    }
    let kinds: Vec<_> = memory.take_events().iter().map(|event| (event.kind, event.direction)).collect();
    assert_eq!(kinds, [(EVENT_NEW, INGRESS), (EVENT_END, INGRESS)]);
}

#[test]
fn a_recheck_that_still_allows_is_not_told_of_and_one_that_denies_is_a_drop() {
    let mut memory = memory();
    let ab = between(A, B, false);
    assert_eq!(see(&memory, Hook::FromPod, &ab.tcp(999, 80, TCP_SYN)), Reason::Allowed);
    memory.take_events();
    memory.endpoints.get_mut(&IFINDEX).unwrap().policy = PolicyWord::new(scene::RULES_A_AGAIN, 2);
    assert_eq!(see(&memory, Hook::ToPod, &ab.reply().tcp(80, 999, TCP_ACK)), Reason::Tracked);
    assert_eq!(memory.take_events(), []);
    memory.endpoints.get_mut(&IFINDEX).unwrap().policy = PolicyWord::new(scene::RULES_NONE, 3);
    assert_eq!(see(&memory, Hook::ToPod, &ab.reply().tcp(80, 999, TCP_ACK)), Reason::PolicyDenied);
    let events = memory.take_events();
    assert_eq!(events.len(), 1);
    let drop = events[0];
    // Seen on its way in, judged for the connection's way out.
    assert_eq!((drop.kind, drop.direction, drop.is_reply), (EVENT_DROP, EGRESS, 1));
    assert_eq!((drop.reason, drop.rule, drop.rule_set), (Reason::PolicyDenied as u8, 0, scene::RULES_NONE));
}

#[test]
fn what_a_backend_refuses_is_told_of_as_its_drop_alone() {
    let mut memory = memory();
    memory.endpoints.insert(IFINDEX, endpoint(B));
    memory.endpoints.get_mut(&A.ifindex()).unwrap().policy = PolicyWord::new(scene::RULES_OPEN, 11);
    let through = |bytes: Vec<u8>| {
        decide(&Frame { came_in_by: scene::BRIDGE, ..Frame::new(&bytes, IFINDEX) }, &memory, Hook::ToPod)
    };
    let told = || -> Vec<_> {
        memory.take_events().iter().map(|event| (event.kind, event.direction, event.endpoint)).collect()
    };
    let ab = between(A, B, false);
    for _ in 0..3 {
        assert_eq!(through(ab.udp(9, 80)), Reason::PolicyDenied);
    }
    assert_eq!(told(), [(EVENT_DROP, INGRESS, 2)]);
    assert_eq!(through(ab.tcp(9, 80, TCP_SYN)), Reason::Allowed);
    assert_eq!(told(), [(EVENT_NEW, EGRESS, 1), (EVENT_NEW, INGRESS, 2)]);
}

#[test]
fn an_endpoint_that_shares_a_slot_has_its_own_rights() {
    const LATER: u32 = (1 << 16) + A.ifindex();
    let mut memory = memory();
    memory.endpoints.insert(IFINDEX, endpoint(B));
    let later = Endpoint {
        ifindex: LATER,
        policy: PolicyWord::new(scene::RULES_OPEN, 11),
        ipv4: octets(Remote.address(false)).0,
        mark: 9,
        ..endpoint(A)
    };
    memory.endpoints.insert(LATER, later);
    memory.origins.insert(9, LATER);
    let hb = between(Host, B, false);
    let through = |memory: &Memory, bytes: Vec<u8>| {
        let mark = (9 << 20).into();
        let frame = Frame { came_in_by: scene::BRIDGE, mark, ..Frame::new(&bytes, IFINDEX) };
        decide(&frame, memory, Hook::ToPod)
    };
    // B lets A in, and not this one.
    assert_eq!(through(&memory, hb.tcp(9, 80, TCP_SYN)), Reason::PolicyDenied);
    memory.endpoints.get_mut(&IFINDEX).unwrap().policy = PolicyWord::new(scene::RULES_OPEN, 12);
    assert_eq!(through(&memory, hb.tcp(9, 80, TCP_SYN)), Reason::Allowed);
    memory.endpoints.get_mut(&IFINDEX).unwrap().policy = PolicyWord::new(scene::RULES_B, 13);
    assert_eq!(through(&memory, hb.tcp(9, 80, TCP_ACK)), Reason::PolicyDenied);
}

#[test]
fn what_may_be_answers_of_an_adopted_pod_to_the_node_bears_no_mark() {
    let mut memory = memory();
    memory.endpoints.get_mut(&IFINDEX).unwrap().flags |= ENDPOINT_ADOPTED;
    let mark = |frame: Vec<u8>| {
        let frame = Frame::new(&frame, IFINDEX);
        assert_eq!(decide(&frame, &memory, Hook::FromPod), Reason::Allowed);
        frame.mark.get()
    };
    let ah = between(A, Host, false);
    assert_eq!(mark(ah.tcp(80, 9, TCP_ACK)), 0);
    assert_eq!(mark(ah.tcp(81, 9, TCP_SYN)), u32::from(A.mark()) << 20);
    assert_eq!(mark(ah.udp(80, 9)), u32::from(A.mark()) << 20);
    // Nobody is called from there.
    assert_eq!(mark(ah.tcp(82, 30080, TCP_ACK)), u32::from(A.mark()) << 20);
}

#[test]
fn an_address_that_becomes_a_services_has_marks_from_then_on() {
    let mut memory = memory();
    let send = |memory: &Memory, flags, want| {
        let bytes = between(A, World, false).tcp(9, 443, flags);
        let frame = Frame::new(&bytes, IFINDEX);
        assert_eq!(decide(&frame, memory, Hook::FromPod), want);
        frame.mark.get()
    };
    assert_eq!(send(&memory, TCP_SYN, Reason::Allowed), 0);
    let address = octets(World.address(false)).0;
    let key = ServiceKey { address, port_be: 443u16.to_be_bytes(), protocol: TCP, pad: 0 };
    memory.services_v4.insert(key, 500);
    memory.endpoints.get_mut(&IFINDEX).unwrap().policy = PolicyWord::new(scene::RULES_A, 2);
    for _ in 0..2 {
        assert_eq!(send(&memory, TCP_ACK, Reason::Tracked), u32::from(A.mark()) << 20);
    }
}

#[test]
fn who_comes_in_by_a_frontends_port_does_not_open_that_frontend() {
    for late in [false, true] {
        let mut memory = memory();
        let set = |memory: &mut Memory, rule_set, generation| {
            memory.endpoints.get_mut(&IFINDEX).unwrap().policy = PolicyWord::new(rule_set, generation);
        };
        set(&mut memory, scene::RULES_INGRESS, 11);
        memory.endpoints.get_mut(&B.ifindex()).unwrap().policy = PolicyWord::new(scene::RULES_OPEN, 12);
        let address = octets(Host.address(false)).0;
        let key = ServiceKey { address, port_be: 30080u16.to_be_bytes(), protocol: UDP, pad: 0 };
        if !late {
            memory.services_v4.insert(key, 500);
        }
        // B, masqueraded to the port of a frontend.
        let ha = between(Host, A, false);
        let bytes = ha.udp(30080, 9);
        let mark = (u32::from(B.mark()) << 20).into();
        let frame = Frame { came_in_by: scene::BRIDGE, mark, ..Frame::new(&bytes, IFINDEX) };
        assert_eq!(decide(&frame, &memory, Hook::ToPod), Reason::Allowed);
        if late {
            assert_eq!(see(&memory, Hook::FromPod, &ha.reply().udp(9, 30080)), Reason::Tracked);
            memory.services_v4.insert(key, 500);
            set(&mut memory, scene::RULES_INGRESS, 13);
        }
        assert_eq!(see(&memory, Hook::FromPod, &ha.reply().udp(9, 30080)), Reason::PolicyDenied);
        assert_eq!(see(&memory, Hook::FromPod, &ha.reply().udp(9, 30080)), Reason::PolicyDenied);
        set(&mut memory, scene::RULES_OPEN, 14);
        let bytes = ha.reply().udp(9, 30080);
        let frame = Frame::new(&bytes, IFINDEX);
        assert_eq!(decide(&frame, &memory, Hook::FromPod), Reason::Allowed);
        assert_eq!(frame.mark.get(), u32::from(A.mark()) << 20);
    }
}

#[test]
fn the_nodes_answer_may_reflect_the_mark_of_what_it_answers() {
    let mut memory = memory();
    memory.origins.insert(A.mark().into(), IFINDEX);
    let ah = between(A, Host, false);
    let asked = ah.echo(false, 7);
    let frame = Frame::new(&asked, IFINDEX);
    assert_eq!(decide(&frame, &memory, Hook::FromPod), Reason::Allowed);
    let answer = ah.reply().echo(true, 7);
    let answer = Frame { mark: frame.mark, ..Frame::new(&answer, IFINDEX) };
    assert_eq!(decide(&answer, &memory, Hook::ToPod), Reason::Tracked);
}

#[test]
fn like_drops_are_told_of_together() {
    let memory = memory();
    let frame = between(A, B, false).tcp(999, 81, TCP_SYN);
    let drop = || assert_eq!(see(&memory, Hook::FromPod, &frame), Reason::PolicyDenied);
    let told = || memory.take_events().iter().map(|event| event.aggregated).collect::<Vec<_>>();
    (0..10).for_each(|_| drop());
    assert_eq!(told(), [1]);
    memory.now.set(memory.now.get() + (u64::from(DROP_EVENT_TICKS) << 30));
    memory.event_room.set(Some(0));
    drop();
    assert_eq!((told(), memory.lost_events.get()), (vec![], 1));
    memory.event_room.set(None);
    memory.now.set(memory.now.get() + (u64::from(DROP_EVENT_TICKS) << 30));
    drop();
    assert_eq!(told(), [11]);
    assert_eq!(memory.counter(Reason::PolicyDenied), 12);
}

#[test]
fn a_budget_fills_up_with_time_and_no_further_than_it_can_be_saved_up() {
    const SECOND: u64 = 1_000_000_000;
    let mut memory = memory();
    memory.limits = Limits { entry_cost: SECOND, savings: 2 * SECOND };
    let mut port = 0;
    let mut begun = |memory: &Memory| {
        let outcomes = std::iter::repeat_with(|| {
            port += 1;
            see(memory, Hook::FromPod, &between(A, Remote, false).udp(port, 53))
        });
        outcomes.take(10).filter(|reason| *reason == Reason::Allowed).count()
    };
    assert_eq!(begun(&memory), 3);
    assert_eq!(begun(&memory), 0);
    memory.now.set(memory.now.get() + SECOND);
    assert_eq!(begun(&memory), 1);
    memory.now.set(memory.now.get() + 3600 * SECOND);
    assert_eq!(begun(&memory), 3);
    assert_eq!(memory.purses(A.mark()).refused, 40 - 7);
    assert_eq!(memory.counter(Reason::OverBudget), 40 - 7);
    assert_eq!(memory.conns_v4().len(), 7);
}

#[test]
fn a_flood_of_drops_is_told_of_in_bounds_and_counted_whole() {
    let mut memory = memory();
    let most = u32::try_from(DROP_EVENT_SAVINGS / DROP_EVENT_COST).unwrap() + 1;
    let flood = |memory: &Memory, packets: u32| {
        for number in 0..packets {
            let [_, _, high, low] = number.to_be_bytes();
            let mut frame = between(A, World, false).tcp(9, 80, TCP_SYN);
            (frame[32], frame[33]) = (high, low);
            assert_eq!(see(memory, Hook::FromPod, &frame), Reason::PolicyDenied);
        }
        memory.take_events()
    };
    let told = flood(&memory, 5000);
    let mixed: Vec<_> = told.iter().filter(|event| event.mixed == 1).collect();
    assert_eq!(
        (told.len(), mixed.len()),
        (most as usize + 1, 1),
        "each until the budget is used up, then one"
    );
    assert!(told.iter().all(|event| event.aggregated == 1));
    assert_eq!(memory.lost_detail.get(), u64::from(5000 - most));
    // Neither another pod's drops nor another reason's are pushed aside, and no table grows with the flood.
    assert_eq!(memory.drops().len(), most as usize + 1);
    let spoof = between(B, Remote, false).udp(1, 2);
    assert_eq!(see(&memory, Hook::FromPod, &spoof), Reason::SourceMac);
    assert_eq!(memory.take_events().len(), 1);
    memory.endpoints.insert(IFINDEX, endpoint(B));
    assert_eq!(
        see(&memory, Hook::FromPod, &between(B, World, false).tcp(9, 80, TCP_SYN)),
        Reason::PolicyDenied
    );
    assert_eq!(memory.take_events().len(), 1, "another pod has a budget of its own");
    memory.endpoints.insert(IFINDEX, endpoint(A));
    // What came in between is told as one, with its count.
    memory.now.set(memory.now.get() + (u64::from(DROP_EVENT_TICKS) << 30));
    let spent = memory.purses(A.mark()).drops - memory.now.get();
    let left = most - u32::try_from(spent.div_ceil(DROP_EVENT_COST)).unwrap();
    let told = flood(&memory, 5000);
    let counts: Vec<_> = told.iter().filter(|event| event.mixed == 1).map(|event| event.aggregated).collect();
    assert_eq!(counts, [5000 - most], "what came before the last event, and this one");
    assert_eq!(told.len(), left as usize + 1);
}

#[test]
fn an_allowed_connection_passes_even_if_it_finds_no_room() {
    let memory = memory();
    let frame = between(A, B, false).tcp(999, 80, TCP_SYN);
    memory.insertion.set(Some(Inserted::Full));
    assert_eq!(see(&memory, Hook::FromPod, &frame), Reason::Allowed);
    assert_eq!((memory.lost_conns.get(), memory.conns_v4().len(), memory.take_events().len()), (1, 0, 1));
    memory.insertion.set(Some(Inserted::Exists));
    assert_eq!(see(&memory, Hook::FromPod, &frame), Reason::Allowed);
    assert_eq!((memory.lost_conns.get(), memory.take_events().len()), (1, 0));
}

#[test]
fn only_the_counting_end_counts() {
    let mut memory = memory();
    let ab = between(A, B, false);
    let frame = ab.tcp(999, 80, TCP_SYN);
    assert_eq!(see(&memory, Hook::FromPod, &frame), Reason::Allowed);
    memory.endpoints.insert(IFINDEX, endpoint(B));
    assert_eq!(see(&memory, Hook::ToPod, &frame), Reason::Allowed);
    let conn = *memory.conns_v4().values().next().unwrap();
    assert_eq!((conn.packets, conn.ends), ([1, 0], [EndWord::new(1, 11), EndWord::new(1, 21)]));
    let kinds: Vec<_> = memory.take_events().iter().map(|event| (event.kind, event.direction)).collect();
    assert_eq!(kinds, [(EVENT_NEW, EGRESS), (EVENT_NEW, INGRESS)]);
}

/// Frames that get past the first checks more often than noise would.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let noise = proptest::collection::vec(any::<u8>(), 0..200);
    let known = (0..10usize, 0..10usize, any::<bool>(), any::<u8>(), noise.clone()).prop_map(
        |(source, destination, v6, protocol, body)| {
            between(ALL[source], ALL[destination], v6).frame(protocol, &body)
        },
    );
    let edited =
        (known.clone(), proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4))
            .prop_map(|(mut frame, edits)| {
                for (at, byte) in edits {
                    let at = at.index(frame.len());
                    frame[at] = byte;
                }
                frame
            });
    prop_oneof![noise, known, edited]
}

proptest! {
    #[test]
    fn no_frame_makes_the_decision_panic(frame in frames(), from in any::<bool>()) {
        let memory = memory();
        let hook = if from { Hook::FromPod } else { Hook::ToPod };
        let reason = see(&memory, hook, &frame);
        prop_assert_eq!(memory.counter(reason), 1);
        let told = reason.is_drop() && reason != Reason::Overheard;
        prop_assert_eq!(memory.take_events().iter().any(|event| event.kind == EVENT_DROP), told);
    }

    #[test]
    fn nobody_speaks_for_another(frame in frames()) {
        let mut memory = memory();
        memory.endpoints.get_mut(&IFINDEX).unwrap().policy = PolicyWord::new(scene::RULES_OPEN, 1);
        let mut frame = frame;
        if frame.len() >= 12 {
            frame[6..12].copy_from_slice(&A.mac());
        }
        let reason = see(&memory, Hook::FromPod, &frame);
        if !reason.is_drop() && reason != Reason::Neighbour {
            let own = if frame[12..14] == [8, 0] {
                frame[26..30] == octets(A.address(false)).0
            } else {
                frame[22..38] == octets(A.address(true)).1
            };
            prop_assert!(own);
        }
    }

    #[test]
    fn both_directions_have_one_connection(
        pair in (0..10usize, 0..10usize),
        v6 in any::<bool>(),
        ports in any::<(u16, u16)>(),
        kind in 0..3u8,
    ) {
        let mut memory = memory();
        memory.endpoints.get_mut(&IFINDEX).unwrap().policy = PolicyWord::new(scene::RULES_OPEN, 1);
        let remote = ALL[pair.0.max(1)];
        let way = between(A, remote, v6);
        let (there, back) = match kind {
            0 => (way.tcp(ports.0, ports.1, TCP_SYN), way.reply().tcp(ports.1, ports.0, TCP_SYN | TCP_ACK)),
            1 => (way.sctp(ports.0, ports.1), way.reply().sctp(ports.1, ports.0)),
            _ => (way.echo(false, ports.0), way.reply().echo(true, ports.0)),
        };
        prop_assert_eq!(see(&memory, Hook::FromPod, &there), Reason::Allowed);
        prop_assert_eq!(see(&memory, Hook::ToPod, &back), Reason::Tracked);
        prop_assert_eq!(memory.conns_v4().len() + memory.conns_v6().len(), 1);
    }
}
