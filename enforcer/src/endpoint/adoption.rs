//! Which of the pods that the runtime remembers can be enforced, and on which interface.
//!
//! A pod's policy on another pod's interface would cut the one and open the other, so the witnesses must agree: the
//! runtime's cache, both ends of the veth pair, the bridge and the API. Where they do not, the pod is left as it is and
//! named. What a pod can say of itself is asked only where nothing better is known: nobody may lie himself out of
//! being enforced.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_cni::{
    protocol::{AttachmentId, Sandbox},
    sandbox::Wiring,
};

use super::cache::Remembered;
use crate::cluster::object::{Key, Pod};

/// What was found where a remembered attachment should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    pub remembered: Remembered,
    /// Both ends of the veth pair, and the addresses of the one inside; or why there is no such pair.
    pub found: Result<Found, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where the namespace is now.
    pub netns: std::path::PathBuf,
    pub wiring: Wiring,
    /// Without link-local ones.
    pub inside: BTreeSet<IpAddr>,
}

/// What the host side knows about its bridges' ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bridges {
    /// Bridge by port, both as interface indices.
    pub ports: BTreeMap<u32, u32>,
    /// Ports at which a bridge has seen a MAC address send.
    pub learned: BTreeMap<[u8; 6], BTreeSet<u32>>,
    /// What neighbour discovery has confirmed lately.
    pub neighbours: BTreeMap<IpAddr, [u8; 6]>,
}

/// A pod that nobody enforces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Unadopted {
    /// `namespace/name`.
    pub pod: String,
    /// Empty: no attachment of it is known.
    pub container: String,
    pub why: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recognised {
    pub pods: BTreeMap<AttachmentId, Sandbox>,
    pub unadopted: BTreeSet<Unadopted>,
}

/// What must be here, and what is enforced already.
#[derive(Clone, Debug, Default)]
pub struct Expected<'a> {
    /// Pods of this node that have an interface of their own, as the API says.
    pub pods: BTreeMap<Key, &'a Pod>,
    /// Those of them that need nobody: they have an endpoint, or had one until their DEL.
    pub served: BTreeSet<Key>,
    /// Interfaces and addresses of endpoints.
    pub interfaces: BTreeSet<u32>,
    pub addresses: BTreeSet<IpAddr>,
}

/// Sorts the sightings into those that every witness agrees on and the others. A pod that the API does not have on this
/// node is neither: there is nothing to enforce (podman uses the same keys, and a pod that was deleted is remembered
/// until its DEL is through).
pub fn recognise(sightings: &[Sighting], bridges: &Bridges, expected: &Expected<'_>) -> Recognised {
    let mut recognised = Recognised::default();
    let (mut served, mut absent) = (expected.served.clone(), Vec::new());
    let of = |remembered: &Remembered| Key::new(&remembered.pod.namespace, &remembered.pod.name);
    let fits = |sighting: &&Sighting| {
        let pod = expected.pods.get(&of(&sighting.remembered));
        let found = sighting.found.as_ref().ok();
        pod.zip(found)
            .is_some_and(|(pod, found)| consistent(&sighting.remembered, found, bridges, pod).is_ok())
    };
    let rivals = Rivals::among(sightings.iter().filter(fits));
    for Sighting { remembered, found } in sightings {
        let key = of(remembered);
        let Some(pod) = expected.pods.get(&key) else { continue };
        let unadopted = |why: &str| {
            let container = remembered.attachment.container.clone();
            Unadopted { pod: key.to_string(), container, why: why.to_owned() }
        };
        let found = match found {
            Ok(found) => found,
            Err(why) => {
                absent.push((key.clone(), unadopted(why)));
                continue;
            }
        };
        let judged = consistent(remembered, found, bridges, pod)
            .and_then(|()| rivals.none_of(remembered, found))
            .and_then(|()| free(remembered, found, expected));
        match judged {
            Ok(()) => {
                recognised.pods.insert(remembered.attachment.clone(), sandbox(remembered, found));
                served.insert(key);
            }
            Err(why) => _ = recognised.unadopted.insert(unadopted(&why)),
        }
    }
    // What is left of an earlier sandbox of the same pod is no pod that waits.
    absent.retain(|(key, _)| !served.contains(key));
    served.extend(absent.iter().map(|(key, _)| key.clone()));
    recognised.unadopted.extend(absent.into_iter().map(|(_, unadopted)| unadopted));
    let named: BTreeSet<String> =
        recognised.unadopted.iter().map(|unadopted| unadopted.pod.clone()).collect();
    let forgotten = expected.pods.iter().filter(|(key, pod)| {
        !pod.ips.is_empty() && !served.contains(*key) && !named.contains(&key.to_string())
    });
    recognised.unadopted.extend(forgotten.map(|(key, _)| Unadopted {
        pod: key.to_string(),
        container: String::new(),
        why: "the runtime remembers no attachment of it".to_owned(),
    }));
    recognised
}

/// A pod of this node that has an interface of its own.
pub fn is_here(pod: &Pod, node: Option<&str>) -> bool {
    !pod.host_network && !pod.finished && pod.node.as_deref() == node
}

/// A pod can change its MAC address and its addresses from inside, if it has the capability: what ADD gave counts, as for
/// every other endpoint.
fn sandbox(remembered: &Remembered, found: &Found) -> Sandbox {
    Sandbox {
        network: remembered.network.clone(),
        netns: found.netns.clone(),
        host_ifname: found.wiring.host_ifname.clone(),
        host_ifindex: found.wiring.host_ifindex,
        mac: remembered.mac.unwrap_or(found.wiring.mac),
        addresses: remembered.addresses.clone(),
        pod: Some(remembered.pod.clone()),
    }
}

fn consistent(remembered: &Remembered, found: &Found, bridges: &Bridges, pod: &Pod) -> Result<(), String> {
    let told: BTreeSet<IpAddr> = pod.ips.iter().copied().collect();
    if !told.is_empty() && told != remembered.addresses {
        return Err(format!(
            "the API says that its addresses are {} and not {}",
            list(&told),
            list(&remembered.addresses)
        ));
    }
    let Some(bridge) = bridges.ports.get(&found.wiring.host_ifindex) else {
        return Err(format!("{} is no port of a bridge", found.wiring.host_ifname));
    };
    // No pod can change the name of the host's end, and no two ends have had the same: names are random.
    if remembered.host_interfaces.contains(&found.wiring.host_ifname) {
        return Ok(());
    }
    looks_the_same(remembered, found, bridges, *bridge)
}

/// Without the name of the host's end everything else must fit: a process number in the path of a namespace may be
/// another pod's by now.
fn looks_the_same(
    remembered: &Remembered,
    found: &Found,
    bridges: &Bridges,
    bridge: u32,
) -> Result<(), String> {
    let Found { wiring, inside, .. } = found;
    if let Some(mac) = remembered.mac.filter(|mac| *mac != wiring.mac) {
        return Err(format!("its MAC address is {} and not {}", text(wiring.mac), text(mac)));
    }
    if *inside != remembered.addresses {
        return Err(format!("it has the addresses {} and not {}", list(inside), list(&remembered.addresses)));
    }
    let elsewhere = bridges.learned.get(&wiring.mac).into_iter().flatten();
    let mut elsewhere = elsewhere.filter(|port| bridges.ports.get(*port) == Some(&bridge));
    if let Some(port) = elsewhere.find(|port| **port != wiring.host_ifindex) {
        return Err(format!("the bridge has learned its MAC address at interface {port} too"));
    }
    let claimed = remembered.addresses.iter().find_map(|address| {
        bridges.neighbours.get(address).filter(|mac| **mac != wiring.mac).map(|mac| (address, mac))
    });
    if let Some((address, mac)) = claimed {
        return Err(format!("the node's neighbour {address} is {} and not {}", text(*mac), text(wiring.mac)));
    }
    Ok(())
}

/// Nothing of it is another endpoint's.
fn free(remembered: &Remembered, found: &Found, expected: &Expected<'_>) -> Result<(), String> {
    if expected.interfaces.contains(&found.wiring.host_ifindex) {
        return Err(format!("{} is another endpoint's", found.wiring.host_ifname));
    }
    match remembered.addresses.iter().find(|address| expected.addresses.contains(address)) {
        Some(address) => Err(format!("{address} is another endpoint's")),
        None => Ok(()),
    }
}

/// How many attachments are remembered for one interface, and for one address.
struct Rivals<'a> {
    interfaces: BTreeMap<u32, BTreeSet<&'a AttachmentId>>,
    addresses: BTreeMap<IpAddr, BTreeSet<&'a AttachmentId>>,
}

impl<'a> Rivals<'a> {
    fn among(sightings: impl Iterator<Item = &'a Sighting>) -> Self {
        let mut rivals = Self { interfaces: BTreeMap::new(), addresses: BTreeMap::new() };
        for Sighting { remembered, found } in sightings {
            let Ok(found) = found else { continue };
            let attachment = &remembered.attachment;
            rivals.interfaces.entry(found.wiring.host_ifindex).or_default().insert(attachment);
            for address in &remembered.addresses {
                rivals.addresses.entry(*address).or_default().insert(attachment);
            }
        }
        rivals
    }

    fn none_of(&self, remembered: &Remembered, found: &Found) -> Result<(), String> {
        let other = |of: &BTreeSet<&AttachmentId>| {
            of.iter().find(|attachment| ***attachment != remembered.attachment).map(|a| a.container.clone())
        };
        if let Some(other) = self.interfaces.get(&found.wiring.host_ifindex).and_then(other) {
            return Err(format!("container {other} is remembered for {} too", found.wiring.host_ifname));
        }
        for address in &remembered.addresses {
            if let Some(other) = self.addresses.get(address).and_then(other) {
                return Err(format!("container {other} has {address} too"));
            }
        }
        Ok(())
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn list(addresses: &BTreeSet<IpAddr>) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
