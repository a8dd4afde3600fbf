//! Transitions over a model kernel that stops after every single write: at each of these moments each packet
//! must be judged by the whole old or the whole new policy.

mod capacity;
mod incremental;
mod ruling;
mod services;
mod tenants;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_ebpf::abi::{self, Peer, RuleKey};
use proptest::prelude::*;

use super::{DatapathError, Image, Local, Op, Rule, ServiceAddress, Sizes, Tables, kernel::Kernel};
use crate::{
    cluster::{
        Index,
        object::{
            IpBlock, Key, Labels, Namespace, NetworkPolicy, Node, Object, Operator, Peer as PolicyPeer, Pod,
            Port, Ports, Protocol, Requirement, Rule as PolicyRule, Selector,
        },
    },
    policy::{Compiler, Settings},
};

/// A kernel that writes down every state it went through.
#[derive(Default)]
struct Model {
    now: Image,
    history: Vec<Image>,
    /// Writes that succeed before everything fails; `None`: all.
    patience: Option<usize>,
    /// `None`: without limits.
    capacity: Option<Sizes>,
}

impl Kernel for Model {
    fn snapshot(&self) -> Result<Image, DatapathError> {
        Ok(self.now.clone())
    }

    fn capacity(&self) -> Result<Sizes, DatapathError> {
        Ok(self.capacity.unwrap_or(Sizes::UNLIMITED))
    }

    fn apply(&mut self, op: &Op) -> Result<(), DatapathError> {
        if let Some(patience) = &mut self.patience {
            if *patience == 0 {
                return Err(DatapathError::NoSuchMap("full"));
            }
            *patience -= 1;
        }
        self.now.apply(*op);
        self.history.push(self.now.clone());
        Ok(())
    }
}

/// What the programs do, on the model's maps: may `remote` and the endpoint talk in this direction?
fn allows(image: &Image, ifindex: u32, remote: IpAddr, direction: u8, protocol: u8, port: u16) -> bool {
    let Some(endpoint) = image.endpoints.get(&ifindex) else { return false };
    let rule_set = endpoint.policy.rule_set();
    let service = image.services.get(&ServiceAddress { address: remote, port, protocol });
    if let (abi::EGRESS, Some(service)) = (direction, service) {
        // Its port is not the backends': only rules for all ports and protocols are asked.
        return [*service, abi::PEER_ANY].into_iter().any(|peer| {
            let key = RuleKey { rule_set, peer, direction, protocol: 0, port_be: [0; 2] };
            image.rules.contains_key(&Rule { key, bits: abi::RULE_BITS_ALL })
        });
    }
    let prefix = || {
        let covering = image.prefixes.iter().filter(|(prefix, _)| prefix.contains(remote));
        covering.max_by_key(|(prefix, _)| prefix.prefix()).map(|(_, peer)| *peer)
    };
    let Some(Peer { identity, blocks, tenants, .. }) = image.peers.get(&remote).copied().or_else(prefix)
    else {
        return false;
    };
    let found = |peer: u32, direction: u8| {
        (0..=16)
            .map(|bits| {
                (protocol, port & !u16::MAX.checked_shr(bits).unwrap_or(0), abi::RULE_BITS_PROTOCOL + bits)
            })
            .chain([(0, 0, abi::RULE_BITS_ALL)])
            .any(|(protocol, port, bits)| {
                let key = RuleKey { rule_set, peer, direction, protocol, port_be: port.to_be_bytes() };
                image.rules.contains_key(&Rule { key, bits })
            })
    };
    // The high bit says which of the peer's two is meant.
    let (own, tenant) = (endpoint.tenant.0 & 0x7fff_ffff, tenants[(endpoint.tenant.0 >> 31) as usize]);
    let boundary = own != 0 && tenant != 0 && own != tenant;
    if boundary && !found(identity, direction | abi::DOOR) {
        return false;
    }
    found(identity, direction) || (blocks != 0 && found(blocks, direction)) || found(abi::PEER_ANY, direction)
}

const WEB: u32 = 11;
const DB: u32 = 12;

fn cluster(policies: &[NetworkPolicy]) -> Index {
    let mut index = Index::new(Some("one".to_owned()));
    for name in ["shop", "other"] {
        let labels = [("kubernetes.io/metadata.name".to_owned(), name.to_owned())].into();
        index.apply(Object::Namespace(Namespace { name: name.into(), labels, annotations: Labels::new() }));
    }
    for (name, net) in [("one", "10.244.1.0/24"), ("two", "10.244.2.0/24")] {
        let pod_cidrs = [net.parse().expect("prefix")].into();
        index.apply(Object::Node(Node { name: name.into(), addresses: BTreeSet::new(), pod_cidrs }));
    }
    for (namespace, name, node, address) in [
        ("shop", "web", "one", "10.244.1.11"),
        ("shop", "db", "one", "10.244.1.12"),
        ("shop", "cart", "two", "10.244.2.13"),
        ("other", "web", "two", "10.244.2.14"),
    ] {
        index.apply(Object::Pod(Pod {
            key: Key::new(namespace, name),
            uid: None,
            labels: [("app", name), ("tier", if name == "db" { "back" } else { "front" })]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            node: Some(node.into()),
            host_network: false,
            finished: false,
            ips: [address.parse().expect("address")].into(),
            ports: [].into(),
            workload: None,
        }));
    }
    for policy in policies {
        index.apply(Object::NetworkPolicy(policy.clone()));
    }
    services::stand_behind(&mut index, 1, &["10.244.1.12"]);
    services::stand_behind(&mut index, 2, &["10.244.2.13", "10.244.2.14"]);
    services::stand_behind(&mut index, 3, &["10.244.2.13", "192.0.2.1"]);
    index
}

fn locals() -> BTreeMap<u32, Local> {
    [(WEB, "web", "10.244.1.11"), (DB, "db", "10.244.1.12")]
        .map(|(ifindex, name, address)| {
            let addresses = [address.parse().expect("address")].into();
            let pod = Some(Key::new("shop", name));
            (
                ifindex,
                Local { id: ifindex, ifindex, pod, mac: [2; 6], addresses, adopted: false, silent: false },
            )
        })
        .into()
}

/// As an agent that has just started, and knows nothing of the update before.
fn update(tables: &mut Tables<Model>, index: &Index) -> Result<super::Written, DatapathError> {
    let mut compiler = Compiler::new(Settings::default());
    let plan = tables.plan(&mut compiler, index, &index.all_touched(), &locals())?;
    tables.carry_out(plan)
}

/// Every question that the two local pods can be asked.
fn verdicts(image: &Image) -> Vec<bool> {
    let remotes = [
        "10.244.1.11",
        "10.244.1.12",
        "10.244.2.13",
        "10.244.2.14",
        "10.244.2.99",
        "10.244.2.1",
        "192.0.2.1",
        "10.96.0.1",
        "10.96.0.2",
        "10.96.0.3",
    ];
    let mut verdicts = Vec::new();
    for ifindex in [WEB, DB] {
        for remote in remotes {
            for direction in [abi::INGRESS, abi::EGRESS] {
                for (protocol, port) in [(6, 80), (6, 5432), (17, 53), (1, 0)] {
                    let remote = remote.parse().expect("address");
                    verdicts.push(allows(image, ifindex, remote, direction, protocol, port));
                }
            }
        }
    }
    verdicts
}

fn selector() -> impl Strategy<Value = Selector> {
    let requirement =
        prop::sample::select(vec![("app", "web"), ("app", "db"), ("app", "cart"), ("tier", "front")]);
    prop::collection::vec(requirement, 0..2).prop_map(|pairs| Selector {
        requirements: pairs
            .into_iter()
            .map(|(key, value)| Requirement {
                key: key.into(),
                operator: Operator::In([value.to_owned()].into()),
            })
            .collect(),
    })
}

fn peer() -> impl Strategy<Value = PolicyPeer> {
    prop_oneof![
        selector().prop_map(|pods| PolicyPeer::Pods { namespaces: None, pods }),
        selector().prop_map(|pods| PolicyPeer::Pods { namespaces: Some(Selector::default()), pods }),
        prop::sample::select(vec!["10.244.0.0/16", "10.244.2.0/28", "0.0.0.0/0", "192.0.2.0/24"]).prop_map(
            |cidr| { PolicyPeer::Block(IpBlock { cidr: cidr.parse().expect("prefix"), except: [].into() }) }
        ),
    ]
}

fn rule() -> impl Strategy<Value = PolicyRule> {
    let ports = prop::sample::select(vec![(80, 80), (5432, 5432), (1, 1024), (53, 65535)]);
    let ports = prop::collection::vec(ports, 0..2).prop_map(|ranges| {
        ranges.into_iter().map(|(a, b)| Port { protocol: Protocol::Tcp, ports: Ports::Range(a, b) }).collect()
    });
    (prop::collection::vec(peer(), 0..3), ports).prop_map(|(peers, ports)| PolicyRule {
        index: 0,
        peers,
        ports,
    })
}

fn policies() -> impl Strategy<Value = Vec<NetworkPolicy>> {
    let rules = || prop::option::of(prop::collection::vec(rule(), 0..3));
    let policy =
        (selector(), rules(), rules()).prop_map(|(subjects, ingress, egress)| (subjects, ingress, egress));
    prop::collection::vec(policy, 0..4).prop_map(|parts| {
        let policies = parts.into_iter().enumerate().map(|(i, (subjects, ingress, egress))| NetworkPolicy {
            key: Key::new("shop", format!("p{i}")),
            labels: Labels::new(),
            subjects,
            ingress,
            egress,
            defects: Vec::new(),
        });
        policies.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn at_every_write_each_packet_is_judged_by_one_whole_policy(before in policies(), after in policies()) {
        let mut tables = Tables::open(Model::default(), None).expect("opened");
        update(&mut tables, &cluster(&before)).expect("written");
        let old = verdicts(&tables.kernel().now);
        tables.kernel().history = vec![tables.kernel().now.clone()];

        update(&mut tables, &cluster(&after)).expect("written");
        let new = verdicts(&tables.kernel().now);
        let fresh = {
            let mut tables = Tables::open(Model::default(), None).expect("opened");
            update(&mut tables, &cluster(&after)).expect("written");
            verdicts(&tables.kernel().now)
        };
        prop_assert_eq!(&new, &fresh, "the way there makes no difference");

        let per_pod = old.len() / 2;
        for image in &tables.kernel().history {
            let now = verdicts(image);
            for pod in [0..per_pod, per_pod..2 * per_pod] {
                let now = &now[pod.clone()];
                prop_assert!(now == &old[pod.clone()] || now == &new[pod], "a packet saw a mix");
            }
        }
        // A tracked connection is let through by its generation alone.
        let mut rule_sets = BTreeMap::new();
        for (ifindex, endpoint) in tables.kernel().history.iter().flat_map(|image| &image.endpoints) {
            let generation = (*ifindex, endpoint.policy.generation());
            let rule_set = *rule_sets.entry(generation).or_insert(endpoint.policy.rule_set());
            prop_assert_eq!(rule_set, endpoint.policy.rule_set(), "old connections pass beside new rules");
        }
    }

    #[test]
    fn tidying_changes_no_verdict_and_a_second_update_writes_nothing(before in policies(), after in policies()) {
        let mut tables = Tables::open(Model::default(), None).expect("opened");
        update(&mut tables, &cluster(&before)).expect("written");
        let index = cluster(&after);
        update(&mut tables, &index).expect("written");
        let new = verdicts(&tables.kernel().now);
        tables.tidy().expect("tidied");
        prop_assert_eq!(verdicts(&tables.kernel().now), new);
        prop_assert_eq!(update(&mut tables, &index).expect("written"), super::Written::default());
    }

    #[test]
    fn a_kernel_that_refuses_a_write_keeps_whole_policies(
        before in policies(), after in policies(), patience in 0_usize..40,
    ) {
        let mut tables = Tables::open(Model::default(), None).expect("opened");
        update(&mut tables, &cluster(&before)).expect("written");
        let old = verdicts(&tables.kernel().now);
        tables.kernel().patience = Some(patience);
        let failed = update(&mut tables, &cluster(&after)).is_err();
        let interrupted = verdicts(&tables.kernel().now);
        tables.kernel().patience = None;
        tables.tidy().expect("tidied");
        prop_assert_eq!(&verdicts(&tables.kernel().now), &interrupted, "tidying a half-written state");
        update(&mut tables, &cluster(&after)).expect("the next try succeeds");
        let new = verdicts(&tables.kernel().now);
        let per_pod = old.len() / 2;
        for pod in [0..per_pod, per_pod..2 * per_pod] {
            let now = &interrupted[pod.clone()];
            prop_assert!(now == &old[pod.clone()] || now == &new[pod], "failed: {failed}");
        }
    }
}

#[test]
fn a_restart_into_the_same_cluster_writes_nothing() {
    let directory = tempfile::tempdir().expect("tempdir");
    let numbers = directory.path().join("numbers.json");
    let policy = NetworkPolicy {
        key: Key::new("shop", "db"),
        labels: Labels::new(),
        subjects: Selector::default(),
        ingress: Some(vec![PolicyRule {
            index: 0,
            peers: vec![PolicyPeer::Pods { namespaces: None, pods: Selector::default() }],
            ports: vec![],
        }]),
        egress: None,
        defects: Vec::new(),
    };
    let index = cluster(&[policy]);
    let mut before = Tables::open(Model::default(), Some(&numbers)).expect("opened");
    update(&mut before, &index).expect("written");
    let kernel = std::mem::take(before.kernel());

    let mut after = Tables::open(kernel, Some(&numbers)).expect("opened");
    assert_eq!(update(&mut after, &index).expect("written"), super::Written::default());
}

#[test]
fn with_its_numbers_lost_a_restart_gives_no_number_a_second_meaning() {
    let mut before = Tables::open(Model::default(), None).expect("opened");
    update(&mut before, &cluster(&[])).expect("written");
    let old = verdicts(&before.kernel().now);
    let mut kernel = std::mem::take(before.kernel());
    kernel.history.clear();

    let mut after = Tables::open(kernel, None).expect("opened");
    update(&mut after, &cluster(&[])).expect("written");
    assert_eq!(verdicts(&after.kernel().now), old);
    let generations =
        |image: &Image| image.endpoints.values().map(|e| e.policy.generation()).collect::<Vec<_>>();
    let (first, last) = (after.kernel().history[0].clone(), after.kernel().now.clone());
    assert!(generations(&last).iter().min() > generations(&first).iter().max(), "generations go on");
}
