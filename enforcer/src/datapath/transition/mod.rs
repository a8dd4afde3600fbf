//! The way from what the kernel holds to what it must hold, as a list of writes of which every prefix is safe.
//!
//! ```text
//! scope = old ∪ new:  rules of old and new rule sets ─▶ addresses ─▶ endpoints (rule set, generation, view)
//! scope = new:        rules of the rule sets in force ─▶ addresses
//! ```
//! A rule is written before any address or endpoint can lead to it, and an address means the same to the
//! rule set in force before and after it moves: the scope that both rule sets share sees to that. So a packet
//! is judged by the whole old policy or by the whole new one, and if a write fails the plan stops there: every
//! endpoint keeps its last complete rule set (semantics 42). Tenants, where both ends may move at once, have a way of
//! their own: see [`super::views`].
//!
//! Planning costs what changed: what is new among identities and block sets is a range of numbers, what is new
//! among addresses and endpoints the compiler tells. Only the first plan, and one after a write that failed,
//! looks at everything.

mod addresses;
mod endpoints;
mod rules;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_ebpf::abi::{Endpoint, Peer};

use super::{
    crowd::Crowded,
    image::{Image, Op},
    ledger::Ledger,
    numbers::{Mark, Numbers},
    sizes::Sizes,
};
use crate::{
    cluster::{Frontend, object::Key},
    policy::{
        Delta,
        model::{BlockSet, Compiled, Identity, Scope},
    },
};

/// An interface to be enforced: what is known of a pod besides its policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    pub id: u32,
    pub ifindex: u32,
    /// `None`: only its record is known, which then stays as it is (its state file was lost).
    pub pod: Option<Key>,
    pub mac: [u8; 6],
    /// At most one per family.
    pub addresses: BTreeSet<IpAddr>,
    /// The pod ran before bulkhead did.
    pub adopted: bool,
    /// No address leads here yet: its packets would be judged elsewhere, as this pod's, before its own hooks do it.
    pub silent: bool,
}

/// Writes to carry out in order, and what holds when all of them have succeeded.
#[derive(Debug)]
pub struct Plan {
    pub ops: Vec<Op>,
    /// Addresses that will be something else; `None`: nothing of their own.
    pub peers: BTreeMap<IpAddr, Option<Peer>>,
    /// All records, by interface index.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// The most that each map has to hold on the way.
    pub(super) needed: Sizes,
    pub(super) expanded: Expanded,
    pub(super) locals: BTreeMap<u32, Local>,
    /// Nothing is projected onto these any more.
    pub(super) left: Scope,
    /// Where Services are reached for which there is no room.
    pub(super) unlisted: BTreeSet<Frontend>,
}

/// Which rules are in the kernel: of each rule set, those for the identities and block sets below a mark.
/// What a rule set admits from a peer never changes, so only new pairs need looking at, however many rules
/// there are.
pub(super) type Expanded = BTreeMap<u32, Mark>;

/// What may differ from what the kernel holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Changed<'d> {
    Everything,
    Only(&'d Delta),
}

/// What the kernel holds, as planning needs to know it.
#[derive(Clone, Copy)]
pub(super) struct Held<'a> {
    pub image: &'a Image,
    pub sizes: Sizes,
    pub expanded: &'a Expanded,
    pub locals: &'a BTreeMap<u32, Local>,
    /// Namespaces for whose rules there is no room: see [`super::crowd`].
    pub crowded: &'a Crowded,
    /// Frontends for which there was no room.
    pub unlisted: &'a BTreeSet<Frontend>,
    /// What the kernel can hold: where there are more rules, the plan comes to nothing, and no more are sought.
    pub room: Sizes,
}

/// A plan in the making.
pub(super) struct Draft<'a> {
    numbers: &'a mut Numbers,
    /// Endpoints as last brought to the kernel.
    placed: &'a BTreeMap<u32, Local>,
    ledger: Ledger<'a>,
    known: &'a Expanded,
    crowded: &'a Crowded,
    room: Sizes,
    unlisted: BTreeSet<Frontend>,
    expanded: Expanded,
    /// Numbers of what one step has met, by address of the shared value.
    met: HashMap<usize, u32>,
}

impl<'a> Draft<'a> {
    pub fn new(numbers: &'a mut Numbers, held: Held<'a>) -> Self {
        Self {
            numbers,
            placed: held.locals,
            ledger: Ledger::on(held.image, held.sizes),
            known: held.expanded,
            crowded: held.crowded,
            room: held.room,
            unlisted: held.unlisted.clone(),
            expanded: Expanded::new(),
            met: HashMap::new(),
        }
    }

    /// From the policies in force to others, in a scope that both understand.
    pub fn change(&mut self, compiled: &Compiled, changed: Changed<'_>, locals: &BTreeMap<u32, Local>) {
        self.go(compiled, changed, locals, true);
    }

    /// To another scope under the same policies: numbers change, and no verdict.
    pub fn rescope(&mut self, compiled: &Compiled, changed: Changed<'_>, locals: &BTreeMap<u32, Local>) {
        self.go(compiled, changed, locals, false);
    }

    /// `judges`: connections must be judged again if an address is not what it was.
    fn go(&mut self, compiled: &Compiled, changed: Changed<'_>, locals: &BTreeMap<u32, Local>, judges: bool) {
        self.met.clear();
        let addresses = self.addresses(compiled, changed, locals);
        self.write_all_rules(compiled, changed, locals);
        let moved = self.move_addresses(addresses);
        self.switch_endpoints(compiled, changed, locals, judges && moved.any, moved.view);
        // Nobody sees any more what tenants were.
        for op in moved.settled {
            self.ledger.push(op);
        }
    }

    pub fn finish(self, locals: &BTreeMap<u32, Local>, left: Scope) -> Plan {
        Plan {
            ops: self.ledger.ops,
            peers: self.ledger.peers.into_edits(),
            endpoints: self.ledger.endpoints,
            needed: self.ledger.needed,
            expanded: self.expanded,
            locals: locals.clone(),
            left,
            unlisted: self.unlisted,
        }
    }

    /// The compiler shares equal values, so that few are looked up by what they hold.
    fn identity(&mut self, identity: &Arc<Identity>) -> u32 {
        let numbers = &mut *self.numbers;
        *self.met.entry(Arc::as_ptr(identity).addr()).or_insert_with(|| numbers.identity(identity))
    }

    fn blocks(&mut self, blocks: &Arc<BlockSet>) -> u32 {
        let numbers = &mut *self.numbers;
        *self.met.entry(Arc::as_ptr(blocks).addr()).or_insert_with(|| numbers.blocks(blocks))
    }
}
