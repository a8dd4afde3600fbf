//! What goes even when what comes finds no room: an address must not lend its last owner's identity to the next
//! (semantics 32), and a record must not outlive its pod. Nothing here needs an entry.

use std::collections::BTreeMap;

use bulkhead_ebpf::abi::{FIRST_POD_IDENTITY, PolicyWord};

use super::{
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
) -> Vec<Op> {
    let known = |number: u32| numbers.identities.value(number).map(AsRef::as_ref);
    let lost = image.peers.iter().filter(|(address, peer)| {
        let Some(now) = compiled.peers.get(*address) else { return true };
        match (known(peer.identity), now.identity.as_ref()) {
            (Some(Identity::Pod(before)), Identity::Pod(now)) => !may_be_the_same(before, now),
            (None, Identity::Pod(_)) => peer.identity < FIRST_POD_IDENTITY, // it was a node's
            (Some(_), _) => true,
            (None, _) => false,
        }
    });
    let mut ops: Vec<Op> = lost.map(|(address, _)| Op::RemovePeer(*address)).collect();
    if !ops.is_empty() {
        for endpoint in image.endpoints.values().filter(|endpoint| locals.contains_key(&endpoint.ifindex)) {
            let mut endpoint = *endpoint;
            // Connections with these addresses are judged again.
            endpoint.policy = PolicyWord::new(endpoint.policy.rule_set(), numbers.next_generation());
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
