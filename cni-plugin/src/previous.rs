//! The result of the plugins before us: handed on exactly as it came, and read for the container's addresses.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{config::read, error::CniError};

/// `prevResult`, byte for byte.
#[derive(Debug)]
pub struct PrevResult(Box<RawValue>);

/// What prevResult says about one container interface.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Absent when the list of interfaces is incomplete.
    pub mac: Option<String>,
    /// One or two addresses, at most one per family.
    pub addresses: BTreeSet<IpAddr>,
    /// Names of interfaces on the host: the bridge, the host end of the veth pair; may be incomplete.
    pub host_interfaces: BTreeSet<String>,
}

/// The parts of a result we read; everything else (routes, DNS, whatever comes later) passes unseen.
#[derive(Deserialize)]
struct Seen {
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
    #[serde(default)]
    ips: Option<Vec<Ip>>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    mac: Option<String>,
    /// Set for interfaces inside the container.
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct Ip {
    address: IpNetwork,
    /// Index into `interfaces`.
    #[serde(default)]
    interface: Option<usize>,
}

impl Interface {
    fn in_container(&self) -> bool {
        self.sandbox.as_ref().is_some_and(|sandbox| !sandbox.is_empty())
    }
}

impl PrevResult {
    pub fn new(raw: Box<RawValue>) -> Result<Self, CniError> {
        if raw.get().starts_with('{') {
            Ok(Self(raw))
        } else {
            Err(CniError::config("prevResult", "must be an object"))
        }
    }

    /// Exactly the bytes we were given.
    pub fn raw(&self) -> &str {
        self.0.get()
    }

    /// What is known about the container interface `ifname`.
    ///
    /// An address without an index belongs to `ifname`: there is nothing else it could belong to.
    pub fn attached(&self, ifname: &str) -> Result<Attached, CniError> {
        let seen: Seen = read("prevResult", &self.0)?;
        let interfaces = seen.interfaces.unwrap_or_default();
        let ours = |interface: &Interface| interface.in_container() && interface.name == ifname;
        let mut attached = Attached {
            mac: interfaces
                .iter()
                .find(|i| ours(i))
                .and_then(|i| i.mac.clone())
                .filter(|mac| !mac.is_empty()),
            addresses: BTreeSet::new(),
            host_interfaces: interfaces
                .iter()
                .filter(|i| !i.in_container())
                .map(|i| i.name.clone())
                .collect(),
        };
        for (at, ip) in seen.ips.unwrap_or_default().iter().enumerate() {
            let belongs = match ip.interface {
                None => true,
                Some(index) => interfaces.get(index).map(ours).ok_or_else(|| {
                    let why = format!("{index}, but there are {} interfaces", interfaces.len());
                    CniError::config(format!("prevResult.ips[{at}].interface"), why)
                })?,
            };
            if belongs {
                attached.add(ip.address.ip()).map_err(|unfit| unfit.at(at, ifname))?;
            }
        }
        if attached.addresses.is_empty() {
            return Err(CniError::config("prevResult.ips", format!("no address of {ifname}")));
        }
        Ok(attached)
    }
}

impl Attached {
    fn add(&mut self, address: IpAddr) -> Result<(), Unfit> {
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(Unfit::NotAPods(address));
        }
        if self.addresses.iter().any(|known| *known != address && known.is_ipv4() == address.is_ipv4()) {
            return Err(Unfit::Second(address));
        }
        self.addresses.insert(address);
        Ok(())
    }
}

/// Why an address cannot be enforced.
enum Unfit {
    NotAPods(IpAddr),
    Second(IpAddr),
}

impl Unfit {
    fn at(&self, index: usize, ifname: &str) -> CniError {
        let field = format!("prevResult.ips[{index}].address");
        match self {
            Self::NotAPods(address) => {
                CniError::config(field, format!("{address} cannot be a pod's address"))
            }
            Self::Second(address) => {
                let why = format!("{address} is a second address of its family on {ifname}");
                CniError::Unsupported { field, why }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn attached(result: &Value) -> Result<Attached, String> {
        let raw = RawValue::from_string(result.to_string()).expect("JSON");
        PrevResult::new(raw)
            .and_then(|previous| previous.attached("eth0"))
            .map_err(|error| format!("{} {error}", error.code()))
    }

    fn want(mac: Option<&str>, addresses: &[&str], host: &[&str]) -> Attached {
        Attached {
            mac: mac.map(Into::into),
            addresses: addresses.iter().map(|a| a.parse().expect("address")).collect(),
            host_interfaces: host.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn the_containers_addresses_are_found_in_complete_and_incomplete_results() {
        let bridge = json!([
            {"name": "cni0", "mac": "02:00:00:00:00:01"},
            {"name": "veth1", "mac": "02:00:00:00:00:02", "sandbox": ""},
            {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/x"},
            {"name": "net1", "mac": "02:00:00:00:00:04", "sandbox": "/run/netns/x"},
        ]);
        let mac = Some("02:00:00:00:00:03");
        for (case, result, expected) in [
            (
                "dual stack, with another interface's address between",
                json!({"interfaces": bridge, "ips": [
                    {"address": "10.244.1.5/24", "interface": 2, "version": "4", "gateway": "10.244.1.1"},
                    {"address": "192.0.2.1/24", "interface": 3},
                    {"address": "fd00::5/64", "interface": 2},
                ], "later": {"field": 1}}),
                want(mac, &["10.244.1.5", "fd00::5"], &["cni0", "veth1"]),
            ),
            (
                "the host's own address is not the pod's",
                json!({"interfaces": bridge, "ips": [
                    {"address": "10.244.1.1/24", "interface": 0}, {"address": "10.244.1.5/24", "interface": 2},
                ]}),
                want(mac, &["10.244.1.5"], &["cni0", "veth1"]),
            ),
            (
                "no interfaces at all",
                json!({"ips": [{"address": "10.244.1.5/24"}]}),
                want(None, &["10.244.1.5"], &[]),
            ),
            (
                "only the container's, without MAC",
                json!({"interfaces": [{"name": "eth0", "sandbox": "/x"}], "ips": [{"address": "fd00::5/64", "interface": 0}]}),
                want(None, &["fd00::5"], &[]),
            ),
            (
                "the same address twice is one",
                json!({"interfaces": null, "ips": [{"address": "10.0.0.5/24"}, {"address": "10.0.0.5/16", "interface": null}]}),
                want(None, &["10.0.0.5"], &[]),
            ),
        ] {
            assert_eq!(attached(&result), Ok(expected), "{case}");
        }
    }

    #[test]
    fn what_cannot_be_enforced_is_named() {
        for (result, want) in [
            (json!({}), "7 prevResult.ips: no address of eth0"),
            (json!({"ips": null}), "7 prevResult.ips: no address of eth0"),
            (
                json!({"interfaces": [{"name": "eth0"}], "ips": [{"address": "10.0.0.5/24", "interface": 0}]}),
                "7 prevResult.ips: no address of eth0",
            ),
            (
                json!({"ips": [{"address": "10.0.0.5/24", "interface": 2}]}),
                "7 prevResult.ips[0].interface: 2, but there are 0 interfaces",
            ),
            (
                json!({"ips": [{"address": "10.0.0.5/24"}, {"address": "10.0.0.6/24"}]}),
                "2 prevResult.ips[1].address: 10.0.0.6 is a second address of its family on eth0",
            ),
            (
                json!({"ips": [{"address": "127.0.0.1/8"}]}),
                "7 prevResult.ips[0].address: 127.0.0.1 cannot be a pod's address",
            ),
            (
                json!({"ips": [{"address": "::/0"}]}),
                "7 prevResult.ips[0].address: :: cannot be a pod's address",
            ),
            (json!({"ips": [{"address": "ten"}]}), "7 prevResult.ips[0].address: invalid address: ten"),
            (json!({"ips": [{}]}), "7 prevResult.ips[0]: missing field `address`"),
            (
                json!({"ips": [{"address": "10.0.0.5/24", "interface": -1}]}),
                "7 prevResult.ips[0].interface: invalid value",
            ),
            (json!({"interfaces": {}}), "7 prevResult.interfaces: invalid type: map, expected a sequence"),
        ] {
            let error = attached(&result).expect_err(want);
            assert!(error.starts_with(want), "{error:?} should start with {want:?}");
        }
    }
}
