//! The kernel's memory of UDP conversations: new rules mean nothing to a conversation that was translated before.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

use crate::{netns::Netns, probe::Family};

/// Lengths of `nlmsghdr`, `nfgenmsg` and `nlattr`.
const HEADER: usize = 16;
const FAMILY: usize = 4;
const ATTRIBUTE: usize = 4;
/// Messages and attributes of ctnetlink (`linux/netfilter/nfnetlink_conntrack.h`).
const GET: u16 = 1;
const DELETE: u16 = 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const NESTED: u16 = 1 << 15;

/// A tracked UDP conversation.
pub struct Conversation {
    /// Whom the client has asked.
    pub asked: SocketAddr,
    /// Who answers: the backend.
    pub answers: SocketAddr,
    /// The kernel's own description, by which it finds it again.
    original: Vec<u8>,
}

/// One direction of a conversation.
#[derive(Clone, Copy)]
struct Tuple {
    source: SocketAddr,
    destination: SocketAddr,
}

/// Makes the kernel forget the UDP conversations of a namespace that are stale; returns how many.
pub fn forget(netns: &Netns, family: Family, stale: impl Fn(&Conversation) -> bool) -> Result<usize> {
    let kernel = {
        let _inside = netns.enter()?;
        let (kind, protocol) = (SockType::Raw, SockProtocol::NetlinkNetFilter);
        socket(AddressFamily::Netlink, kind, SockFlag::SOCK_CLOEXEC, protocol)
            .context("cannot ask for tracked connections")?
    };
    let stale: Vec<_> = conversations(&kernel, family)?.into_iter().filter(stale).collect();
    for conversation in &stale {
        let answers = ask(&kernel, family, DELETE, libc::NLM_F_ACK, &conversation.original)?;
        let code =
            answers.iter().find_map(|(kind, body)| (*kind == done(libc::NLMSG_ERROR)).then(|| errno(body)));
        ensure!(
            matches!(code, Some(Errno::UnknownErrno | Errno::ENOENT)),
            "cannot forget a tracked connection: {code:?}"
        );
    }
    Ok(stale.len())
}

fn conversations(kernel: &OwnedFd, family: Family) -> Result<Vec<Conversation>> {
    let answers = ask(kernel, family, GET, libc::NLM_F_DUMP, &[])?;
    Ok(answers.iter().filter_map(|(_, body)| conversation(body.get(FAMILY..)?)).collect())
}

fn conversation(body: &[u8]) -> Option<Conversation> {
    let original = find(body, ORIGINAL)?;
    let [asked, answered] = [original, find(body, REPLY)?].map(tuple);
    let (asked, answers) = (asked?.destination, answered?.source);
    Some(Conversation { asked, answers, original: attribute(ORIGINAL | NESTED, original) })
}

/// `None` for anything but UDP.
fn tuple(nested: &[u8]) -> Option<Tuple> {
    let (ip, protocol) = (find(nested, TUPLE_IP)?, find(nested, TUPLE_PROTOCOL)?);
    if find(protocol, 1)? != [17] {
        return None;
    }
    let address = |v4, v6| match (find(ip, v4), find(ip, v6)) {
        (Some(v4), _) => <[u8; 4]>::try_from(v4).ok().map(IpAddr::from),
        (None, v6) => <[u8; 16]>::try_from(v6?).ok().map(IpAddr::from),
    };
    let port = |kind| Some(u16::from_be_bytes(find(protocol, kind)?.try_into().ok()?));
    let (source, destination) = (address(1, 3)?, address(2, 4)?);
    Some(Tuple {
        source: SocketAddr::new(source, port(2)?),
        destination: SocketAddr::new(destination, port(3)?),
    })
}

/// One question, and the messages (type, body) that answer it, up to the one that ends them.
fn ask(kernel: &OwnedFd, family: Family, verb: u16, flags: i32, body: &[u8]) -> Result<Vec<(u16, Vec<u8>)>> {
    let version = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    let mut question = Vec::new();
    question.extend(u32::try_from(HEADER + FAMILY + body.len())?.to_ne_bytes());
    question.extend((u16::try_from(libc::NFNL_SUBSYS_CTNETLINK)? << 8 | verb).to_ne_bytes());
    question.extend(u16::try_from(libc::NLM_F_REQUEST | flags)?.to_ne_bytes());
    question.extend([0; 8]); // sequence and port: one question at a time
    question.extend([u8::try_from(version)?, 0, 0, 0]);
    question.extend(body);
    send(kernel.as_raw_fd(), &question, MsgFlags::empty())?;
    let (mut answers, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let length = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some(header) = rest.first_chunk::<HEADER>() {
            let length = usize::try_from(u32::from_ne_bytes([header[0], header[1], header[2], header[3]]))?;
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let body = rest.get(HEADER..length).context("a netlink message is cut short")?;
            answers.push((kind, body.to_vec()));
            if [libc::NLMSG_DONE, libc::NLMSG_ERROR].map(done).contains(&kind) {
                return Ok(answers);
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn done(kind: i32) -> u16 {
    u16::try_from(kind).expect("types of netlink messages are small")
}

/// The outcome that an `NLMSG_ERROR` tells; no error is [`Errno::UnknownErrno`], number 0.
fn errno(body: &[u8]) -> Errno {
    Errno::from_raw(body.first_chunk().map_or(libc::EBADMSG, |code| -i32::from_ne_bytes(*code)))
}

/// The payload of the first attribute of this type.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let header = attributes.first_chunk::<ATTRIBUTE>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !NESTED;
        let payload = attributes.get(ATTRIBUTE..length)?;
        if kind == wanted {
            return Some(payload);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE + payload.len()).expect("a tuple is short");
    [&length.to_ne_bytes(), &kind.to_ne_bytes(), payload].concat()
}
