//! Which numbers the kernel's maps lead to: what nothing leads to any more can be tidied away.

use std::collections::{BTreeSet, HashMap};

use bulkhead_ebpf::abi::{Endpoint, FIRST_POD_IDENTITY, Peer};

use super::image::{Image, Op};

/// Counted write by write.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// Addresses, prefixes, Services and endpoints, by identity and tagged block set.
    peers: HashMap<u32, usize>,
    /// Endpoints, by rule set.
    rule_sets: HashMap<u32, usize>,
    /// Not in use any more, since [`Usage::take_idle`].
    idle_peers: BTreeSet<u32>,
    idle_rule_sets: BTreeSet<u32>,
}

impl Usage {
    pub fn of(image: &Image) -> Self {
        let mut usage = Self::default();
        for peer in image.peers.values().chain(image.prefixes.values()) {
            usage.count_peer(*peer);
        }
        image.services.values().for_each(|identity| usage.count(*identity));
        image.endpoints.values().for_each(|endpoint| usage.count_endpoint(endpoint));
        usage
    }

    /// To be called before `image` takes the write.
    pub fn note(&mut self, op: &Op, image: &Image) {
        match op {
            Op::SetPeer(address, peer) => self.replace_peer(image.peers.get(address), Some(*peer)),
            Op::RemovePeer(address) => self.replace_peer(image.peers.get(address), None),
            Op::SetPrefix(prefix, peer) => self.replace_peer(image.prefixes.get(prefix), Some(*peer)),
            Op::RemovePrefix(prefix) => self.replace_peer(image.prefixes.get(prefix), None),
            Op::SetService(service, identity) => {
                self.count(*identity);
                self.release(image.services.get(service).copied());
            }
            Op::RemoveService(service) => self.release(image.services.get(service).copied()),
            Op::SetEndpoint(endpoint) => {
                self.replace_endpoint(image.endpoints.get(&endpoint.ifindex), Some(endpoint));
            }
            Op::RemoveEndpoint(ifindex) => self.replace_endpoint(image.endpoints.get(ifindex), None),
            Op::SetRule(..) | Op::RemoveRule(_) => {}
        }
    }

    pub fn uses_peer(&self, number: u32) -> bool {
        number < FIRST_POD_IDENTITY || self.peers.contains_key(&number)
    }

    pub fn uses_rule_set(&self, number: u32) -> bool {
        self.rule_sets.contains_key(&number)
    }

    /// Identities and block sets, and rule sets, that went out of use since the last call.
    pub fn take_idle(&mut self) -> (BTreeSet<u32>, BTreeSet<u32>) {
        (std::mem::take(&mut self.idle_peers), std::mem::take(&mut self.idle_rule_sets))
    }

    fn replace_peer(&mut self, old: Option<&Peer>, new: Option<Peer>) {
        if let Some(new) = new {
            self.count_peer(new);
        }
        if let Some(old) = old {
            self.release(Some(old.identity));
            self.release(Some(old.blocks));
        }
    }

    fn replace_endpoint(&mut self, old: Option<&Endpoint>, new: Option<&Endpoint>) {
        if let Some(new) = new {
            self.count_endpoint(new);
        }
        if let Some(old) = old {
            self.release(Some(old.identity));
            release(&mut self.rule_sets, old.policy.rule_set(), &mut self.idle_rule_sets);
        }
    }

    fn count_peer(&mut self, peer: Peer) {
        self.count(peer.identity);
        self.count(peer.blocks);
    }

    fn count(&mut self, number: u32) {
        *self.peers.entry(number).or_default() += 1;
    }

    fn release(&mut self, number: Option<u32>) {
        if let Some(number) = number {
            release(&mut self.peers, number, &mut self.idle_peers);
        }
    }

    fn count_endpoint(&mut self, endpoint: &Endpoint) {
        self.count(endpoint.identity);
        *self.rule_sets.entry(endpoint.policy.rule_set()).or_default() += 1;
    }
}

fn release(counts: &mut HashMap<u32, usize>, number: u32, idle: &mut BTreeSet<u32>) {
    let count = counts.get_mut(&number).expect("what is replaced was counted");
    *count -= 1;
    if *count == 0 {
        counts.remove(&number);
        idle.insert(number);
    }
}
