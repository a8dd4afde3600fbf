//! What objects say in the same words: kept once, however many pods and policies say it.

use std::sync::Arc;

use super::{
    compact::{Labels, Shared, SharedSet, Text},
    object::{ContainerPort, NetworkPolicy, Operator, Peer, Pod, Requirement, Workload},
};

#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    labels: Shared<Labels>,
    texts: Shared<Text>,
    ports: Shared<SharedSet<ContainerPort>>,
    workloads: Shared<Arc<Workload>>,
    selectors: Shared<SharedSet<Requirement>>,
}

impl Words {
    /// Pods of one workload differ in few words.
    pub fn share_pod(&mut self, pod: &mut Pod) {
        self.share_labels(&mut pod.labels);
        self.texts.share(&mut pod.key.namespace);
        self.ports.share(&mut pod.ports);
        pod.workload.iter_mut().for_each(|workload| self.workloads.share(workload));
        pod.node.iter_mut().for_each(|node| self.texts.share(node));
    }

    /// Policies have their keys and values in common with one another and with pods.
    pub fn share_policy(&mut self, policy: &mut NetworkPolicy) {
        self.texts.share(&mut policy.key.namespace);
        self.share_labels(&mut policy.labels);
        let rules = [&mut policy.ingress, &mut policy.egress].into_iter().flatten().flatten();
        let peers = rules.flat_map(|rule| &mut rule.peers).flat_map(|peer| match peer {
            Peer::Pods { namespaces, pods } => [namespaces.as_mut(), Some(pods)],
            Peer::Block(_) => [None, None],
        });
        for selector in peers.flatten().chain([&mut policy.subjects]) {
            self.selectors.share_or(&mut selector.requirements, |requirements| {
                for Requirement { key, operator } in requirements.iter_mut() {
                    self.texts.share(key);
                    if let Operator::In(values) | Operator::NotIn(values) = operator {
                        values.iter_mut().for_each(|value| self.texts.share(value));
                    }
                }
            });
        }
    }

    fn share_labels(&mut self, labels: &mut Labels) {
        self.labels.share_or(labels, |labels| labels.texts_mut().for_each(|text| self.texts.share(text)));
    }
}
