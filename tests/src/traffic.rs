//! Traffic that lasts: a conversation that must not suffer, and an intruder that never tires.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    netns::Netns,
    probe::{Transport, connecting},
};

/// How long a stream waits for one echo before it calls itself broken.
const STREAM_PATIENCE: Duration = Duration::from_secs(5);
/// How long one knock waits for an answer, and how long it pauses when the network is not there at all.
const KNOCK_PATIENCE: Duration = Duration::from_millis(20);
const KNOCK_PAUSE: Duration = Duration::from_micros(200);

/// A TCP conversation of numbered messages, each awaited back.
#[derive(Debug)]
pub struct Stream {
    progress: Arc<Progress>,
    socket: TcpStream,
    thread: JoinHandle<StreamReport>,
}

#[derive(Debug)]
struct Progress {
    stop: AtomicBool,
    started: Instant,
    /// When the last echo came back, in nanoseconds after the start.
    last_echo: AtomicU64,
}

impl Progress {
    fn echo(&self) {
        let nanos = u64::try_from(self.started.elapsed().as_nanos()).expect("no stream runs for centuries");
        self.last_echo.store(nanos, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamReport {
    pub sent: u64,
    /// Messages that came back, in order and unchanged.
    pub echoed: u64,
    pub longest_wait: Duration,
    /// TCP segments that had to be sent twice: what TCP hides from the conversation.
    pub retransmitted: u32,
    /// Why the conversation ended early.
    pub broken: Option<String>,
}

impl Stream {
    /// Connects from inside `from`, then sends one message per `pace`.
    pub fn start(from: &Netns, to: SocketAddr, pace: Duration) -> Result<Self> {
        let socket = {
            let _inside = from.enter()?;
            TcpStream::connect_timeout(&to, STREAM_PATIENCE)?
        };
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(STREAM_PATIENCE))?;
        let started = Instant::now();
        let progress =
            Arc::new(Progress { stop: AtomicBool::new(false), started, last_echo: AtomicU64::new(0) });
        let (shared, own) = (Arc::clone(&progress), socket.try_clone()?);
        let thread =
            thread::Builder::new().name("stream".into()).spawn(move || converse(own, pace, &shared))?;
        Ok(Self { progress, socket, thread })
    }

    /// When the last echo came back; before the first one, when the stream was started.
    pub fn last_echo(&self) -> Instant {
        self.progress.started + Duration::from_nanos(self.progress.last_echo.load(Ordering::Relaxed))
    }

    /// Ends the conversation and tells how it went.
    pub fn stop(self) -> StreamReport {
        self.progress.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a stream does not panic")
    }

    /// As [`Stream::stop`], without waiting for an echo that is still out.
    pub fn abandon(self) -> StreamReport {
        self.progress.stop.store(true, Ordering::Relaxed);
        let _ = self.socket.shutdown(Shutdown::Both); // not connected any more: as good
        self.stop()
    }
}

fn converse(mut socket: TcpStream, pace: Duration, progress: &Progress) -> StreamReport {
    let mut report =
        StreamReport { sent: 0, echoed: 0, longest_wait: Duration::ZERO, retransmitted: 0, broken: None };
    while !progress.stop.load(Ordering::Relaxed) && report.broken.is_none() {
        let start = Instant::now();
        let message = report.sent.to_be_bytes();
        let mut echo = [0; 8];
        report.sent += 1;
        match socket.write_all(&message).and_then(|()| socket.read_exact(&mut echo)) {
            Ok(()) if echo == message => {
                report.echoed += 1;
                progress.echo();
            }
            Ok(()) => report.broken = Some(format!("message {} came back as {echo:?}", report.sent - 1)),
            Err(error) => report.broken = Some(error.to_string()),
        }
        report.longest_wait = report.longest_wait.max(start.elapsed());
        thread::sleep(pace);
    }
    report.retransmitted = retransmitted(&socket);
    report
}

fn retransmitted(socket: &TcpStream) -> u32 {
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).expect("a small struct");
    // SAFETY: `tcp_info` is integers only: all zeroes is a valid value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    // SAFETY: pointer and length describe `info`, which outlives the call; the descriptor is open.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if answer == 0 { info.tcpi_total_retrans } else { u32::MAX }
}

/// Tries an exchange again and again, as fast as the network answers.
#[derive(Debug)]
pub struct Knock {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<KnockReport>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnockReport {
    pub attempts: u64,
    /// Attempts for which the network was there: the packet left.
    pub sent: u64,
    /// Connections that were established, or datagrams that came back.
    pub reached: u64,
}

impl Knock {
    /// Starts inside `from`, which need not have an interface yet.
    pub fn start(from: &Netns, to: SocketAddr, transport: Transport) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = from.spawn(move || {
            let mut report = KnockReport::default();
            while !stopped.load(Ordering::Relaxed) {
                knock(to, transport, &mut report);
            }
            report
        })?;
        Ok(Self { stop, thread })
    }

    pub fn stop(self) -> KnockReport {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a knock does not panic")
    }
}

fn knock(to: SocketAddr, transport: Transport, report: &mut KnockReport) {
    report.attempts += 1;
    let Ok(fd) = connecting(to, transport) else { return thread::sleep(KNOCK_PAUSE) };
    match transport {
        Transport::Tcp => {
            report.sent += 1;
            let writable = wait(&fd, PollFlags::POLLOUT, KNOCK_PATIENCE);
            let stream = TcpStream::from(fd);
            let established =
                writable && matches!(stream.take_error(), Ok(None)) && stream.peer_addr().is_ok();
            report.reached += u64::from(established);
        }
        Transport::Udp => {
            let socket = UdpSocket::from(fd);
            if socket.send(b"knock").is_ok() {
                report.sent += 1;
            }
            let answered = wait(&socket, PollFlags::POLLIN, KNOCK_PAUSE) && socket.recv(&mut [0; 8]).is_ok();
            report.reached += u64::from(answered);
        }
    }
}

fn wait(fd: &impl AsFd, what: PollFlags, patience: Duration) -> bool {
    let millis = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX).max(1);
    poll(&mut [PollFd::new(fd.as_fd(), what)], PollTimeout::from(millis)).is_ok_and(|ready| ready > 0)
}
