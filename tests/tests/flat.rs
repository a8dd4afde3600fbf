//! The stage itself: what flannel gives without us, and that nothing of a lab stays behind.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr, UdpSocket},
    process::{Child, Command, Stdio},
    time::Duration,
};

use lab::{
    Family, Knock, Lab, Outcome, Plan, PodSpec, Start, Stream, Transport,
    node::{WORLD_V4, WORLD_V6},
    probe::attempt,
    server::Server,
    topology::{LABS_DIR, labs, sweep},
    until,
};

/// Set for the copy of this test program that is to end badly.
const CHILD: &str = "LAB_TEST_CHILD";
const PATIENCE: Duration = Duration::from_secs(2);

fn pod(key: &str, node: u8) -> PodSpec {
    PodSpec::new(key).on(node).serve(Transport::Tcp, 80).serve(Transport::Udp, 53)
}

fn two_pods_per_node() -> Lab {
    let lab = Plan::flat().raise().unwrap();
    lab.start_pods([pod("a/one", 1), pod("a/two", 1), pod("b/three", 2), pod("b/four", 2)]).unwrap();
    lab
}

#[test]
fn every_pod_reaches_every_pod() {
    let lab = two_pods_per_node();
    for family in [Family::V4, Family::V6] {
        for (transport, port) in [(Transport::Tcp, 80), (Transport::Udp, 53)] {
            let matrix = lab.matrix(transport, port, family).unwrap();
            assert_eq!(matrix.len(), 12, "four pods, each asks three");
            assert_eq!(matrix.denied(), BTreeSet::new(), "\n{matrix}");
            let nodes = lab.node_matrix(transport, port, family).unwrap();
            assert_eq!((nodes.len(), nodes.denied()), (8, BTreeSet::new()), "\n{nodes}");
        }
    }
}

#[test]
fn a_port_that_nobody_serves_is_refused_and_an_address_that_nobody_has_is_silent() {
    let lab = Plan::flat().raise().unwrap();
    let one = lab.start_pod(pod("a/one", 1)).unwrap();
    let two = lab.start_pod(pod("a/two", 2)).unwrap();
    let ask =
        |to: SocketAddr, transport| attempt(one.netns(), to, transport, Duration::from_millis(300)).unwrap();
    for family in [Family::V4, Family::V6] {
        for transport in [Transport::Tcp, Transport::Udp] {
            assert_eq!(
                ask(SocketAddr::new(two.ip(family), 9), transport),
                Outcome::Refused,
                "{transport} {family}"
            );
        }
    }
    assert_eq!(ask("10.244.2.99:80".parse().unwrap(), Transport::Tcp), Outcome::Silent);
}

#[test]
fn pods_sit_behind_a_bridge_with_the_nodes_first_address_and_flannels_mtu() {
    let lab = Plan::flat().raise().unwrap();
    let one = lab.start_pod(pod("a/one", 1)).unwrap();
    assert_eq!(one.ip(Family::V4), "10.244.1.2".parse::<IpAddr>().unwrap());
    assert_eq!(one.ip(Family::V6), "fd00:10:244:1::2".parse::<IpAddr>().unwrap());
    let shown =
        lab.node(1).netns().command("ip").unwrap().args(["-o", "addr", "show", "dev", "cni0"]).output();
    let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
    assert!(shown.contains("10.244.1.1/24") && shown.contains("fd00:10:244:1::1/64"), "{shown}");
    let link =
        one.netns().command("ip").unwrap().args(["-o", "link", "show", "dev", "eth0"]).output().unwrap();
    assert!(String::from_utf8(link.stdout).unwrap().contains("mtu 1450"));
    // A full-sized packet crosses the overlay in both families (40 or 20 bytes of IP, 8 of UDP).
    let two = lab.start_pod(pod("a/two", 2)).unwrap();
    for (family, size) in [(Family::V4, 1422), (Family::V6, 1402)] {
        let socket = {
            let _inside = one.netns().enter().unwrap();
            UdpSocket::bind((if family == Family::V4 { "0.0.0.0" } else { "::" }, 0)).unwrap()
        };
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(&vec![7; size], (two.ip(family), 53)).unwrap();
        assert_eq!(socket.recv(&mut [0; 2000]).unwrap(), size, "{family}");
    }
}

#[test]
fn a_pod_reaches_the_world_beyond_the_nodes() {
    let lab = Plan::flat().raise().unwrap();
    let one = lab.start_pod(pod("a/one", 1)).unwrap();
    let _server = Server::start(lab.world(), &[(Transport::Tcp, 443)]).unwrap();
    for world in [IpAddr::from(WORLD_V4), IpAddr::from(WORLD_V6)] {
        let outcome = attempt(one.netns(), SocketAddr::new(world, 443), Transport::Tcp, PATIENCE).unwrap();
        assert_eq!(outcome, Outcome::Reached, "{world}");
    }
}

#[test]
fn a_stopped_pod_is_gone_and_its_place_can_be_taken_again() {
    let lab = Plan::flat().raise().unwrap();
    let one = lab.start_pod(pod("a/one", 1)).unwrap();
    let two = lab.start_pod(pod("a/two", 1)).unwrap();
    let at = SocketAddr::new(two.ip(Family::V4), 80);
    assert_eq!(attempt(one.netns(), at, Transport::Tcp, PATIENCE).unwrap(), Outcome::Reached);
    let manifest = lab.manifests().dir().join("pod-a-two.yaml");
    assert!(fs::read_to_string(&manifest).unwrap().contains("10.244.1.3"), "the status tells the address");
    drop(two);
    lab.stop_pod("a/two").unwrap();
    assert!(!manifest.exists());
    assert_ne!(
        attempt(one.netns(), at, Transport::Tcp, Duration::from_millis(200)).unwrap(),
        Outcome::Reached
    );
    lab.start_pod(pod("a/two", 2)).unwrap();
    assert_eq!(lab.matrix(Transport::Tcp, 80, Family::V4).unwrap().reached().len(), 2);
}

#[test]
fn the_first_act_comes_right_after_add_and_a_knock_may_begin_before_it() {
    let lab = Plan::flat().raise().unwrap();
    let server = lab.start_pod(pod("a/server", 2)).unwrap();
    let to = SocketAddr::new(server.ip(Family::V4), 80);
    let (mut knock, mut first) = (None, None);
    let start = Start {
        before_add: Some(Box::new(|netns| knock = Some(Knock::start(netns, to, Transport::Tcp).unwrap()))),
        first_act: Some(Box::new(|netns| {
            first = Some(attempt(netns, to, Transport::Tcp, PATIENCE).unwrap());
        })),
    };
    let client = lab.start_pod_with(pod("a/client", 1), start).unwrap();
    assert_eq!(first, Some(Outcome::Reached));
    let report = knock.unwrap().stop();
    assert!(report.reached > 0 && report.attempts > report.sent, "{report:?}");
    // The server accepts a moment after the client is connected.
    let heard =
        until(PATIENCE, || Ok(server.heard_from(client.ip(Family::V4))), |n| *n > report.reached).unwrap();
    assert!(heard > report.reached, "the knocks and the first act: {heard}, {report:?}");
    assert_eq!(client.added_by_bulkhead(), Duration::ZERO, "a flat lab has no such plugin");
}

#[test]
fn a_stream_tells_what_it_lost() {
    let lab = Plan::flat().raise().unwrap();
    let one = lab.start_pod(pod("a/one", 1)).unwrap();
    let two = lab.start_pod(pod("a/two", 2)).unwrap();
    let to = SocketAddr::new(two.ip(Family::V6), 80);
    let calm = Stream::start(one.netns(), to, Duration::from_millis(1)).unwrap();
    let cut = Stream::start(one.netns(), to, Duration::from_millis(1)).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let calm = calm.stop();
    assert!(calm.sent > 10 && calm.broken.is_none(), "{calm:?}");
    assert_eq!((calm.echoed, calm.retransmitted), (calm.sent, 0));
    lab.world().ip("link set n1 down").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    lab.world().ip("link set n1 up").unwrap();
    let cut = cut.stop();
    assert!(cut.retransmitted > 0 && cut.longest_wait > Duration::from_millis(200), "{cut:?}");
    assert_eq!((cut.echoed, cut.broken), (cut.sent, None), "TCP has made up for it");
}

#[test]
fn nothing_stays_behind_when_a_lab_ends() {
    let lab = two_pods_per_node();
    let name = lab.name().to_owned();
    assert!(labs().unwrap().contains(&name) && !leftovers(&name).is_empty());
    drop(lab);
    assert_eq!(leftovers(&name), Vec::<String>::new());
}

#[test]
fn nothing_stays_behind_when_a_test_panics() {
    if env::var_os(CHILD).is_some() {
        let lab = two_pods_per_node();
        println!("\nlab {}", lab.name());
        panic!("as a failing test does");
    }
    let (mut child, name) = child("nothing_stays_behind_when_a_test_panics");
    assert!(!child.wait().unwrap().success(), "the child's test fails");
    assert_eq!(leftovers(&name), Vec::<String>::new());
}

#[test]
fn what_a_killed_process_leaves_is_swept() {
    if env::var_os(CHILD).is_some() {
        let lab = two_pods_per_node();
        println!("\nlab {}", lab.name());
        std::thread::sleep(Duration::from_mins(1));
        return;
    }
    let (mut child, name) = child("what_a_killed_process_leaves_is_swept");
    assert!(!sweep().contains(&name), "its owner lives");
    assert!(!leftovers(&name).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    sweep(); // or another test's lab, which sweeps as it starts
    let gone = (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        leftovers(&name).is_empty()
    });
    assert!(gone, "{:?}", leftovers(&name));
}

/// Runs one test of this program as a child; it tells its lab's name once the lab stands.
fn child(test: &str) -> (Child, String) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let name = lines.find_map(|line| line.strip_prefix("lab ").map(str::to_owned));
    (child, name.expect("the child raises a lab"))
}

/// Namespaces, mounts and directories that carry this lab's name.
fn leftovers(name: &str) -> Vec<String> {
    let mentions =
        |line: &str| line.contains(&format!("{name}-")) || line.contains(&format!("{LABS_DIR}/{name}/"));
    let names = |dir: &str| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.path().display().to_string()).collect::<Vec<_>>()
    };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    names("/run/netns")
        .into_iter()
        .chain(names(LABS_DIR).into_iter().map(|path| path + "/"))
        .chain(mounts.lines().map(str::to_owned))
        .filter(|line| mentions(line))
        .collect()
}
