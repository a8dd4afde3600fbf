//! The echo server of a pod: TCP and UDP, IPv4 and IPv6, one thread.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{netns::Netns, probe::Transport};

/// Echoes until dropped.
#[derive(Debug)]
pub struct Server {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    heard: Arc<Mutex<BTreeMap<IpAddr, u64>>>,
}

impl Server {
    /// Listens on these ports of every address inside.
    pub fn start(netns: &Netns, ports: &[(Transport, u16)]) -> Result<Self> {
        Self::start_at(netns, &[Ipv6Addr::UNSPECIFIED.into()], ports) // IPv4 as mapped addresses
    }

    /// Listens on these ports of these addresses: where there are several, a datagram's answer comes from
    /// the one that was asked.
    pub fn start_at(netns: &Netns, addresses: &[IpAddr], ports: &[(Transport, u16)]) -> Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let heard = Arc::<Mutex<BTreeMap<IpAddr, u64>>>::default();
        let mut sockets = Vec::new();
        {
            let _inside = netns.enter()?; // a socket stays in the namespace where it was made
            let doors = addresses.iter().flat_map(|address| ports.iter().map(move |door| (address, door)));
            for (address, (transport, port)) in doors {
                let at = SocketAddr::new(*address, *port);
                let socket = match transport {
                    Transport::Tcp => TcpListener::bind(at).map(Socket::Listener),
                    Transport::Udp => UdpSocket::bind(at).map(Socket::Datagrams),
                };
                let socket =
                    socket.with_context(|| format!("cannot serve {transport} {at} in {}", netns.name()))?;
                socket.set_nonblocking()?;
                sockets.push(socket);
            }
        }
        let log = Arc::clone(&heard);
        let thread = thread::Builder::new()
            .name(format!("echo {}", netns.name()))
            .spawn(move || serve(&stopped, sockets, &log))?;
        Ok(Self { stop: Some(stop), thread: Some(thread), heard })
    }

    /// Datagrams and connections that came from this address.
    pub fn heard_from(&self, address: IpAddr) -> u64 {
        self.heard.lock().expect("the server does not panic").get(&address).copied().unwrap_or(0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take()); // the other end becomes readable: the thread ends
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

enum Socket {
    Listener(TcpListener),
    Datagrams(UdpSocket),
    /// With bytes that the peer has not taken yet.
    Stream(TcpStream, Vec<u8>),
}

impl Socket {
    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Listener(socket) => socket.set_nonblocking(true),
            Self::Datagrams(socket) => socket.set_nonblocking(true),
            Self::Stream(socket, _) => socket.set_nonblocking(true),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener(socket) => socket.as_fd(),
            Self::Datagrams(socket) => socket.as_fd(),
            Self::Stream(socket, _) => socket.as_fd(),
        }
    }

    fn waits_for(&self) -> PollFlags {
        match self {
            Self::Stream(_, unsent) if !unsent.is_empty() => PollFlags::POLLOUT,
            _ => PollFlags::POLLIN,
        }
    }
}

fn serve(stopped: &UnixStream, mut sockets: Vec<Socket>, heard: &Mutex<BTreeMap<IpAddr, u64>>) {
    let mut buffer = vec![0; 64 * 1024];
    let note = |from: SocketAddr| {
        *heard.lock().expect("no holder panics").entry(from.ip().to_canonical()).or_default() += 1;
    };
    loop {
        let ready: Vec<bool> = {
            let watched = sockets.iter().map(|s| PollFd::new(s.as_fd(), s.waits_for()));
            let mut fds: Vec<_> = watched.chain([PollFd::new(stopped.as_fd(), PollFlags::POLLIN)]).collect();
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue; // interrupted
            }
            fds.iter().map(|fd| fd.any().unwrap_or(true)).collect()
        };
        if ready.last() == Some(&true) {
            return;
        }
        let mut kept = Vec::with_capacity(sockets.len());
        for (mut socket, ready) in sockets.into_iter().zip(ready) {
            if !ready {
                kept.push(socket);
                continue;
            }
            match &mut socket {
                Socket::Listener(listener) => {
                    while let Ok((stream, from)) = listener.accept() {
                        note(from);
                        let _ = stream.set_nodelay(true);
                        let stream = Socket::Stream(stream, Vec::new());
                        if stream.set_nonblocking().is_ok() {
                            kept.push(stream);
                        }
                    }
                    kept.push(socket);
                }
                Socket::Datagrams(datagrams) => {
                    while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
                        note(from);
                        let _ = datagrams.send_to(&buffer[..length], from);
                    }
                    kept.push(socket);
                }
                Socket::Stream(stream, unsent) => {
                    if echo(stream, unsent, &mut buffer).is_ok_and(|open| open) {
                        kept.push(socket);
                    }
                }
            }
        }
        sockets = kept;
    }
}

/// One step; `false`: the peer is done.
fn echo(stream: &mut TcpStream, unsent: &mut Vec<u8>, buffer: &mut [u8]) -> io::Result<bool> {
    if unsent.is_empty() {
        match stream.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => unsent.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    match stream.write(unsent) {
        Ok(length) => drop(unsent.drain(..length)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => return Err(error),
    }
    Ok(true)
}
