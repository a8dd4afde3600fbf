//! Services in the maps: that their backends change, who is found behind a mark or an address.

use bulkhead_ebpf::abi::Endpoint;

use super::*;
use crate::{
    cluster::object::{EndpointSlice, Kind, ObjectRef, Service, ServicePort, SlicePort},
    datapath::Written,
};

/// Service number `number`, port 80, backends at port 5432.
pub fn stand_behind(index: &mut Index, number: u8, backends: &[&str]) {
    serve(index, number, Protocol::Tcp, 5432, backends);
}

/// The Service's own port is 80.
pub fn serve(index: &mut Index, number: u8, protocol: Protocol, backends_port: u16, backends: &[&str]) {
    let key = Key::new("shop", format!("s{number}"));
    let port = ServicePort { name: String::new(), protocol, port: 80, node_port: None };
    let address = IpAddr::from([10, 96, 0, number]);
    index.apply(Object::Service(Service {
        key: key.clone(),
        addresses: [address].into(),
        ports: [port].into(),
    }));
    index.apply(Object::EndpointSlice(EndpointSlice {
        service: key.name.to_string(),
        key,
        addresses: backends.iter().map(|a| a.parse().expect("address")).collect(),
        draining: [].into(),
        ports: [SlicePort { name: String::new(), protocol, port: backends_port }].into(),
        defective: false,
    }));
}

fn web_to_cart() -> NetworkPolicy {
    let pods = Selector {
        requirements: [Requirement { key: "app".into(), operator: Operator::In(["cart".to_owned()].into()) }]
            .into(),
    };
    NetworkPolicy {
        key: Key::new("shop", "web"),
        labels: Labels::new(),
        subjects: Selector::default(),
        ingress: None,
        egress: Some(vec![PolicyRule {
            index: 0,
            peers: vec![PolicyPeer::Pods { namespaces: None, pods }],
            ports: vec![],
        }]),
        defects: Vec::new(),
    }
}

fn backends() -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(
        prop::sample::select(vec!["10.244.1.12", "10.244.2.13", "10.244.2.14", "10.244.2.99", "192.0.2.1"]),
        0..3,
    )
}

/// May the two local pods go on to each Service?
fn passes(image: &Image) -> Vec<bool> {
    let ask = |ifindex, number| allows(image, ifindex, IpAddr::from([10, 96, 0, number]), abi::EGRESS, 6, 80);
    [WEB, DB].into_iter().flat_map(|ifindex| (1..=3).map(move |number| ask(ifindex, number))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn while_backends_change_each_service_is_as_before_or_as_after(
        policies in policies(),
        before in prop::collection::vec(backends(), 3),
        after in prop::collection::vec(prop::option::of(backends()), 3),
    ) {
        let mut index = cluster(&policies);
        for (number, backends) in (1..).zip(&before) {
            stand_behind(&mut index, number, backends);
        }
        let mut tables = Tables::open(Model::default(), None).expect("opened");
        update(&mut tables, &index).expect("written");
        let old = passes(&tables.kernel().now);
        tables.kernel().history.clear();

        for (number, backends) in (1..).zip(&after) {
            let key = Key::new("shop", format!("s{number}"));
            match backends {
                Some(backends) => stand_behind(&mut index, number, backends),
                None => _ = index.delete(&ObjectRef { kind: Kind::Service, key }),
            }
        }
        update(&mut tables, &index).expect("written");
        let new = passes(&tables.kernel().now);
        let mut fresh = Tables::open(Model::default(), None).expect("opened");
        update(&mut fresh, &index).expect("written");
        prop_assert_eq!(&new, &passes(&fresh.kernel().now), "the way there makes no difference");
        for image in &tables.kernel().history {
            for ((now, old), new) in passes(image).iter().zip(&old).zip(&new) {
                prop_assert!(now == old || now == new);
            }
        }
        tables.tidy().expect("tidied");
        prop_assert_eq!(&passes(&tables.kernel().now), &new, "tidying");
        prop_assert_eq!(update(&mut tables, &index).expect("written"), Written::default());
    }
}

#[test]
fn what_stands_behind_a_service_is_judged_by_its_rules() {
    let mut tables = Tables::open(Model::default(), None).expect("opened");
    update(&mut tables, &cluster(&[web_to_cart()])).expect("written");
    // Of 3, the backend outside is not allowed.
    assert_eq!(passes(&tables.kernel().now), [false, true, false, false, true, false]);
}

#[test]
fn another_backend_has_every_connection_judged_again_and_a_like_one_none() {
    let mut index = cluster(&[web_to_cart()]);
    let mut tables = Tables::open(Model::default(), None).expect("opened");
    update(&mut tables, &index).expect("written");
    let generations =
        |image: &Image| image.endpoints.values().map(|e| e.policy.generation()).collect::<Vec<_>>();
    let before = generations(tables.actual());

    stand_behind(&mut index, 1, &["10.244.2.13"]);
    update(&mut tables, &index).expect("written");
    let after = generations(tables.actual());
    assert!(after.iter().min() > before.iter().max(), "{before:?} {after:?}");

    // To policy an unknown pod's address is like any other one.
    stand_behind(&mut index, 1, &["10.244.2.98"]);
    update(&mut tables, &index).expect("written");
    let before = generations(tables.actual());
    stand_behind(&mut index, 1, &["10.244.2.97"]);
    assert_eq!(update(&mut tables, &index).expect("written"), Written::default());
    assert_eq!(generations(tables.actual()), before);
}

fn plan_for(
    tables: &mut Tables<Model>,
    index: &Index,
    locals: &BTreeMap<u32, Local>,
) -> Result<Written, DatapathError> {
    let mut compiler = Compiler::new(Settings::default());
    let plan = tables.plan(&mut compiler, index, &index.all_touched(), locals)?;
    tables.carry_out(plan)
}

#[test]
fn addresses_of_local_pods_name_their_interface_and_no_others_do() {
    let mut index = cluster(&[]);
    let mut tables = Tables::open(Model::default(), None).expect("opened");
    update(&mut tables, &index).expect("written");
    let interfaces = |tables: &Tables<Model>| {
        let peers = tables.actual().peers.iter();
        peers
            .filter(|(_, peer)| peer.ifindex != 0)
            .map(|(a, p)| (a.to_string(), p.ifindex))
            .collect::<Vec<_>>()
    };
    let want = [("10.244.1.11".to_owned(), WEB), ("10.244.1.12".to_owned(), DB)];
    assert_eq!(interfaces(&tables), want);

    let web = ObjectRef { kind: Kind::Pod, key: Key::new("shop", "web") };
    index.delete(&web);
    update(&mut tables, &index).expect("written");
    assert_eq!(interfaces(&tables), want, "the pod has left the index but not the node");

    let mut locals = locals();
    locals.remove(&WEB);
    plan_for(&mut tables, &index, &locals).expect("written");
    assert_eq!(interfaces(&tables), want[1..]);
}

fn crowd(ids: impl Iterator<Item = u32>) -> BTreeMap<u32, Local> {
    let local = |id| Local {
        id,
        ifindex: 1000 + id,
        pod: None,
        mac: [2; 6],
        addresses: [].into(),
        adopted: false,
        silent: false,
    };
    ids.map(|id| (1000 + id, local(id))).collect()
}

#[test]
fn a_mark_is_an_endpoints_own_for_its_life() {
    let index = Index::new(Some("one".to_owned()));
    let mut tables = Tables::open(Model::default(), None).expect("opened");
    let marks = |tables: &Tables<Model>| {
        tables.actual().endpoints.values().map(|e| (e.id, e.mark)).collect::<Vec<_>>()
    };
    plan_for(&mut tables, &index, &crowd(1..=3)).expect("written");
    assert_eq!(marks(&tables), [(1, 1), (2, 2), (3, 3)]);
    plan_for(&mut tables, &index, &crowd([1, 3].into_iter())).expect("written");
    plan_for(&mut tables, &index, &crowd([1, 3, 4, 5].into_iter())).expect("written");
    assert_eq!(marks(&tables), [(1, 1), (3, 3), (4, 2), (5, 4)]);

    let kernel = std::mem::take(tables.kernel());
    let mut after = Tables::open(kernel, None).expect("opened");
    plan_for(&mut after, &index, &crowd([1, 3, 4, 5].into_iter())).expect("written");
    assert_eq!(marks(&after), [(1, 1), (3, 3), (4, 2), (5, 4)], "over a restart too");
}

#[test]
fn a_pod_for_which_no_mark_is_left_is_refused() {
    let record = |local: Local| Endpoint {
        ifindex: local.ifindex,
        id: local.id,
        mac: local.mac,
        mark: u16::try_from(local.id).expect("a mark"),
        ..Endpoint::default()
    };
    let endpoints = crowd(1..abi::ORIGINS).into_iter().map(|(ifindex, local)| (ifindex, record(local)));
    let full = Image { endpoints: endpoints.collect(), ..Image::default() };
    let kernel = Model { now: full.clone(), ..Model::default() };
    let mut tables = Tables::open(kernel, None).expect("opened");

    let index = Index::new(Some("one".to_owned()));
    let error = plan_for(&mut tables, &index, &crowd(1..=abi::ORIGINS)).expect_err("one too many");
    assert!(matches!(error, DatapathError::OutOfMarks), "{error}");
    assert_eq!(*tables.actual(), full, "the others keep what they have");
    plan_for(&mut tables, &index, &crowd(2..=abi::ORIGINS)).expect("one has left");
    assert_eq!(tables.actual().endpoints[&(1000 + abi::ORIGINS)].mark, 1);
}
