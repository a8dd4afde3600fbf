//! Where Services are reached. Whoever may write Services can ask for more addresses and ports than the kernel has room
//! for; that must keep nothing but new ones from being listed.

use std::{collections::BTreeSet, sync::Arc};

use super::{Changed, Draft};
use crate::{
    cluster::Frontend,
    datapath::image::{Op, ServiceAddress},
    policy::model::{Compiled, Identity},
};

/// Frontends that changed and what has to stand behind them.
pub(super) struct Services {
    listed: Vec<(ServiceAddress, u32)>,
    gone: BTreeSet<ServiceAddress>,
}

impl Draft<'_> {
    /// With those for which there was no room before. What is listed stays so; who leads to a tunnel's port goes first,
    /// because that way would be open. A frontend for which there is no room gets no number either: no rule would be of use.
    pub(super) fn services(&mut self, compiled: &Compiled, changed: Changed<'_>) -> Services {
        let mut known: Vec<(Frontend, &Arc<Identity>)> = match changed {
            Changed::Only(delta) => {
                let frontends = delta.services.union(&self.unlisted);
                frontends
                    .filter_map(|f| compiled.services.get_key_value(f))
                    .map(|(f, class)| (*f, class))
                    .collect()
            }
            Changed::Everything => compiled.services.iter().map(|(f, class)| (*f, class)).collect(),
        };
        let mut gone: BTreeSet<ServiceAddress> = match changed {
            Changed::Only(delta) => delta.services.iter().map(ServiceAddress::from).collect(),
            Changed::Everything => self.ledger.services.keys().collect(),
        };
        gone.retain(|service| self.ledger.services.get(service).is_some());
        for (frontend, _) in &known {
            gone.remove(&frontend.into());
        }
        let mut room = [true, false].map(|ipv4| {
            let leaving = gone.iter().filter(|service| service.address.is_ipv4() == ipv4).count();
            self.ledger.room_for_services(self.room, ipv4) + leaving
        });
        known.sort_by_key(|(_, class)| !matches!(***class, Identity::Tunnel));
        self.unlisted.clear();
        let mut listed = Vec::new();
        for (frontend, class) in known {
            if self.ledger.services.get(&(&frontend).into()).is_none() {
                let room = &mut room[usize::from(frontend.address.is_ipv6())];
                if *room == 0 {
                    self.unlisted.insert(frontend);
                    continue;
                }
                *room -= 1;
            }
            listed.push((ServiceAddress::from(&frontend), self.identity(class)));
        }
        Services { listed, gone }
    }

    /// A frontend that is gone, or for which there is no room, is an address like any other.
    pub(super) fn move_services(&mut self, services: Services) {
        for service in services.gone {
            self.ledger.push(Op::RemoveService(service));
        }
        for (service, identity) in services.listed {
            if self.ledger.services.get(&service) != Some(&identity) {
                self.ledger.push(Op::SetService(service, identity));
            }
        }
    }
}
