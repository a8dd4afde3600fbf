//! From the index to everything the kernel of one node must hold.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    Settings,
    classify::{Classes, Classifier, Interner},
    model::{Compiled, DirectionRules, EndpointPolicy, PolicyRules, RuleSet, Scope},
    service::services,
};
use crate::cluster::{
    Index,
    object::{ContainerPort, Key, NetworkPolicy, Pod, Port, Ports, Rule},
};

/// What this node must hold. `scope` is that of [`super::scope()`], or any wider one: a wider scope makes
/// finer classes and no other verdict.
///
/// From scratch: the reference for [`super::Compiler`], which comes to the same result change by change.
pub fn compile(index: &Index, settings: &Settings, scope: &Scope) -> Compiled {
    let mut classes = Classes::new(index, scope);
    let networks: Vec<_> = classes.prefixes.iter().collect();
    let mut classifier = Classifier::new(index, settings, scope, &mut classes);
    let mut rule_sets = RuleSets::default();
    let mut compiled = Compiled::default();
    for prefix in networks {
        compiled.prefixes.extend(classifier.prefix(prefix).map(|info| (prefix, info)));
    }
    for (address, owner) in index.owned_addresses() {
        compiled.peers.insert(address, classifier.peer(address, owner, &compiled.prefixes));
    }
    for pod in index.pods().filter(|pod| index.is_endpoint(pod)) {
        let policy = rule_sets.endpoint(index, settings, &mut classifier, pod);
        compiled.endpoints.insert(pod.key.clone(), policy);
    }
    compiled.services = services(index, settings, &mut classes, &compiled);
    compiled
}

/// Makes each rule set, and each policy's part in it, once.
#[derive(Debug, Default)]
pub(super) struct RuleSets {
    interner: Interner<RuleSet>,
    policies: HashMap<Key, Parts>,
}

/// A policy's two directions, each if the policy isolates in it.
#[derive(Clone, Debug)]
struct Parts {
    ingress: Option<Arc<PolicyRules>>,
    egress: Option<Arc<PolicyRules>>,
}

impl RuleSets {
    /// What decides for a pod of this node.
    pub fn endpoint<'a>(
        &mut self,
        index: &'a Index,
        settings: &Settings,
        classifier: &mut Classifier<'a>,
        pod: &'a Pod,
    ) -> EndpointPolicy {
        let tenant = classifier.tenant(pod);
        let mut rules = RuleSet {
            local_node_egress: settings.local_node_egress,
            tenant: tenant.clone(),
            door: classifier.door(pod),
            ..RuleSet::default()
        };
        for policy in index.policies_selecting(pod) {
            let parts = self.parts(policy);
            rules.ingress.policies.extend(parts.ingress.clone());
            rules.egress.policies.extend(parts.egress.clone());
        }
        rules.ports = referred_ports(&pod.ports, &rules.ingress);
        EndpointPolicy { rules: self.interner.intern(rules), identity: classifier.identity(pod), tenant }
    }

    /// The policy is another from now on, or none.
    pub fn forget(&mut self, policy: &Key) {
        self.policies.remove(policy);
    }

    pub fn sweep(&mut self) {
        self.interner.sweep();
    }

    fn parts(&mut self, policy: &NetworkPolicy) -> &Parts {
        self.policies.entry(policy.key.clone()).or_insert_with(|| Parts::of(policy))
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
fn referred_ports(ports: &[ContainerPort], ingress: &DirectionRules) -> BTreeSet<ContainerPort> {
    if ports.is_empty() {
        return BTreeSet::new();
    }
    let mentioned = ingress.policies.iter().flat_map(|policy| &policy.rules).flat_map(|rule| &rule.ports);
    let named = mentioned.filter_map(|port: &Port| match &port.ports {
        Ports::Named(name) => Some((port.protocol, name.as_str())),
        Ports::All | Ports::Range(..) => None,
    });
    let named: BTreeSet<_> = named.collect();
    let is_mentioned = |port: &&ContainerPort| named.contains(&(port.protocol, port.name.as_str()));
    ports.iter().filter(is_mentioned).cloned().collect()
}
