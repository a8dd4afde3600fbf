//! Records of endpoints: the last step, and in force at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_ebpf::abi::{self, Endpoint, ORIGINS, PolicyWord, TenantWord};

use super::{Changed, Draft, Local};
use crate::{
    cluster::object::Key,
    datapath::{crowd::InForce, image::Op},
    policy::model::{Compiled, RuleSet, Tenancy},
};

impl Draft<'_> {
    /// The record, if nothing about it can have changed since it was written.
    pub(super) fn is_as_placed(&self, local: &Local, changed: Changed<'_>) -> Option<Endpoint> {
        let Changed::Only(delta) = changed else { return None };
        let is_same = self.placed.get(&local.ifindex) == Some(local)
            && local.pod.as_ref().is_none_or(|pod| !delta.endpoints.contains(pod));
        let record = self.ledger.endpoints.get(&local.ifindex).copied();
        record.filter(|record| is_same && record.id == local.id)
    }

    /// `moved`: connections must be judged again, because an address is not what it was. `view`: of peers' tenants.
    pub(super) fn switch_endpoints(
        &mut self,
        compiled: &Compiled,
        changed: Changed<'_>,
        locals: &BTreeMap<u32, Local>,
        moved: bool,
        view: u32,
    ) {
        let gone: Vec<u32> =
            self.ledger.endpoints.keys().filter(|i| !locals.contains_key(i)).copied().collect();
        for ifindex in gone {
            self.ledger.push(Op::RemoveEndpoint(ifindex));
        }
        for local in locals.values() {
            let actual = self.ledger.endpoints.get(&local.ifindex).copied().filter(|e| e.id == local.id);
            let mut desired = match self.is_as_placed(local, changed) {
                Some(record) => record,
                None => self.endpoint(local, compiled, actual),
            };
            desired.tenant = TenantWord::new(desired.tenant.tenant(), view);
            if !moved && actual == Some(desired) {
                continue;
            }
            let same_verdicts =
                actual.is_some_and(|actual| Endpoint { identity: desired.identity, ..actual } == desired);
            if !moved && same_verdicts {
                self.ledger.push(Op::SetEndpoint(desired));
                continue; // the pod's own number is for the flow log: no verdict depends on it
            }
            // New rules come with a new generation: under the old one, tracked connections would pass by the
            // old rules while new ones pass by the new.
            desired.policy = PolicyWord::new(desired.policy.rule_set(), self.numbers.next_generation());
            self.ledger.push(Op::SetEndpoint(desired));
            if actual.is_some() && !same_verdicts {
                // A packet may have met the record half written and noted an old verdict under that generation:
                // the verdict ends with it.
                desired.policy = PolicyWord::new(desired.policy.rule_set(), self.numbers.next_generation());
                self.ledger.push(Op::SetEndpoint(desired));
            }
        }
    }

    /// Kept while the endpoint lives. 0: none is left.
    fn mark(&self, actual: Option<Endpoint>) -> u16 {
        let kept = actual.map(|actual| actual.mark).filter(|mark| *mark != 0);
        kept.or_else(|| self.free_mark()).unwrap_or_default()
    }

    /// The lowest number under which no endpoint's packets are marked; `None`: all are taken.
    fn free_mark(&self) -> Option<u16> {
        let taken: BTreeSet<u32> =
            self.ledger.endpoints.values().map(|endpoint| endpoint.mark.into()).collect();
        let free = (1..ORIGINS).find(|mark| !taken.contains(mark))?;
        u16::try_from(free).ok()
    }

    /// There is no room for the pod's rules, and it has others.
    pub(super) fn keeps(&self, local: &Local, pod: &Key) -> bool {
        let record = self.ledger.endpoints.get(&local.ifindex).filter(|record| record.id == local.id);
        self.crowded.get(&*pod.namespace) == Some(&InForce::Before)
            && record.is_some_and(|record| record.policy.rule_set() != 0)
    }

    /// The number of what decides for the pod: its policies, or without room only that they isolate.
    pub(super) fn rule_set(&mut self, pod: &Key, rules: &Arc<RuleSet>) -> u32 {
        if self.crowded.contains_key(&*pod.namespace) {
            return self.numbers.rule_sets.number(&Arc::new(rules.admitting_nothing()));
        }
        self.numbers.rule_sets.number(rules)
    }

    /// The record, still under its present generation.
    fn endpoint(&mut self, local: &Local, compiled: &Compiled, actual: Option<Endpoint>) -> Endpoint {
        let generation = actual.map_or(0, |actual| actual.policy.generation());
        let mut endpoint = Endpoint {
            ifindex: local.ifindex,
            id: local.id,
            mac: local.mac,
            mark: self.mark(actual),
            flags: if local.adopted { abi::ENDPOINT_ADOPTED } else { 0 },
            ..Endpoint::default()
        };
        for address in &local.addresses {
            match address {
                IpAddr::V4(v4) => endpoint.ipv4 = v4.octets(),
                IpAddr::V6(v6) => endpoint.ipv6 = v6.octets(),
            }
        }
        let policy = local.pod.as_ref().and_then(|pod| compiled.endpoints.get_key_value(pod));
        if let Some((_, policy)) = policy {
            let tenancy =
                policy.tenant.as_deref().map_or(Tenancy::Shared, |tenant| Tenancy::Tenant(tenant.into()));
            endpoint.tenant = TenantWord::new(self.numbers.tenant(&tenancy), 0);
        }
        if let Some((pod, policy)) = policy.filter(|(pod, _)| !self.keeps(local, pod)) {
            let rule_set = self.rule_set(pod, &policy.rules);
            endpoint.policy = PolicyWord::new(rule_set, generation);
            endpoint.identity = self.identity(&policy.identity);
        } else if let Some(actual) = actual {
            // The pod has left the index but not the node, or there is no room for its rules: what was enforced stays
            // (fail static). A tenant takes no room: as its addresses move, so does the pod.
            (endpoint.policy, endpoint.identity) = (actual.policy, actual.identity);
            if policy.is_none() {
                endpoint.tenant = actual.tenant;
            }
        } else {
            // Unknown to the index: rule set 0 admits nothing (fail closed).
            endpoint.policy = PolicyWord::new(0, generation);
        }
        endpoint
    }
}
