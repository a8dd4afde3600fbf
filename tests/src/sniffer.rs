//! What arrives at a namespace's interfaces, before its own stack has a say.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::{
    errno::Errno,
    libc::PACKET_OUTGOING,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
    },
};

use crate::{netns::Netns, raw::Packet};

/// Room for what arrives between two looks.
const BUFFER: usize = 8 << 20;

/// Keeps every IP packet that has arrived since it was started.
#[derive(Debug)]
pub struct Sniffer {
    socket: OwnedFd,
    seen: Vec<Packet>,
}

impl Sniffer {
    pub fn start(netns: &Netns) -> Result<Self> {
        let _inside = netns.enter()?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // A datagram packet socket: without the link layer's header.
        let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll)?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        Ok(Self { socket, seen: Vec::new() })
    }

    /// What has arrived so far.
    pub fn seen(&mut self) -> Result<&[Packet]> {
        let mut bytes = vec![0; 1 << 17];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut bytes) {
                Ok((_, Some(from))) if from.pkttype() == PACKET_OUTGOING => {}
                Ok((length, _)) => self.seen.extend(Packet::parse(&bytes[..length])),
                Err(Errno::EAGAIN) => return Ok(&self.seen),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether this packet is among what arrives until then.
    pub fn sees(&mut self, packet: &Packet, within: Duration) -> Result<bool> {
        let deadline = Instant::now() + within;
        loop {
            if self.seen()?.contains(packet) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let millis = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).max(1);
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], PollTimeout::from(millis))
            {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
