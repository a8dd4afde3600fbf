//! Namespaces that go from one tenant to another: at every write, and whenever the writes end there, each endpoint sees
//! all tenants as they were or all as they are to be.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use bulkhead_ebpf::abi;
use proptest::prelude::*;

use super::{Image, Local, Model, Tables, allows};
use crate::{
    cluster::{
        Index,
        object::{Key, Labels, Namespace, Node, Object, Pod},
    },
    policy::{Compiler, Settings},
};

/// Of each namespace two pods here and one elsewhere.
const PODS: [(&str, &str, &str); 9] = [
    ("red", "one", "10.244.1.10"),
    ("red", "one", "10.244.1.11"),
    ("red", "two", "10.244.2.10"),
    ("green", "one", "10.244.1.20"),
    ("green", "one", "10.244.1.21"),
    ("green", "two", "10.244.2.20"),
    ("blue", "one", "10.244.1.30"),
    ("blue", "one", "10.244.1.31"),
    ("blue", "two", "10.244.2.30"),
];

/// Tenants of red, green and blue; `None`: shared.
type Tenants = [Option<&'static str>; 3];

fn namespace(name: &str, tenant: Option<&str>) -> Object {
    let tenant = tenant.map(|tenant| ("bulkhead.io/tenant".to_owned(), tenant.to_owned()));
    Object::Namespace(Namespace {
        name: name.into(),
        labels: tenant.into_iter().collect(),
        annotations: Labels::new(),
    })
}

fn cluster(tenants: Tenants) -> Index {
    let mut index = Index::new(Some("one".to_owned()));
    for (name, tenant) in ["red", "green", "blue"].into_iter().zip(tenants) {
        index.apply(namespace(name, tenant));
    }
    for (name, net) in [("one", "10.244.1.0/24"), ("two", "10.244.2.0/24")] {
        let pod_cidrs = [net.parse().expect("prefix")].into();
        index.apply(Object::Node(Node { name: name.into(), addresses: [].into(), pod_cidrs }));
    }
    for (namespace, node, address) in PODS {
        index.apply(Object::Pod(Pod {
            key: key(namespace, address),
            uid: None,
            labels: Labels::new(),
            node: Some(node.into()),
            host_network: false,
            finished: false,
            ips: [address.parse().expect("address")].into(),
            ports: [].into(),
            workload: None,
        }));
    }
    index
}

fn key(namespace: &str, address: &str) -> Key {
    Key::new(namespace, address.replace('.', "-"))
}

fn locals() -> BTreeMap<u32, Local> {
    let here = PODS.iter().filter(|(_, node, _)| *node == "one").zip(11..);
    here.map(|((namespace, _, address), ifindex)| {
        let addresses = [address.parse().expect("address")].into();
        let pod = Some(key(namespace, address));
        (ifindex, Local { id: ifindex, ifindex, pod, mac: [2; 6], addresses, adopted: false, silent: false })
    })
    .collect()
}

/// By endpoint: whom it may reach, whom it lets in, and a stranger's address.
fn verdicts(image: &Image) -> BTreeMap<u32, Vec<bool>> {
    let ask = |ifindex: u32| {
        let remotes = PODS.iter().map(|(_, _, address)| *address).chain(["10.244.2.99"]);
        let remotes = remotes.map(|remote| remote.parse::<IpAddr>().expect("address"));
        remotes
            .flat_map(|remote| {
                [abi::INGRESS, abi::EGRESS].map(|direction| allows(image, ifindex, remote, direction, 6, 80))
            })
            .collect()
    };
    image.endpoints.keys().map(|ifindex| (*ifindex, ask(*ifindex))).collect()
}

fn update(tables: &mut Tables<Model>, tenants: Tenants) -> bool {
    let index = cluster(tenants);
    let mut compiler = Compiler::new(Settings::default());
    let plan = tables.plan(&mut compiler, &index, &index.all_touched(), &locals()).expect("planned");
    tables.carry_out(plan).is_ok()
}

/// Every state between two that an update goes through, and the last.
fn on_the_way(tables: &mut Tables<Model>, to: Tenants) -> Vec<BTreeMap<u32, Vec<bool>>> {
    tables.kernel().history.clear();
    assert!(update(tables, to), "written");
    tables.kernel().history.iter().map(verdicts).collect()
}

fn in_force(tenants: Tenants) -> Tables<Model> {
    in_force_with(tenants, None)
}

fn in_force_with(tenants: Tenants, numbers: Option<&Path>) -> Tables<Model> {
    let mut tables = Tables::open(Model::default(), numbers).expect("opened");
    assert!(update(&mut tables, tenants), "written");
    tables
}

fn assert_each_is_as_before_or_as_after(
    states: &[BTreeMap<u32, Vec<bool>>],
    before: &BTreeMap<u32, Vec<bool>>,
    after: &BTreeMap<u32, Vec<bool>>,
) {
    for (number, state) in states.iter().enumerate() {
        for (ifindex, now) in state {
            assert!(
                *now == before[ifindex] || *now == after[ifindex],
                "after write {number} endpoint {ifindex} sees a mix: {now:?}, before {:?}, after {:?}",
                before[ifindex],
                after[ifindex]
            );
        }
    }
}

#[test]
fn a_namespace_that_moves_to_another_tenant_is_never_apart_from_itself() {
    let mut tables = in_force([Some("a"), Some("a"), Some("b")]);
    let own = |image: &Image| {
        [11, 12].map(|ifindex| {
            ["10.244.1.10", "10.244.1.11", "10.244.2.10"].map(|remote| {
                let remote = remote.parse().expect("address");
                [abi::INGRESS, abi::EGRESS].map(|way| allows(image, ifindex, remote, way, 6, 80))
            })
        })
    };
    tables.kernel().history.clear();
    assert!(update(&mut tables, [Some("b"), Some("a"), Some("b")]));
    assert!(tables.kernel().history.len() > 9, "its addresses and all endpoints");
    for (number, image) in tables.kernel().history.iter().enumerate() {
        assert_eq!(own(image), [[[true; 2]; 3]; 2], "after write {number}");
    }
}

#[test]
fn tenants_that_change_places_never_meet() {
    let mut tables = in_force([Some("a"), Some("b"), None]);
    tables.kernel().history.clear();
    assert!(update(&mut tables, [Some("b"), Some("a"), None]));
    for (number, image) in tables.kernel().history.iter().enumerate() {
        for (ifindex, remote) in [(11, "10.244.1.20"), (12, "10.244.2.20"), (13, "10.244.1.10")] {
            let remote = remote.parse().expect("address");
            for direction in [abi::INGRESS, abi::EGRESS] {
                assert!(!allows(image, ifindex, remote, direction, 6, 80), "{ifindex}, after write {number}");
            }
        }
    }
}

#[test]
fn when_all_is_written_both_views_are_the_same() {
    let mut tables = in_force([Some("a"), Some("b"), None]);
    for to in [[Some("b"), Some("b"), None], [Some("b"), None, Some("a")], [None; 3], [Some("c"), None, None]]
    {
        assert!(update(&mut tables, to));
        let image = &tables.kernel().now;
        assert!(image.peers.values().chain(image.prefixes.values()).all(|p| p.tenants[0] == p.tenants[1]));
        let views: Vec<u32> = image.endpoints.values().map(|endpoint| endpoint.tenant.view()).collect();
        assert!(views.iter().all(|view| *view == views[0]), "{views:?}");
    }
}

fn tenants() -> impl Strategy<Value = Tenants> {
    let tenant = || prop::sample::select(vec![None, Some("a"), Some("b"), Some("c")]);
    [tenant(), tenant(), tenant()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn at_every_write_each_endpoint_sees_the_tenants_of_one_moment(before in tenants(), after in tenants()) {
        let mut tables = in_force(before);
        let old = verdicts(&tables.kernel().now);
        let states = on_the_way(&mut tables, after);
        let new = verdicts(&in_force(after).kernel().now);
        prop_assert_eq!(&verdicts(&tables.kernel().now), &new);
        assert_each_is_as_before_or_as_after(&states, &old, &new);
    }

    /// An agent that is killed on the way, and another that goes on.
    #[test]
    fn an_interrupted_move_is_gone_on_with(before in tenants(), after in tenants(), patience in 0_usize..60) {
        let directory = tempfile::tempdir().expect("tempdir");
        let numbers = directory.path().join("numbers.json");
        let mut tables = in_force_with(before, Some(&numbers));
        let old = verdicts(&tables.kernel().now);
        tables.kernel().patience = Some(patience);
        update(&mut tables, after);
        let mut kernel = std::mem::take(tables.kernel());
        kernel.patience = None;
        let mut tables = Tables::open(kernel, Some(&numbers)).expect("opened");
        let interrupted = verdicts(&tables.kernel().now);
        let new = verdicts(&in_force(after).kernel().now);
        let mut states = on_the_way(&mut tables, after);
        states.push(interrupted);
        prop_assert_eq!(&verdicts(&tables.kernel().now), &new);
        assert_each_is_as_before_or_as_after(&states, &old, &new);
        let image = &tables.kernel().now;
        prop_assert!(image.peers.values().all(|peer| peer.tenants[0] == peer.tenants[1]));
    }

    /// The same, but the cluster has gone on meanwhile: all comes to what it is now.
    #[test]
    fn after_an_interrupted_move_any_other_succeeds(
        before in tenants(), between in tenants(), after in tenants(), patience in 0_usize..60,
    ) {
        let mut tables = in_force(before);
        tables.kernel().patience = Some(patience);
        update(&mut tables, between);
        tables.kernel().patience = None;
        prop_assert!(update(&mut tables, after));
        prop_assert_eq!(verdicts(&tables.kernel().now), verdicts(&in_force(after).kernel().now));
    }
}
