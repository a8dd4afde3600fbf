//! One HTTP request, as a probe or Prometheus makes it.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::netns::Netns;

const PATIENCE: Duration = Duration::from_secs(10);

/// Status code and body.
pub fn get(from: &Netns, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = {
        let _inside = from.enter()?;
        TcpStream::connect_timeout(&address, PATIENCE)?
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {text}"))?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.with_context(|| format!("no status: {head}"))?, body.to_owned()))
}

/// Samples of a metrics page, by name with labels.
pub fn samples(page: &str) -> Result<BTreeMap<String, f64>> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("not a sample: {line}"))?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}
