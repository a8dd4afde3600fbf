//! How tenants change. An endpoint compares its own tenant with its peer's, and a namespace that moves takes both along:
//! written one after the other, they would be apart for a moment, or two tenants that change places together.
//!
//! ```text
//! addresses: [before, after] ─▶ endpoints: tenant and view in one word ─▶ addresses: [after, after]
//! ```
//! So an endpoint sees all tenants, its own too, as they were or as they are to be. If the writes end on the way, each
//! endpoint stays where it is (fail static), and the next plan goes on from there.

use std::collections::BTreeSet;

use bulkhead_ebpf::abi::{Peer, TenantWord};

/// The view in which all endpoints see `desired` after the plan: the one they have, if that needs no tenant to change.
/// `addresses`: what changes, as the kernel holds it and as it is to be.
///
/// Endpoints differ in their views only after a plan that ended on its way. That plan's aim is taken for where to go: it
/// is where less is left to change. Should anything be, endpoints that are there already see that change a moment before
/// their own tenant's.
pub(super) fn next<'p>(
    endpoints: impl Iterator<Item = TenantWord>,
    addresses: impl Iterator<Item = (&'p Peer, &'p Peer)>,
) -> u32 {
    let now: BTreeSet<u32> = endpoints.map(TenantWord::view).collect();
    let mut wrong = [0_usize; 2];
    for (held, desired) in addresses {
        for (wrong, (held, desired)) in wrong.iter_mut().zip(held.tenants.iter().zip(desired.tenants)) {
            *wrong += usize::from(*held != desired);
        }
    }
    match now.into_iter().collect::<Vec<_>>()[..] {
        [view] if wrong[view as usize] == 0 => view,
        [view] => 1 - view,
        _ => u32::from(wrong[1] < wrong[0]),
    }
}

/// What the address is until all endpoints have come to `view`: for those that have not, it keeps its tenant.
pub(super) fn on_the_way(held: Option<&Peer>, desired: Peer, view: u32) -> Peer {
    let Some(held) = held else { return desired };
    let [before, after] = desired.tenants;
    let tenants = if view == 0 { [before, held.tenants[1]] } else { [held.tenants[0], after] };
    Peer { tenants, ..desired }
}
