//! Does an exchange work? Many questions at once, asked from one thread.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket},
};
use serde::Serialize;

use crate::netns::Netns;

/// What every exchange carries there and back.
const QUESTION: &[u8] = b"anybody there?";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Transport {
    Tcp,
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One exchange to try: a question and its echo.
#[derive(Debug)]
pub struct Attempt<'a> {
    pub from: &'a Netns,
    pub to: SocketAddr,
    pub transport: Transport,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Outcome {
    /// The echo came back.
    Reached,
    /// The other end answered that nothing listens there: the packet went through.
    Refused,
    /// No answer in time: what a dropped packet looks like.
    Silent,
    /// An error of this number.
    Failed(i32),
}

/// Tries all at once and gives each this long; answers are in the order of the questions.
pub fn attempt_all(attempts: &[Attempt<'_>], patience: Duration) -> Result<Vec<Outcome>> {
    let begin = |attempt: &Attempt<'_>| {
        let _inside = attempt.from.enter()?;
        Ok(Exchange::begin(attempt.to, attempt.transport))
    };
    conclude(attempts.iter().map(begin).collect::<Result<_>>()?, patience)
}

/// Tries one exchange from the namespace that this thread is in.
pub fn attempt_here(to: SocketAddr, transport: Transport, patience: Duration) -> Result<Outcome> {
    Ok(conclude(vec![Exchange::begin(to, transport)], patience)?[0])
}

fn conclude(mut exchanges: Vec<Exchange>, patience: Duration) -> Result<Vec<Outcome>> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let open: Vec<_> =
            exchanges.iter().enumerate().filter(|(_, e)| e.outcome.is_none()).map(|(i, _)| i).collect();
        if open.is_empty() || left.is_zero() {
            return Ok(exchanges.iter().map(|e| e.outcome.unwrap_or(Outcome::Silent)).collect());
        }
        let ready: Vec<_> = {
            let mut fds: Vec<_> = open
                .iter()
                .map(|i| PollFd::new(exchanges[*i].socket.as_fd(), exchanges[*i].waits_for()))
                .collect();
            let millis = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).max(1);
            match poll(&mut fds, PollTimeout::from(millis)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            open.iter().zip(&fds).filter(|(_, fd)| fd.any().unwrap_or(true)).map(|(i, _)| *i).collect()
        };
        for i in ready {
            exchanges[i].step();
        }
    }
}

/// Tries one exchange.
pub fn attempt(from: &Netns, to: SocketAddr, transport: Transport, patience: Duration) -> Result<Outcome> {
    Ok(attempt_all(&[Attempt { from, to, transport }], patience)?[0])
}

/// A socket inside `from` that is connecting to `to`, without waiting.
pub(crate) fn connecting(to: SocketAddr, transport: Transport) -> Result<OwnedFd, Errno> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = match transport {
        Transport::Tcp => SockType::Stream,
        Transport::Udp => SockType::Datagram,
    };
    let socket = socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    match connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

struct Exchange {
    socket: Connection,
    asked: bool,
    outcome: Option<Outcome>,
}

enum Connection {
    Stream(TcpStream),
    Datagrams(UdpSocket),
    None,
}

impl Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream(stream) => stream.as_fd(),
            Self::Datagrams(datagrams) => datagrams.as_fd(),
            Self::None => unreachable!("an exchange without a socket has its outcome"),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        match self {
            Self::Stream(stream) => {
                stream.take_error()?.map_or(Ok(()), Err).and_then(|()| stream.write_all(QUESTION))
            }
            Self::Datagrams(datagrams) => datagrams.send(QUESTION).map(drop),
            Self::None => Ok(()),
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut answer = [0; 64];
        match self {
            Self::Stream(stream) => stream.read(&mut answer),
            Self::Datagrams(datagrams) => datagrams.recv(&mut answer),
            Self::None => Ok(0),
        }
    }
}

impl Exchange {
    fn begin(to: SocketAddr, transport: Transport) -> Self {
        let (socket, outcome) = match (connecting(to, transport), transport) {
            (Ok(fd), Transport::Tcp) => (Connection::Stream(fd.into()), None),
            (Ok(fd), Transport::Udp) => (Connection::Datagrams(fd.into()), None),
            (Err(error), _) => (Connection::None, Some(outcome_of(error as i32))),
        };
        Self { socket, asked: false, outcome }
    }

    fn waits_for(&self) -> PollFlags {
        if self.asked { PollFlags::POLLIN } else { PollFlags::POLLOUT }
    }

    fn step(&mut self) {
        let result =
            if self.asked { self.socket.receive().map(Some) } else { self.socket.send().map(|()| None) };
        match result {
            Ok(None) => self.asked = true,
            Ok(Some(length)) => {
                self.outcome =
                    Some(if length == QUESTION.len() { Outcome::Reached } else { Outcome::Refused });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.outcome = Some(outcome_of(error.raw_os_error().unwrap_or(0))),
        }
    }
}

fn outcome_of(errno: i32) -> Outcome {
    match Errno::from_raw(errno) {
        Errno::ECONNREFUSED | Errno::ECONNRESET => Outcome::Refused,
        _ => Outcome::Failed(errno),
    }
}
