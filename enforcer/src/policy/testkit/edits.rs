//! One change after another to a random cluster: what an agent lives through.

use std::{collections::BTreeSet, net::IpAddr};

use super::generate::Random;
use crate::cluster::{
    Index,
    object::{Key, Kind, Object, ObjectRef},
};

/// Pods and policies are numbered below these, so that edits often meet what is there.
const PODS: usize = 10;
const POLICIES: usize = 6;

/// Makes one change, or tries to; the sentence is for the message of a failing case.
pub fn edit(random: &mut Random, index: &mut Index) -> String {
    match random.below(19) {
        0..=3 => upsert_pod(random, index),
        4 => delete(random, index, Kind::Pod),
        5..=8 => {
            let name = format!("np{}", random.below(POLICIES));
            apply(index, Object::NetworkPolicy(random.policy(&name)))
        }
        9 | 10 => delete(random, index, Kind::NetworkPolicy),
        11 => {
            let namespaces = random.namespaces();
            match namespaces.into_iter().next() {
                Some(namespace) => apply(index, namespace),
                None => delete(random, index, Kind::Namespace),
            }
        }
        12 => delete(random, index, Kind::Namespace),
        13 => {
            let which = random.below(2);
            let node = random.nodes().swap_remove(which);
            if random.chance(30) { remove(index, &node.reference()) } else { apply(index, node) }
        }
        14 => attach(random, index),
        15 | 16 => upsert_service(random, index),
        17 => {
            let kind = if random.chance(50) { Kind::Service } else { Kind::EndpointSlice };
            delete(random, index, kind)
        }
        _ => interfaces(random, index),
    }
}

fn apply(index: &mut Index, object: Object) -> String {
    let line = format!("upsert {object:?}");
    index.apply(object);
    line
}

fn remove(index: &mut Index, reference: &ObjectRef) -> String {
    index.delete(reference);
    format!("delete {reference}")
}

/// A pod of before in the same place, so that its labels, address or phase change, or another one.
fn upsert_pod(random: &mut Random, index: &mut Index) -> String {
    let number = random.below(PODS);
    let mut pod = random.pod(number);
    let known: Vec<Key> = index.pods().map(|pod| pod.key.clone()).collect();
    if !known.is_empty() && random.chance(60) {
        pod.key = known[random.below(known.len())].clone();
    }
    apply(index, Object::Pod(pod))
}

fn delete(random: &mut Random, index: &mut Index, kind: Kind) -> String {
    let cluster_wide = |name: &str| Key::new("", name);
    let known: Vec<Key> = match kind {
        Kind::Pod => index.pods().map(|pod| pod.key.clone()).collect(),
        Kind::NetworkPolicy => index.policies().map(|policy| policy.key.clone()).collect(),
        Kind::Namespace => index.namespaces().map(|namespace| cluster_wide(&namespace.name)).collect(),
        Kind::Service => index.services().services().map(|service| service.key.clone()).collect(),
        Kind::EndpointSlice => index.services().slices().map(|slice| slice.key.clone()).collect(),
        Kind::Node => index.nodes().map(|node| cluster_wide(&node.name)).collect(),
    };
    if known.is_empty() {
        return format!("no {kind} to delete");
    }
    remove(index, &ObjectRef { kind, key: known[random.below(known.len())].clone() })
}

/// A Service or one of its slices: now and then both.
fn upsert_service(random: &mut Random, index: &mut Index) -> String {
    let pods = index.pods().map(|pod| Object::Pod(pod.clone())).collect::<Vec<_>>();
    if pods.is_empty() {
        return "no pod to stand behind a Service".to_owned();
    }
    let number = random.below(4);
    let objects = random.service(number, &pods);
    let first = random.below(objects.len());
    let kept = if random.chance(30) { objects.len() } else { 1 };
    let lines = objects.into_iter().cycle().skip(first).take(kept).map(|object| apply(index, object));
    lines.collect::<Vec<_>>().join(", ")
}

/// A pod's interface comes or goes here, at times with an address that is also somebody else's.
fn attach(random: &mut Random, index: &mut Index) -> String {
    let pods: Vec<_> = index.pods().map(|pod| (pod.key.clone(), index.addresses(pod))).collect();
    if pods.is_empty() {
        return "no pod to attach".to_owned();
    }
    let (key, own) = pods[random.below(pods.len())].clone();
    if random.chance(35) {
        index.detach(&key);
        return format!("detach {key}");
    }
    let others = pods[random.below(pods.len())].1.clone();
    let addresses: BTreeSet<IpAddr> = match random.below(3) {
        0 => own,
        1 => others,
        _ => [IpAddr::from([10, 244, 1, 77])].into(),
    };
    let line = format!("attach {key} {addresses:?}");
    index.attach(key, addresses);
    line
}

fn interfaces(random: &mut Random, index: &mut Index) -> String {
    if random.chance(40) {
        let networks =
            ["10.244.0.0/16", "fd00:244::/32", "10.0.0.0/8"].map(|n| n.parse().expect("a constant"));
        let networks: BTreeSet<_> = networks.into_iter().filter(|_| random.chance(40)).collect();
        let line = format!("pod networks {networks:?}");
        index.set_pod_networks(networks);
        return line;
    }
    let all = ["192.168.0.1", "10.244.1.1", "10.244.1.11", "fd00:f::1", "203.0.113.7"];
    let addresses: BTreeSet<IpAddr> =
        all.into_iter().filter(|_| random.chance(40)).map(|a| a.parse().expect("a constant")).collect();
    let line = format!("local addresses {addresses:?}");
    index.set_local_addresses(addresses);
    line
}
