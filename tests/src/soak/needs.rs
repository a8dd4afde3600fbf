//! How many entries each policy map needs for the present state: planned from nothing, as for a new node.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use bulkhead::{
    agent::local,
    cluster::{
        Index,
        object::{Key, Object},
    },
    datapath::{DatapathError, Image, Local, Op, Sizes, Tables, kernel::Kernel},
    policy::{Compiler, Settings},
};

use crate::{node::Node, pod::Pod, probe::Family};

/// Starts empty, has room for everything and keeps nothing.
struct Paper;

impl Kernel for Paper {
    fn snapshot(&self) -> Result<Image, DatapathError> {
        Ok(Image::default())
    }

    fn capacity(&self) -> Result<Sizes, DatapathError> {
        Ok(Sizes::UNLIMITED)
    }

    fn apply(&mut self, _: &Op) -> Result<(), DatapathError> {
        Ok(())
    }
}

/// By name of the map. `pods`: those that run, on whichever node.
pub fn entries<'p>(
    objects: &[Object],
    node: &Node,
    pods: impl Iterator<Item = &'p Pod>,
) -> Result<BTreeMap<String, usize>> {
    let mut index = Index::new(Some(node.name()));
    for object in objects {
        index.apply(object.clone());
    }
    let own = {
        let _inside = node.netns().enter()?;
        local::addresses().context("the node's addresses")?
    };
    index.set_local_addresses(own);
    let mut locals = BTreeMap::new();
    for (number, pod) in (1_u32..).zip(pods.filter(|pod| pod.spec().node() == node.name())) {
        let key = Key::new(pod.spec().namespace(), pod.spec().name());
        let addresses: BTreeSet<_> = Family::BOTH.map(|family| pod.ip(family)).into();
        index.attach(key.clone(), addresses.clone());
        let place = (number, number, Some(key)); // any interface will do
        let (id, ifindex, pod) = place;
        locals.insert(
            ifindex,
            Local { id, ifindex, pod, mac: [2; 6], addresses, adopted: false, silent: false },
        );
    }
    let mut tables = Tables::open(Paper, None)?;
    let mut compiler = Compiler::new(Settings::default());
    let plan = tables.plan(&mut compiler, &index, &index.all_touched(), &locals)?;
    tables.carry_out(plan)?;
    tables.tidy()?;
    Ok(tables.fill().0.by_map().map(|(name, count)| (name.to_owned(), count)).into())
}
