//! Numbers and addresses outlive what they named, but not for ever.

use super::*;
use crate::flow::names::MEMORY;

fn at(names: &Names, bytes: [u8; 4], time: u64) -> Party {
    Party::clone(&names.party(address(bytes), 0, time))
}

#[test]
fn a_late_event_names_the_pod_that_had_the_address_then() {
    let before = names();
    let successor = pod("shop", "cart-1", "cart", 301, 13);
    let mut tables = tables();
    tables.parties.insert(address(CART), successor.clone());
    let after = before.next(tables, 100);

    assert_eq!(at(&after, CART, 99), pod("shop", "cart-0", "cart", 301, CART_ENDPOINT));
    assert_eq!(at(&after, CART, 100), successor);
    assert_eq!(at(&before, CART, 100), pod("shop", "cart-0", "cart", 301, CART_ENDPOINT), "a snapshot stays");
}

#[test]
fn what_is_gone_is_known_for_a_while_and_then_forgotten() {
    let gone = names().next(Tables::default(), 100);
    assert_eq!(at(&gone, CART, 200), pod("shop", "cart-0", "cart", 301, CART_ENDPOINT));
    assert!(gone.endpoints.at(&CART_ENDPOINT, 200).is_some());
    assert!(gone.grants.at(&ALLOW_FRONT, 200).is_some());
    assert!(gone.rule_sets.at(&CART_RULES, 200).is_some());

    let memory = u64::try_from(MEMORY.as_nanos()).unwrap();
    let mut kept = gone.clone();
    kept.forget(100 + memory);
    assert!(kept.grants.at(&ALLOW_FRONT, 200).is_some());
    kept.forget(101 + memory);
    assert!(kept.grants.at(&ALLOW_FRONT, 200).is_none());
    assert_eq!(at(&kept, CART, 200).who, Who::World, "no pod network is known any more either");
}

#[test]
fn a_connections_end_still_names_the_service_that_is_gone() {
    let gone = names().next(Tables::default(), 100);
    assert_eq!(
        gone.services.at(&super::at(CART_SERVICE, 8080), 200),
        Some(&Arc::new(Key::new("shop", "cart")))
    );
    let memory = u64::try_from(MEMORY.as_nanos()).unwrap();
    let mut kept = gone.clone();
    kept.forget(101 + memory);
    assert_eq!(kept.services.at(&super::at(CART_SERVICE, 8080), 200), None);
}

#[test]
fn one_edit_is_as_good_as_a_whole_new_snapshot() {
    let mut edited = names();
    edited.parties.remove(&address(CART), 100);
    edited.parties.set(address(FRONT), pod("shop", "front-0", "front", 300, 11), 100);
    assert_eq!(at(&edited, CART, 200), pod("shop", "cart-0", "cart", 301, CART_ENDPOINT));
    assert_eq!(at(&edited, FRONT, 50), pod("shop", "front-0", "front", 300, 11));
}

#[test]
fn an_address_that_nobody_owns_is_told_by_its_identity_or_its_network() {
    let stranger = |address: [u8; 4], identity| {
        let party = names().party(address.into(), identity, 0);
        (party.who.clone(), party.identity)
    };
    let cases = [
        ([10, 244, 7, 7], 0, (Who::Unmanaged, 4)),
        ([10, 244, 7, 7], 4, (Who::Unmanaged, 4)),
        ([10, 244, 7, 7], 1, (Who::Host, 1)),
        ([192, 168, 0, 2], 2, (Who::RemoteNode, 2)),
        ([8, 8, 8, 8], 3, (Who::World, 3)),
        ([8, 8, 8, 8], 0, (Who::World, 3)),
        ([10, 244, 7, 7], 999, (Who::Unmanaged, 999)),
    ];
    for (address, identity, want) in cases {
        assert_eq!(stranger(address, identity), want, "{address:?} with identity {identity}");
    }
}
