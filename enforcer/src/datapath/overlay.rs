//! A map with edits that have not happened yet.

use std::collections::BTreeMap;

/// Reads as if the edits had been made; the base, however large, is neither copied nor changed.
#[derive(Debug)]
pub(super) struct Overlay<'a, K, V> {
    base: &'a BTreeMap<K, V>,
    edits: BTreeMap<K, Option<V>>,
}

impl<'a, K: Ord, V> Overlay<'a, K, V> {
    pub fn on(base: &'a BTreeMap<K, V>) -> Self {
        Self { base, edits: BTreeMap::new() }
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        match self.edits.get(key) {
            Some(edited) => edited.as_ref(),
            None => self.base.get(key),
        }
    }

    /// `None` removes. Whether the key was there before.
    pub fn edit(&mut self, key: K, value: Option<V>) -> bool {
        let was_there = self.get(&key).is_some();
        self.edits.insert(key, value);
        was_there
    }

    /// Keys of the base that are still there.
    pub fn base_keys(&self) -> impl Iterator<Item = &K> {
        self.base.keys().filter(|key| !matches!(self.edits.get(key), Some(None)))
    }

    pub fn into_edits(self) -> BTreeMap<K, Option<V>> {
        self.edits
    }
}
