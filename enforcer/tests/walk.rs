//! A connection table of the real kernel, read through while it changes. Needs root.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use aya::maps::{HashMap, Map, MapData};
use bulkhead::datapath::{
    kernel::Maps,
    programs::{Capacity, load_private},
};
use bulkhead_ebpf::abi::{Conn, ConnKey4, names};

/// Several batches of them.
const ENTRIES: u16 = 10_000;

fn key(number: u16) -> ConnKey4 {
    ConnKey4 {
        addresses: [[10, 244, 0, 1], [10, 244, 0, 2]],
        ports_be: [number.to_be_bytes(), [0, 80]],
        protocol: 6,
        pad: [0; 3],
    }
}

/// The table with its entries, and a second handle of it.
fn full() -> (Maps, HashMap<MapData, ConnKey4, Conn>) {
    let mut ebpf = load_private(Capacity { connections: 1 << 16 }).unwrap();
    let Some(Map::LruHashMap(data)) = ebpf.map(names::CONNS_V4) else { panic!("no such table") };
    let again = MapData::from_id(data.info().unwrap().id()).unwrap();
    let mut maps = Maps::take(&mut ebpf).unwrap();
    for number in 0..ENTRIES {
        let conn = Conn { started: number.into(), ..Conn::default() };
        assert!(maps.conns_v4().learn(&key(number), &conn, None).unwrap());
    }
    (maps, Map::LruHashMap(again).try_into().unwrap())
}

fn number(key: &ConnKey4) -> u16 {
    u16::from_be_bytes(key.ports_be[0])
}

#[test]
fn every_connection_of_a_large_table_is_read_once_with_its_own_value() {
    let (mut maps, _) = full();
    assert_eq!((maps.conns_v6().entries().count(), maps.conns_v4().capacity().unwrap()), (0, 1 << 16));
    let mut read: Vec<_> = maps
        .conns_v4()
        .entries()
        .map(|entry| entry.map(|(key, conn)| (number(&key), conn.started)).unwrap())
        .collect();
    read.sort_unstable();
    assert_eq!(read, (0..ENTRIES).map(|number| (number, number.into())).collect::<Vec<_>>());
}

#[test]
fn what_stays_is_read_once_though_others_go_meanwhile() {
    let (mut maps, mut table) = full();
    let mut even = BTreeSet::new();
    for entry in maps.conns_v4().entries() {
        let at = number(&entry.unwrap().0);
        assert!(at % 2 == 1 || even.insert(at), "{at} came twice");
        // The odd one that the walk may stand on, and one that may be still to come.
        for goes in [at | 1, (at.wrapping_mul(7) % ENTRIES) | 1] {
            let _ = table.remove(&key(goes));
        }
    }
    assert_eq!(even.len(), usize::from(ENTRIES / 2));
}
