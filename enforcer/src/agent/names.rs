//! What the flow log calls things: the index and the numbers, turned into a snapshot for the flow task.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use tokio::sync::watch;

use super::node::Node;
use crate::{
    cluster::{
        Frontend, Index, Owner, PackedMap, ServiceNames, Touched,
        compact::Text,
        object::{Key, Kind, NetworkPolicy, ObjectRef, Pod},
    },
    datapath::Plan,
    flow::{
        clock,
        names::{LocalPod, Names, Party, Place, PolicyInfo, Tables, Who},
    },
    policy::model::Tenancy,
    source::manifest::Watcher,
};

/// Where the flow task gets its names, and where policies were written.
pub struct Publisher {
    names: watch::Sender<Arc<Names>>,
    /// Where policies are in files.
    watcher: Option<Watcher>,
    /// Grants below this number have been told; `None`: what the last snapshot lacks is not known.
    told: Option<u32>,
    services: ServiceNames,
    /// Manifests have changed since policies' places were last looked at.
    moved: bool,
}

impl Publisher {
    pub fn new(names: watch::Sender<Arc<Names>>, watcher: Option<Watcher>) -> Self {
        Self { names, watcher, told: None, services: ServiceNames::default(), moved: false }
    }

    /// Changes have been missed: the next snapshot is made from everything.
    pub fn forget(&mut self) {
        self.told = None;
    }

    /// Must be told of every change, whether or not its names are published; tells where a Service's name may
    /// be another.
    pub fn follow_services(&mut self, index: &Index, touched: &Touched) -> BTreeSet<Frontend> {
        self.services.follow(index, touched)
    }

    /// Manifests have changed, so a policy may stand at another line though it says the same.
    pub fn look_again(&mut self) {
        self.moved = true;
    }

    fn info(&self, policy: &NetworkPolicy) -> Arc<PolicyInfo> {
        let reference = ObjectRef { kind: Kind::NetworkPolicy, key: policy.key.clone() };
        let place = self.watcher.as_ref().and_then(|watcher| watcher.origin(&reference));
        let place = place.map(|o| Place { file: o.file.display().to_string(), line: o.line });
        Arc::new(PolicyInfo { labels: policy.labels.clone(), place })
    }
}

impl Node {
    /// Hands the flow log the names of all that will hold when `plan` is carried out. What the last snapshot
    /// held besides stays known for a while.
    pub(super) fn publish_names(&mut self, touched: &Touched, renamed: &BTreeSet<Frontend>, plan: &Plan) {
        let now = clock::monotonic();
        let last = Arc::clone(&self.names.names.borrow());
        let mut next = match self.names.told {
            None => last.next(self.tables_of_names(plan), now),
            Some(told) => self.edited_names(Names::clone(&last), touched, plan, told, now),
        };
        for at in renamed.iter().copied() {
            match self.names.services.name(&at) {
                Some(service) => _ = next.services.set(at, Arc::clone(service), now),
                None => next.services.remove(&at, now),
            }
        }
        self.names.names.send_replace(Arc::new(next));
        self.names.told = Some(self.tables.numbers().grants.next());
    }

    /// Now and then: forgets what has been gone for long, and looks where policies stand now.
    pub(super) fn tend_names(&mut self) {
        let now = clock::monotonic();
        let mut next = Names::clone(&self.names.names.borrow());
        let mut changed = next.forget(now);
        if std::mem::take(&mut self.names.moved) && self.names.told.is_some() {
            for policy in self.index.policies() {
                changed |= next.policies.set(policy.key.clone(), self.names.info(policy), now);
            }
        }
        if changed {
            self.names.names.send_replace(Arc::new(next));
        }
    }

    fn edited_names(&self, mut names: Names, touched: &Touched, plan: &Plan, told: u32, now: u64) -> Names {
        for address in touched.addresses.iter().chain(plan.peers.keys()) {
            match self.index.owner(*address) {
                Some(owner) => {
                    let party = self.party(*address, owner, plan);
                    names.parties.set(*address, party, now);
                }
                None => names.parties.remove(address, now),
            }
        }
        for key in &touched.policies {
            match self.index.policy(key) {
                Some(policy) => _ = names.policies.set(key.clone(), self.names.info(policy), now),
                None => names.policies.remove(key, now),
            }
        }
        let numbers = self.tables.numbers();
        for (number, grant) in numbers.grants.since(told) {
            names.grants.set(number, Arc::clone(grant), now);
        }
        names.endpoints.become_all(self.local_pods(plan), now);
        names
            .rule_sets
            .become_all(numbers.rule_sets.iter().map(|(n, rules)| (n, Arc::clone(rules))).collect(), now);
        if touched.pod_networks {
            names.pod_networks = self.index.pod_networks().into_iter().collect();
        }
        names
    }

    fn tables_of_names(&self, plan: &Plan) -> Tables {
        let numbers = self.tables.numbers();
        let parties =
            self.index.owned_addresses().map(|(address, owner)| (address, self.party(address, owner, plan)));
        Tables {
            parties: parties.collect(),
            endpoints: self.local_pods(plan),
            grants: numbers.grants.iter().map(|(number, grant)| (number, Arc::clone(grant))).collect(),
            rule_sets: numbers.rule_sets.iter().map(|(number, rules)| (number, Arc::clone(rules))).collect(),
            policies: self.index.policies().map(|p| (p.key.clone(), self.names.info(p))).collect(),
            services: self.names.services.iter().map(|(at, service)| (at, Arc::clone(service))).collect(),
            pod_networks: self.index.pod_networks().into_iter().collect(),
        }
    }

    /// All of this node's: few, whatever the size of the cluster.
    fn local_pods(&self, plan: &Plan) -> PackedMap<u32, Arc<LocalPod>> {
        let local = self.endpoints.iter().filter_map(|endpoint| {
            let pod = endpoint.pod().and_then(|key| self.index.pod(&key))?;
            let record = plan.endpoints.get(&endpoint.sandbox.host_ifindex)?;
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
        local.collect()
    }

    fn party(&self, address: IpAddr, owner: Owner<'_>, plan: &Plan) -> Party {
        let held = || self.tables.actual().peers.get(&address).copied();
        let identity = plan.peers.get(&address).copied().unwrap_or_else(held).map_or(0, |peer| peer.identity);
        let tenant = self.compiler.compiled().peers.get(&address).and_then(|info| match &info.tenant {
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

    fn tenant_of(&self, pod: &Key) -> Option<Text> {
        self.compiler
            .compiled()
            .endpoints
            .get(pod)
            .and_then(|policy| policy.tenant.as_deref())
            .map(Text::from)
    }

    /// Number of the pod's endpoint; 0: not on this node.
    fn endpoint_of(&self, pod: &Key) -> u32 {
        if !self.compiler.compiled().endpoints.contains_key(pod) {
            return 0;
        }
        self.endpoints.iter().find(|e| e.pod().as_ref() == Some(pod)).map_or(0, |e| e.id)
    }
}

fn who(pod: &Arc<Pod>, endpoint: u32) -> Who {
    Who::Pod { pod: Arc::clone(pod), endpoint }
}
