//! Collections for what there are a hundred thousand of: small, shared where equal, hardly ever edited.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    hash::Hash,
    ops::Deref,
    sync::Arc,
};

use serde::{Deserialize, Serialize, Serializer};

/// A string that many objects have.
pub type Text = Arc<str>;

/// A sorted set in one allocation; an edit costs its size.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent, bound(deserialize = "T: Ord + Deserialize<'de>"))]
pub struct Set<T>(#[serde(deserialize_with = "sorted")] Box<[T]>);

fn sorted<'de, T: Ord + Deserialize<'de>, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Box<[T]>, D::Error> {
    Ok(Vec::deserialize(from)?.into_iter().collect::<Set<T>>().0)
}

impl<T> Default for Set<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<T> Set<T> {
    pub fn new() -> Self {
        Self::default()
    }
}

impl<T: Ord> Set<T> {
    pub fn contains<Q: Ord + ?Sized>(&self, item: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.0.binary_search_by(|known| known.borrow().cmp(item)).is_ok()
    }

    /// Whether it is new.
    pub fn insert(&mut self, item: T) -> bool {
        let Err(place) = self.0.binary_search(&item) else { return false };
        let mut items = std::mem::take(&mut self.0).into_vec();
        items.reserve_exact(1);
        items.insert(place, item);
        self.0 = items.into_boxed_slice();
        true
    }

    /// For edits that do not change how items compare.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut()
    }

    /// Whether it was there.
    pub fn remove(&mut self, item: &T) -> bool {
        let Ok(place) = self.0.binary_search(item) else { return false };
        let mut items = std::mem::take(&mut self.0).into_vec();
        items.remove(place);
        self.0 = items.into_boxed_slice();
        true
    }
}

impl<T> Deref for Set<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Set<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl<T: Ord> FromIterator<T> for Set<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items: Vec<T> = items.into_iter().collect();
        items.sort_unstable();
        items.dedup();
        Self(items.into_boxed_slice())
    }
}

impl<T: Ord, const N: usize> From<[T; N]> for Set<T> {
    fn from(items: [T; N]) -> Self {
        items.into_iter().collect()
    }
}

impl<T: Ord> From<BTreeSet<T>> for Set<T> {
    fn from(items: BTreeSet<T>) -> Self {
        Self(items.into_iter().collect())
    }
}

impl<T> IntoIterator for Set<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_vec().into_iter()
    }
}

impl<'a, T> IntoIterator for &'a Set<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// A set that nearly always has one item, which then needs no allocation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Few<T>(Size<T>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Size<T> {
    One(T),
    /// Or none.
    Several(Set<T>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Size::Several(Set::new()))
    }
}

impl<T> Few<T> {
    pub fn new() -> Self {
        Self::default()
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Size::One(item) => std::slice::from_ref(item),
            Size::Several(items) => items,
        }
    }
}

impl<T: Ord + Clone> Few<T> {
    pub fn insert(&mut self, item: T) {
        *self = self.iter().cloned().chain([item]).collect();
    }

    pub fn remove(&mut self, item: &T) {
        *self = self.iter().filter(|known| *known != item).cloned().collect();
    }
}

impl<T: Ord> From<Set<T>> for Few<T> {
    fn from(items: Set<T>) -> Self {
        if items.len() != 1 {
            return Self(Size::Several(items));
        }
        Self(Size::One(items.into_iter().next().expect("it has one")))
    }
}

impl<T: Ord> From<BTreeSet<T>> for Few<T> {
    fn from(items: BTreeSet<T>) -> Self {
        Set::from(items).into()
    }
}

impl<T: Ord, const N: usize> From<[T; N]> for Few<T> {
    fn from(items: [T; N]) -> Self {
        Set::from(items).into()
    }
}

impl<T: Ord> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        items.into_iter().collect::<Set<T>>().into()
    }
}

impl<T: Ord> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        match self.0 {
            Size::One(item) => Set::from([item]).into_iter(),
            Size::Several(items) => items.into_iter(),
        }
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// A set that many share: a clone is free.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent, bound(deserialize = "T: Ord + Deserialize<'de>"))]
pub struct SharedSet<T>(Arc<Set<T>>);

impl<T> Default for SharedSet<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> SharedSet<T> {
    pub fn new() -> Self {
        Self::default()
    }
}

impl<T: Ord + Clone> SharedSet<T> {
    /// For edits that do not change how items compare.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        Arc::make_mut(&mut self.0).iter_mut()
    }
}

impl<T> Deref for SharedSet<T> {
    type Target = Set<T>;

    fn deref(&self) -> &Set<T> {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for SharedSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: Ord> FromIterator<T> for SharedSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self(Arc::new(items.into_iter().collect()))
    }
}

impl<T: Ord, const N: usize> From<[T; N]> for SharedSet<T> {
    fn from(items: [T; N]) -> Self {
        items.into_iter().collect()
    }
}

impl<T: Ord> From<Set<T>> for SharedSet<T> {
    fn from(items: Set<T>) -> Self {
        Self(Arc::new(items))
    }
}

impl<T: Ord> From<BTreeSet<T>> for SharedSet<T> {
    fn from(items: BTreeSet<T>) -> Self {
        Self(Arc::new(items.into()))
    }
}

impl<T: Clone> IntoIterator for SharedSet<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        Arc::unwrap_or_clone(self.0).into_iter()
    }
}

impl<'a, T> IntoIterator for &'a SharedSet<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// Labels or annotations, sorted by key; a clone is free.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(from = "BTreeMap<String, String>")]
pub struct Labels(Arc<[(Text, Text)]>);

impl Labels {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn get(&self, key: &str) -> Option<&Text> {
        let place = self.0.binary_search_by(|(known, _)| known.as_ref().cmp(key)).ok()?;
        Some(&self.0[place].1)
    }

    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Of labels that nobody shares yet.
    pub(super) fn texts_mut(&mut self) -> impl Iterator<Item = &mut Text> {
        let pairs = Arc::get_mut(&mut self.0).into_iter().flatten();
        pairs.flat_map(|(key, value)| [key, value])
    }

    /// Costs the size of all.
    pub fn insert(&mut self, key: impl Into<Text>, value: impl Into<Text>) {
        let new = [(key.into(), value.into())];
        *self = self.0.iter().cloned().chain(new).collect();
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Text, &Text)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Default for Labels {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Of several values for a key, the last.
impl FromIterator<(Text, Text)> for Labels {
    fn from_iter<I: IntoIterator<Item = (Text, Text)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect())
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        pairs.into_iter().map(|(key, value)| (Text::from(key), Text::from(value))).collect()
    }
}

impl<const N: usize> From<[(String, String); N]> for Labels {
    fn from(pairs: [(String, String); N]) -> Self {
        pairs.into_iter().collect()
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(pairs: BTreeMap<String, String>) -> Self {
        pairs.into_iter().collect()
    }
}

/// As strings come from outside.
impl<const N: usize> From<[String; N]> for Set<Text> {
    fn from(items: [String; N]) -> Self {
        items.into_iter().collect()
    }
}

impl FromIterator<String> for Set<Text> {
    fn from_iter<I: IntoIterator<Item = String>>(items: I) -> Self {
        items.into_iter().map(Text::from).collect()
    }
}

impl IntoIterator for Labels {
    type Item = (Text, Text);
    type IntoIter = std::vec::IntoIter<(Text, Text)>;

    fn into_iter(self) -> Self::IntoIter {
        let pairs: Vec<_> = self.0.iter().cloned().collect();
        pairs.into_iter()
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// One allocation for equal values, as long as somebody has one.
#[derive(Clone, Debug)]
pub(super) struct Shared<T> {
    known: HashSet<T>,
    in_use: usize,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), in_use: 0 }
    }
}

impl<T: Holds> Shared<T> {
    /// Puts the known equal in its place, if there is one.
    pub fn share(&mut self, value: &mut T) {
        self.share_or(value, |_| {});
    }

    /// What is new is made ready to be kept, to something equal.
    pub fn share_or(&mut self, value: &mut T, prepare: impl FnOnce(&mut T)) {
        if let Some(known) = self.known.get(value) {
            value.clone_from(known);
        } else {
            self.sweep();
            prepare(value);
            self.known.insert(value.clone());
        }
    }

    /// Now and then: the cost is spread over what came since.
    fn sweep(&mut self) {
        if self.known.len() > 2 * self.in_use + 64 {
            self.known.retain(|value| value.holders() > 1);
            self.known.shrink_to_fit();
            self.in_use = self.known.len();
        }
    }
}

pub(super) trait Holds: Clone + Eq + Hash {
    /// Of the allocation.
    fn holders(&self) -> usize;
}

impl<T: ?Sized + Eq + Hash> Holds for Arc<T> {
    fn holders(&self) -> usize {
        Arc::strong_count(self)
    }
}

impl<T: Clone + Eq + Hash> Holds for SharedSet<T> {
    fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl Holds for Labels {
    fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_one_spelling() {
        let mut set: Set<u8> = [3, 1, 3, 2].into();
        assert_eq!(set, Set::from([1, 2, 3]));
        assert!(set.insert(0) && !set.insert(3) && set.remove(&2) && !set.remove(&2));
        assert_eq!(*set, [0, 1, 3]);
        assert!(set.contains(&1) && !set.contains(&2));
        let json = serde_json::to_string(&set).expect("json");
        assert_eq!(json, "[0,1,3]");
        assert_eq!(serde_json::from_str::<Set<u8>>("[3,0,1,0]").expect("a set"), set);
    }

    #[test]
    fn labels_are_a_map() {
        let mut labels: Labels =
            [("b", "2"), ("a", "1"), ("b", "3")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(labels.get("b").map(AsRef::as_ref), Some("3"), "the last value counts");
        labels.insert("a", "0");
        assert_eq!((labels.len(), labels.get("c")), (2, None));
        let json = serde_json::to_string(&labels).expect("json");
        assert_eq!(json, r#"{"a":"0","b":"3"}"#);
        assert_eq!(serde_json::from_str::<Labels>(&json).expect("labels"), labels);
    }

    #[test]
    fn equal_values_are_shared_while_they_are_in_use() {
        let mut shared = Shared::default();
        let (mut first, mut second) = (Text::from("shop"), Text::from("shop"));
        shared.share(&mut first);
        shared.share(&mut second);
        assert!(Arc::ptr_eq(&first, &second));
        for number in 0..1000 {
            shared.share(&mut Text::from(format!("passing {number}")));
        }
        assert!(shared.known.len() < 100, "{}", shared.known.len());
        assert!(shared.known.contains("shop"));
    }
}
