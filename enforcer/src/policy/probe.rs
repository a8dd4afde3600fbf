//! Questions to the simulator and their answers, in the JSON of `bulkhead simulate`.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::cluster::object::Key;

/// May a connection from `src` to `port` of `dst` be opened?
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Probe {
    pub src: EndpointRef,
    pub dst: EndpointRef,
    pub protocol: ProbeProtocol,
    /// The destination's; of no meaning for ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Default: IPv4 if both ends have it, else IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
}

/// One end; prints and parses as `namespace/pod`, `ip:ADDRESS` or `node:NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EndpointRef {
    Pod(Key),
    Ip(IpAddr),
    Node(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ProbeProtocol {
    Tcp,
    Udp,
    Sctp,
    /// Echo of the addresses' family.
    Icmp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Allow,
    Deny,
}

/// Allowed only if both sides allow (semantics 14).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub verdict: Verdict,
    /// At the source.
    pub egress: Side,
    /// At the destination.
    pub ingress: Side,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    pub verdict: Verdict,
    /// Policies and rules that allow, or why there is none, or why none was needed.
    pub by: String,
}

/// The question cannot be asked of this cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error("unknown pod {0}")]
    UnknownPod(Key),
    #[error("unknown node {0}")]
    UnknownNode(String),
    #[error("pod {0} has finished")]
    Finished(Key),
    #[error("{0} has no address")]
    NoAddress(EndpointRef),
    #[error("{end} has no {family} address")]
    NoAddressOfFamily { end: EndpointRef, family: Family },
    #[error("{src} and {dst} have no address family in common")]
    NoCommonFamily { src: EndpointRef, dst: EndpointRef },
    #[error("a {0} probe needs a port")]
    PortMissing(ProbeProtocol),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither namespace/pod, ip:ADDRESS nor node:NAME")]
pub struct EndpointRefError(String);

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl ProbeProtocol {
    /// IANA protocol number.
    pub fn number(self, family: Family) -> u8 {
        match (self, family) {
            (Self::Tcp, _) => 6,
            (Self::Udp, _) => 17,
            (Self::Sctp, _) => 132,
            (Self::Icmp, Family::V4) => 1,
            (Self::Icmp, Family::V6) => 58,
        }
    }
}

impl FromStr for ProbeProtocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_uppercase().as_str() {
            "TCP" => Ok(Self::Tcp),
            "UDP" => Ok(Self::Udp),
            "SCTP" => Ok(Self::Sctp),
            "ICMP" => Ok(Self::Icmp),
            _ => Err(format!("`{text}` is none of TCP, UDP, SCTP, ICMP")),
        }
    }
}

impl FromStr for Family {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "ipv4" => Ok(Self::V4),
            "ipv6" => Ok(Self::V6),
            _ => Err(format!("`{text}` is neither IPv4 nor IPv6")),
        }
    }
}

impl FromStr for EndpointRef {
    type Err = EndpointRefError;

    fn from_str(text: &str) -> Result<Self, EndpointRefError> {
        let error = || EndpointRefError(text.to_owned());
        if let Some(address) = text.strip_prefix("ip:") {
            return address.parse::<IpAddr>().map(|a| Self::Ip(a.to_canonical())).map_err(|_| error());
        }
        if let Some(name) = text.strip_prefix("node:").filter(|name| !name.is_empty()) {
            return Ok(Self::Node(name.to_owned()));
        }
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::Pod(Key::new(namespace, name)))
            }
            _ => Err(error()),
        }
    }
}

impl TryFrom<String> for EndpointRef {
    type Error = EndpointRefError;

    fn try_from(text: String) -> Result<Self, EndpointRefError> {
        text.parse()
    }
}

impl From<EndpointRef> for String {
    fn from(end: EndpointRef) -> Self {
        end.to_string()
    }
}

impl fmt::Display for EndpointRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "{key}"),
            Self::Ip(address) => write!(f, "ip:{address}"),
            Self::Node(name) => write!(f, "node:{name}"),
        }
    }
}

impl fmt::Display for ProbeProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
        })
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

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}
