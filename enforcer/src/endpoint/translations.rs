//! What the kernel's connection tracking has translated in this network namespace (`ctnetlink`): who really is at the
//! other end of a conversation that came through a Service, and which UDP conversations there are.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_NETFILTER};
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NlaBuffer, NlasIterator};

/// One tracked connection, as its opener sent it and as it is answered: different where it was translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    pub protocol: u8,
    pub client: SocketAddr,
    /// Whom the client asked.
    pub asked: SocketAddr,
    /// Who answers: the backend.
    pub server: SocketAddr,
    /// For whom the server takes the client.
    pub seen_as: SocketAddr,
}

/// Lengths of `nlmsghdr` and `nfgenmsg`.
const HEADER: usize = 16;
const FAMILY: usize = 4;
/// `NFNL_SUBSYS_CTNETLINK`, and its messages and attributes (`linux/netfilter/nfnetlink_conntrack.h`).
const CTNETLINK: u16 = 1 << 8;
const GET: u16 = 1;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SOURCE: u16 = 2;
const PROTO_DESTINATION: u16 = 3;
/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// All of both families, in the network namespace that this thread is in. Empty where nothing is tracked, and so
/// nothing translated.
pub fn tracked() -> io::Result<Vec<Tracked>> {
    let mut all = Vec::new();
    for family in [nix::libc::AF_INET, nix::libc::AF_INET6] {
        let family = u8::try_from(family).expect("families are small");
        dump(family, |body| all.extend(parse(body)))?;
    }
    Ok(all)
}

fn dump(family: u8, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut kernel = Socket::new(NETLINK_NETFILTER)?;
    kernel.bind_auto()?;
    kernel.connect(&NetlinkAddr::new(0, 0))?;
    let mut request = Vec::new();
    request.extend(u32::try_from(HEADER + FAMILY).expect("small").to_ne_bytes());
    request.extend((CTNETLINK | GET).to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, 0, 0, 0]);
    kernel.send(&request, 0)?;
    loop {
        let (answer, _) = kernel.recv_from_full()?;
        let mut rest = answer.as_slice();
        while let Some((kind, body, next)) = message(rest) {
            match kind {
                DONE => return Ok(()),
                ERROR => {
                    let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return Err(io::Error::from_raw_os_error(-code));
                }
                _ => take(body.get(FAMILY..).unwrap_or_default()),
            }
            rest = next;
        }
        if !rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Type and body of the first message, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// `None` for what has no ports, or cannot be read.
fn parse(body: &[u8]) -> Option<Tracked> {
    let [original, reply] = [ORIGINAL, REPLY].map(|kind| attribute(body, kind).and_then(tuple));
    let (original, reply) = (original?, reply?);
    Some(Tracked {
        protocol: original.0,
        client: original.1,
        asked: original.2,
        server: reply.1,
        seen_as: reply.2,
    })
}

/// Protocol, source and destination.
fn tuple(body: &[u8]) -> Option<(u8, SocketAddr, SocketAddr)> {
    let ip = attribute(body, TUPLE_IP)?;
    let proto = attribute(body, TUPLE_PROTO)?;
    let port = |kind| Some(u16::from_be_bytes(attribute(proto, kind)?.try_into().ok()?));
    // Source and destination, IPv4 and then IPv6.
    let address = |v4, v6| match attribute(ip, v4) {
        Some(bytes) => Some(IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))),
        None => Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(attribute(ip, v6)?).ok()?))),
    };
    Some((
        *attribute(proto, PROTO_NUM)?.first()?,
        SocketAddr::new(address(1, 3)?, port(PROTO_SOURCE)?),
        SocketAddr::new(address(2, 4)?, port(PROTO_DESTINATION)?),
    ))
}

fn attribute(body: &[u8], kind: u16) -> Option<&[u8]> {
    let mut attributes = NlasIterator::new(body).filter_map(Result::ok);
    attributes.find(|attribute| attribute.kind() == kind).map(|attribute: NlaBuffer<&[u8]>| {
        let length = usize::from(attribute.length());
        &attribute.into_inner()[4..length]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nla(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::from(u16::try_from(body.len() + 4).expect("small").to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
        nla(kind | 1 << 15, &parts.concat())
    }

    fn side(kind: u16, source: &str, destination: &str) -> Vec<u8> {
        let [from, to] = [source, destination].map(|text| text.parse::<SocketAddr>().expect("an address"));
        let bytes = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let first = if from.is_ipv4() { 1 } else { 3 };
        let ip = nested(1, &[nla(first, &bytes(from.ip())), nla(first + 1, &bytes(to.ip()))]);
        let ports = [(2, from.port()), (3, to.port())].map(|(kind, port)| nla(kind, &port.to_be_bytes()));
        let proto = nested(2, &[nla(1, &[6]), ports.concat()]);
        nested(kind, &[ip, proto])
    }

    #[test]
    fn a_tracked_connection_says_who_asked_whom_and_who_answers() {
        for [client, asked, server, seen_as] in [
            ["10.244.1.5:40000", "10.96.0.1:80", "10.244.1.6:8080", "10.244.1.1:2000"],
            ["[fd00::5]:40000", "[fd00::a]:80", "[fd00::6]:8080", "[fd00::5]:40000"],
        ] {
            let body = [side(1, client, asked), side(2, server, seen_as), nla(3, &[0; 4])].concat();
            let at = |text: &str| text.parse().expect("an address");
            let want = Tracked {
                protocol: 6,
                client: at(client),
                asked: at(asked),
                server: at(server),
                seen_as: at(seen_as),
            };
            assert_eq!(parse(&body), Some(want));
            assert_eq!(parse(&body[..body.len() / 2]), None, "cut off");
        }
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn the_kernel_is_asked_for_both_families() {
        let namespace = std::path::Path::new("/proc/thread-self/ns/net");
        crate::endpoint::survey::inside(namespace, tracked).expect("inside").expect("dumped");
    }
}
