//! What goes even when what comes finds no room: an address must not lend its last owner's identity to the next
//! (semantics 32), a record must not outlive its pod, and rules that must give way to others' do. Nothing here needs an
//! entry.

use std::collections::BTreeMap;

use bulkhead_ebpf::abi::{FIRST_POD_IDENTITY, PolicyWord};

use super::{
    crowd::{Crowded, InForce},
    image::{Image, Op},
    numbers::Numbers,
    transition::Local,
};
use crate::policy::model::{Compiled, Identity, PodIdentity};

/// An address that is withdrawn is what its prefix says, an unknown pod's as a rule: who may reach that, may.
pub(super) fn withdrawals(
    image: &Image,
    numbers: &mut Numbers,
    compiled: &Compiled,
    locals: &BTreeMap<u32, Local>,
    crowded: &Crowded,
) -> Vec<Op> {
    let known = |number: u32| numbers.identities.value(number).map(AsRef::as_ref);
    let lost = image.peers.iter().filter(|(address, peer)| {
        let Some(now) = compiled.peers.get(address) else { return true };
        match (known(peer.identity), now.identity.as_ref()) {
            (Some(Identity::Pod(before)), Identity::Pod(now)) => !may_be_the_same(before, now),
            (None, Identity::Pod(_)) => peer.identity < FIRST_POD_IDENTITY, // it was a node's
            (Some(_), _) => true,
            (None, _) => false,
        }
    });
    let mut ops: Vec<Op> = lost.map(|(address, _)| Op::RemovePeer(address)).collect();
    let judge_again = !ops.is_empty();
    for endpoint in image.endpoints.values() {
        let Some(local) = locals.get(&endpoint.ifindex) else { continue };
        let namespace = local.pod.as_ref().map(|pod| &*pod.namespace);
        let gives_way = namespace.and_then(|name| crowded.get(name)) == Some(&InForce::Isolation);
        // Rule set 0 admits nothing, the node neither; what the pod gets when there is room again has the node in it.
        let rule_set = if gives_way { 0 } else { endpoint.policy.rule_set() };
        if judge_again || rule_set != endpoint.policy.rule_set() {
            let mut endpoint = *endpoint;
            endpoint.policy = PolicyWord::new(rule_set, numbers.next_generation());
            ops.push(Op::SetEndpoint(endpoint));
        }
    }
    let gone = image.endpoints.keys().filter(|ifindex| !locals.contains_key(ifindex));
    ops.extend(gone.map(|ifindex| Op::RemoveEndpoint(*ifindex)));
    ops
}

/// Under whatever scopes the two were projected: they contradict each other in nothing.
fn may_be_the_same(before: &PodIdentity, now: &PodIdentity) -> bool {
    let agree = |(key, value)| now.labels.get(key).is_none_or(|other| other == value);
    (&before.namespace, &before.tenant) == (&now.namespace, &now.tenant)
        && before.labels.iter().all(|(key, value)| agree((key, value)))
}
