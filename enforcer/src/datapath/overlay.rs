//! A map with edits that have not happened yet.

use std::{collections::BTreeMap, net::IpAddr};

use crate::cluster::Addresses;

/// Reads as if the edits had been made; the base, however large, is neither copied nor changed.
#[derive(Debug)]
pub(super) struct Overlay<'a, B: Base> {
    base: &'a B,
    edits: BTreeMap<B::Key, Option<B::Value>>,
}

/// A map that can lie under edits.
pub(super) trait Base {
    type Key: Ord + Copy;
    type Value;

    fn at(&self, key: &Self::Key) -> Option<&Self::Value>;
    fn all(&self) -> impl Iterator<Item = Self::Key>;
}

impl<K: Ord + Copy, V> Base for BTreeMap<K, V> {
    type Key = K;
    type Value = V;

    fn at(&self, key: &K) -> Option<&V> {
        self.get(key)
    }

    fn all(&self) -> impl Iterator<Item = K> {
        self.keys().copied()
    }
}

impl<V> Base for Addresses<V> {
    type Key = IpAddr;
    type Value = V;

    fn at(&self, address: &IpAddr) -> Option<&V> {
        self.get(address)
    }

    fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.keys()
    }
}

impl<'a, B: Base> Overlay<'a, B> {
    pub fn on(base: &'a B) -> Self {
        Self { base, edits: BTreeMap::new() }
    }

    pub fn get(&self, key: &B::Key) -> Option<&B::Value> {
        match self.edits.get(key) {
            Some(edited) => edited.as_ref(),
            None => self.base.at(key),
        }
    }

    /// `None` removes. Whether the key was there before.
    pub fn edit(&mut self, key: B::Key, value: Option<B::Value>) -> bool {
        let was_there = self.get(&key).is_some();
        self.edits.insert(key, value);
        was_there
    }

    /// Those that are there now, in no order.
    pub fn keys(&self) -> impl Iterator<Item = B::Key> {
        let kept = self.base.all().filter(|key| !self.edits.contains_key(key));
        kept.chain(self.edits.iter().filter(|(_, value)| value.is_some()).map(|(key, _)| *key))
    }

    pub fn into_edits(self) -> BTreeMap<B::Key, Option<B::Value>> {
        self.edits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_if_the_edits_had_been_made() {
        let base = BTreeMap::from([(1, 'a'), (2, 'b'), (3, 'c')]);
        let mut overlay = Overlay::on(&base);
        assert!(overlay.edit(1, None) && overlay.edit(2, Some('B')));
        assert!(!overlay.edit(4, Some('d')) && !overlay.edit(5, Some('e')));
        assert!(overlay.edit(5, None) && !overlay.edit(5, None));
        let read = |key| overlay.get(&key).copied();
        assert_eq!([1, 2, 3, 4, 5].map(read), [None, Some('B'), Some('c'), Some('d'), None]);
        let mut keys: Vec<_> = overlay.keys().collect();
        keys.sort_unstable();
        assert_eq!(keys, [2, 3, 4]);
    }
}
