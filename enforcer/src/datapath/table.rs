//! Values and numbers for them, counted up: what is given once is never given again.

use std::{borrow::Borrow, collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

/// How many generations and endpoint numbers are reserved in the file at a time, so that a change or a pod
/// costs no write.
const AHEAD: u32 = 1 << 12;

/// Counts up; over a restart it goes on from its ceiling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub struct Counter {
    last: u32,
    /// In the file: everything given so far is at most this.
    ceiling: u32,
    changed: bool,
}

impl Counter {
    pub(super) fn next(&mut self) -> u32 {
        self.last += 1;
        if self.last > self.ceiling {
            self.ceiling = self.last + AHEAD;
            self.changed = true;
        }
        self.last
    }

    pub(super) fn stay_above(&mut self, taken: impl Iterator<Item = u32>) {
        self.last = taken.max().unwrap_or_default().max(self.last);
    }

    pub(super) fn take_change(&mut self) -> Option<u32> {
        std::mem::take(&mut self.changed).then_some(self.ceiling)
    }
}

impl From<u32> for Counter {
    fn from(ceiling: u32) -> Self {
        Self { last: ceiling, ceiling, changed: false }
    }
}

impl From<Counter> for u32 {
    fn from(counter: Counter) -> Self {
        counter.ceiling
    }
}

/// Values and their numbers, counted up and never reused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Pairs<T>", into = "Pairs<T>")]
#[serde(bound(serialize = "T: Ord + Clone + Serialize", deserialize = "T: Ord + Clone + Deserialize<'de>"))]
pub struct Table<T: Ord + Clone> {
    numbers: BTreeMap<T, u32>,
    values: BTreeMap<u32, T>,
    next: u32,
    /// [`Table::take_changes`] has told of everything below.
    told: u32,
    forgotten: Vec<u32>,
}

impl<T: Ord + Clone> Table<T> {
    pub(super) fn starting_at(next: u32) -> Self {
        Self { numbers: BTreeMap::new(), values: BTreeMap::new(), next, told: next, forgotten: Vec::new() }
    }

    /// The number of this value, a new one if it has none.
    pub fn number(&mut self, value: &T) -> u32 {
        match self.numbers.get(value) {
            Some(number) => *number,
            None => self.add(value.clone()),
        }
    }

    fn add(&mut self, value: T) -> u32 {
        let number = self.next;
        self.next += 1;
        self.numbers.insert(value.clone(), number);
        self.values.insert(number, value);
        number
    }

    pub(super) fn stay_above(&mut self, taken: impl Iterator<Item = u32>) {
        if let Some(highest) = taken.max() {
            self.next = self.next.max(highest + 1);
        }
    }

    pub fn get<Q: Ord + ?Sized>(&self, value: &Q) -> Option<u32>
    where
        T: Borrow<Q>,
    {
        self.numbers.get(value).copied()
    }

    pub fn value(&self, number: u32) -> Option<&T> {
        self.values.get(&number)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.since(0)
    }

    /// What has this number or a later one.
    pub fn since(&self, number: u32) -> impl Iterator<Item = (u32, &T)> {
        self.values.range(number..).map(|(number, value)| (*number, value))
    }

    /// The number that the next new value will have.
    pub fn next(&self) -> u32 {
        self.next
    }

    /// The number stays taken.
    pub fn forget(&mut self, number: u32) {
        if let Some(value) = self.values.remove(&number) {
            self.numbers.remove(&value);
            if number < self.told {
                self.forgotten.push(number);
            }
        }
    }

    pub(super) fn take_changes(&mut self) -> TableChanges<T> {
        let new = self.values.range(self.told..).map(|(number, value)| (*number, value.clone())).collect();
        self.told = self.next;
        TableChanges { new, forgotten: std::mem::take(&mut self.forgotten) }
    }

    pub(super) fn replay(&mut self, changes: TableChanges<T>) {
        for (number, value) in changes.new {
            self.numbers.insert(value.clone(), number);
            self.values.insert(number, value);
            self.next = self.next.max(number + 1);
        }
        changes.forgotten.into_iter().for_each(|number| self.forget(number));
        self.forgotten.clear();
        self.told = self.next;
    }
}

impl<V: Ord> Table<Arc<V>> {
    /// As [`Table::number`], sharing the value only if it is new.
    pub fn number_of(&mut self, value: V) -> u32 {
        match self.numbers.get(&value) {
            Some(number) => *number,
            None => self.add(Arc::new(value)),
        }
    }
}

/// JSON keeps maps with string keys only.
#[derive(Serialize, Deserialize)]
struct Pairs<T> {
    next: u32,
    pairs: Vec<(u32, T)>,
}

impl<T: Ord + Clone> From<Pairs<T>> for Table<T> {
    fn from(Pairs { next, pairs }: Pairs<T>) -> Self {
        let numbers = pairs.iter().map(|(number, value)| (value.clone(), *number)).collect();
        Self { numbers, values: pairs.into_iter().collect(), next, told: next, forgotten: Vec::new() }
    }
}

impl<T: Ord + Clone> From<Table<T>> for Pairs<T> {
    fn from(table: Table<T>) -> Self {
        Self { next: table.next, pairs: table.values.into_iter().collect() }
    }
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default = "TableChanges::default")]
pub(super) struct TableChanges<T> {
    pub new: Vec<(u32, T)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    forgotten: Vec<u32>,
}

impl<T> TableChanges<T> {
    pub fn is_empty(&self) -> bool {
        self.new.is_empty() && self.forgotten.is_empty()
    }
}

impl<T> Default for TableChanges<T> {
    fn default() -> Self {
        Self { new: Vec::new(), forgotten: Vec::new() }
    }
}
