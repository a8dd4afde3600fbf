//! The whole packet decision, over a sequence of frames that share connections and fragments.
//!
//! Input: records of one control byte, the frame's length (two bytes, little-endian, cut to what is left)
//! and the frame. Control: bit 0 hook, bits 1 and 2 interface, bit 3 VLAN tag beside the frame, bit 4 the
//! endpoint's generation moves first, bits 5 to 7 how far the clock moves. The length's two highest bits say that the
//! frame is on its way to another node (instead of the hook), and that it came through the node, with this interface's
//! mark on it.
//!
//! Whatever the frames are, nothing passes that is unreadable, untruthful or without an allowing rule; and the same
//! frames in the same order get the same verdicts.
#![no_main]

use bulkhead_ebpf::{
    abi::{
        ENDPOINT_ADOPTED, Endpoint, FIRST_POD_IDENTITY, IDENTITY_HOST, IDENTITY_WORLD, PEER_ANY, Peer,
        PolicyWord, RULE_BITS_ALL, RULE_BITS_PORT, RuleKey, ServiceKey,
    },
    decide::{Hook, decide},
    host::{Frame, Memory},
    reason::Reason,
};

/// The pod's rules allow some of what it may send and receive.
const PARTLY_OPEN: u32 = 10;
/// Rule set 0: nothing may begin.
const CLOSED: u32 = 11;
const ADOPTED: u32 = 12;
const MARK_MASK: u32 = 0xfff0_0000;
/// A Service's address, allowed at port 80 and not at 81.
const SERVICE: [u8; 4] = [10, 96, 0, 1];
/// An interface without a record.
const NO_POD: u32 = 13;

fn pod(last: u8, ifindex: u32, rule_set: u32, flags: u16) -> Endpoint {
    let mut ipv6 = [0xfd, 0, 2, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ipv6[15] = last;
    Endpoint {
        ifindex,
        id: ifindex,
        policy: PolicyWord::new(rule_set, 1),
        ipv6,
        ipv4: [10, 244, 1, last],
        mac: [2, 0, 0, 0, 0, last],
        flags,
        identity: FIRST_POD_IDENTITY + u32::from(last),
        mark: last.into(),
        ..Endpoint::default()
    }
}

fn world() -> Memory {
    let mut world = Memory::default();
    world.config.tunnel_port_be = 8472u16.to_be_bytes();
    world.config.mark_mask = MARK_MASK;
    let pods = [pod(5, PARTLY_OPEN, 1, 0), pod(6, CLOSED, 0, 0), pod(7, ADOPTED, 1, ENDPOINT_ADOPTED)];
    for pod in pods {
        let peer = Peer { identity: pod.identity, ifindex: pod.ifindex, ..Peer::default() };
        world.origins.insert(pod.mark.into(), pod.ifindex);
        world.peers_v4.insert(pod.ipv4, peer);
        world.peers_v6.insert(pod.ipv6, peer);
        world.endpoints.insert(pod.ifindex, pod);
    }
    world.peers_v4.insert([10, 244, 1, 1], Peer { identity: IDENTITY_HOST, ..Peer::default() });
    world.prefix_v4(0, [0; 4], Peer { identity: IDENTITY_WORLD, ..Peer::default() });
    world.prefix_v6(0, [0; 16], Peer { identity: IDENTITY_WORLD, ..Peer::default() });
    for (port, backends) in [(80, 500), (81, 501)] {
        let key = ServiceKey { address: SERVICE, port_be: [0, port], protocol: 6, pad: 0 };
        world.services_v4.insert(key, backends);
    }
    let backends = RuleKey { rule_set: 1, peer: 500, direction: 1, ..RuleKey::default() };
    world.allow(RULE_BITS_ALL, backends, 3);
    for direction in [0, 1] {
        let from_anyone = RuleKey { rule_set: 1, peer: PEER_ANY, direction, protocol: 6, port_be: [0, 80] };
        world.allow(RULE_BITS_PORT, from_anyone, 1);
        let the_node = RuleKey { peer: IDENTITY_HOST, protocol: 0, port_be: [0, 0], ..from_anyone };
        world.allow(RULE_BITS_ALL, the_node, 2);
    }
    world
}

/// On its way to another node: a pod's packet passes only if the pod may send it.
fn check_overlay(frame: &Frame, reason: Reason) {
    let from_closed = frame.bytes.get(12..14) == Some(&[0x08, 0x00])
        && frame.bytes.get(26..30) == Some(&[10, 244, 1, 6])
        || frame.bytes.get(12..14) == Some(&[0x86, 0xdd])
            && frame.bytes.get(22..38).is_some_and(|source| source == pod(6, 0, 0, 0).ipv6);
    // What the pod's own hook has judged goes on; nothing begins here.
    if from_closed {
        assert!(!matches!(reason, Reason::Allowed | Reason::Fragment), "a closed pod: {reason:?}");
    }
}

fn check(frame: &Frame, hook: Hook, pod: Option<&Endpoint>, reason: Reason) {
    if hook == Hook::ToOverlay {
        return check_overlay(frame, reason);
    }
    if reason.is_drop() {
        return;
    }
    if hook == Hook::FromPod
        && let [.., 6, _, _, a, b, c, d, 10, 96, 0, 1, _, _, 0, 81] = frame.bytes[..frame.bytes.len().min(38)]
        && frame.bytes[14] == 0x45
        && pod.is_some_and(|pod| pod.ipv4 == [a, b, c, d])
        && frame.bytes[20] & 0x1f == 0
        && frame.bytes[21] == 0
        && frame.bytes.get(47).is_some_and(|flags| flags & 0x12 == 2)
    {
        panic!("a Service that is not allowed: {reason:?}");
    }
    let pod = pod.expect("an interface without a record passed a packet");
    if hook == Hook::ToPod && reason != Reason::Neighbour {
        match frame.bytes[12] {
            0x08 => assert_eq!(frame.bytes[30..34], pod.ipv4, "another's packet was delivered: {reason:?}"),
            _ => assert_eq!(frame.bytes[38..54], pod.ipv6, "another's packet was delivered: {reason:?}"),
        }
    }
    assert!(!frame.vlan_tagged);
    let is_ip = match frame.bytes[12..14] {
        [0x08, 0x00] => true,
        [0x86, 0xdd] => reason != Reason::Neighbour,
        [0x08, 0x06] => false,
        _ => panic!("an unknown EtherType passed: {reason:?}"),
    };
    if !is_ip {
        assert_eq!(reason, Reason::Neighbour);
    }
    if matches!(hook, Hook::FromPod) {
        assert_eq!(frame.bytes[6..12], pod.mac, "another's MAC address passed: {reason:?}");
        match frame.bytes[12] {
            0x08 if is_ip => assert_eq!(frame.bytes[26..30], pod.ipv4, "{reason:?}"),
            0x86 if is_ip => assert_eq!(frame.bytes[22..38], pod.ipv6, "{reason:?}"),
            _ => {}
        }
    }
    if pod.ifindex == CLOSED {
        assert!(matches!(reason, Reason::OwnAddress | Reason::Neighbour), "a closed pod: {reason:?}");
    }
}

/// A frame that no other came before: what passes then passes by a rule, and the rules are few. The frame's fields are
/// read here by themselves, where they have their usual places.
fn check_first(frame: &Frame, hook: Hook) {
    let world = world();
    let reason = decide(frame, &world, hook);
    if hook == Hook::ToOverlay {
        return; // much has been judged at the pod's own hook
    }
    assert!(
        !matches!(reason, Reason::Tracked | Reason::Related | Reason::Fragment),
        "nothing came before: {reason:?}"
    );
    if reason != Reason::Allowed {
        return;
    }
    let bytes = frame.bytes;
    let (protocol, host, transport) = match bytes[12..14] {
        [0x08, 0x00] => {
            assert_eq!([bytes[20] & 0x1f, bytes[21]], [0, 0], "a later fragment without its first");
            let other = if hook == Hook::ToPod { 26..30 } else { 30..34 };
            (bytes[23], bytes[other] == [10, 244, 1, 1], 14 + usize::from(bytes[14] & 15) * 4)
        }
        _ if matches!(bytes[20], 6 | 17 | 58 | 132) => (bytes[20], false, 54),
        _ => return, // behind extension headers
    };
    if host || frame.ifindex == ADOPTED {
        return;
    }
    assert_eq!(protocol, 6, "only TCP is allowed");
    let port = u16::from_be_bytes([bytes[transport + 2], bytes[transport + 3]]);
    assert_eq!(port, 80, "only one port is allowed");
    assert_eq!(bytes[transport + 13] & 0x12, 2, "only a SYN opens");
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let verdicts = run(input, true);
    assert_eq!(run(input, false), verdicts);
});

fn run(input: &[u8], thorough: bool) -> Vec<Reason> {
    let mut world = world();
    let mut rest = input;
    let mut verdicts = Vec::new();
    while let [control, low, high, tail @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high & 0x3f]));
        let (bytes, next) = tail.split_at(tail.len().min(length));
        rest = next;
        let hook = match (high >> 7, control & 1) {
            (1, _) => Hook::ToOverlay,
            (_, 0) => Hook::FromPod,
            _ => Hook::ToPod,
        };
        let ifindex = [PARTLY_OPEN, CLOSED, ADOPTED, NO_POD][usize::from(control >> 1 & 3)];
        if control & 16 != 0
            && let Some(pod) = world.endpoints.get_mut(&ifindex)
        {
            pod.policy = PolicyWord::new(pod.policy.rule_set(), pod.policy.generation() + 1);
        }
        world.now.set(world.now.get() + (u64::from(control >> 5) << 30));
        let (came_in_by, mark) = if high & 0x40 == 0 { (0, 0) } else { (50, (control >> 1 & 3) + 5) };
        let frame = Frame {
            vlan_tagged: control & 8 != 0,
            came_in_by,
            mark: (u32::from(mark) << 20).into(),
            ..Frame::new(bytes, ifindex)
        };
        let reason = decide(&frame, &world, hook);
        check(&frame, hook, world.endpoints.get(&ifindex), reason);
        verdicts.push(reason);
        assert_eq!(world.counters().values().sum::<u64>(), verdicts.len() as u64, "one reason per packet");
        if thorough {
            frame.mark.set(u32::from(mark) << 20);
            check_first(&frame, hook);
        }
    }
    for event in world.take_events() {
        assert!(Reason::try_from(event.reason).is_ok(), "{event:?}");
    }
    verdicts
}
