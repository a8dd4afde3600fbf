//! Connections that policy always allows, opened and closed at a rate: each must work.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    Soak,
    stage::{NAMESPACES, talker},
};
use crate::{netns::Netns, probe::Family};

/// How long a connection may take as a whole.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer than this means that something was sent twice.
const SLOW: Duration = Duration::from_millis(900);

/// From whom to whom, as numbers of talkers.
const WAYS: [(usize, usize); 4] = [(0, 1), (1, 2), (2, 0), (0, 2)];

/// One namespace's share of the load, until the end.
pub fn bear(soak: &Soak<'_>, namespace: &str) {
    let ways: Vec<_> = Family::BOTH
        .into_iter()
        .flat_map(|family| WAYS.map(|(from, to)| (family, from, to)))
        .map(|(family, from, to)| {
            let (from, to) = (talker(soak.lab, namespace, from), talker(soak.lab, namespace, to));
            (from, SocketAddr::new(to.ip(family), 80))
        })
        .collect();
    if soak.options.connection_rate <= 0.0 {
        return;
    }
    let every: Duration =
        NAMESPACES.map(|_| Duration::from_secs_f64(1.0 / soak.options.connection_rate)).iter().sum();
    let mut due = Instant::now();
    for (from, to) in ways.iter().cycle() {
        if soak.is_over() {
            break;
        }
        // A few at once: sleeping costs more than connecting.
        if due > Instant::now() + Duration::from_millis(2) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        due = (due + every).max(Instant::now().checked_sub(PATIENCE).unwrap_or(due));
        let _open = soak.gate.read().expect("no holder panics");
        let began = Instant::now();
        match talk(from.netns(), *to) {
            Ok(port) => {
                soak.tally.count("connections");
                if began.elapsed() > SLOW {
                    suspect(soak, &from.key(), *to, port);
                }
            }
            Err(error) => soak.tally.wrong(|| {
                let took = began.elapsed().as_millis();
                format!("{} -> {to}, which is always allowed: {error:#} after {took} ms", from.key())
            }),
        }
    }
}

/// A loaded machine may be the reason, and TCP may have hidden that a segment was dropped: the flow log tells.
fn suspect(soak: &Soak<'_>, from: &str, to: SocketAddr, port: u16) {
    soak.tally.count("connections slower than 900 ms");
    for agent in soak.lab.agents() {
        let of_port = port.to_string();
        let dropped =
            ["-o", "json", "--verdict", "dropped", "--last", "20", "--pod", from, "--port", &of_port];
        // An agent that has just been killed cannot tell.
        if let Ok(records) = agent.flows(&dropped)
            && !records.trim().is_empty()
        {
            soak.tally.wrong(|| format!("{from} -> {to}, which is always allowed: {records}"));
        }
    }
}

/// Gives the port that it came from.
fn talk(from: &Netns, to: SocketAddr) -> Result<u16> {
    let mut stream = {
        let _inside = from.enter()?;
        TcpStream::connect_timeout(&to, PATIENCE).context("connect")?
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?").context("ask")?;
    stream.read_exact(&mut [0]).context("answer")?;
    // Closed by a reset: the port is free again at once.
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &linger)?;
    Ok(stream.local_addr()?.port())
}
