//! The sockets of a network namespace (`sock_diag(7)`): which conversations a pod is in, and who began them.

use std::{io, net::SocketAddr, path::Path};

use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{
        AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_ESTABLISHED,
        TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_LISTEN, TCP_SYN_RECV, TCP_SYN_SENT,
    },
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};
use netlink_sys::{SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};

use super::survey::inside;

/// A socket that has a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// IANA number of TCP or UDP.
    pub protocol: u8,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub began: Side,
    /// The peer has answered.
    pub answered: bool,
    /// Which sides have said that they send nothing more.
    pub local_closed: bool,
    pub remote_closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Local,
    Remote,
}

/// What one namespace tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    pub listening: Vec<Listener>,
    pub connected: Vec<Connected>,
    /// Ports that the kernel gives to who asks for none (`ip_local_port_range`), both ends included.
    pub ephemeral: Option<(u16, u16)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    pub protocol: u8,
    /// Unspecified: all addresses, and (as IPv6) those of both families.
    pub local: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    pub protocol: u8,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// As `TCP_*` in the kernel's `tcp_states.h`; UDP: `TCP_ESTABLISHED`.
    pub state: u8,
}

impl Sockets {
    /// Asks the kernel, in the namespace at this path.
    pub fn of(netns: &Path) -> io::Result<Self> {
        inside(netns, || {
            let mut sockets = Self { ephemeral: ephemeral(), ..Self::default() };
            for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
                for family in [AF_INET, AF_INET6] {
                    dump(family, protocol, |socket| sockets.note(protocol, socket))?;
                }
            }
            Ok(sockets)
        })?
    }

    fn note(&mut self, protocol: u8, InetResponse { header, .. }: &InetResponse) {
        let id = &header.socket_id;
        let local = SocketAddr::new(id.source_address.to_canonical(), id.source_port);
        let remote = SocketAddr::new(id.destination_address.to_canonical(), id.destination_port);
        match (protocol, header.state) {
            (IPPROTO_TCP, TCP_LISTEN) | (IPPROTO_UDP, TCP_CLOSE) => {
                self.listening.push(Listener { protocol, local });
            }
            (IPPROTO_UDP, TCP_ESTABLISHED) | (IPPROTO_TCP, _) => {
                self.connected.push(Connected { protocol, local, remote, state: header.state });
            }
            _ => {}
        }
    }

    /// Conversations that may still have something to say.
    pub fn conversations(&self) -> impl Iterator<Item = Conversation> {
        self.connected.iter().filter_map(|socket| {
            let Connected { protocol, local, remote, state } = *socket;
            let (answered, local_closed, remote_closed) = match (protocol, state) {
                (IPPROTO_TCP, TCP_SYN_SENT) => (false, false, false),
                (IPPROTO_TCP, TCP_FIN_WAIT1 | TCP_FIN_WAIT2) => (true, true, false),
                (IPPROTO_TCP, TCP_CLOSE_WAIT) => (true, false, true),
                (IPPROTO_TCP, TCP_LAST_ACK | TCP_CLOSING) => (true, true, true),
                (IPPROTO_TCP, TCP_ESTABLISHED | TCP_SYN_RECV) | (IPPROTO_UDP, _) => (true, false, false),
                _ => return None, // over
            };
            let began = self.began(socket);
            Some(Conversation { protocol, local, remote, began, answered, local_closed, remote_closed })
        })
    }

    /// Who waits for others at this port was asked. A server may have stopped listening since: then the ports tell, if
    /// only one of them is of those that nobody chose.
    fn began(&self, socket: &Connected) -> Side {
        let asked = self.listening.iter().any(|listener| {
            let own = listener.local.ip();
            listener.protocol == socket.protocol
                && listener.local.port() == socket.local.port()
                && (own == socket.local.ip() || is_any(own, socket.local.ip()))
        });
        let chosen = |port| self.ephemeral.is_some_and(|(first, last)| !(first..=last).contains(&port));
        if asked || chosen(socket.local.port()) && !chosen(socket.remote.port()) {
            Side::Remote
        } else {
            Side::Local
        }
    }
}

/// An unspecified IPv6 address takes IPv4 too, as a rule.
fn is_any(own: std::net::IpAddr, address: std::net::IpAddr) -> bool {
    own.is_unspecified() && (own.is_ipv6() || address.is_ipv4())
}

fn ephemeral() -> Option<(u16, u16)> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ports = text.split_whitespace().map(str::parse);
    Some((ports.next()?.ok()?, ports.next()?.ok()?))
}

fn dump(family: u8, protocol: u8, mut take: impl FnMut(&InetResponse)) -> io::Result<()> {
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = InetRequest {
        family,
        protocol,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let mut kernel = netlink_sys::Socket::new(NETLINK_SOCK_DIAG)?;
    kernel.bind_auto()?;
    kernel.connect(&NetlinkAddr::new(0, 0))?;
    kernel.send(&bytes, 0)?;
    loop {
        let (answer, _) = kernel.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => take(&response),
                NetlinkPayload::Done(_) => return Ok(()),
                // A kernel without this protocol's diagnosis: nothing is known of such sockets.
                NetlinkPayload::Error(error) if error.raw_code() == -nix::libc::ENOENT => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            let length = usize::try_from(message.header.length).map_err(io::Error::other)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("a socket address")
    }

    fn sockets(listening: &[(u8, &str)], local: &str, remote: &str, state: u8) -> Sockets {
        Sockets {
            listening: listening
                .iter()
                .map(|(protocol, a)| Listener { protocol: *protocol, local: at(a) })
                .collect(),
            connected: vec![Connected { protocol: 6, local: at(local), remote: at(remote), state }],
            ephemeral: Some((32768, 60999)),
        }
    }

    #[test]
    fn who_listens_was_asked_and_otherwise_the_ports_tell() {
        let client = "10.0.0.9:40000";
        for (case, listening, local, remote, want) in [
            ("a listener of the address", vec![(6, "10.0.0.5:80")], "10.0.0.5:80", client, Side::Remote),
            ("of all addresses", vec![(6, "0.0.0.0:80")], "10.0.0.5:80", client, Side::Remote),
            ("of both families", vec![(6, "[::]:80")], "10.0.0.5:80", client, Side::Remote),
            (
                "at a port that others may be given",
                vec![(6, "[::]:50000")],
                "10.0.0.5:50000",
                client,
                Side::Remote,
            ),
            ("a listener that is gone", vec![], "10.0.0.5:80", client, Side::Remote),
            ("a client", vec![], "10.0.0.5:40001", "10.0.0.9:80", Side::Local),
            ("a client of a high port", vec![], "10.0.0.5:40001", client, Side::Local),
            ("a client that chose its port", vec![], "10.0.0.5:800", "10.0.0.9:2049", Side::Local),
            (
                "another address's listener",
                vec![(6, "10.0.0.6:40001")],
                "10.0.0.5:40001",
                client,
                Side::Local,
            ),
            ("another protocol's", vec![(17, "0.0.0.0:40001")], "10.0.0.5:40001", client, Side::Local),
            (
                "IPv4's takes no IPv6",
                vec![(6, "0.0.0.0:40001")],
                "[fd00::5]:40001",
                "[fd00::9]:80",
                Side::Local,
            ),
        ] {
            let sockets = sockets(&listening, local, remote, TCP_ESTABLISHED);
            let began: Vec<_> = sockets.conversations().map(|conversation| conversation.began).collect();
            assert_eq!(began, [want], "{case}");
        }
    }

    #[test]
    fn states_tell_who_has_answered_and_who_has_closed() {
        for (state, want) in [
            (TCP_ESTABLISHED, Some((true, false, false))),
            (TCP_SYN_SENT, Some((false, false, false))),
            (TCP_SYN_RECV, Some((true, false, false))),
            (TCP_FIN_WAIT1, Some((true, true, false))),
            (TCP_FIN_WAIT2, Some((true, true, false))),
            (TCP_CLOSE_WAIT, Some((true, false, true))),
            (TCP_LAST_ACK, Some((true, true, true))),
            (TCP_CLOSING, Some((true, true, true))),
            (netlink_packet_sock_diag::constants::TCP_TIME_WAIT, None),
            (TCP_CLOSE, None),
        ] {
            let sockets = sockets(&[], "10.0.0.5:40001", "10.0.0.9:80", state);
            let told = sockets.conversations().next().map(|c| (c.answered, c.local_closed, c.remote_closed));
            assert_eq!(told, want, "state {state}");
        }
    }

    #[test]
    fn the_kernel_tells_both_ends_of_a_conversation() {
        let listener = TcpListener::bind("[::]:0").expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let client = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        let (server, _) = listener.accept().expect("accepted");
        let udp = UdpSocket::bind("[::1]:0").expect("bound");
        udp.connect("[::1]:9").expect("connected");

        let sockets = Sockets::of(Path::new("/proc/thread-self/ns/net")).expect("dumped");
        let began = |local: SocketAddr, remote: SocketAddr| {
            let mut own = sockets.conversations().filter(|c| (c.local, c.remote) == (local, remote));
            own.next().map(|conversation| (conversation.protocol, conversation.began))
        };
        let (client, server) = (client.local_addr().expect("a"), server.local_addr().expect("b"));
        let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
        assert_eq!(began(client, canonical(server)), Some((6, Side::Local)));
        assert_eq!(began(canonical(server), client), Some((6, Side::Remote)), "an IPv6 socket for IPv4");
        assert_eq!(began(udp.local_addr().expect("c"), at("[::1]:9")), Some((17, Side::Local)));
    }
}
