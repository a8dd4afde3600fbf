//! Something about each of very many addresses, in little more room than that takes.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::packed::PackedMap;

/// A map by address, sorted like [`IpAddr`].
#[derive(Clone, PartialEq, Eq)]
pub struct Addresses<V> {
    v4: PackedMap<Ipv4Addr, V>,
    v6: PackedMap<Ipv6Addr, V>,
}

impl<V> Addresses<V> {
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len_v4(&self) -> usize {
        self.v4.len()
    }

    pub fn get(&self, address: &IpAddr) -> Option<&V> {
        match address {
            IpAddr::V4(address) => self.v4.get(address),
            IpAddr::V6(address) => self.v6.get(address),
        }
    }

    pub fn contains_key(&self, address: &IpAddr) -> bool {
        self.get(address).is_some()
    }

    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &V)> {
        let v4 = self.v4.iter().map(|(address, value)| (IpAddr::V4(*address), value));
        v4.chain(self.v6.iter().map(|(address, value)| (IpAddr::V6(*address), value)))
    }

    pub fn keys(&self) -> impl Iterator<Item = IpAddr> {
        self.iter().map(|(address, _)| address)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.v4.values().chain(self.v6.values())
    }

    /// Known addresses from `first` to `last`, both included and of one family.
    pub fn between(&self, first: IpAddr, last: IpAddr) -> impl Iterator<Item = IpAddr> {
        let (v4, v6) = match first {
            IpAddr::V4(first) => (Some(self.v4.starting_at(&first)), None),
            IpAddr::V6(first) => (None, Some(self.v6.starting_at(&first))),
        };
        let v4 = v4.into_iter().flatten().map(|(address, _)| IpAddr::V4(*address));
        let v6 = v6.into_iter().flatten().map(|(address, _)| IpAddr::V6(*address));
        v4.chain(v6).take_while(move |address| *address <= last)
    }
}

impl<V: Clone> Addresses<V> {
    /// What the address had before.
    pub fn insert(&mut self, address: IpAddr, value: V) -> Option<V> {
        match address {
            IpAddr::V4(address) => self.v4.insert(address, value),
            IpAddr::V6(address) => self.v6.insert(address, value),
        }
    }

    pub fn remove(&mut self, address: &IpAddr) -> Option<V> {
        match address {
            IpAddr::V4(address) => self.v4.remove(address),
            IpAddr::V6(address) => self.v6.remove(address),
        }
    }

    pub fn get_mut(&mut self, address: &IpAddr) -> Option<&mut V> {
        match address {
            IpAddr::V4(address) => self.v4.get_mut(address),
            IpAddr::V6(address) => self.v6.get_mut(address),
        }
    }
}

impl<V> Default for Addresses<V> {
    fn default() -> Self {
        Self { v4: PackedMap::new(), v6: PackedMap::new() }
    }
}

impl<V: fmt::Debug> fmt::Debug for Addresses<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<V: Clone> FromIterator<(IpAddr, V)> for Addresses<V> {
    fn from_iter<I: IntoIterator<Item = (IpAddr, V)>>(entries: I) -> Self {
        let mut addresses = Self::default();
        entries.into_iter().for_each(|(address, value)| _ = addresses.insert(address, value));
        addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_sorted_and_searched_as_one() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let texts = ["10.0.0.1", "10.0.0.7", "10.0.1.0", "fd00::1", "fd00::2"];
        let map: Addresses<usize> =
            texts.into_iter().rev().enumerate().map(|(n, t)| (address(t), n)).collect();
        assert_eq!(map.keys().collect::<Vec<_>>(), texts.map(address));
        let between = |first, last| map.between(address(first), address(last)).collect::<Vec<_>>();
        assert_eq!(between("10.0.0.2", "10.0.1.0"), ["10.0.0.7", "10.0.1.0"].map(address));
        assert!(between("10.0.1.1", "10.255.255.255").is_empty());
        assert_eq!(between("::", "fd00::1"), [address("fd00::1")]);
        assert_eq!((map.get(&address("10.0.0.7")), map.get(&address("fd00::7"))), (Some(&3), None));
    }
}
