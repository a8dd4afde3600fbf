//! Who the numbers and addresses are: an immutable snapshot that the controller edits and swaps.
//!
//! Snapshots share their structure, so cloning one is free and an edit costs its own size, whatever the
//! size of the cluster. What is replaced or removed stays known for [`MEMORY`]: the end of a connection
//! is often told after its pod is gone, and its address may have a new owner by then.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bulkhead_ebpf::abi;
use ipnetwork::IpNetwork;

use crate::{
    cluster::{
        Frontend, PackedMap,
        compact::Text,
        object::{Key, Labels, Pod},
    },
    policy::model::{Grant, RuleSet},
};

/// How long what is gone can still be named.
pub const MEMORY: Duration = Duration::from_mins(2);

#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Pods and nodes, by exact address.
    pub parties: Known<IpAddr, Party>,
    /// Local pods, by endpoint number.
    pub endpoints: Known<u32, Arc<LocalPod>>,
    /// By rule number.
    pub grants: Known<u32, Arc<Grant>>,
    /// By rule set number.
    pub rule_sets: Known<u32, Arc<RuleSet>>,
    pub policies: Known<Key, Arc<PolicyInfo>>,
    /// Services, by where they are reached or served.
    pub services: Known<Frontend, Arc<Key>>,
    /// Where an address that nobody owns is an unknown pod's rather than the world's.
    pub pod_networks: Arc<[IpNetwork]>,
}

/// One end of a flow, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    pub who: Who,
    /// Identity number in the datapath.
    pub identity: u32,
    /// `None`: shared, or not known.
    pub tenant: Option<Text>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    Pod {
        /// The index has the same one: names are for a hundred thousand of them.
        pod: Arc<Pod>,
        /// Endpoint number if the pod is local, otherwise 0.
        endpoint: u32,
    },
    /// This node.
    Host,
    RemoteNode,
    World,
    /// An address that stands for a Service's backends.
    Service(Arc<Key>),
    /// An address of the pod network that no known pod owns.
    Unmanaged,
    /// Not an IP packet, or unreadable.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    pub party: Arc<Party>,
    pub addresses: Vec<IpAddr>,
    /// Number of the rule set in force.
    pub rule_set: u32,
    pub ifindex: u32,
    /// Host side of the pair.
    pub ifname: String,
}

/// What a flow tells of a policy besides its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyInfo {
    pub labels: Labels,
    /// `None`: it did not come from a manifest.
    pub place: Option<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    /// Counted from 1.
    pub line: usize,
}

impl Names {
    /// The next snapshot: exactly what `tables` hold is current, and what `self` held besides them is gone
    /// since `now`. Costs the size of the tables; where changes are known one by one, clone and edit.
    #[must_use]
    pub fn next(&self, tables: Tables, now: u64) -> Self {
        let mut next = self.clone();
        next.parties.become_all(tables.parties, now);
        next.endpoints.become_all(tables.endpoints, now);
        next.grants.become_all(tables.grants, now);
        next.rule_sets.become_all(tables.rule_sets, now);
        next.policies.become_all(tables.policies, now);
        next.services.become_all(tables.services, now);
        next.pod_networks = tables.pod_networks.into();
        next.forget(now);
        next
    }

    /// Drops what has been gone for longer than [`MEMORY`]; `now` in nanoseconds of `CLOCK_MONOTONIC`.
    /// Whether there was any.
    pub fn forget(&mut self, now: u64) -> bool {
        let before = now.saturating_sub(u64::try_from(MEMORY.as_nanos()).expect("minutes"));
        let parties = self.parties.forget(before) | self.endpoints.forget(before);
        let rules = self.grants.forget(before) | self.rule_sets.forget(before);
        parties | rules | self.policies.forget(before) | self.services.forget(before)
    }

    /// Who had the address at `time`. An address without an owner is told by the datapath's identity
    /// number if it looked one up, otherwise by the pod networks.
    pub fn party(&self, address: IpAddr, identity: u32, time: u64) -> Arc<Party> {
        if let Some(party) = self.parties.at(&address, time) {
            return Arc::new(party.clone());
        }
        let pod_network = || self.pod_networks.iter().any(|n| n.contains(address));
        let (who, identity) = match identity {
            abi::IDENTITY_HOST => (Who::Host, identity),
            abi::IDENTITY_REMOTE_NODE => (Who::RemoteNode, identity),
            abi::IDENTITY_WORLD => (Who::World, identity),
            0 if !pod_network() => (Who::World, abi::IDENTITY_WORLD),
            // Also a pod's identity whose address has been forgotten since.
            0 | abi::IDENTITY_UNKNOWN_POD => (Who::Unmanaged, abi::IDENTITY_UNKNOWN_POD),
            _ => (Who::Unmanaged, identity),
        };
        Arc::new(Party { who, identity, tenant: None })
    }

    pub fn local_by_ifindex(&self, ifindex: u32, time: u64) -> Option<(u32, &Arc<LocalPod>)> {
        self.endpoints.all_at(time).find(|(_, pod)| pod.ifindex == ifindex).map(|(id, pod)| (*id, pod))
    }
}

/// All that is current, for [`Names::next`].
#[derive(Clone, Debug, Default)]
pub struct Tables {
    pub parties: PackedMap<IpAddr, Party>,
    pub endpoints: PackedMap<u32, Arc<LocalPod>>,
    pub grants: PackedMap<u32, Arc<Grant>>,
    pub rule_sets: PackedMap<u32, Arc<RuleSet>>,
    pub policies: PackedMap<Key, Arc<PolicyInfo>>,
    pub services: PackedMap<Frontend, Arc<Key>>,
    pub pod_networks: Vec<IpNetwork>,
}

/// A map that remembers, for each key, the last value that is no longer current. Times are nanoseconds of
/// `CLOCK_MONOTONIC`.
#[derive(Clone, Debug)]
pub struct Known<K, V> {
    current: PackedMap<K, V>,
    gone: PackedMap<K, Gone<V>>,
}

#[derive(Clone, Debug)]
struct Gone<V> {
    value: V,
    since: u64,
}

impl<K, V> Default for Known<K, V> {
    fn default() -> Self {
        Self { current: PackedMap::new(), gone: PackedMap::new() }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Known<K, V> {
    /// Whether that is new.
    pub fn set(&mut self, key: K, value: V, now: u64) -> bool {
        if self.current.get(&key) == Some(&value) {
            return false;
        }
        if let Some(value) = self.current.insert(key.clone(), value) {
            self.gone.insert(key, Gone { value, since: now });
        }
        true
    }

    pub fn remove(&mut self, key: &K, now: u64) {
        if let Some(value) = self.current.remove(key) {
            self.gone.insert(key.clone(), Gone { value, since: now });
        }
    }

    /// What the key meant at `time`, or has come to mean, or last meant.
    pub fn at(&self, key: &K, time: u64) -> Option<&V> {
        let gone = self.gone.get(key);
        match (gone, self.current.get(key)) {
            (Some(gone), Some(_)) if time < gone.since => Some(&gone.value),
            (_, Some(current)) => Some(current),
            (gone, None) => gone.map(|g| &g.value),
        }
    }

    /// What was there at `time` and is gone now, then what is current.
    fn all_at(&self, time: u64) -> impl Iterator<Item = (&K, &V)> {
        let gone = self.gone.iter().filter(move |(_, g)| time < g.since).map(|(k, g)| (k, &g.value));
        gone.chain(self.current.iter())
    }

    /// Exactly these are current. Costs their number.
    pub fn become_all(&mut self, all: PackedMap<K, V>, now: u64) {
        if self.current.is_empty() {
            self.current = all; // at the start, when there is no room to waste
            return;
        }
        let removed: Vec<K> = self.current.keys().filter(|k| !all.contains_key(k)).cloned().collect();
        for key in &removed {
            self.remove(key, now);
        }
        for (key, value) in all.iter() {
            self.set(key.clone(), value.clone(), now);
        }
    }

    fn forget(&mut self, before: u64) -> bool {
        let old: Vec<K> =
            self.gone.iter().filter(|(_, g)| g.since < before).map(|(k, _)| k.clone()).collect();
        for key in &old {
            self.gone.remove(key);
        }
        !old.is_empty()
    }
}
