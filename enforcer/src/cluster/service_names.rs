//! Whose Service is reached or served at an address and port, kept in step change by change: for the flow log.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Frontend, Index, Owner, PackedMap, Touched,
    compact::{Few, Set},
    object::Key,
};

/// [`super::Services::names`] of one node, as of the last [`ServiceNames::follow`].
#[derive(Debug, Default)]
pub struct ServiceNames {
    places: BTreeMap<Key, Places>,
    at: PackedMap<Frontend, Claimed>,
    own_addresses: BTreeSet<IpAddr>,
}

#[derive(Debug, Default)]
struct Places {
    reached: Set<Frontend>,
    served: Set<Frontend>,
}

/// By Services.
#[derive(Clone, Debug, Default)]
struct Claimed {
    reached: Few<Arc<Key>>,
    served: Few<Arc<Key>>,
}

impl ServiceNames {
    /// Where a name may be another than before.
    pub fn follow(&mut self, index: &Index, touched: &Touched) -> BTreeSet<Frontend> {
        let mut own_changed = false;
        for address in &touched.addresses {
            own_changed |= if index.owner(*address) == Some(Owner::ThisNode) {
                self.own_addresses.insert(*address)
            } else {
                self.own_addresses.remove(address)
            };
        }
        let mut keys = touched.services.clone();
        if own_changed {
            keys.extend(self.places.keys().cloned()); // node ports: rare
        }
        let mut changed = BTreeSet::new();
        for key in keys {
            let shared = Arc::new(key.clone());
            let (before, after) = (self.places.remove(&key).unwrap_or_default(), self.places_of(index, &key));
            for at in &before.reached {
                self.edit(*at, |claimed| claimed.reached.remove(&shared));
            }
            for at in &before.served {
                self.edit(*at, |claimed| claimed.served.remove(&shared));
            }
            for at in &after.reached {
                self.edit(*at, |claimed| claimed.reached.insert(Arc::clone(&shared)));
            }
            for at in &after.served {
                self.edit(*at, |claimed| claimed.served.insert(Arc::clone(&shared)));
            }
            for places in [&before, &after] {
                changed.extend(places.reached.iter().chain(&places.served));
            }
            if !after.reached.is_empty() || !after.served.is_empty() {
                self.places.insert(key, after);
            }
        }
        changed
    }

    /// `None`: nobody's, or it may be several Services'.
    pub fn name(&self, at: &Frontend) -> Option<&Arc<Key>> {
        let Claimed { reached, served } = self.at.get(at)?;
        let names = if reached.is_empty() { served } else { reached };
        names.first().filter(|_| names.len() == 1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Frontend, &Arc<Key>)> {
        self.at.keys().filter_map(|at| Some((*at, self.name(at)?)))
    }

    fn places_of(&self, index: &Index, key: &Key) -> Places {
        let Some(service) = index.services().service(key) else { return Places::default() };
        let reached = service.frontends(self.own_addresses.iter().copied()).map(|(frontend, _)| frontend);
        Places { reached: reached.collect(), served: index.services().served(key).collect() }
    }

    fn edit(&mut self, at: Frontend, edit: impl FnOnce(&mut Claimed)) {
        let mut claimed = self.at.remove(&at).unwrap_or_default();
        edit(&mut claimed);
        if !claimed.reached.is_empty() || !claimed.served.is_empty() {
            self.at.insert(at, claimed);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::testkit::{Case, edits::edit, generate::Random};

    proptest! {
        #[test]
        fn names_after_edits_are_those_of_the_whole(seed: u64, edits in 0_usize..24) {
            let mut random = Random(seed);
            let mut index = Case::of(seed, 0).index().seen_from(Some("n1"));
            let mut names = ServiceNames::default();
            for _ in 0..=edits {
                let touched = index.take_touched();
                names.follow(&index, &touched);
                let want = index.services().names(index.own_addresses());
                prop_assert_eq!(names.iter().map(|(at, key)| (at, &**key)).collect::<BTreeMap<_, _>>(), want);
                edit(&mut random, &mut index);
            }
        }
    }
}
