//! From the index to everything the kernel of one node must hold.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    Settings,
    classify::{Classifier, Interner},
    model::{Compiled, DirectionRules, EndpointPolicy, PolicyRules, RuleSet, Scope},
    service::services,
};
use crate::cluster::{
    Index,
    object::{ContainerPort, Key, NetworkPolicy, Pod, Port, Ports, Rule},
};

/// What this node must hold. `scope` is that of [`super::scope()`], or any wider one: a wider scope makes
/// finer classes and no other verdict.
pub fn compile(index: &Index, settings: &Settings, scope: &Scope) -> Compiled {
    let mut classifier = Classifier::new(index, settings, scope);
    let mut rules = RuleSets { settings, interner: Interner::default(), policies: HashMap::new() };
    let prefixes = classifier.prefixes();
    let peers = classifier.peers(&prefixes);
    let mut endpoints = BTreeMap::new();
    for pod in index.pods().filter(|pod| index.is_endpoint(pod)) {
        let identity = classifier.identity(pod);
        let tenant = classifier.tenant(pod);
        let policies: Vec<_> = index.policies_selecting(pod).collect();
        let rules = rules.of(pod, &policies, |rules| {
            rules.tenant.clone_from(&tenant);
            rules.door = classifier.door(pod);
        });
        endpoints.insert(pod.key.clone(), EndpointPolicy { rules, identity, tenant });
    }
    let services = services(index, settings, &peers, &prefixes);
    Compiled { peers, prefixes, services, endpoints }
}

/// Makes each rule set, and each policy's part in it, once.
struct RuleSets<'a> {
    settings: &'a Settings,
    interner: Interner<RuleSet>,
    policies: HashMap<&'a Key, Parts>,
}

/// A policy's two directions, each if the policy isolates in it.
#[derive(Clone)]
struct Parts {
    ingress: Option<Arc<PolicyRules>>,
    egress: Option<Arc<PolicyRules>>,
}

impl<'a> RuleSets<'a> {
    fn of(
        &mut self,
        pod: &Pod,
        policies: &[&'a NetworkPolicy],
        set_tenant: impl FnOnce(&mut RuleSet),
    ) -> Arc<RuleSet> {
        let mut rules = RuleSet { local_node_egress: self.settings.local_node_egress, ..RuleSet::default() };
        for policy in policies {
            let parts = self.policies.entry(&policy.key).or_insert_with(|| Parts::of(policy));
            rules.ingress.policies.extend(parts.ingress.clone());
            rules.egress.policies.extend(parts.egress.clone());
        }
        rules.ports = referred_ports(&pod.ports, &rules.ingress);
        set_tenant(&mut rules);
        self.interner.intern(rules)
    }
}

impl Parts {
    fn of(policy: &NetworkPolicy) -> Self {
        let part = |rules: &Option<Vec<Rule>>| {
            rules.as_ref().map(|rules| {
                Arc::new(PolicyRules {
                    policy: policy.key.clone(),
                    labels: policy.labels.clone(),
                    rules: rules.clone(),
                })
            })
        };
        Self { ingress: part(&policy.ingress), egress: part(&policy.egress) }
    }
}

/// Those of the subject's ports that some ingress rule names: the others must not split rule sets.
fn referred_ports(ports: &BTreeSet<ContainerPort>, ingress: &DirectionRules) -> BTreeSet<ContainerPort> {
    let mentioned: Vec<&Port> =
        ingress.policies.iter().flat_map(|policy| &policy.rules).flat_map(|rule| &rule.ports).collect();
    let is_mentioned = |port: &&ContainerPort| {
        mentioned.iter().any(|m| {
            m.protocol == port.protocol && matches!(&m.ports, Ports::Named(name) if *name == port.name)
        })
    };
    ports.iter().filter(is_mentioned).cloned().collect()
}
