//! Semantics 42: what does not fit is refused as a whole, and what is in force stays.

use super::{Model, Tables, cluster, locals};
use crate::{
    cluster::{
        Index,
        object::{
            IpBlock, Key, Kind, NetworkPolicy, Object, ObjectRef, Peer, Pod, Port, Ports, Protocol, Rule,
            Selector,
        },
    },
    datapath::{DatapathError, Sizes, Written},
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
        let touched = self.index.take_touched();
        let plan = self.tables.plan(&mut self.compiler, &self.index, &touched, &locals())?;
        self.tables.carry_out(plan)
    }
}

#[test]
fn a_plan_that_does_not_fit_names_the_map_and_writes_nothing() {
    let mut small = Small::with(Sizes { rules: 40, ..Sizes::UNLIMITED });
    let before = small.tables.kernel().now.clone();
    small.index.apply(Object::NetworkPolicy(policy("p", 60)));
    let error = small.update().expect_err("too many rules");
    let DatapathError::Full { map: "RULES", needed, capacity: 40 } = error else { panic!("{error}") };
    assert!(needed > 60, "{needed}");
    assert_eq!(error.to_string(), format!("map RULES is too small: {needed} entries needed, 40 possible"));
    assert_eq!(small.tables.kernel().now, before, "nothing was begun");

    small.index.apply(Object::NetworkPolicy(policy("p", 3)));
    let written = small.update().expect("a policy that fits takes its place");
    assert_eq!(written.rules, 2 * 3, "for the two pods of this node");
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
    let another = |index: &mut Index| {
        let mut policy = policy("q", 1);
        policy.ingress.iter_mut().flatten().for_each(|rule| {
            let cidr = "198.51.100.0/24".parse().expect("a prefix");
            rule.peers = vec![Peer::Block(IpBlock { cidr, except: [].into() })];
        });
        index.apply(Object::NetworkPolicy(policy));
    };
    assert_eq!(
        full(Sizes { prefixes_v4: held.prefixes_v4, ..Sizes::UNLIMITED }, another),
        ("PREFIXES_V4", held.prefixes_v4 + 1, held.prefixes_v4)
    );
}

#[test]
fn what_is_gone_goes_though_what_comes_finds_no_room() {
    let mut small = Small::with(Sizes { rules: 40, ..Sizes::UNLIMITED });
    let address = |text: &str| text.parse().expect("an address");
    let (cart, reused, db) = (address("10.244.2.13"), address("10.244.2.14"), address("10.244.1.12"));
    let generations = |small: &mut Small| -> Vec<u32> {
        small.tables.actual().endpoints.values().map(|e| e.policy.generation()).collect()
    };
    let before = small.tables.kernel().now.clone();
    let old_generations = generations(&mut small);

    small.index.apply(Object::NetworkPolicy(policy("p", 60)));
    small.index.delete(&ObjectRef { kind: Kind::Pod, key: Key::new("shop", "cart") });
    small.index.delete(&ObjectRef { kind: Kind::Pod, key: Key::new("other", "web") });
    let next = Pod { key: Key::new("shop", "next"), ips: [reused].into(), ..small.pod("db") };
    small.index.apply(Object::Pod(next));
    small.update().expect_err("too many rules");
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

    small.index.apply(Object::NetworkPolicy(policy("p", 3)));
    small.update().expect("it fits again");
    assert!(small.tables.actual().peers.contains_key(&reused));
}
