//! What `bulkhead explain` is asked: like a [`Probe`](super::Probe), and a destination may be a Service.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::probe::{EndpointRef, Family, ProbeProtocol};
use crate::cluster::object::Key;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    pub from: EndpointRef,
    pub to: Destination,
    pub protocol: ProbeProtocol,
    /// Default: IPv4 if both ends have it, else IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
}

/// Prints and parses as `namespace/pod:PORT`, `ip:ADDRESS:PORT`, `ip:[ADDRESS]:PORT`, `node:NAME:PORT` or
/// `service:namespace/name:PORT`; for protocols without ports, as the same without a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination {
    pub end: DestinationEnd,
    /// Never 0.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationEnd {
    Endpoint(EndpointRef),
    Service(Key),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is none of namespace/pod:PORT, service:namespace/name:PORT, ip:ADDRESS:PORT and node:NAME:PORT"
)]
pub struct DestinationError(String);

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let error = || DestinationError(text.to_owned());
        if let Some(address) = text.strip_prefix("ip:") {
            // An IPv6 address without brackets cannot be told from one with a port.
            if let Ok(at) = address.parse::<SocketAddr>() {
                let end = DestinationEnd::Endpoint(EndpointRef::Ip(at.ip().to_canonical()));
                let port = Some(at.port()).filter(|port| *port != 0).ok_or_else(error)?;
                return Ok(Self { end, port: Some(port) });
            }
            let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
            let address: IpAddr = bare.parse().map_err(|_| error())?;
            return Ok(Self {
                end: DestinationEnd::Endpoint(EndpointRef::Ip(address.to_canonical())),
                port: None,
            });
        }
        // Of a node, the colon after the kind is no port's.
        let kind = ["node:", "service:"].into_iter().find(|kind| text.starts_with(kind)).unwrap_or_default();
        let (name, port) = match text[kind.len()..].rsplit_once(':') {
            None => (text, None),
            Some((name, port)) => {
                let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(error)?;
                (&text[..kind.len() + name.len()], Some(port))
            }
        };
        let endpoint: EndpointRef =
            name.strip_prefix("service:").unwrap_or(name).parse().map_err(|_| error())?;
        let end = match (kind, endpoint) {
            ("service:", EndpointRef::Pod(key)) => DestinationEnd::Service(key),
            ("service:", _) => return Err(error()),
            (_, endpoint) => DestinationEnd::Endpoint(endpoint),
        };
        Ok(Self { end, port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.end, self.port) {
            (DestinationEnd::Endpoint(EndpointRef::Ip(address @ IpAddr::V6(_))), Some(_)) => {
                write!(f, "ip:[{address}]")?;
            }
            (DestinationEnd::Endpoint(end), _) => write!(f, "{end}")?,
            (DestinationEnd::Service(key), _) => write!(f, "service:{key}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl TryFrom<String> for Destination {
    type Error = DestinationError;

    fn try_from(text: String) -> Result<Self, DestinationError> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_and_printed_alike() {
        let pod = |name: &str| EndpointRef::Pod(Key::new("shop", name));
        let ip = |text: &str| EndpointRef::Ip(text.parse().expect("an address"));
        for (text, end, port) in [
            ("shop/cart:80", DestinationEnd::Endpoint(pod("cart")), Some(80)),
            ("shop/cart", DestinationEnd::Endpoint(pod("cart")), None),
            ("ip:10.0.0.1:53", DestinationEnd::Endpoint(ip("10.0.0.1")), Some(53)),
            ("ip:10.0.0.1", DestinationEnd::Endpoint(ip("10.0.0.1")), None),
            ("ip:[fd00::1]:443", DestinationEnd::Endpoint(ip("fd00::1")), Some(443)),
            ("ip:fd00::1", DestinationEnd::Endpoint(ip("fd00::1")), None),
            ("node:n1:30080", DestinationEnd::Endpoint(EndpointRef::Node("n1".into())), Some(30080)),
            ("node:n1", DestinationEnd::Endpoint(EndpointRef::Node("n1".into())), None),
            ("service:shop/web:80", DestinationEnd::Service(Key::new("shop", "web")), Some(80)),
        ] {
            let want = Destination { end, port };
            assert_eq!(text.parse::<Destination>().as_ref(), Ok(&want), "{text}");
            assert_eq!(want.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_destination_is_refused() {
        for text in [
            "",
            "cart",
            "cart:80",
            "shop/cart:",
            "shop/cart:0",
            "shop/cart:65536",
            "shop/cart:http",
            "/cart:80",
            "a/b/c:80",
            "ip:",
            "ip:shop/cart:80",
            "ip:10.0.0.1:0",
            "node:",
            "node::80",
            "service:web:80",
            "service:ip:10.0.0.1:80",
            "service:node:n1:80",
        ] {
            assert_eq!(text.parse::<Destination>(), Err(DestinationError(text.to_owned())));
        }
    }
}
