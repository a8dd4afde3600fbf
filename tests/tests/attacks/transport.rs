//! Segments and messages that no connection of the pod accounts for.

use lab::raw::{ACK, FIN, Packet, RST, SYN, Trouble};

use crate::stage::{Attempt, HELLO, NEIGHBOURS_PORT, OWN_PORT, Way};

const PSH: u8 = 0x08;
const URG: u8 = 0x20;

pub fn attempts(way: &Way) -> Vec<Attempt> {
    let flags = |all: &[u8]| all.iter().map(|flags| way.send(&way.segment(*flags))).collect();
    let offset = |offset: u8| {
        let mut segment = way.segment(SYN);
        segment.payload[12] = offset << 4;
        way.send(&segment)
    };
    let never_sent = Packet::udp(way.to.at(53), way.me.at(45_000), b"never sent");
    // Both of connections that there are: an answer to another pod, and what this pod has sent itself.
    let others = Packet::udp(way.to.at(53), way.neighbour.at(NEIGHBOURS_PORT), HELLO);
    let own = Packet::udp(way.me.at(OWN_PORT), way.to.at(53), HELLO);
    let quoting = |quoted: &Packet| {
        [Trouble::PortUnreachable, Trouble::TimeExceeded, Trouble::TooBig(600)]
            .map(|trouble| {
                let mut error = Packet::error(way.me.ip, trouble, quoted);
                error.destination = way.to.ip;
                way.send(&error)
            })
            .to_vec()
    };
    let cut =
        |error: Packet, keep: usize| way.send(&Packet { payload: error.payload[..keep].to_vec(), ..error });
    let strange = [0, FIN, SYN | FIN, SYN | RST]
        .map(|flags| way.send(&Packet::tcp(way.me.at(40_100), way.to.at(80), flags, b"")))
        .into();
    let unreachable = Packet::error(way.me.ip, Trouble::PortUnreachable, &never_sent);
    vec![
        Attempt::new(
            "segments that open and end at once",
            "invalid-header",
            flags(&[SYN | FIN, SYN | RST, SYN | ACK | FIN, SYN | FIN | RST | PSH | ACK | URG]),
        ),
        Attempt::new("a TCP header shorter than one", "invalid-header", vec![offset(0), offset(4)]),
        Attempt::new("a scan without flags", "invalid-header", flags(&[0])),
        Attempt::new(
            "a scan with all the wrong flags",
            "invalid-header",
            flags(&[FIN, FIN | PSH | URG, URG, PSH, 0xc0]),
        ),
        Attempt::new("a reset out of nothing", "not-tracked", flags(&[RST])),
        Attempt::new(
            "answers that nobody asked for",
            "not-tracked",
            flags(&[SYN | ACK, ACK, FIN | ACK, RST | ACK, PSH | ACK]),
        ),
        Attempt::new(
            "an echo that nobody asked for",
            "not-tracked",
            vec![way.send(&Packet::echo_reply(way.me.ip, way.to.ip, 77))],
        ),
        Attempt::new("errors about what was never sent", "error-not-tracked", quoting(&never_sent)),
        Attempt::new("errors about what others were sent", "error-not-tracked", quoting(&others)),
        Attempt::new("errors about packets of its own", "error-not-tracked", quoting(&own)),
        Attempt::new("strange flags in a connection", "invalid-header", strange)
            .after(vec![way.send(&Packet::tcp(way.me.at(40_100), way.to.at(80), SYN, b""))]),
        Attempt::new(
            "errors that quote too little",
            "error-not-tracked",
            vec![cut(unreachable.clone(), 8), cut(unreachable, 20)],
        ),
    ]
}
