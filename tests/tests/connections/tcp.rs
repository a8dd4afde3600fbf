//! How TCP connections begin, end, and begin again.

use std::{
    io::Read,
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd,
};

use lab::{
    Lab,
    matrix::SETTLES_WITHIN,
    raw::{ACK, FIN, Packet, RST, SYN},
    sniffer::Sniffer,
    until,
};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

use crate::stage::{FAMILIES, at, connect_from, exchange, lab_with, packets, policy, vanish};

const ADMIT_WEBS: &str = "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}]";

#[test]
fn a_segment_from_the_middle_of_no_connection_is_dropped() {
    let lab = lab_with(&["shop/db-1", "shop/web-1", "shop/web-2"]);
    policy(&lab, "db", "db", ADMIT_WEBS);
    lab.settle().unwrap();
    let db = lab.pod("shop/db-1");
    let mut at_db = Sniffer::start(db.netns()).unwrap();
    for (web, node) in [("shop/web-1", 1), ("shop/web-2", 2)] {
        let web = lab.pod(web);
        for family in FAMILIES {
            let segment =
                |port, flags, data| Packet::tcp(at(&web, family, port), at(&db, family, 80), flags, data);
            let strays = [
                segment(40_000, ACK, &b"from nowhere"[..]),
                segment(40_001, SYN | ACK, &[]),
                segment(40_002, FIN | ACK, &[]),
                segment(40_003, RST, &[]),
            ];
            let before = packets(&lab, node, "not-tracked");
            vanish(web.netns(), &mut at_db, &strays, &segment(40_004, SYN, &[]));
            let after = packets(&lab, node, "not-tracked");
            assert!(after >= before + 4, "{family}, node {node}: {before} to {after}");
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Close,
    Reset,
}

fn end(mut stream: TcpStream, how: End) {
    match how {
        End::Close => {
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "the server closes as well");
        }
        End::Reset => {
            let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&stream.as_fd(), sockopt::Linger, &at_once).unwrap();
        }
    }
}

#[test]
fn fin_and_reset_end_a_connection_in_the_flow_log_and_its_port_can_be_used_again() {
    const DATA: [u8; 5000] = [5; 5000];
    let lab = lab_with(&["shop/db-1", "shop/web-1", "shop/web-2"]);
    policy(&lab, "db", "db", ADMIT_WEBS);
    lab.settle().unwrap();
    let db = lab.pod("shop/db-1");
    for (web, node) in [("shop/web-1", 1), ("shop/web-2", 2)] {
        let web = lab.pod(web);
        for family in FAMILIES {
            let (own, to) = (at(&web, family, 41_000), at(&db, family, 80));
            // The server's end closes last, so that no TIME_WAIT of ours is in the way of the next.
            let ends = [End::Reset, End::Reset, End::Close];
            for how in ends {
                let mut stream = connect_from(&web, own, to);
                exchange(&mut stream, &DATA);
                end(stream, how);
            }
            let ended =
                until(SETTLES_WITHIN, || ends_of(&lab, node, own, to), |seen| seen.len() >= ends.len())
                    .unwrap();
            assert_eq!(ended.len(), ends.len(), "one end for each connection: {ended:#?}");
            for [packets_out, packets_back, bytes_out, bytes_back] in ended {
                // At least SYN and data, SYN+ACK and data; at most every segment by itself with its ACK.
                assert!(
                    (3..40).contains(&packets_out) && (2..40).contains(&packets_back),
                    "{packets_out}, {packets_back}"
                );
                assert!(
                    (5000..9000).contains(&bytes_out) && (5000..9000).contains(&bytes_back),
                    "{bytes_out}, {bytes_back}"
                );
            }
        }
    }
}

/// Packets and bytes there and back of connections that have ended, as the node of their opener logged it.
fn ends_of(lab: &Lab, node: u8, from: SocketAddr, to: SocketAddr) -> anyhow::Result<Vec<[u64; 4]>> {
    let read = |record: &Value| {
        let flow = &record["flow"];
        let end = |side: &str, port: &str| {
            let ip = flow["IP"][side].as_str()?.parse().ok()?;
            Some(SocketAddr::new(ip, u16::try_from(flow["l4"]["TCP"][port].as_u64()?).ok()?))
        };
        let connection = &flow["extensions"]["value"]["connection"];
        let is_it =
            end("source", "source_port") == Some(from) && end("destination", "destination_port") == Some(to);
        if !is_it || connection["state"] != "end" {
            return None;
        }
        let count = |field: &str| connection[field].as_str().and_then(|n| n.parse().ok());
        Some([
            count("packets_from_source")?,
            count("packets_to_source")?,
            count("bytes_from_source")?,
            count("bytes_to_source")?,
        ])
    };
    Ok(lab.agent(node).flow_log()?.iter().filter_map(read).collect())
}
