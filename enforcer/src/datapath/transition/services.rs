//! Where Services are reached. Whoever may write Services can ask for more addresses and ports than the kernel has room
//! for; that must keep nothing but new ones from being listed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bulkhead_ebpf::abi::IDENTITY_TUNNEL;

use super::{Changed, Draft};
use crate::{
    cluster::Frontend,
    datapath::image::{Op, ServiceAddress},
    policy::model::{Compiled, Identity},
};

/// Frontends that changed and what has to stand behind them.
pub(super) struct Services {
    listed: Vec<(Frontend, u32)>,
    gone: Vec<ServiceAddress>,
}

impl Draft<'_> {
    /// With those for which there was no room before.
    pub(super) fn services(&mut self, compiled: &Compiled, changed: Changed<'_>) -> Services {
        let known: BTreeMap<Frontend, &Arc<Identity>> = match changed {
            Changed::Only(delta) => {
                let frontends = delta.services.union(&self.unlisted);
                frontends
                    .filter_map(|f| compiled.services.get_key_value(f))
                    .map(|(f, class)| (*f, class))
                    .collect()
            }
            Changed::Everything => compiled.services.iter().map(|(f, class)| (*f, class)).collect(),
        };
        let listed: Vec<_> =
            known.into_iter().map(|(frontend, class)| (frontend, self.identity(class))).collect();
        let mut gone: BTreeSet<ServiceAddress> = match changed {
            Changed::Only(delta) => delta.services.iter().map(ServiceAddress::from).collect(),
            Changed::Everything => self.ledger.services.keys().collect(),
        };
        for (frontend, _) in &listed {
            gone.remove(&frontend.into());
        }
        Services { listed, gone: gone.into_iter().collect() }
    }

    /// What is listed stays so. A frontend that is gone, or for which there is no room, is an address like any other; who
    /// leads to a tunnel's port goes first, because that way would be open.
    pub(super) fn move_services(&mut self, services: Services) {
        for service in services.gone {
            if self.ledger.services.get(&service).is_some() {
                self.ledger.push(Op::RemoveService(service));
            }
        }
        let mut listed = services.listed;
        listed.sort_by_key(|(_, identity)| *identity != IDENTITY_TUNNEL);
        self.unlisted.clear();
        for (frontend, identity) in listed {
            let service = ServiceAddress::from(&frontend);
            let held = self.ledger.services.get(&service).copied();
            if held == Some(identity) {
                continue;
            }
            let op = Op::SetService(service, identity);
            if held.is_none() && !self.ledger.has_room(&op, self.room) {
                self.unlisted.insert(frontend);
                continue;
            }
            self.ledger.push(op);
        }
    }
}
