//! What the agent holds of each pod, policy and endpoint of the whole cluster, in bytes: with a hundred thousand of
//! them a second copy of anything would be the difference between a pod's memory limit and its death.
#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bulkhead::{
    cluster::{Index, Owner, ServiceNames, object::Kind},
    datapath::{DatapathError, Image, Op, Sizes, Tables, kernel::Kernel},
    flow::names::{Names, Party, PolicyInfo, Who},
    policy::{Compiler, Settings},
    source::{Change, kubernetes::Offline},
};

/// Bytes that are allocated, as they were asked for: without what an allocator adds.
static LIVE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is the system's allocator's; the count touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the pointer came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Takes every write: what the kernel itself holds is not the agent's memory.
struct Paper;

impl Kernel for Paper {
    fn snapshot(&self) -> Result<Image, DatapathError> {
        Ok(Image::default())
    }

    fn capacity(&self) -> Result<Sizes, DatapathError> {
        Ok(Sizes::UNLIMITED)
    }

    fn apply(&mut self, _: &Op) -> Result<(), DatapathError> {
        Ok(())
    }
}

const NAMESPACES: u32 = 20;

/// Other nodes' pods, ten applications in each namespace.
fn pod(number: u32) -> String {
    let (space, app) = (number % NAMESPACES, number / NAMESPACES % 10);
    let address = address(number);
    format!(
        r#"{{"metadata": {{"namespace": "space-{space}", "name": "app-{app}-{:08x}-{number:05x}", "resourceVersion": "1",
             "uid": "0d7f9a1c-0000-4000-8000-{number:012x}", "labels": {{"app": "app-{app}", "tier": "tier-{}",
             "app.kubernetes.io/part-of": "suite-{space}", "pod-template-hash": "{:08x}"}},
             "ownerReferences": [{{"kind": "ReplicaSet", "name": "app-{app}-{:08x}", "controller": true}}]}},
           "spec": {{"nodeName": "far-{}", "containers": [{{"ports": [{{"name": "http", "containerPort": 8080}}]}}]}},
           "status": {{"phase": "Running", "podIP": "{address}", "podIPs": [{{"ip": "{address}"}}]}}}}"#,
        space * 31 + app,
        app % 3,
        space * 31 + app,
        space * 31 + app,
        number % 40,
    )
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a40_0000 + ((number % 40) << 8) + 2 + number / 40)
}

/// Every one says the same of another application, as the policies of a real cluster do.
fn policy(number: u32) -> String {
    let (space, app) = (number % NAMESPACES, number / NAMESPACES % 10);
    format!(
        r#"{{"metadata": {{"namespace": "space-{space}", "name": "policy-{number}", "resourceVersion": "1"}},
           "spec": {{"podSelector": {{"matchLabels": {{"app": "app-{app}"}}}}, "policyTypes": ["Ingress"], "ingress": [
             {{"from": [{{"podSelector": {{"matchLabels": {{"app": "app-{}"}}}}}},
                        {{"namespaceSelector": {{"matchLabels": {{"team": "team-{space}"}}}}}}],
               "ports": [{{"port": 8080}}]}}]}}}}"#,
        (app + 1) % 10,
    )
}

const ENDPOINTS: u32 = 20;

fn service(number: u32) -> String {
    let space = number % NAMESPACES;
    format!(
        r#"{{"metadata": {{"namespace": "space-{space}", "name": "service-{number}", "resourceVersion": "1"}},
           "spec": {{"clusterIPs": ["{}"], "ports": [{{"port": 80}}]}}}}"#,
        Ipv4Addr::from(0x0a60_0000 + number),
    )
}

fn slice(number: u32) -> String {
    let space = number % NAMESPACES;
    let endpoints: Vec<_> = (number * ENDPOINTS..(number + 1) * ENDPOINTS)
        .map(|pod| format!(r#"{{"addresses": ["{}"]}}"#, address(pod)))
        .collect();
    format!(
        r#"{{"metadata": {{"namespace": "space-{space}", "name": "service-{number}-x", "resourceVersion": "1",
             "labels": {{"kubernetes.io/service-name": "service-{number}"}}}},
           "addressType": "IPv4", "endpoints": [{}], "ports": [{{"port": 8080}}]}}"#,
        endpoints.join(","),
    )
}

fn namespace(number: u32) -> String {
    format!(
        r#"{{"metadata": {{"name": "space-{number}", "resourceVersion": "1", "labels": {{"team": "team-{number}"}}}}}}"#
    )
}

/// All that an agent knows of a cluster, from the source's mirror to the flow log's names.
struct Held {
    _source: Offline,
    _index: Index,
    _compiler: Compiler,
    _tables: Tables<Paper>,
    _names: Names,
    _services: ServiceNames,
}

fn hold(pods: u32, policies: u32, services: u32) -> Held {
    let mut source = Offline::new("here");
    let mut index = Index::new(Some("here".to_owned()));
    let mut list = |kind, objects: &mut dyn Iterator<Item = String>| {
        for change in source.list(kind, objects).unwrap() {
            let Change::Upsert(object) = change else { panic!("{change:?} of a first list") };
            assert!(index.apply(object));
        }
    };
    list(Kind::Namespace, &mut (0..NAMESPACES).map(namespace));
    list(Kind::Pod, &mut (0..pods).map(pod));
    list(Kind::NetworkPolicy, &mut (0..policies).map(policy));
    list(Kind::Service, &mut (0..services).map(service));
    list(Kind::EndpointSlice, &mut (0..services).map(slice));
    let mut compiler = Compiler::new(Settings::default());
    let mut tables = Tables::open(Paper, None).unwrap();
    let touched = index.take_touched();
    let plan = tables.plan(&mut compiler, &index, &touched, &BTreeMap::new()).unwrap();
    tables.carry_out(plan).unwrap();
    let (mut names, mut services) = (Names::default(), ServiceNames::default());
    services.follow(&index, &touched);
    for (address, owner) in index.owned_addresses() {
        let Owner::Pod(pod) = owner else { panic!("{address} is not a pod's") };
        let identity = tables.actual().peers.get(&address).unwrap().identity;
        let who = Who::Pod { pod: Arc::clone(pod), endpoint: 0 };
        names.parties.set(address, Party { who, identity, tenant: None }, 0);
    }
    for policy in index.policies() {
        let info = PolicyInfo { labels: policy.labels.clone(), place: None };
        names.policies.set(policy.key.clone(), Arc::new(info), 0);
    }
    for (at, service) in services.iter() {
        names.services.set(at, Arc::clone(service), 0);
    }
    assert_eq!((index.pods().count(), index.policies().count()), (pods as usize, policies as usize));
    assert_eq!(names.parties.at(&address(0).into(), 0).is_some(), pods > 0);
    Held {
        _source: source,
        _index: index,
        _compiler: compiler,
        _tables: tables,
        _names: names,
        _services: services,
    }
}

fn bytes(pods: u32, policies: u32, services: u32) -> usize {
    let before = LIVE.load(Relaxed);
    let held = hold(pods, policies, services);
    let bytes = LIVE.load(Relaxed) - before;
    drop(held);
    bytes
}

/// One test, because the allocator is everybody's.
#[test]
fn a_pod_a_policy_and_an_endpoint_take_few_bytes() {
    bytes(100, 100, 5); // whatever is allocated once in a process
    let base = bytes(4000, 2000, 0);
    let of = |bytes: usize, more: u32| bytes.saturating_sub(base) / more as usize;
    let measured = [
        ("pod", of(bytes(8000, 2000, 0), 4000), 410),
        ("policy", of(bytes(4000, 4000, 0), 2000), 600),
        ("endpoint", of(bytes(4000, 2000, 200), 200 * ENDPOINTS), 275),
    ];
    println!("{measured:?}");
    for (what, bytes, most) in measured {
        assert!(bytes <= most, "a {what} takes {bytes} bytes, more than {most}");
    }
}
