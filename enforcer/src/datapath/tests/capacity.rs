//! Semantics 42: what does not fit is refused as a whole, and what is in force stays.

use std::collections::BTreeMap;

use bulkhead_ebpf::abi::{IDENTITY_TUNNEL, RULE_BITS_PORT};

use super::{
    DB, Model, Tables, WEB, cluster, locals,
    services::{serve, stand_behind},
};
use crate::{
    cluster::{
        Index,
        object::{
            IpBlock, Key, Kind, NetworkPolicy, Object, ObjectRef, Peer, Pod, Port, Ports, Protocol, Rule,
            Selector,
        },
    },
    datapath::{DatapathError, Local, ServiceAddress, Sizes, Written, crowd::InForce},
    policy::{Compiler, Settings},
};

/// Isolates every pod of the shop and costs as many rules as it has ports, and one prefix.
fn policy(name: &str, ports: u16) -> NetworkPolicy {
    let cidr = "192.0.2.0/24".parse().expect("a prefix");
    let port = |n: u16| Port { protocol: Protocol::Tcp, ports: Ports::Range(2 * n + 1, 2 * n + 1) };
    NetworkPolicy {
        key: Key::new("shop", name),
        labels: [].into(),
        subjects: Selector::default(),
        ingress: Some(vec![Rule {
            index: 0,
            peers: vec![Peer::Block(IpBlock { cidr, except: [].into() })],
            ports: (0..ports).map(port).collect(),
        }]),
        egress: None,
        defects: Vec::new(),
    }
}

struct Small {
    index: Index,
    compiler: Compiler,
    tables: Tables<Model>,
}

impl Small {
    fn with(capacity: Sizes) -> Self {
        let kernel = Model { capacity: Some(capacity), ..Model::default() };
        let compiler = Compiler::new(Settings::default());
        let mut index = cluster(&[policy("p", 2)]);
        index.take_touched();
        let mut small = Self { index, compiler, tables: Tables::open(kernel, None).expect("opened") };
        let everything = small.index.all_touched();
        let plan = small.tables.plan(&mut small.compiler, &small.index, &everything, &locals());
        small.tables.carry_out(plan.expect("it fits")).expect("written");
        small
    }

    fn pod(&self, name: &str) -> Pod {
        Pod::clone(self.index.pod(&Key::new("shop", name)).expect("a pod"))
    }

    fn update(&mut self) -> Result<Written, DatapathError> {
        self.update_with(&locals())
    }

    fn update_with(&mut self, here: &BTreeMap<u32, Local>) -> Result<Written, DatapathError> {
        let touched = self.index.take_touched();
        let plan = self.tables.plan(&mut self.compiler, &self.index, &touched, here)?;
        self.tables.carry_out(plan)
    }
}

fn to_elsewhere(name: &str) -> NetworkPolicy {
    let mut policy = policy(name, 1);
    policy.ingress.iter_mut().flatten().for_each(|rule| {
        let cidr = "198.51.100.0/24".parse().expect("a prefix");
        rule.peers = vec![Peer::Block(IpBlock { cidr, except: [].into() })];
    });
    policy
}

#[test]
fn a_plan_that_does_not_fit_names_the_map_and_writes_nothing() {
    let held = Small::with(Sizes::UNLIMITED).tables.fill().0.prefixes_v4;
    let mut small = Small::with(Sizes { prefixes_v4: held, ..Sizes::UNLIMITED });
    let before = small.tables.kernel().now.clone();
    small.index.apply(Object::NetworkPolicy(to_elsewhere("q")));
    let error = small.update().expect_err("too many prefixes");
    let DatapathError::Full { map: "PREFIXES_V4", .. } = error else { panic!("{error}") };
    assert_eq!(
        error.to_string(),
        format!("map PREFIXES_V4 is too small: {} entries needed, {held} possible", held + 1)
    );
    assert_eq!(small.tables.kernel().now, before, "nothing was begun");
}

#[test]
fn whoever_has_too_many_rules_keeps_what_was_and_keeps_nobody_else_from_anything() {
    let mut small = Small::with(Sizes { rules: 40, ..Sizes::UNLIMITED });
    let other = Pod {
        ips: ["10.244.1.99".parse().expect("an address")].into(),
        node: Some("one".into()),
        ..small.pod("web")
    };
    let other = Pod { key: Key::new("other", "here"), ..other };
    let late = Pod {
        key: Key::new("shop", "late"),
        ips: ["10.244.1.98".parse().expect("an address")].into(),
        ..small.pod("web")
    };
    let local = |ifindex: u32, pod: &Pod| {
        let pod_key = Some(pod.key.clone());
        let addresses = pod.ips.iter().copied().collect();
        Local { id: ifindex, ifindex, pod: pod_key, mac: [2; 6], addresses, adopted: false, silent: false }
    };
    let (mut here, before) = (locals(), small.tables.actual().clone());
    here.extend([(98, local(98, &late)), (99, local(99, &other))]);
    small.index.apply(Object::Pod(other));
    small.index.apply(Object::Pod(late));
    small.index.apply(Object::NetworkPolicy(policy("p", 60)));
    let mut mine = policy("mine", 4);
    mine.key = Key::new("other", "mine");
    small.index.apply(Object::NetworkPolicy(mine));
    small.update_with(&here).expect("what fits is carried out");

    assert_eq!(*small.tables.crowded(), [("shop".to_owned(), InForce::Before)].into());
    let rules = |small: &Small, ifindex: u32| {
        let image = small.tables.actual();
        let rule_set = image.endpoints[&ifindex].policy.rule_set();
        let ports =
            image.rules.keys().filter(|rule| rule.key.rule_set == rule_set && rule.bits == RULE_BITS_PORT);
        ports.map(|rule| u16::from_be_bytes(rule.key.port_be)).collect::<Vec<_>>()
    };
    for ifindex in locals().into_keys() {
        let (then, now) = (before.endpoints[&ifindex], small.tables.actual().endpoints[&ifindex]);
        assert_eq!(then.policy.rule_set(), now.policy.rule_set(), "the last complete rule set");
        assert_eq!(rules(&small, ifindex), [1, 3]);
    }
    assert_eq!(rules(&small, 98), [0_u16; 0], "a new pod is not let open");
    assert_eq!(rules(&small, 99), [1, 3, 5, 7], "the other namespace's policy is in force");
    assert_ne!(small.tables.actual().endpoints[&98].policy.rule_set(), 0, "its isolation is told by name");

    small.index.apply(Object::NetworkPolicy(policy("p", 3)));
    small.update_with(&here).expect("it fits");
    assert!(small.tables.crowded().is_empty());
    for ifindex in locals().into_keys().chain([98]) {
        assert_eq!(rules(&small, ifindex), [1, 3, 5]);
    }
}

#[test]
fn what_is_in_force_gives_way_when_others_find_no_room_beside_it() {
    let mut small = Small::with(Sizes { rules: 40, ..Sizes::UNLIMITED });
    small.index.apply(Object::NetworkPolicy(policy("p", 25)));
    small.update().expect("it fits");
    small.tables.tidy().expect("tidied");
    let other = Pod {
        key: Key::new("other", "here"),
        ips: ["10.244.1.99".parse().expect("an address")].into(),
        ..small.pod("web")
    };
    let mut here = locals();
    let addresses = other.ips.iter().copied().collect();
    let pod = Some(other.key.clone());
    here.insert(
        99,
        Local { id: 99, ifindex: 99, pod, mac: [2; 6], addresses, adopted: false, silent: false },
    );
    small.index.apply(Object::Pod(other));
    let mut mine = policy("mine", 20);
    mine.key = Key::new("other", "mine");
    small.index.apply(Object::NetworkPolicy(mine));
    small.update_with(&here).expect_err("not at once: it would stand beside what gives way");
    small.tables.withdraw(small.compiler.compiled(), &here).expect("written");
    small.tables.tidy().expect("tidied");
    small.update_with(&here).expect("the smaller one finds room");
    assert_eq!(*small.tables.crowded(), [("shop".to_owned(), InForce::Isolation)].into());
    let image = small.tables.actual();
    let open = |ifindex: u32| {
        let rule_set = image.endpoints[&ifindex].policy.rule_set();
        image.rules.keys().filter(|r| r.key.rule_set == rule_set && r.bits == RULE_BITS_PORT).count()
    };
    assert_eq!((open(WEB), open(DB), open(99)), (0, 0, 20));
}

#[test]
fn room_that_tidying_makes_is_used() {
    let mut small = Small::with(Sizes { rules: 40, ..Sizes::UNLIMITED });
    // Each fits, but not beside all that the ones before have left.
    let mut refused = 0;
    for ports in [6, 7, 8, 9, 10, 11] {
        small.index.apply(Object::NetworkPolicy(policy("p", ports)));
        if small.update().is_err() {
            refused += 1;
            small.tables.tidy().expect("tidied");
            small.update().expect("there is room now");
        }
    }
    assert!(refused > 0);
}

#[test]
fn addresses_and_prefixes_have_limits_too() {
    let full = |sizes: Sizes, change: fn(&mut Index)| {
        let mut small = Small::with(sizes);
        change(&mut small.index);
        match small.update() {
            Err(DatapathError::Full { map, needed, capacity }) => (map, needed, capacity),
            other => panic!("{other:?}"),
        }
    };
    let held = Small::with(Sizes::UNLIMITED).tables.fill().0;
    let moved = |index: &mut Index| {
        let mut pod = Pod::clone(index.pod(&Key::new("shop", "cart")).expect("a pod"));
        pod.ips = ["10.244.2.99".parse().expect("an address")].into();
        index.apply(Object::Pod(pod));
    };
    assert_eq!(
        full(Sizes { peers_v4: held.peers_v4, ..Sizes::UNLIMITED }, moved),
        ("PEERS_V4", held.peers_v4 + 1, held.peers_v4),
        "the new address is written before the old one goes"
    );
    let another = |index: &mut Index| _ = index.apply(Object::NetworkPolicy(to_elsewhere("q")));
    assert_eq!(
        full(Sizes { prefixes_v4: held.prefixes_v4, ..Sizes::UNLIMITED }, another),
        ("PREFIXES_V4", held.prefixes_v4 + 1, held.prefixes_v4)
    );
}

#[test]
fn what_is_gone_goes_though_what_comes_finds_no_room() {
    let held = Small::with(Sizes::UNLIMITED).tables.fill().0.prefixes_v4;
    let mut small = Small::with(Sizes { prefixes_v4: held, ..Sizes::UNLIMITED });
    let address = |text: &str| text.parse().expect("an address");
    let (cart, reused, db) = (address("10.244.2.13"), address("10.244.2.14"), address("10.244.1.12"));
    let generations = |small: &mut Small| -> Vec<u32> {
        small.tables.actual().endpoints.values().map(|e| e.policy.generation()).collect()
    };
    let before = small.tables.kernel().now.clone();
    let old_generations = generations(&mut small);

    small.index.apply(Object::NetworkPolicy(to_elsewhere("q")));
    small.index.delete(&ObjectRef { kind: Kind::Pod, key: Key::new("shop", "cart") });
    small.index.delete(&ObjectRef { kind: Kind::Pod, key: Key::new("other", "web") });
    let next = Pod { key: Key::new("shop", "next"), ips: [reused].into(), ..small.pod("db") };
    small.index.apply(Object::Pod(next));
    small.update().expect_err("too many prefixes");
    assert_eq!(small.tables.kernel().now, before);

    let mut here = locals();
    let gone = here.pop_last().expect("two pods").0;
    small.tables.withdraw(small.compiler.compiled(), &here).expect("written");
    let now = small.tables.kernel().now.clone();
    assert!(!now.peers.contains_key(&cart), "nobody has it");
    assert!(!now.peers.contains_key(&reused), "a pod of another namespace had it");
    assert_eq!(now.peers.get(&db), before.peers.get(&db), "whoever is still there stays");
    assert_eq!((now.rules, now.endpoints.contains_key(&gone)), (before.rules, false));
    assert!(generations(&mut small).iter().min() > old_generations.iter().max(), "judged again");

    small.index.delete(&ObjectRef { kind: Kind::NetworkPolicy, key: Key::new("shop", "q") });
    // The first plan still leads from a scope that had no room.
    small.update().or_else(|_| small.update()).expect("it fits again");
    assert!(small.tables.actual().peers.contains_key(&reused));
}

/// Frontends of Services 1 and up at port 80, and whether the kernel knows them.
fn listed(small: &mut Small, numbers: &[u8]) -> Vec<bool> {
    let image = &small.tables.kernel().now;
    let at = |number: &u8| ServiceAddress { address: [10, 96, 0, *number].into(), port: 80, protocol: 6 };
    numbers.iter().map(|number| image.services.contains_key(&at(number))).collect()
}

#[test]
fn services_beyond_their_room_keep_nothing_else_out_and_come_in_when_there_is_some() {
    let mut small = Small::with(Sizes { services_v4: 4, ..Sizes::UNLIMITED });
    assert_eq!(listed(&mut small, &[1, 2, 3]), [true; 3]);
    for number in [4, 5, 6] {
        stand_behind(&mut small.index, number, &["10.244.1.12"]);
    }
    small.index.apply(Object::NetworkPolicy(to_elsewhere("q")));
    let written = small.update().expect("the policy fits");
    assert!(written.rules > 0, "{written:?}");
    assert_eq!(listed(&mut small, &[1, 2, 3, 4, 5, 6]), [true, true, true, true, false, false]);
    assert_eq!(small.tables.unlisted().len(), 2);
    assert_eq!(
        small.update().expect("nothing to do"),
        Written::default(),
        "they cost nothing while they wait"
    );

    // What is listed follows its backends although nothing else has room.
    let behind = |small: &mut Small| {
        let at = ServiceAddress { address: [10, 96, 0, 1].into(), port: 80, protocol: 6 };
        small.tables.kernel().now.services[&at]
    };
    let before = behind(&mut small);
    stand_behind(&mut small.index, 1, &["192.0.2.1"]);
    small.update().expect("it was there");
    assert_ne!(behind(&mut small), before);

    // An agent that starts knows as much.
    let kernel = std::mem::take(small.tables.kernel());
    small.tables = Tables::open(kernel, None).expect("opened");
    small.compiler = Compiler::new(Settings::default());
    let everything = small.index.all_touched();
    let plan = small.tables.plan(&mut small.compiler, &small.index, &everything, &locals()).expect("it fits");
    small.tables.carry_out(plan).expect("written");
    assert_eq!(small.tables.unlisted().len(), 2);

    for number in [2, 3] {
        let key = Key::new("shop", format!("s{number}"));
        small.index.delete(&ObjectRef { kind: Kind::Service, key });
    }
    small.update().expect("there is room now");
    assert_eq!(listed(&mut small, &[1, 2, 3, 4, 5, 6]), [true, false, false, true, true, true]);
    assert!(small.tables.unlisted().is_empty());
}

#[test]
fn who_leads_to_a_tunnels_port_comes_before_others_for_whom_there_is_no_room() {
    let mut small = Small::with(Sizes { services_v4: 4, ..Sizes::UNLIMITED });
    stand_behind(&mut small.index, 4, &["10.244.1.12"]);
    let tunnel = Settings::default().tunnel_port;
    serve(&mut small.index, 9, Protocol::Udp, tunnel, &["192.0.2.7"]);
    small.update().expect("written");
    let at = ServiceAddress { address: [10, 96, 0, 9].into(), port: 80, protocol: 17 };
    assert_eq!(small.tables.kernel().now.services.get(&at), Some(&IDENTITY_TUNNEL));
    assert_eq!(listed(&mut small, &[4]), [false]);
}
