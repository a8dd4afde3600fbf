//! [`compile`](super::compile()) change by change: work in proportion to what a change touches.
//!
//! ```text
//! Touched ─ advance ─▶ Delta   in the old and the new policies' scope
//!           settle  ─▶ Delta   in the scope of the policies in force
//! ```
//! Between the two, [`Compiler::compiled`] equals a compile in the union of the scopes; after them, one in
//! the index' own scope. A key that comes into scope or goes out of it looks at every pod once, for that key only.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnetwork::IpNetwork;

use super::{
    Settings,
    classify::{Classes, Classifier},
    compile::RuleSets,
    frontends::Frontends,
    model::{Compiled, Scope},
    prefixes::bounds,
    scope::Mentions,
    service::Projection,
};
use crate::cluster::{
    Frontend, Index, PackedMap, Touched,
    object::{IpBlock, Key, Labels, NetworkPolicy, Pod},
};

/// The last result, and what it takes to bring it up to date.
#[derive(Debug)]
pub struct Compiler {
    settings: Settings,
    /// How fine the classes of `compiled` are.
    scope: Scope,
    mentions: Mentions,
    /// As compiled: an edit must know what it replaces.
    policies: PackedMap<Key, Arc<NetworkPolicy>>,
    pod_networks: BTreeSet<IpNetwork>,
    classes: Classes,
    frontends: Frontends,
    rule_sets: RuleSets,
    compiled: Compiled,
    /// Nothing has been compiled yet.
    is_new: bool,
    /// What is behind Services is seen otherwise than when last compiled.
    services_moved: bool,
}

/// What is not as it was: keys of [`Compiled`], and mentions of [`Scope`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    pub peers: BTreeSet<IpAddr>,
    pub prefixes: BTreeSet<IpNetwork>,
    pub services: BTreeSet<Frontend>,
    pub endpoints: BTreeSet<Key>,
    /// In scope now.
    pub entered: Scope,
    /// Not any more.
    pub left: Scope,
}

impl Compiler {
    /// Knows nothing yet: the first [`Compiler::advance`] must be told of everything.
    pub fn new(settings: Settings) -> Self {
        let mut compiler = Self {
            settings,
            scope: Scope::default(),
            mentions: Mentions::default(),
            policies: PackedMap::new(),
            pod_networks: BTreeSet::new(),
            classes: Classes::default(),
            frontends: Frontends::default(),
            rule_sets: RuleSets::default(),
            compiled: Compiled::default(),
            is_new: true,
            services_moved: false,
        };
        let everything = Work { prefixes: compiler.classes.prefixes.iter().collect(), ..Work::default() };
        compiler.carry_out(&Index::default(), everything, &mut Delta::default());
        compiler
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes [`Settings::backends_elsewhere_judged`] from the next [`Compiler::advance`] on; whether it was
    /// otherwise.
    pub fn judge_backends_elsewhere(&mut self, judged: bool) -> bool {
        let changed = self.settings.backends_elsewhere_judged != judged;
        self.settings.backends_elsewhere_judged = judged;
        self.services_moved |= changed;
        changed
    }

    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Deltas of a new compiler say nothing about what was before it.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Takes in what changed in the index; what policies mentioned before, and `also`, stays in scope.
    pub fn advance(&mut self, index: &Index, touched: &Touched, also: &Scope) -> Delta {
        self.is_new = false;
        let mut work = Work::default();
        let mut delta = Delta { entered: also.minus(&self.scope), ..Delta::default() };
        self.mentions.keep(also);
        self.scope.extend(&delta.entered);
        for key in &touched.policies {
            self.replace_policy(index, key, &mut work, &mut delta.entered);
        }
        for block in &delta.entered.blocks {
            self.classes.prefixes.add(block);
        }
        self.spread(&delta.entered, index, &mut work);
        if touched.pod_networks {
            self.replace_pod_networks(index, &mut work);
        }
        for namespace in &touched.namespaces {
            index.pods_in(namespace).for_each(|pod| work.pod(index, pod));
        }
        work.addresses.extend(&touched.addresses);
        work.frontends = self.frontends.follow(index, &touched.services, &touched.addresses);
        if std::mem::take(&mut self.services_moved) {
            work.frontends.extend(self.frontends.all());
        }
        for address in &touched.addresses {
            work.frontends.extend(self.frontends.leading_to(*address));
        }
        work.endpoints.extend(touched.pods.iter().cloned());
        self.carry_out(index, work, &mut delta);
        delta
    }

    /// Drops from the scope what no policy mentions any more.
    pub fn settle(&mut self, index: &Index) -> Delta {
        let mut work = Work::default();
        let mut delta = Delta { left: self.mentions.take_idle(), ..Delta::default() };
        if !delta.left.is_empty() {
            self.scope.remove(&delta.left);
            self.spread(&delta.left, index, &mut work); // before its prefixes go
            for block in &delta.left.blocks {
                self.classes.prefixes.remove(block);
            }
            self.carry_out(index, work, &mut delta);
        }
        self.classes.sweep();
        self.rule_sets.sweep();
        delta
    }

    fn replace_policy(&mut self, index: &Index, key: &Key, work: &mut Work, entered: &mut Scope) {
        let new = index.shared_policy(key).cloned();
        let old = match &new {
            Some(new) => self.policies.insert(key.clone(), Arc::clone(new)),
            None => self.policies.remove(key),
        };
        if let Some(new) = &new {
            let mentioned = Scope::of(new);
            let fresh = mentioned.minus(&self.scope);
            self.scope.extend(&fresh);
            entered.extend(&fresh);
            self.mentions.add(&mentioned);
        }
        if let Some(old) = &old {
            self.mentions.remove(&Scope::of(old));
        }
        self.rule_sets.forget(key);
        let selects = |pod: &Pod| [&old, &new].into_iter().flatten().any(|p| p.subjects.matches(&pod.labels));
        let here = self.compiled.endpoints.range(Key::new(&key.namespace, "")..);
        let here = here.map(|(pod, _)| pod).take_while(|pod| pod.namespace == key.namespace);
        work.endpoints.extend(here.filter(|pod| index.pod(pod).is_some_and(|pod| selects(pod))).cloned());
    }

    fn replace_pod_networks(&mut self, index: &Index, work: &mut Work) {
        let networks = index.pod_networks();
        for network in networks.symmetric_difference(&self.pod_networks) {
            let is_one = networks.contains(network);
            work.prefixes.insert(super::prefixes::masked(*network));
            work.prefixes.extend(self.classes.prefixes.within(*network));
            self.classes.prefixes.set_pod_network(*network, is_one);
        }
        self.pod_networks = networks;
    }

    /// Whoever the mentions can tell apart, or no longer can.
    fn spread(&self, mentions: &Scope, index: &Index, work: &mut Work) {
        for IpBlock { cidr, .. } in &mentions.blocks {
            let (first, last) = bounds(*cidr);
            work.addresses.extend(self.compiled.peers.between(first, last));
            work.prefixes.extend(self.classes.prefixes.within(*cidr));
        }
        let has = |labels: &Labels, keys: &BTreeSet<String>| keys.iter().any(|key| labels.contains_key(key));
        if !mentions.namespace_label_keys.is_empty() {
            for name in index.inhabited_namespaces() {
                if has(&index.namespace(name).labels, &mentions.namespace_label_keys) {
                    index.pods_in(name).for_each(|pod| work.pod(index, pod));
                }
            }
        }
        let Scope { label_keys, port_names, block_port_names, .. } = mentions;
        if label_keys.is_empty() && port_names.is_empty() && block_port_names.is_empty() {
            return;
        }
        for pod in index.pods() {
            let by_port = |port: &str| port_names.contains(port) || block_port_names.contains(port);
            if has(&pod.labels, label_keys) || pod.ports.iter().any(|port| by_port(&port.name)) {
                work.pod(index, pod);
            }
        }
    }

    /// Prefixes first: an address has its blocks from them, and a Service is what its backends are.
    fn carry_out(&mut self, index: &Index, mut work: Work, delta: &mut Delta) {
        let Self { settings, scope, classes, frontends, rule_sets, compiled, .. } = self;
        let mut classifier = Classifier::new(index, settings, scope, classes);
        for prefix in work.prefixes {
            if replace(&mut compiled.prefixes, prefix, classifier.prefix(prefix)) {
                delta.prefixes.insert(prefix);
            }
        }
        for address in work.addresses {
            let owner = index.owner(address);
            let peer = owner.map(|owner| classifier.peer(address, owner, &compiled.prefixes));
            let changed = match peer {
                Some(peer) if compiled.peers.get(&address) == Some(&peer) => false,
                Some(peer) => {
                    compiled.peers.insert(address, peer);
                    true
                }
                None => compiled.peers.remove(&address).is_some(),
            };
            if changed {
                delta.peers.insert(address);
            }
        }
        for key in work.endpoints {
            let pod = index.pod(&key).filter(|pod| index.is_endpoint(pod));
            let policy = pod.map(|pod| rule_sets.endpoint(index, settings, &mut classifier, pod));
            if replace(&mut compiled.endpoints, key.clone(), policy) {
                delta.endpoints.insert(key);
            }
        }
        for address in &delta.peers {
            work.frontends.extend(frontends.leading_to(*address));
        }
        for prefix in &delta.prefixes {
            work.frontends.extend(frontends.leading_into(*prefix));
        }
        let mut services = Vec::new();
        let mut projection = Projection::new(index, settings, classes, compiled);
        for frontend in work.frontends {
            let ports = frontends.ports(index, frontend);
            let class = (!ports.is_empty()).then(|| projection.identity(frontend, ports));
            services.push((frontend, class));
        }
        for (frontend, class) in services {
            if replace(&mut compiled.services, frontend, class) {
                delta.services.insert(frontend);
            }
        }
    }
}

/// What has to be looked at again.
#[derive(Debug, Default)]
struct Work {
    addresses: BTreeSet<IpAddr>,
    prefixes: BTreeSet<IpNetwork>,
    frontends: BTreeSet<Frontend>,
    endpoints: BTreeSet<Key>,
}

impl Work {
    fn pod(&mut self, index: &Index, pod: &Pod) {
        self.addresses.extend(index.addresses(pod));
        if index.is_endpoint(pod) {
            self.endpoints.insert(pod.key.clone());
        }
    }
}

/// Whether anything changed. Equal classes are one allocation, so that comparing them is cheap.
fn replace<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    match value {
        Some(value) if map.get(&key) == Some(&value) => false,
        Some(value) => {
            map.insert(key, value);
            true
        }
        None => map.remove(&key).is_some(),
    }
}
