//! Links that take larger frames than others: jumbo frames, and segments of more than 64 KiB that are yet to be cut ("BIG
//! TCP"), whose IPv4 header says that they are 0 bytes long.

use std::os::fd::AsRawFd;

use lab::{Family, netns::Netns};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
    },
};

use crate::{
    frame::{IPV4, IPV6},
    lawful,
    stage::Stage,
};

const LARGEST: u32 = 190_000;
const MTU: u32 = 9000;

pub fn links_are_used(stage: &mut Stage) {
    let node = stage.lab.node(1);
    for key in ["shop/root-1", "shop/near-1"] {
        let pod = stage.lab.pod(key);
        let interfaces = pod.added().result["interfaces"].as_array().unwrap();
        let mut names = interfaces.iter().filter_map(|found| found["name"].as_str());
        let host = names.find(|name| name.starts_with("veth")).unwrap();
        enlarge(node.netns(), host);
        enlarge(pod.netns(), "eth0");
    }
    enlarge(node.netns(), "cni0");
    for way in stage.ways.clone().iter().filter(|way| way.near) {
        lawful::stream(&stage.root, way.to.at(80));
        // In one frame.
        lawful::datagram(&stage.root, way.me.at(0), way.to.at(53));
        let of_family = |kind: u16| move |frame: &&[u8]| frame[12..14] == kind.to_be_bytes();
        let is_of = of_family(if way.family == Family::V4 { IPV4 } else { IPV6 });
        let largest = stage.at_victims[0].frames().filter(is_of).max_by_key(|frame| frame.len()).unwrap();
        println!("{}: the largest frame that has arrived has {} bytes", way.family, largest.len());
        assert!(largest.len() > 0xffff + 14, "{}: {}", way.family, largest.len());
        let length = if way.family == Family::V4 { &largest[16..18] } else { &largest[18..20] };
        assert_eq!(length, [0, 0], "{}: says how long it is", way.family);
    }
}

fn enlarge(netns: &Netns, link: &str) {
    netns
        .ip(&format!("link set dev {link} mtu {MTU} gso_max_size {LARGEST} gro_max_size {LARGEST}\n"))
        .unwrap();
    enlarge_v4(netns, link);
}

/// `ip link set gso_ipv4_max_size gro_ipv4_max_size`, which iproute2 has since version 6.3 only.
fn enlarge_v4(netns: &Netns, link: &str) {
    /// `linux/rtnetlink.h`, `linux/if_link.h`, `linux/netlink.h`
    const RTM_SETLINK: u16 = 19;
    const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;
    const IFLA_GRO_IPV4_MAX_SIZE: u16 = 64;
    const REQUEST_AND_ACKNOWLEDGE: u16 = 1 | 4;
    let _inside = netns.enter().unwrap();
    let index = if_nametoindex(link).unwrap();
    let attribute =
        |kind: u16| [&8_u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &LARGEST.to_ne_bytes()].concat();
    let body = [
        &[0; 4][..],
        &index.to_ne_bytes(),
        &[0; 8],
        &attribute(IFLA_GSO_IPV4_MAX_SIZE),
        &attribute(IFLA_GRO_IPV4_MAX_SIZE),
    ]
    .concat();
    let length = u32::try_from(16 + body.len()).unwrap();
    let header = [
        &length.to_ne_bytes()[..],
        &RTM_SETLINK.to_ne_bytes(),
        &REQUEST_AND_ACKNOWLEDGE.to_ne_bytes(),
        &[0; 8],
    ];
    let message = [header.concat(), body].concat();
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
            .unwrap();
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty()).unwrap();
    let mut answer = [0; 1024];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
    // A header, then 0 or an error number.
    assert!(length >= 20 && answer[16..20] == [0; 4], "{link}: {:?}", &answer[..length.min(20)]);
}
