//! Which frontends depend on what: a change costs the Services that it touches.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnetwork::IpNetwork;

use super::prefixes::bounds;
use crate::cluster::{
    Addresses, Frontend, Index, Owner, PackedMap,
    compact::{Few, Set},
    object::Key,
    service::PortRef,
};

/// Of every Service as last looked at: where it is reached from this node, and who stands behind it.
#[derive(Debug, Default)]
pub(super) struct Frontends {
    known: BTreeMap<Arc<Key>, Known>,
    by_frontend: PackedMap<Frontend, Few<Arc<Key>>>,
    by_backend: Addresses<Few<Arc<Key>>>,
    with_node_ports: BTreeSet<Arc<Key>>,
    own_addresses: BTreeSet<IpAddr>,
}

#[derive(Debug, Default)]
struct Known {
    frontends: Set<Frontend>,
    backends: Set<IpAddr>,
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
        self.by_backend.between(first, last).flat_map(|address| self.leading_to(address))
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
            for frontend in &old.frontends {
                let left = self.by_frontend.get_mut(frontend).map(|keys| without(keys, key));
                if left == Some(0) {
                    self.by_frontend.remove(frontend);
                }
            }
            for backend in &old.backends {
                let left = self.by_backend.get_mut(backend).map(|keys| without(keys, key));
                if left == Some(0) {
                    self.by_backend.remove(backend);
                }
            }
            changed.extend(old.frontends);
        }
        self.with_node_ports.remove(key);
        let Some(service) = index.services().service(key) else { return };
        let frontends: Set<Frontend> =
            service.frontends(self.own_addresses.iter().copied()).map(|(frontend, _)| frontend).collect();
        let backends = Set::from(index.services().backend_addresses(key));
        let key = Arc::new(key.clone());
        for frontend in &frontends {
            match self.by_frontend.get_mut(frontend) {
                Some(keys) => keys.insert(Arc::clone(&key)),
                None => _ = self.by_frontend.insert(*frontend, [Arc::clone(&key)].into()),
            }
        }
        for backend in &backends {
            match self.by_backend.get_mut(backend) {
                Some(keys) => keys.insert(Arc::clone(&key)),
                None => _ = self.by_backend.insert(*backend, [Arc::clone(&key)].into()),
            }
        }
        if service.ports.iter().any(|port| port.node_port.is_some()) {
            self.with_node_ports.insert(Arc::clone(&key));
        }
        changed.extend(&frontends);
        self.known.insert(key, Known { frontends, backends });
    }
}

/// How many are left.
fn without(keys: &mut Few<Arc<Key>>, key: &Key) -> usize {
    *keys = keys.iter().filter(|known| ***known != *key).cloned().collect();
    keys.len()
}
