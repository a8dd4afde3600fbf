//! Operations between a client pod and a server pod, as fast as one CPU does them.

use std::{
    fmt,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{Shutdown, shutdown};
use serde::Serialize;

use crate::netns::Netns;

/// Where servers listen, one after the other.
pub const PORT: u16 = 5001;
/// How long anything may take before the measurement is broken.
const PATIENCE: Duration = Duration::from_secs(2);
/// Share of the time that passes before anything is recorded.
const WARM_UP: f64 = 0.1;
/// What one write of a bulk transfer hands over, and what one recorded operation of it moves, in bytes.
const CHUNK: usize = 128 << 10;
const BULK_OPERATION: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Work {
    /// One byte there and one back over a standing connection.
    TcpEcho,
    /// Connect, one byte there, the server closes, close.
    TcpConnect,
    /// One byte there and one back by datagrams of one flow.
    UdpEcho,
    /// A stream in one direction; one operation is a MiB at the receiver.
    TcpBulk,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::TcpEcho => "TCP request/response",
            Self::TcpConnect => "connect + 1 B + close",
            Self::UdpEcho => "UDP request/response",
            Self::TcpBulk => "bulk TCP, per MiB",
        })
    }
}

/// What one operation took in one stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Median time of an operation, in nanoseconds.
    pub p50: f64,
    pub per_second: f64,
}

impl Work {
    pub const ALL: [Self; 4] = [Self::TcpEcho, Self::TcpConnect, Self::UdpEcho, Self::TcpBulk];

    /// Goes on for `time` between `client` and the server at `address` inside `server`.
    pub fn measure(self, client: &Netns, server: &Netns, address: IpAddr, time: Duration) -> Result<Sample> {
        let to = SocketAddr::new(address, PORT);
        let clock = Clock::new(time);
        match self {
            Self::UdpEcho => udp_echo(client, server, to, clock),
            Self::TcpEcho => with_listener(server, to, echo_one, || tcp_echo(client, to, clock)),
            Self::TcpConnect => with_listener(server, to, close_all, || tcp_connect(client, to, clock)),
            Self::TcpBulk => {
                with_listener(server, to, |listener| sink(listener, clock), || tcp_bulk(client, to, clock))
            }
        }
        .with_context(|| format!("{self} from {} to {to}", client.name()))
    }
}

/// When to record, and when to stop.
#[derive(Clone, Copy)]
struct Clock {
    from: Instant,
    until: Instant,
}

impl Clock {
    fn new(time: Duration) -> Self {
        let from = Instant::now() + time.mul_f64(WARM_UP);
        Self { from, until: from + time }
    }

    /// Repeats `operation` and records how long each took.
    fn run(self, mut operation: impl FnMut() -> Result<()>) -> Result<Times> {
        let mut times = Times::default();
        let mut begun = Instant::now();
        while begun < self.until {
            operation()?;
            let now = Instant::now();
            times.record(self, begun, now);
            begun = now;
        }
        Ok(times)
    }
}

#[derive(Default)]
struct Times {
    /// In nanoseconds.
    each: Vec<f64>,
}

impl Times {
    fn record(&mut self, clock: Clock, begun: Instant, ended: Instant) {
        if begun >= clock.from {
            self.each.push((ended - begun).as_secs_f64() * 1e9);
        }
    }

    fn sample(mut self) -> Result<Sample> {
        ensure!(!self.each.is_empty(), "not one operation ended in time");
        let total: f64 = self.each.iter().sum();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 operations")]
        let per_second = self.each.len() as f64 / total * 1e9;
        let middle = self.each.len() / 2;
        let (_, p50, _) = self.each.select_nth_unstable_by(middle, f64::total_cmp);
        Ok(Sample { p50: *p50, per_second })
    }
}

/// A server of TCP and its client; the figures are of the side that has some.
fn with_listener(
    server: &Netns,
    to: SocketAddr,
    serve: impl FnOnce(&TcpListener) -> Result<Option<Times>> + Send,
    ask: impl FnOnce() -> Result<Option<Times>>,
) -> Result<Sample> {
    let listener = {
        let _inside = server.enter()?;
        TcpListener::bind((anywhere(to), to.port()))?
    };
    thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&listener));
        let asked = ask();
        // Wakes a server that still waits for somebody.
        let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
        let measured_there = serving.join().expect("a server does not panic");
        asked?.or(measured_there?).ok_or_else(|| anyhow!("nobody measured"))?.sample()
    })
}

fn anywhere(to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn connected(client: &Netns, to: SocketAddr) -> Result<TcpStream> {
    let _inside = client.enter()?;
    let socket = TcpStream::connect_timeout(&to, PATIENCE)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn tcp_echo(client: &Netns, to: SocketAddr, clock: Clock) -> Result<Option<Times>> {
    let mut socket = connected(client, to)?;
    let mut byte = [1];
    let times = clock.run(|| {
        socket.write_all(&byte)?;
        Ok(socket.read_exact(&mut byte)?)
    });
    times.map(Some)
}

fn echo_one(listener: &TcpListener) -> Result<Option<Times>> {
    let Ok((mut socket, _)) = listener.accept() else { return Ok(None) };
    socket.set_nodelay(true)?;
    let mut byte = [0];
    while socket.read(&mut byte)? == 1 {
        socket.write_all(&byte)?;
    }
    Ok(None)
}

fn tcp_connect(client: &Netns, to: SocketAddr, clock: Clock) -> Result<Option<Times>> {
    let _inside = client.enter()?;
    let times = clock.run(|| {
        // Without a timeout: waiting with one would cost two more system calls, and SYNs give up in the end.
        let mut socket = TcpStream::connect(to)?;
        socket.write_all(&[1])?;
        let closed = socket.read(&mut [0])? == 0;
        ensure!(closed, "the server said something");
        Ok(())
    });
    times.map(Some)
}

/// The server closes first: what waits for stray segments afterwards is its port, not one of the client's.
fn close_all(listener: &TcpListener) -> Result<Option<Times>> {
    while let Ok((mut socket, _)) = listener.accept() {
        let _ = socket.read(&mut [0])?;
    }
    Ok(None)
}

fn tcp_bulk(client: &Netns, to: SocketAddr, clock: Clock) -> Result<Option<Times>> {
    let mut socket = connected(client, to)?;
    let chunk = vec![7; CHUNK];
    while Instant::now() < clock.until {
        socket.write_all(&chunk)?;
    }
    Ok(None)
}

fn sink(listener: &TcpListener, clock: Clock) -> Result<Option<Times>> {
    let Ok((mut socket, _)) = listener.accept() else { return Ok(None) };
    let (mut times, mut buffer) = (Times::default(), vec![0; 2 * CHUNK]);
    let (mut begun, mut moved) = (Instant::now(), 0);
    loop {
        let read = socket.read(&mut buffer)?;
        if read == 0 {
            return Ok(Some(times));
        }
        moved += read;
        if moved >= BULK_OPERATION {
            moved -= BULK_OPERATION;
            let now = Instant::now();
            times.record(clock, begun, now);
            begun = now;
        }
    }
}

fn udp_echo(client: &Netns, server: &Netns, to: SocketAddr, clock: Clock) -> Result<Sample> {
    let bound = |netns: &Netns, port| {
        let _inside = netns.enter()?;
        let socket = UdpSocket::bind((anywhere(to), port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok::<_, anyhow::Error>(socket)
    };
    let (echo, asker) = (bound(server, to.port())?, bound(client, 0)?);
    asker.connect(to)?;
    thread::scope(|scope| {
        let server = scope.spawn(|| echo_datagrams(&echo));
        let mut byte = [1];
        let times = clock.run(|| {
            asker.send(&byte)?;
            asker.recv(&mut byte).context("a datagram got lost")?;
            Ok(())
        });
        let _ = asker.send(&[]); // an empty one ends it; without, the server's patience does
        server.join().expect("a server does not panic")?;
        times?.sample()
    })
}

fn echo_datagrams(socket: &UdpSocket) -> Result<()> {
    let mut byte = [0];
    loop {
        match socket.recv_from(&mut byte) {
            Ok((0, _)) => return Ok(()),
            Ok((_, from)) => drop(socket.send_to(&byte, from)?),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
