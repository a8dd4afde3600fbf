//! What the flow log calls things: the index and the numbers, turned into a snapshot for the flow task.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use tokio::sync::watch;

use super::node::Node;
use crate::{
    cluster::{
        Owner,
        object::{Key, Kind, ObjectRef, Pod},
    },
    datapath::Image,
    flow::{
        clock,
        names::{LocalPod, Names, Party, Place, PolicyInfo, Tables, Who},
    },
    policy::model::Tenancy,
    source::manifest::Watcher,
};

/// Where the flow task gets its names, and where policies were written.
pub struct Publisher {
    pub names: watch::Sender<Arc<Names>>,
    pub watcher: Watcher,
}

impl Node {
    /// Hands the flow log the names of all that `image` holds. What the last snapshot held besides stays
    /// known for a while.
    pub(super) fn publish_names(&self, image: &Image) {
        let next = self.names.names.borrow().next(self.tables_of_names(image), clock::monotonic());
        self.names.names.send_replace(Arc::new(next));
    }

    fn tables_of_names(&self, image: &Image) -> Tables {
        let numbers = self.tables.numbers();
        let parties: BTreeMap<IpAddr, Arc<Party>> = self
            .index
            .owned_addresses()
            .map(|(address, owner)| (address, Arc::new(self.party(address, owner, image))))
            .collect();
        let endpoints = self.endpoints.iter().filter_map(|endpoint| {
            let pod = endpoint.pod().and_then(|key| self.index.pod(&key))?;
            let record = image.endpoints.get(&endpoint.sandbox.host_ifindex)?;
            let party = Party {
                who: who(pod, endpoint.id),
                identity: record.identity,
                tenant: self.tenant_of(&pod.key),
            };
            let local = LocalPod {
                party: Arc::new(party),
                addresses: endpoint.sandbox.addresses.iter().copied().collect(),
                rule_set: record.policy.rule_set(),
                ifindex: endpoint.sandbox.host_ifindex,
                ifname: endpoint.sandbox.host_ifname.clone(),
            };
            Some((endpoint.id, Arc::new(local)))
        });
        let policies = self.index.policies().map(|policy| {
            let reference = ObjectRef { kind: Kind::NetworkPolicy, key: policy.key.clone() };
            let place = self
                .names
                .watcher
                .origin(&reference)
                .map(|o| Place { file: o.file.display().to_string(), line: o.line });
            (policy.key.clone(), Arc::new(PolicyInfo { labels: policy.labels.clone(), place }))
        });
        Tables {
            parties,
            endpoints: endpoints.collect(),
            grants: numbers.grants.iter().map(|(grant, number)| (number, Arc::new(grant.clone()))).collect(),
            rule_sets: numbers.rule_sets.iter().map(|(rules, number)| (number, Arc::clone(rules))).collect(),
            policies: policies.collect(),
            services: self
                .index
                .services()
                .names(self.index.own_addresses())
                .into_iter()
                .map(|(at, service)| (at, Arc::new(service.clone())))
                .collect(),
            pod_networks: self.index.pod_networks().into_iter().collect(),
        }
    }

    fn party(&self, address: IpAddr, owner: Owner<'_>, image: &Image) -> Party {
        let identity = image.peers.get(&address).map_or(0, |peer| peer.identity);
        let tenant = self.compiled.peers.get(&address).and_then(|info| match &info.tenant {
            Tenancy::Tenant(tenant) => Some(tenant.clone()),
            Tenancy::Shared | Tenancy::Unknown => None,
        });
        let who = match owner {
            Owner::Pod(pod) => who(pod, self.endpoint_of(&pod.key)),
            Owner::ThisNode => Who::Host,
            Owner::OtherNode(_) => Who::RemoteNode,
            Owner::Contested => Who::Unmanaged,
        };
        Party { who, identity, tenant }
    }

    fn tenant_of(&self, pod: &Key) -> Option<String> {
        self.compiled.endpoints.get(pod).and_then(|policy| policy.tenant.clone())
    }

    /// Number of the pod's endpoint; 0: not on this node.
    fn endpoint_of(&self, pod: &Key) -> u32 {
        self.endpoints.iter().find(|e| e.pod().as_ref() == Some(pod)).map_or(0, |e| e.id)
    }
}

fn who(pod: &Pod, endpoint: u32) -> Who {
    Who::Pod { key: pod.key.clone(), labels: pod.labels.clone(), workload: pod.workload.clone(), endpoint }
}
