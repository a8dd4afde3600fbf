//! From a failing case to a small one: greedy delta debugging over the objects.
//!
//! A case is a function of its seed, so shrinking the seed finds another case, not a smaller one. Here parts are
//! left out, the big ones first, for as long as the case fails without them.

use super::generate::Case;
use crate::{
    cluster::compact::Set,
    cluster::object::{
        EndpointSlice, IpBlock, Labels, NAMESPACE_NAME_LABEL, Namespace, NetworkPolicy, Object, Peer, Pod,
        Rule, Selector, Service,
    },
    policy::Settings,
};

/// The case with everything left out that can be, one thing at a time. `fails` must hold of `case`.
pub fn smallest(mut case: Case, fails: impl Fn(&Case) -> bool) -> Case {
    loop {
        let smaller = smaller(&case).find(&fails);
        match smaller {
            Some(smaller) => case = smaller,
            None => return case,
        }
    }
}

fn smaller(case: &Case) -> impl Iterator<Item = Case> {
    let one_probe = (case.probes.len() > 1).then(|| case.probes.iter().map(|probe| vec![probe.clone()]));
    let probes = one_probe.into_iter().flatten().map(|probes| Case { probes, ..case.clone() });
    let objects = without_one(&case.objects).into_iter().map(|objects| Case { objects, ..case.clone() });
    let parts = case.objects.iter().enumerate().flat_map(move |(place, object)| {
        parts_left_out(object).into_iter().map(move |object| {
            let mut smaller = case.clone();
            smaller.objects[place] = object;
            smaller
        })
    });
    let no_tenants = Settings { tenant_label: None, ..case.settings.clone() };
    let settings = (no_tenants != case.settings).then(|| Case { settings: no_tenants, ..case.clone() });
    probes.chain(objects).chain(settings).chain(parts)
}

/// The object without each of its parts in turn.
fn parts_left_out(object: &Object) -> Vec<Object> {
    match object {
        Object::Namespace(namespace) => namespaces(namespace).map(Object::Namespace).collect(),
        Object::Pod(pod) => pods(pod).map(Object::Pod).collect(),
        Object::Node(_) => Vec::new(),
        Object::NetworkPolicy(policy) => policies(policy).map(Object::NetworkPolicy).collect(),
        Object::Service(service) => services(service).map(Object::Service).collect(),
        Object::EndpointSlice(slice) => slices(slice).map(Object::EndpointSlice).collect(),
    }
}

fn namespaces(namespace: &Namespace) -> impl Iterator<Item = Namespace> {
    let has_name = |labels: &Labels| labels.contains_key(NAMESPACE_NAME_LABEL);
    let labels = without_one(&namespace.labels).into_iter().filter(has_name);
    let labels = labels.map(|labels| Namespace { labels, ..namespace.clone() });
    let annotations = without_one(&namespace.annotations).into_iter();
    labels.chain(annotations.map(|annotations| Namespace { annotations, ..namespace.clone() }))
}

fn pods(pod: &Pod) -> impl Iterator<Item = Pod> {
    let labels = without_one(&pod.labels).into_iter().map(|labels| Pod { labels, ..pod.clone() });
    let ips = without_one(&pod.ips).into_iter().map(|ips| Pod { ips, ..pod.clone() });
    let ports = without_one(&pod.ports).into_iter().map(|ports| Pod { ports, ..pod.clone() });
    labels.chain(ips).chain(ports)
}

fn policies(policy: &NetworkPolicy) -> impl Iterator<Item = NetworkPolicy> {
    let subjects = selectors(&policy.subjects).map(|subjects| NetworkPolicy { subjects, ..policy.clone() });
    let ingress =
        directions(policy.ingress.as_ref()).map(|ingress| NetworkPolicy { ingress, ..policy.clone() });
    let egress = directions(policy.egress.as_ref()).map(|egress| NetworkPolicy { egress, ..policy.clone() });
    ingress.chain(egress).chain(subjects)
}

fn directions(rules: Option<&Vec<Rule>>) -> impl Iterator<Item = Option<Vec<Rule>>> {
    let whole = rules.map(|_| None);
    let fewer = rules.into_iter().flat_map(without_one).map(Some);
    let smaller = rules.into_iter().flat_map(|rules| with_one_changed(rules, rule_parts)).map(Some);
    whole.into_iter().chain(fewer).chain(smaller)
}

fn rule_parts(rule: &Rule) -> Vec<Rule> {
    let peers = without_one(&rule.peers).into_iter();
    let peers =
        peers.chain(with_one_changed(&rule.peers, peer_parts)).map(|peers| Rule { peers, ..rule.clone() });
    let ports = without_one(&rule.ports).into_iter().map(|ports| Rule { ports, ..rule.clone() });
    peers.chain(ports).collect()
}

fn peer_parts(peer: &Peer) -> Vec<Peer> {
    match peer {
        Peer::Block(block) => {
            let except = without_one::<Set<_>>(&block.except).into_iter().map(Into::into);
            except.map(|except| Peer::Block(IpBlock { except, ..block.clone() })).collect()
        }
        Peer::Pods { namespaces, pods } => {
            let fewer = namespaces.iter().flat_map(selectors);
            let fewer = fewer.map(|n| Peer::Pods { namespaces: Some(n), pods: pods.clone() });
            let pods = selectors(pods).map(|pods| Peer::Pods { namespaces: namespaces.clone(), pods });
            fewer.chain(pods).collect()
        }
    }
}

fn selectors(selector: &Selector) -> impl Iterator<Item = Selector> {
    without_one(&selector.requirements).into_iter().map(|requirements| Selector { requirements })
}

fn services(service: &Service) -> impl Iterator<Item = Service> {
    let addresses =
        without_one(&service.addresses).into_iter().map(|addresses| Service { addresses, ..service.clone() });
    let ports = without_one(&service.ports).into_iter().map(|ports| Service { ports, ..service.clone() });
    addresses.chain(ports)
}

fn slices(slice: &EndpointSlice) -> impl Iterator<Item = EndpointSlice> {
    let addresses = without_one(&slice.addresses)
        .into_iter()
        .map(|addresses| EndpointSlice { addresses, ..slice.clone() });
    let ports = without_one(&slice.ports).into_iter().map(|ports| EndpointSlice { ports, ..slice.clone() });
    addresses.chain(ports)
}

/// The collection without each of its items in turn.
fn without_one<C>(all: &C) -> Vec<C>
where
    C: Clone + IntoIterator + FromIterator<<C as IntoIterator>::Item>,
{
    let without = |place: usize| {
        let kept = all.clone().into_iter().enumerate().filter(|(i, _)| *i != place);
        kept.map(|(_, item)| item).collect()
    };
    (0..all.clone().into_iter().count()).map(without).collect()
}

/// The list with each item in turn in each of its smaller forms.
fn with_one_changed<T: Clone>(all: &[T], smaller: impl Fn(&T) -> Vec<T>) -> Vec<Vec<T>> {
    let changed = |place: usize| {
        smaller(&all[place]).into_iter().map(move |item| {
            let mut all = all.to_vec();
            all[place] = item;
            all
        })
    };
    (0..all.len()).flat_map(changed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::object::{Port, Ports};

    fn rules(case: &Case) -> Vec<&Rule> {
        let policies =
            case.objects.iter().filter_map(|o| if let Object::NetworkPolicy(p) = o { Some(p) } else { None });
        policies.flat_map(|policy| policy.egress.iter().flatten()).collect()
    }

    fn pods_of(case: &Case) -> Vec<&Pod> {
        case.objects.iter().filter_map(|o| if let Object::Pod(p) = o { Some(p) } else { None }).collect()
    }

    /// A fault that takes one named port in an egress rule beside a peer that is a block, and one labelled pod.
    fn planted(case: &Case) -> bool {
        let is_named = |port: &Port| matches!(port.ports, Ports::Named(_));
        let is_block = |peer: &Peer| matches!(peer, Peer::Block(_));
        let named = |rule: &&Rule| rule.ports.iter().any(is_named) && rule.peers.iter().any(is_block);
        rules(case).iter().any(named)
            && pods_of(case).iter().any(|pod| !pod.labels.is_empty())
            && !case.probes.is_empty()
    }

    #[test]
    fn of_a_failing_case_nothing_is_left_but_what_makes_it_fail() {
        let failing: Vec<Case> = (0..200).map(|seed| Case::of(seed, 8)).filter(planted).take(20).collect();
        assert_eq!(failing.len(), 20, "the generator reaches the planted fault");
        for case in failing {
            let small = smallest(case, planted);
            assert_eq!((small.objects.len(), small.probes.len()), (2, 1), "{small:#?}");
            let (rules, pods) = (rules(&small), pods_of(&small));
            assert_eq!((rules.len(), rules[0].peers.len(), rules[0].ports.len()), (1, 1, 1), "{small:#?}");
            assert_eq!(
                (pods.len(), pods[0].labels.len(), pods[0].ips.len(), pods[0].ports.len()),
                (1, 1, 0, 0)
            );
            assert_eq!(small.settings.tenant_label, None);
        }
    }

    #[test]
    fn what_cannot_be_left_out_stays() {
        let case = Case::of(3, 8);
        assert_eq!(format!("{:?}", smallest(case.clone(), |_| false)), format!("{case:?}"));
    }
}
