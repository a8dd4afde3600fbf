//! A sorted map for what there are a hundred thousand of: entries lie side by side in a few large allocations instead
//! of in half-empty tree nodes, and a clone shares them until one of the two is edited.

use std::{borrow::Borrow, fmt, sync::Arc};

/// Entries of a chunk: an edit of a map that shares it copies so many.
const LARGEST: usize = 256;

/// Finding costs two binary searches, an edit the size of a chunk, a clone the number of chunks.
#[derive(Clone)]
pub struct PackedMap<K, V> {
    parts: Vec<Part<K, V>>,
    len: usize,
}

#[derive(Clone)]
struct Part<K, V> {
    /// Not above any key of the chunk, and above all keys of the parts before.
    least: K,
    /// Never empty.
    chunk: Arc<Chunk<K, V>>,
}

/// Keys and values apart: a search reads keys only, and there is no padding between them.
#[derive(Clone)]
struct Chunk<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K, V> PackedMap<K, V> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.parts.iter().flat_map(|part| part.chunk.starting_at(0))
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.parts.iter().flat_map(|part| &part.chunk.keys)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.parts.iter().flat_map(|part| &part.chunk.values)
    }
}

impl<K: Ord, V> PackedMap<K, V> {
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.get_key_value(key).map(|(_, value)| value)
    }

    pub fn get_key_value<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        let chunk = &self.parts[self.part(key)?].chunk;
        let place = chunk.place(key).ok()?;
        Some((&chunk.keys[place], &chunk.values[place]))
    }

    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// All from this key on.
    pub fn starting_at<'m, Q: Ord + ?Sized>(
        &'m self,
        first: &Q,
    ) -> impl Iterator<Item = (&'m K, &'m V)> + use<'m, Q, K, V>
    where
        K: Borrow<Q>,
    {
        let number = self.part(first).unwrap_or_default();
        let mut parts = self.parts[number..].iter();
        let begun = parts.next().map(|part| {
            part.chunk.starting_at(match part.chunk.place(first) {
                Ok(place) | Err(place) => place,
            })
        });
        begun.into_iter().flatten().chain(parts.flat_map(|part| part.chunk.starting_at(0)))
    }

    /// The part that has the key, if any has.
    fn part<Q: Ord + ?Sized>(&self, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
    {
        self.parts.partition_point(|part| part.least.borrow() <= key).checked_sub(1)
    }
}

impl<K: Ord + Clone, V: Clone> PackedMap<K, V> {
    /// What the key had before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let number = self.part(&key).unwrap_or_default();
        let is_last = number + 1 >= self.parts.len();
        let Some(part) = self.parts.get_mut(number) else {
            self.push(key, value);
            return None;
        };
        let place = match part.chunk.place(&key) {
            Ok(place) => {
                let known = &mut Arc::make_mut(&mut part.chunk).values[place];
                return Some(std::mem::replace(known, value));
            }
            Err(place) => place,
        };
        if part.chunk.keys.len() < LARGEST {
            if key < part.least {
                part.least = key.clone();
            }
            Arc::make_mut(&mut part.chunk).insert(place, key, value);
            self.len += 1;
        } else if is_last && place == LARGEST {
            self.push(key, value); // what comes in order leaves full chunks behind
        } else {
            let upper = Part::of(Arc::make_mut(&mut part.chunk).split_off(LARGEST / 2));
            self.parts.insert(number + 1, upper);
            self.insert(key, value);
        }
        None
    }

    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let number = self.part(key)?;
        let chunk = &mut self.parts[number].chunk;
        let place = chunk.place(key).ok()?;
        let value = Arc::make_mut(chunk).remove(place);
        self.len -= 1;
        self.tidy(number);
        Some(value)
    }

    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let number = self.part(key)?;
        let chunk = &mut self.parts[number].chunk;
        let place = chunk.place(key).ok()?;
        Some(&mut Arc::make_mut(chunk).values[place])
    }

    /// Of everything.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.parts.iter_mut().flat_map(|part| &mut Arc::make_mut(&mut part.chunk).values)
    }

    /// After all others.
    fn push(&mut self, key: K, value: V) {
        self.parts.push(Part::of(Chunk { keys: vec![key], values: vec![value] }));
        self.len += 1;
    }

    /// After a removal: no empty part, and no two small ones side by side.
    fn tidy(&mut self, number: usize) {
        let len = |part: &Part<K, V>| part.chunk.keys.len();
        if len(&self.parts[number]) == 0 {
            self.parts.remove(number);
            return;
        }
        for lower in [Some(number), number.checked_sub(1)].into_iter().flatten() {
            if let Some([own, next]) = self.parts.get(lower..lower + 2)
                && len(own) + len(next) <= LARGEST / 2
            {
                let next = Arc::unwrap_or_clone(self.parts.remove(lower + 1).chunk);
                Arc::make_mut(&mut self.parts[lower].chunk).append(next);
            }
        }
    }
}

impl<K: Clone, V> Part<K, V> {
    fn of(chunk: Chunk<K, V>) -> Self {
        Self { least: chunk.keys[0].clone(), chunk: Arc::new(chunk) }
    }
}

impl<K, V> Chunk<K, V> {
    fn starting_at(&self, place: usize) -> impl Iterator<Item = (&K, &V)> {
        self.keys[place..].iter().zip(&self.values[place..])
    }

    fn place<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        self.keys.binary_search_by(|known| known.borrow().cmp(key))
    }

    fn insert(&mut self, place: usize, key: K, value: V) {
        let room = self.keys.len();
        if room == self.keys.capacity().min(self.values.capacity()) {
            let more = (room / 4).max(4).min(LARGEST - room); // to double it would leave a quarter empty
            self.keys.reserve_exact(more);
            self.values.reserve_exact(more);
        }
        self.keys.insert(place, key);
        self.values.insert(place, value);
    }

    fn remove(&mut self, place: usize) -> V {
        self.keys.remove(place);
        self.values.remove(place)
    }

    fn split_off(&mut self, place: usize) -> Self {
        let upper = Self { keys: self.keys.split_off(place), values: self.values.split_off(place) };
        self.keys.shrink_to_fit();
        self.values.shrink_to_fit();
        upper
    }

    fn append(&mut self, mut next: Self) {
        self.keys.append(&mut next.keys);
        self.values.append(&mut next.values);
    }
}

impl<K, V> Default for PackedMap<K, V> {
    fn default() -> Self {
        Self { parts: Vec::new(), len: 0 }
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for PackedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: Eq, V: Eq> Eq for PackedMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for PackedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Of several values for a key, the last.
impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for PackedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        entries.into_iter().for_each(|(key, value)| _ = map.insert(key, value));
        map
    }
}

impl<K: Ord + Clone, V: Clone, const N: usize> From<[(K, V); N]> for PackedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn check(map: &PackedMap<u16, u32>, model: &BTreeMap<u16, u32>) {
        assert_eq!(map.len(), model.len());
        assert!(map.iter().eq(model.iter()), "{map:?} is not {model:?}");
        for window in map.parts.windows(2) {
            let last = window[0].chunk.keys.last().expect("no part is empty");
            assert!(window[0].least <= window[0].chunk.keys[0] && *last < window[1].least);
        }
        assert!(map.parts.iter().all(|part| (1..=LARGEST).contains(&part.chunk.keys.len())));
    }

    proptest! {
        #[test]
        fn it_holds_what_a_tree_holds(
            // Few keys, so that chunks fill up, split and run empty.
            edits in prop::collection::vec((0_u16..1500, prop::bool::weighted(0.6)), 0..6000),
            probes in prop::collection::vec(0_u16..1600, 20),
        ) {
            let (mut map, mut model) = (PackedMap::new(), BTreeMap::new());
            let mut shared = (map.clone(), model.clone());
            for (number, (key, is_set)) in (0_u32..).zip(edits) {
                if number == 2500 {
                    shared = (map.clone(), model.clone());
                }
                if is_set {
                    prop_assert_eq!(map.insert(key, number), model.insert(key, number));
                } else {
                    prop_assert_eq!(map.remove(&key), model.remove(&key));
                }
            }
            check(&map, &model);
            check(&shared.0, &shared.1);
            for key in probes {
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert!(map.starting_at(&key).eq(model.range(key..)));
            }
            prop_assert_eq!(&map, &model.into_iter().collect());
        }
    }

    #[test]
    fn entries_that_come_in_order_leave_full_chunks() {
        let map: PackedMap<usize, usize> = (0..10 * LARGEST).map(|n| (n, n)).collect();
        assert_eq!(map.parts.len(), 10);
        let slack = |part: &Part<usize, usize>| part.chunk.keys.capacity() - LARGEST;
        assert_eq!(map.parts.iter().map(slack).sum::<usize>(), 0);
    }

    #[test]
    fn a_map_that_is_emptied_gives_everything_back() {
        let mut map: PackedMap<usize, ()> = (0..10 * LARGEST).map(|n| (n, ())).collect();
        for number in (0..10 * LARGEST).filter(|n| n % 100 != 0) {
            map.remove(&number);
        }
        assert!(map.parts.len() <= 1, "{}", map.parts.len());
        (0..10 * LARGEST).for_each(|number| _ = map.remove(&number));
        assert!(map.parts.is_empty());
    }
}
