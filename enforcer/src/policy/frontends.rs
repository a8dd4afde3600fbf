//! Which frontends depend on what: a change costs the Services that it touches.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use super::prefixes::bounds;
use crate::cluster::{Frontend, Index, Owner, object::Key, service::PortRef};

/// Of every Service as last looked at: where it is reached from this node, and who stands behind it.
#[derive(Debug, Default)]
pub(super) struct Frontends {
    known: BTreeMap<Key, Known>,
    by_frontend: BTreeMap<Frontend, BTreeSet<Key>>,
    by_backend: BTreeMap<IpAddr, BTreeSet<Key>>,
    with_node_ports: BTreeSet<Key>,
    own_addresses: BTreeSet<IpAddr>,
}

#[derive(Debug, Default)]
struct Known {
    frontends: BTreeSet<Frontend>,
    backends: BTreeSet<IpAddr>,
}

impl Frontends {
    /// Takes in Services (or slices of them) that changed and addresses whose owner may be another; tells which
    /// frontends may lead elsewhere than before.
    pub fn follow(
        &mut self,
        index: &Index,
        services: &BTreeSet<Key>,
        addresses: &BTreeSet<IpAddr>,
    ) -> BTreeSet<Frontend> {
        let mut changed = BTreeSet::new();
        let mut own_changed = false;
        for address in addresses {
            own_changed |= if index.owner(*address) == Some(Owner::ThisNode) {
                self.own_addresses.insert(*address)
            } else {
                self.own_addresses.remove(address)
            };
        }
        if own_changed {
            for key in self.with_node_ports.clone() {
                self.replace(index, &key, &mut changed);
            }
        }
        for key in services {
            self.replace(index, key, &mut changed);
        }
        changed
    }

    pub fn all(&self) -> impl Iterator<Item = Frontend> {
        self.by_frontend.keys().copied()
    }

    /// Frontends with a backend at this address.
    pub fn leading_to(&self, address: IpAddr) -> impl Iterator<Item = Frontend> {
        self.by_backend.get(&address).into_iter().flatten().flat_map(|key| self.of(key))
    }

    /// Frontends with a backend in this network.
    pub fn leading_into(&self, network: IpNetwork) -> impl Iterator<Item = Frontend> {
        let (first, last) = bounds(network);
        self.by_backend.range(first..=last).flat_map(|(_, keys)| keys).flat_map(|key| self.of(key))
    }

    /// Who is reached there; empty: nobody any more.
    pub fn ports<'i>(&self, index: &'i Index, frontend: Frontend) -> BTreeSet<PortRef<'i>> {
        let own = self.own_addresses.contains(&frontend.address);
        let keys = self.by_frontend.get(&frontend).into_iter().flatten();
        let services = keys.filter_map(|key| index.services().service(key));
        services.flat_map(|service| service.ports_at(frontend, own)).collect()
    }

    fn of(&self, service: &Key) -> impl Iterator<Item = Frontend> {
        self.known.get(service).into_iter().flat_map(|known| known.frontends.iter().copied())
    }

    fn replace(&mut self, index: &Index, key: &Key, changed: &mut BTreeSet<Frontend>) {
        if let Some(old) = self.known.remove(key) {
            old.frontends.iter().for_each(|frontend| unlink(&mut self.by_frontend, frontend, key));
            old.backends.iter().for_each(|backend| unlink(&mut self.by_backend, backend, key));
            changed.extend(old.frontends);
        }
        self.with_node_ports.remove(key);
        let Some(service) = index.services().service(key) else { return };
        let frontends: BTreeSet<Frontend> =
            service.frontends(self.own_addresses.iter().copied()).map(|(frontend, _)| frontend).collect();
        let backends = index.services().backend_addresses(key);
        for frontend in &frontends {
            self.by_frontend.entry(*frontend).or_default().insert(key.clone());
        }
        for backend in &backends {
            self.by_backend.entry(*backend).or_default().insert(key.clone());
        }
        if service.ports.iter().any(|port| port.node_port.is_some()) {
            self.with_node_ports.insert(key.clone());
        }
        changed.extend(&frontends);
        self.known.insert(key.clone(), Known { frontends, backends });
    }
}

fn unlink<K: Ord>(links: &mut BTreeMap<K, BTreeSet<Key>>, from: &K, to: &Key) {
    if let Some(keys) = links.get_mut(from) {
        keys.remove(to);
        if keys.is_empty() {
            links.remove(from);
        }
    }
}
