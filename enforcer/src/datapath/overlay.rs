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

    /// Those that are there now, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        let kept = self.base.keys().filter(|key| !self.edits.contains_key(key));
        kept.chain(self.edits.iter().filter(|(_, value)| value.is_some()).map(|(key, _)| key))
    }

    pub fn into_edits(self) -> BTreeMap<K, Option<V>> {
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
        let mut keys: Vec<_> = overlay.keys().copied().collect();
        keys.sort_unstable();
        assert_eq!(keys, [2, 3, 4]);
    }
}
