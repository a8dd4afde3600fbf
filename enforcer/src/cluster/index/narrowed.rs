//! Parts of the index that answer like the whole about what one question needs, without a copy of everything.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{Addresses, Claim, Claims, Index, Key, PackedMap, Pod, Touched, Words, canonical};

impl Index {
    /// Everything but pods, and of these the named ones and whoever claims one of the addresses: who owns these
    /// addresses, what the named pods are and which policies select them is as here.
    #[must_use]
    pub fn narrowed(&self, pods: &BTreeSet<Key>, addresses: &BTreeSet<IpAddr>) -> Self {
        let claims = addresses.iter().filter_map(|address| self.claims.get(&canonical(*address)));
        let claimants = claims.flat_map(Claims::as_slice).filter_map(|claim| match claim {
            Claim::Pod(pod) | Claim::HostPod(pod) => Some(&pod.key),
            Claim::Node(_) => None,
        });
        let kept: BTreeSet<&Key> = pods.iter().chain(claimants).collect();
        let pods = kept.into_iter().filter_map(|key| self.pods.get_key_value(key));
        let mut narrowed = self.with_pods(pods.map(|(key, pod)| (key.clone(), pod.clone())).collect());
        for key in narrowed.pods.keys().cloned().collect::<Vec<_>>() {
            let claims = narrowed.pod_claims(&key);
            narrowed.replace_claims(None, claims);
        }
        for name in narrowed.nodes.keys().cloned().collect::<Vec<_>>() {
            let claims = narrowed.node_claims(&name);
            narrowed.replace_claims(None, claims);
        }
        narrowed.touched = Touched::default();
        narrowed
    }
    /// All objects, but nobody owns an address: for questions that are not about addresses, at a quarter of a copy's
    /// cost.
    #[must_use]
    pub fn unclaimed(&self) -> Self {
        self.with_pods(self.pods.clone())
    }

    fn with_pods(&self, pods: PackedMap<Key, Arc<Pod>>) -> Self {
        Self {
            node: self.node.clone(),
            local_addresses: self.local_addresses.clone(),
            extra_pod_networks: self.extra_pod_networks.clone(),
            attachments: self.attachments.clone(),
            namespaces: self.namespaces.clone(),
            pods,
            nodes: self.nodes.clone(),
            policies: self.policies.clone(),
            shares: self.shares.clone(),
            services: self.services.clone(),
            claims: Addresses::default(),
            words: Words::default(),
            touched: Touched::default(),
        }
    }
}
