//! What one pod may take of what all pods share: entries in the tables of connections and fragments, and room in the
//! ring buffer. What is over the budget is dropped or told of in less detail, and always counted.
//!
//! A purse holds the point in time until which what was taken is paid for (the generic cell rate algorithm, ITU-T
//! I.371): each thing taken moves it on by its price, and who is ahead of the clock by more than can be saved up gets
//! nothing. One word, no refill, and nothing to be set up.

use core::cell::Cell;

use crate::{
    abi::{
        DROP_EVENT_COST, DROP_EVENT_SAVINGS, IDENTITY_HOST, INGRESS, INGRESS_SHARE, Limits, PURSE_DROPS,
        PURSE_REFUSED,
    },
    decide::{At, Hook, Site},
    origin::{NOBODY, is_endpoint},
    tables::Tables,
};

/// Takes something from the purse, if it can be paid for.
#[inline(always)]
fn take(purse: &Cell<u64>, now: u64, cost: u64, savings: u64) -> bool {
    let paid = purse.get().max(now);
    if paid - now > savings {
        return false;
    }
    purse.set(paid + cost);
    true
}

/// Whether the pod may have one more entry for what begins at this hook.
#[inline(never)]
pub fn may_enter<T: Tables, H: At>(site: &Site<T, H>) -> bool {
    let Limits { entry_cost, savings } = site.tables.limits();
    let direction = site.hook().direction();
    let cost = if direction == INGRESS { entry_cost / INGRESS_SHARE } else { entry_cost };
    let mark = site.endpoint.mark;
    let Some(purse) = site.tables.purse(mark, direction.into()) else { return true };
    let may = take(purse, site.tables.now(), cost, savings);
    if !may && let Some(refused) = site.tables.purse(mark, PURSE_REFUSED) {
        refused.set(refused.get() + 1);
    }
    may
}

/// Who pays for a connection's entry: what a pod sends, the pod; what comes from elsewhere, the pod that is asked. What
/// another pod of this node sent by way of a Service was paid for as it left that pod, and the node itself, which
/// probes its pods, is free.
#[inline(always)]
pub fn is_charged(hook: Hook, origin: u32, identity: u32) -> bool {
    match hook {
        Hook::FromPod | Hook::ToOverlay => true,
        Hook::ToPod => !is_endpoint(origin) && (identity != IDENTITY_HOST || origin != NOBODY),
    }
}

/// Whether the endpoint with this mark may send one more event about a drop.
#[inline(always)]
pub fn may_tell<T: Tables>(tables: &T, mark: u16, now: u64) -> bool {
    tables.purse(mark, PURSE_DROPS).is_none_or(|purse| take(purse, now, DROP_EVENT_COST, DROP_EVENT_SAVINGS))
}
