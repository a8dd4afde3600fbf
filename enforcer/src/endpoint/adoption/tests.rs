use bulkhead_cni::protocol::PodName;

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 6];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

fn sighting(container: &str, pod: &str, ifindex: u32, address: &str) -> Sighting {
    Sighting {
        remembered: Remembered {
            attachment: AttachmentId { container: container.into(), ifname: "eth0".into() },
            network: "cbr0".into(),
            netns: Some("/run/netns/gone".into()),
            pod: PodName { namespace: "shop".into(), name: pod.into(), uid: None },
            mac: Some(MAC),
            addresses: ips(&[address]),
            host_interfaces: ["cni0".to_owned(), format!("veth{ifindex}")].into(),
        },
        found: Ok(Found {
            netns: "/run/netns/a".into(),
            wiring: Wiring { host_ifname: format!("veth{ifindex}"), host_ifindex: ifindex, mac: MAC },
            inside: ips(&[address]),
        }),
    }
}

fn cart() -> Sighting {
    sighting("c1", "cart", 7, "10.244.1.5")
}

fn pod(name: &str, addresses: &[&str]) -> Pod {
    Pod {
        key: Key::new("shop", name),
        labels: [].into_iter().collect::<BTreeMap<String, String>>().into(),
        node: Some("node-1".into()),
        host_network: false,
        finished: false,
        ips: ips(addresses).into(),
        ports: [].into(),
        workload: None,
        uid: None,
    }
}

fn bridges() -> Bridges {
    Bridges {
        ports: [(7, 3), (8, 3), (9, 4)].into(),
        learned: [(MAC, [7].into())].into(),
        neighbours: [(ip("10.244.1.5"), MAC)].into(),
    }
}

/// Containers that are adopted, and those (or pods without one) that are not, with the reason.
fn verdict(
    sightings: &[Sighting],
    bridges: &Bridges,
    pods: &[Pod],
    edit: impl FnOnce(&mut Expected<'_>),
) -> (Vec<String>, Vec<(String, String)>) {
    let mut expected = Expected {
        pods: pods
            .iter()
            .filter(|pod| is_here(pod, Some("node-1")))
            .map(|pod| (pod.key.clone(), pod))
            .collect(),
        ..Expected::default()
    };
    edit(&mut expected);
    let recognised = recognise(sightings, bridges, &expected);
    let who = |unadopted: &Unadopted| {
        if unadopted.container.is_empty() { unadopted.pod.clone() } else { unadopted.container.clone() }
    };
    (
        recognised.pods.into_keys().map(|attachment| attachment.container).collect(),
        recognised.unadopted.iter().map(|unadopted| (who(unadopted), unadopted.why.clone())).collect(),
    )
}

fn found(sighting: &mut Sighting) -> &mut Found {
    sighting.found.as_mut().expect("made with one")
}

#[test]
fn a_pod_whose_witnesses_agree_is_adopted_where_it_is_now() {
    let pods = [pod("cart", &["10.244.1.5"])];
    let expected =
        Expected { pods: pods.iter().map(|pod| (pod.key.clone(), pod)).collect(), ..Expected::default() };
    let recognised = recognise(&[cart()], &bridges(), &expected);
    let sandbox = Sandbox {
        network: "cbr0".into(),
        netns: "/run/netns/a".into(),
        host_ifname: "veth7".into(),
        host_ifindex: 7,
        mac: MAC,
        addresses: ips(&["10.244.1.5"]),
        pod: Some(PodName { namespace: "shop".into(), name: "cart".into(), uid: None }),
    };
    let pods = [(cart().remembered.attachment, sandbox)].into();
    assert_eq!(recognised, Recognised { pods, unadopted: [].into() });
}

type Edit = fn(&mut Sighting, &mut Bridges, &mut Pod);

/// Without a reason: it is adopted.
fn cases(cases: &[(&str, Edit)], first: Edit) {
    for (why, edit) in cases {
        let (mut sighting, mut bridges, mut pod) = (cart(), bridges(), pod("cart", &["10.244.1.5"]));
        first(&mut sighting, &mut bridges, &mut pod);
        edit(&mut sighting, &mut bridges, &mut pod);
        let want = if why.is_empty() {
            (vec!["c1".to_owned()], vec![])
        } else {
            (vec![], vec![("c1".to_owned(), (*why).to_owned())])
        };
        assert_eq!(verdict(&[sighting], &bridges, &[pod], |_| {}), want, "{why}");
    }
}

#[test]
fn one_contradiction_is_enough_to_leave_a_pod_alone() {
    cases(
        &[
            ("", |_, _, pod| pod.ips = [].into()),
            ("the API says that its addresses are 10.244.1.9 and not 10.244.1.5", |_, _, pod| {
                pod.ips = [ip("10.244.1.9")].into();
            }),
            ("veth7 is no port of a bridge", |_, bridges, _| _ = bridges.ports.remove(&7)),
        ],
        |_, _, _| {},
    );
}

#[test]
fn where_the_name_of_the_hosts_end_is_not_known_everything_else_must_fit() {
    cases(
        &[
            ("", |_, _, _| {}),
            ("", |sighting, bridges, _| {
                sighting.remembered.mac = None;
                *bridges = Bridges { ports: bridges.ports.clone(), ..Bridges::default() };
            }),
            // The same MAC address at another bridge is in another network.
            ("", |_, bridges, _| _ = bridges.learned.insert(MAC, [7, 9].into())),
            ("its MAC address is 02:00:00:00:00:05 and not 02:00:00:00:00:06", |sighting, _, _| {
                sighting.remembered.mac = Some(OTHER);
            }),
            ("it has the addresses 10.244.1.9 and not 10.244.1.5", |sighting, _, _| {
                found(sighting).inside = ips(&["10.244.1.9"]);
            }),
            ("it has the addresses none and not 10.244.1.5", |sighting, _, _| {
                found(sighting).inside = [].into();
            }),
            ("the bridge has learned its MAC address at interface 8 too", |_, bridges, _| {
                bridges.learned.insert(MAC, [7, 8].into());
            }),
            (
                "the node's neighbour 10.244.1.5 is 02:00:00:00:00:06 and not 02:00:00:00:00:05",
                |_, bridges, _| _ = bridges.neighbours.insert(ip("10.244.1.5"), OTHER),
            ),
        ],
        |sighting, _, _| sighting.remembered.host_interfaces = ["cni0".to_owned()].into(),
    );
}

#[test]
fn a_pod_cannot_lie_itself_out_of_being_enforced() {
    cases(
        &[
            ("", |sighting, _, _| sighting.remembered.mac = Some(OTHER)),
            ("", |sighting, _, _| found(sighting).inside = ips(&["10.244.1.9"])),
            ("", |_, bridges, _| _ = bridges.learned.insert(MAC, [7, 8].into())),
            ("", |_, bridges, _| _ = bridges.neighbours.insert(ip("10.244.1.5"), OTHER)),
        ],
        |_, _, _| {},
    );
}

#[test]
fn two_attachments_with_one_interface_or_one_address_are_both_left_alone() {
    let pods = [pod("cart", &["10.244.1.5"]), pod("db", &["10.244.1.5"])];
    let (adopted, left) =
        verdict(&[cart(), sighting("c2", "db", 8, "10.244.1.5")], &bridges(), &pods, |_| {});
    assert_eq!(adopted, Vec::<String>::new());
    let why = |other: &str| format!("container {other} has 10.244.1.5 too");
    assert_eq!(left, [("c1".to_owned(), why("c2")), ("c2".to_owned(), why("c1"))]);

    let pods = [pod("cart", &["10.244.1.5"]), pod("db", &["10.244.1.6"])];
    let (adopted, left) =
        verdict(&[cart(), sighting("c2", "db", 7, "10.244.1.6")], &bridges(), &pods, |_| {});
    assert_eq!(adopted, Vec::<String>::new());
    let why = |other: &str| format!("container {other} is remembered for veth7 too");
    assert_eq!(left, [("c1".to_owned(), why("c2")), ("c2".to_owned(), why("c1"))]);
}

#[test]
fn who_is_not_where_he_is_remembered_is_no_rival() {
    let pods = [pod("cart", &["10.244.1.5"]), pod("db", &["10.244.1.6"])];
    let mut moved = sighting("c2", "db", 8, "10.244.1.6");
    found(&mut moved).wiring = found(&mut cart()).wiring.clone();
    found(&mut moved).inside = ips(&["10.244.1.5"]);
    let (adopted, left) = verdict(&[cart(), moved], &bridges(), &pods, |_| {});
    assert_eq!(adopted, ["c1"]);
    let why = "it has the addresses 10.244.1.5 and not 10.244.1.6";
    assert_eq!(left, [("c2".to_owned(), why.to_owned())]);
}

#[test]
fn what_an_endpoint_has_is_nobody_elses() {
    let pods = [pod("cart", &["10.244.1.5"])];
    for (why, edit) in [
        ("veth7 is another endpoint's", (|e| e.interfaces = [7].into()) as fn(&mut Expected<'_>)),
        ("10.244.1.5 is another endpoint's", |e| e.addresses = ips(&["10.244.1.5"])),
    ] {
        let want = (vec![], vec![("c1".to_owned(), why.to_owned())]);
        assert_eq!(verdict(&[cart()], &bridges(), &pods, edit), want);
    }
}

#[test]
fn only_pods_of_this_node_with_an_interface_of_their_own_are_looked_for() {
    let elsewhere = Pod { node: Some("node-2".into()), ..pod("cart", &["10.244.1.5"]) };
    let host = Pod { host_network: true, ..pod("cart", &["10.244.1.5"]) };
    let ended = Pod { finished: true, ..pod("cart", &["10.244.1.5"]) };
    for pods in [vec![], vec![elsewhere], vec![host], vec![ended]] {
        assert_eq!(verdict(&[cart()], &bridges(), &pods, |_| {}), (vec![], vec![]), "{pods:?}");
    }
}

#[test]
fn a_pod_without_a_trace_is_named_unless_it_is_served_or_has_no_address_yet() {
    let pods = [pod("cart", &["10.244.1.5"]), pod("starting", &[])];
    let lost = |name: &str| (name.to_owned(), "the runtime remembers no attachment of it".to_owned());
    assert_eq!(verdict(&[], &bridges(), &pods, |_| {}), (vec![], vec![lost("shop/cart")]));
    let served = |expected: &mut Expected<'_>| expected.served = [Key::new("shop", "cart")].into();
    assert_eq!(verdict(&[], &bridges(), &pods, served), (vec![], vec![]));
}

#[test]
fn what_an_earlier_sandbox_of_the_pod_left_behind_waits_for_nobody() {
    let mut old = sighting("c0", "cart", 6, "10.244.1.4");
    old.found = Err("eth0 in /run/netns/gone does not exist".to_owned());
    let pods = [pod("cart", &["10.244.1.5"])];
    let adopted = |containers: &[&str]| containers.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(verdict(&[old.clone(), cart()], &bridges(), &pods, |_| {}), (adopted(&["c1"]), vec![]));
    let alone = vec![("c0".to_owned(), "eth0 in /run/netns/gone does not exist".to_owned())];
    assert_eq!(verdict(&[old], &bridges(), &pods, |_| {}), (vec![], alone));
}
