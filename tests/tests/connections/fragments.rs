//! Fragments follow the verdict of their first one, in both families.

use std::{net::UdpSocket, thread, time::Duration};

use lab::{
    Family, Pod,
    node::{WORLD_V4, WORLD_V6},
    raw::Packet,
    sniffer::Sniffer,
};

use crate::stage::{ARRIVES_WITHIN, FAMILIES, arrive, at, lab_with, packets, policy, vanish};

/// More than two packets' worth.
const LENGTH: usize = 4000;

const ADMIT_WEBS: &str = "policyTypes: [Ingress, Egress], ingress: [{\
    from: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 192.168.77.254/32}}, {ipBlock: {cidr: 'fd00:c0:a8:4d::fe/128'}}], \
    ports: [{port: 53, protocol: UDP}]}]";

fn socket(pod: &Pod, family: Family) -> UdpSocket {
    let _inside = pod.netns().enter().unwrap();
    let socket = UdpSocket::bind(at(pod, family, 0)).unwrap();
    socket.set_read_timeout(Some(ARRIVES_WITHIN)).unwrap();
    socket
}

#[test]
fn a_fragmented_datagram_arrives_whole_or_not_at_all() {
    let lab = lab_with(&["shop/db-1", "shop/web-1", "shop/web-2", "other/guest-1", "other/guest-2"]);
    policy(&lab, "db", "db", ADMIT_WEBS);
    lab.settle().unwrap();
    let db = lab.pod("shop/db-1");
    let datagram: Vec<u8> = (0..LENGTH).map(|n| u8::try_from(n % 251).unwrap()).collect();
    for family in FAMILIES {
        for node in 1..=2 {
            let mut at_db = Sniffer::start(db.netns()).unwrap();
            let fragments = packets(&lab, 1, "fragment");
            let web = lab.pod(&format!("shop/web-{node}"));
            let allowed = socket(&web, family);
            allowed.send_to(&datagram, at(&db, family, 53)).unwrap();
            let mut echo = vec![0; LENGTH + 1];
            let length = allowed.recv(&mut echo).unwrap();
            assert!(echo[..length] == datagram, "{family}, node {node}: {length} bytes");
            let from =
                |packet: &&Packet, pod: &Pod| packet.source == pod.ip(family) && packet.fragment.is_some();
            assert_eq!(
                at_db.seen().unwrap().iter().filter(|p| from(p, &web)).count(),
                3,
                "it came in pieces"
            );
            let later = packets(&lab, 1, "fragment");
            assert!(later >= fragments + 4, "two later fragments in each direction: {fragments} to {later}");

            let guest = lab.pod(&format!("other/guest-{node}"));
            let (denied, untracked) =
                (packets(&lab, 1, "policy-denied"), packets(&lab, 1, "fragment-not-tracked"));
            socket(&guest, family).send_to(&datagram, at(&db, family, 53)).unwrap();
            allowed.send_to(&datagram, at(&db, family, 53)).unwrap(); // the way is open
            assert_eq!(allowed.recv(&mut echo).unwrap(), LENGTH);
            thread::sleep(Duration::from_millis(50));
            let arrived: Vec<_> = at_db.seen().unwrap().iter().filter(|p| from(p, &guest)).cloned().collect();
            assert_eq!(arrived, [], "{family}, node {node}");
            let now = (packets(&lab, 1, "policy-denied"), packets(&lab, 1, "fragment-not-tracked"));
            assert!(now.0 > denied && now.1 >= untracked + 2, "{denied} and {untracked} to {now:?}");
        }
    }
}

#[test]
fn later_fragments_alone_never_arrive() {
    let lab = lab_with(&["shop/db-1", "shop/web-1", "shop/web-2"]);
    policy(&lab, "db", "db", ADMIT_WEBS);
    lab.settle().unwrap();
    let db = lab.pod("shop/db-1");
    let mut at_db = Sniffer::start(db.netns()).unwrap();
    let (one, two) = (lab.pod("shop/web-1"), lab.pod("shop/web-2"));
    for family in FAMILIES {
        let world = match family {
            Family::V4 => WORLD_V4.into(),
            Family::V6 => WORLD_V6.into(),
        };
        // A pod's own end drops them as they leave; from the world they come as far as the db's end.
        for (netns, source, node) in
            [(one.netns(), one.ip(family), 1), (two.netns(), two.ip(family), 2), (lab.world(), world, 1)]
        {
            let datagram = |port| Packet::udp((source, port).into(), at(&db, family, 53), &[9; LENGTH]);
            let [first, later @ ..] = &datagram(40_000).fragments(7, 1400)[..] else {
                panic!("several fragments")
            };
            let before = packets(&lab, node, "fragment-not-tracked");
            vanish(netns, &mut at_db, later, first);
            let after = packets(&lab, node, "fragment-not-tracked");
            assert!(after >= before + 2, "{source}: {before} to {after}");
            arrive(netns, &mut at_db, &datagram(40_000).fragments(8, 1400));
            let whole = Packet::udp((source, 40_001).into(), at(&db, family, 53), b"small");
            // Those of a datagram that no policy admits, behind a first one that does not pass.
            let closed = Packet::udp((source, 40_000).into(), at(&db, family, 54), &[9; LENGTH]);
            vanish(netns, &mut at_db, &closed.fragments(9, 1400), &whole);
        }
    }
}

#[test]
fn an_ipv6_datagram_in_one_fragment_is_judged_as_a_whole_one() {
    let lab = lab_with(&["shop/db-1", "shop/web-1", "shop/web-2"]);
    policy(&lab, "db", "db", ADMIT_WEBS);
    lab.settle().unwrap();
    let db = lab.pod("shop/db-1");
    let mut at_db = Sniffer::start(db.netns()).unwrap();
    for web in ["shop/web-1", "shop/web-2"].map(|web| lab.pod(web)) {
        let atomic = |port| {
            let whole = Packet::udp(at(&web, Family::V6, 40_000), at(&db, Family::V6, port), b"RFC 6946");
            whole.fragments(11, 1400)
        };
        assert_eq!(atomic(53).len(), 1);
        vanish(web.netns(), &mut at_db, &atomic(54), &atomic(53)[0]);
    }
}
