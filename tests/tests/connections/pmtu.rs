//! A smaller link on the way: routers' errors come back to the sender, or the transfer would never end.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
};

use lab::{Family, Lab, Pod, Transport, netns::Netns, server::Server};

use crate::stage::{ARRIVES_WITHIN, FAMILIES, at, lab_with, packets, policy};

const SMALL_MTU: u32 = 1300;
const LENGTH: usize = 1 << 19;

/// Nothing but the transfer's own direction is open at either end.
fn isolate(lab: &Lab) {
    policy(
        lab,
        "db",
        "db",
        "policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}]",
    );
    policy(
        lab,
        "web",
        "web",
        "policyTypes: [Ingress, Egress], egress: [{to: [\
        {podSelector: {matchLabels: {app: db}}}, {ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: '2001:db8::/64'}}], ports: [{port: 80}]}]",
    );
    lab.settle().unwrap();
}

/// Sends as much as comes back.
fn transfer(from: &Pod, to: SocketAddr) {
    let data: Vec<u8> = (0..LENGTH).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let mut stream = {
        let _inside = from.netns().enter().unwrap();
        TcpStream::connect_timeout(&to, ARRIVES_WITHIN).unwrap()
    };
    stream.set_read_timeout(Some(ARRIVES_WITHIN)).unwrap();
    stream.set_write_timeout(Some(ARRIVES_WITHIN)).unwrap();
    let mut echo = vec![0; LENGTH];
    thread::scope(|scope| {
        let (mut writer, data) = (stream.try_clone().unwrap(), &data);
        scope
            .spawn(move || writer.write_all(data).unwrap_or_else(|error| panic!("sending to {to}: {error}")));
        stream.read_exact(&mut echo).unwrap_or_else(|error| panic!("the echo from {to}: {error}"));
    });
    assert!(echo == data, "the echo from {to} is what was sent");
}

/// What the pod has learned about the way.
fn learned_mtu(pod: &Pod, to: IpAddr) -> Option<u32> {
    let output = pod.netns().command("ip").unwrap().args(["route", "get", &to.to_string()]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).and_then(|mtu| mtu.parse().ok())
}

#[test]
fn a_transfer_over_an_overlay_that_is_too_small_completes_in_both_directions() {
    let lab = lab_with(&["shop/db-2", "shop/web-1"]);
    isolate(&lab);
    let (db, web) = (lab.pod("shop/db-2"), lab.pod("shop/web-1"));
    for node in lab.nodes() {
        node.netns()
            .ip(&format!("link set flannel.1 mtu {SMALL_MTU}\nlink set flannel-v6.1 mtu {SMALL_MTU}\n"))
            .unwrap();
    }
    for family in FAMILIES {
        let before = [1, 2].map(|node| packets(&lab, node, "related"));
        assert_eq!([learned_mtu(&web, db.ip(family)), learned_mtu(&db, web.ip(family))], [None, None]);
        transfer(&web, at(&db, family, 80));
        let learned = [learned_mtu(&web, db.ip(family)), learned_mtu(&db, web.ip(family))];
        assert_eq!(learned, [Some(SMALL_MTU), Some(SMALL_MTU)], "{family}");
        let after = [1, 2].map(|node| packets(&lab, node, "related"));
        assert!(before[0] < after[0] && before[1] < after[1], "{family}: {before:?} to {after:?}");
    }
}

#[test]
fn an_error_from_a_router_that_no_policy_admits_reaches_the_pod() {
    let lab = lab_with(&["shop/web-1"]);
    isolate(&lab);
    let web = lab.pod("shop/web-1");
    let far = Netns::create(&format!("{}-far", lab.name())).unwrap();
    // Large links, and a route of the router that takes less: no end can know from its own link.
    lab.world()
        .ip(&format!(
            "link add far mtu 1500 type veth peer name eth0 mtu 1500 netns {}\n\
             addr add 192.0.2.1/24 dev far\n\
             addr add 2001:db8::1/64 dev far nodad\n\
             link set far up\n\
             route replace 192.0.2.2/32 dev far mtu lock {SMALL_MTU}\n\
             route replace 2001:db8::2/128 dev far mtu lock {SMALL_MTU}\n",
            far.name()
        ))
        .unwrap();
    far.ip("addr add 192.0.2.2/24 dev eth0\n\
         addr add 2001:db8::2/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via 192.0.2.1\n\
         route add default via 2001:db8::1\n")
        .unwrap();
    let _server = Server::start(&far, &[(Transport::Tcp, 80)]).unwrap();
    for family in FAMILIES {
        let to: IpAddr = match family {
            Family::V4 => "192.0.2.2".parse().unwrap(),
            Family::V6 => "2001:db8::2".parse().unwrap(),
        };
        let before = packets(&lab, 1, "related");
        transfer(&web, SocketAddr::new(to, 80));
        assert_eq!(learned_mtu(&web, to), Some(SMALL_MTU), "{family}");
        let after = packets(&lab, 1, "related");
        assert!(after > before, "{family}: {before} to {after}");
    }
}
