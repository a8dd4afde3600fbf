//! A long life of one agent: edit after edit, writes that fail, restarts. The kernel always means what a compile
//! from scratch would write, and on the way nothing is opened or closed that no policy says.

use std::{collections::BTreeMap, net::IpAddr};

use bulkhead_ebpf::abi;
use proptest::prelude::*;

use super::{Image, Local, Model, Tables, allows};
use crate::{
    cluster::{
        Index,
        object::{Key, Object},
    },
    datapath::{DatapathError, Written},
    policy::{
        Compiler, Settings,
        testkit::{Case, edits::edit, generate::Random},
    },
};

const REMOTES: [&str; 18] = [
    "10.244.1.10",
    "10.244.1.11",
    "10.244.1.12",
    "10.244.1.5",
    "10.244.1.77",
    "10.244.1.99",
    "10.244.2.13",
    "10.244.2.14",
    "10.244.2.5",
    "10.244.2.1",
    "192.168.0.1",
    "192.168.0.2",
    "8.8.8.8",
    "fd00:244:1::11",
    "fd00:244:2::5",
    "10.96.0.1",
    "10.96.0.2",
    "fd00:96::1",
];

/// Every question that a pod here can be asked, by interface.
fn verdicts(image: &Image) -> BTreeMap<u32, Vec<bool>> {
    let ask = |ifindex: u32| {
        let remotes = REMOTES.iter().map(|remote| remote.parse::<IpAddr>().expect("an address"));
        remotes
            .flat_map(|remote| {
                [abi::INGRESS, abi::EGRESS].into_iter().flat_map(move |direction| {
                    [(6, 80), (6, 1024), (17, 53), (132, 81), (1, 0)]
                        .map(|(protocol, port)| allows(image, ifindex, remote, direction, protocol, port))
                })
            })
            .collect()
    };
    image.endpoints.keys().map(|ifindex| (*ifindex, ask(*ifindex))).collect()
}

/// Interfaces of the pods here; a pod keeps its own, and at times stays on after it has left the index.
#[derive(Default)]
struct Interfaces {
    known: BTreeMap<Key, u32>,
    up: BTreeMap<u32, Local>,
}

impl Interfaces {
    fn follow(&mut self, random: &mut Random, index: &Index) {
        let here: Vec<_> = index.pods().filter(|pod| index.is_endpoint(pod)).map(|pod| &pod.key).collect();
        self.up.retain(|_, local| {
            local.pod.as_ref().is_some_and(|pod| here.contains(&pod)) || random.chance(50)
        });
        for pod in here {
            let next = 10 + u32::try_from(self.known.len()).expect("few");
            let ifindex = *self.known.entry(pod.clone()).or_insert(next);
            let local = || Local {
                id: ifindex,
                ifindex,
                pod: Some(pod.clone()),
                mac: [2; 6],
                addresses: index.pod(pod).map(|pod| index.addresses(pod)).unwrap_or_default(),
                adopted: false,
                silent: false,
            };
            if !self.up.contains_key(&ifindex) && random.chance(80) {
                self.up.insert(ifindex, local());
            }
        }
    }
}

struct Life {
    index: Index,
    compiler: Compiler,
    tables: Tables<Model>,
    interfaces: Interfaces,
}

impl Life {
    fn update(&mut self) -> Result<Written, DatapathError> {
        let touched = self.index.take_touched();
        let plan = self.tables.plan(&mut self.compiler, &self.index, &touched, &self.interfaces.up)?;
        self.tables.carry_out(plan)
    }

    fn now(&mut self) -> BTreeMap<u32, Vec<bool>> {
        verdicts(&self.tables.kernel().now)
    }

    /// The same cluster in an empty kernel, by an agent that has never seen another.
    fn anew(&self, settings: &Settings) -> BTreeMap<u32, Vec<bool>> {
        let mut tables = Tables::open(Model::default(), None).expect("opened");
        let mut compiler = Compiler::new(settings.clone());
        // A pod that has left the index keeps what it had: nothing from scratch can know that.
        let known = |local: &Local| local.pod.as_ref().and_then(|pod| self.index.pod(pod));
        let up =
            self.interfaces.up.iter().filter(|(_, l)| known(l).is_some_and(|p| self.index.is_endpoint(p)));
        let up = up.map(|(ifindex, local)| (*ifindex, local.clone())).collect();
        let plan = tables.plan(&mut compiler, &self.index, &self.index.all_touched(), &up).expect("planned");
        tables.carry_out(plan).expect("written");
        verdicts(&tables.kernel().now)
    }

    fn restart(&mut self, settings: &Settings, numbers: &std::path::Path) -> Result<Written, DatapathError> {
        let mut kernel = std::mem::take(self.tables.kernel());
        kernel.history.clear();
        self.tables = Tables::open(kernel, Some(numbers))?;
        self.compiler = Compiler::new(settings.clone());
        let all = self.index.all_touched();
        let plan = self.tables.plan(&mut self.compiler, &self.index, &all, &self.interfaces.up)?;
        self.tables.carry_out(plan)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn the_kernel_follows_edits_failures_and_restarts(seed: u64, edits in 1_usize..16) {
        let directory = tempfile::tempdir().expect("tempdir");
        let numbers = directory.path().join("numbers.json");
        let case = Case::of(seed, 0);
        let settings = &case.settings;
        let mut random = Random(seed ^ 5);
        let mut life = Life {
            index: case.index().seen_from(Some("n1")),
            compiler: Compiler::new(settings.clone()),
            tables: Tables::open(Model::default(), Some(&numbers)).expect("opened"),
            interfaces: Interfaces::default(),
        };
        life.interfaces.follow(&mut random, &life.index);
        life.update().expect("written");
        let mut told = Vec::new();
        for _ in 0..edits {
            told.push(edit(&mut random, &mut life.index));
            life.interfaces.follow(&mut random, &life.index);
            if random.chance(25) {
                life.tables.kernel().patience = Some(random.below(12));
                let failed = life.update().is_err();
                life.tables.kernel().patience = None;
                told.push(format!("failed: {failed}"));
                if random.chance(50) {
                    let before = life.now();
                    life.tables.tidy().expect("tidied");
                    prop_assert_eq!(life.now(), before, "tidying a half-written state of {}: {:#?}", seed, told);
                }
            }
            life.update().expect("written");
            let now = life.now();
            for (ifindex, want) in life.anew(settings) {
                prop_assert_eq!(&now[&ifindex], &want, "interface {} of {}: {:#?}", ifindex, seed, told);
            }
            prop_assert_eq!(&now.keys().collect::<Vec<_>>(), &life.interfaces.up.keys().collect::<Vec<_>>());
            if random.chance(40) {
                life.tables.tidy().expect("tidied");
                told.push("tidied".to_owned());
                prop_assert_eq!(life.now(), now, "tidying changes no verdict of {}: {:#?}", seed, told);
            }
            prop_assert_eq!(life.update().expect("written"), Written::default(), "nothing changed");
            prop_assert_eq!(life.tables.fill().0, super::super::Sizes::of(&life.tables.kernel().now));
            if random.chance(20) {
                told.push("restart".to_owned());
                let written = life.restart(settings, &numbers).expect("written");
                prop_assert_eq!(written, Written::default(), "a restart of {} writes: {:#?}", seed, told);
            }
        }
        // Nothing is left of what is gone.
        life.tables.tidy().expect("tidied");
        let fresh = {
            let mut tables = Tables::open(Model::default(), None).expect("opened");
            let mut compiler = Compiler::new(settings.clone());
            let all = life.index.all_touched();
            let plan = tables.plan(&mut compiler, &life.index, &all, &life.interfaces.up).expect("planned");
            tables.carry_out(plan).expect("written");
            tables.fill().0
        };
        let forgotten = |local: &Local| local.pod.as_ref().and_then(|p| life.index.pod(p)).is_none_or(|p| !life.index.is_endpoint(p));
        if !life.interfaces.up.values().any(forgotten) {
            prop_assert_eq!(life.tables.fill().0, fresh, "of {}: {:#?}", seed, told);
        }
    }
}

proptest! {
    // Every state on the way is asked every question.
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn while_policies_change_each_packet_is_judged_by_one_whole_policy(seed: u64, edits in 1_usize..5) {
        let case = Case::of(seed, 0);
        let mut random = Random(seed ^ 6);
        let mut life = Life {
            index: case.index().seen_from(Some("n1")),
            compiler: Compiler::new(case.settings.clone()),
            tables: Tables::open(Model::default(), None).expect("opened"),
            interfaces: Interfaces::default(),
        };
        life.interfaces.follow(&mut Random(0), &life.index);
        life.update().expect("written");
        let mut old = life.now();
        for _ in 0..edits {
            // Several at once: policies of one update act together.
            for _ in 0..=random.below(3) {
                let policy = random.policy(&format!("np{}", random.clone().below(5)));
                if random.chance(30) {
                    life.index.delete(&Object::NetworkPolicy(policy).reference());
                } else {
                    life.index.apply(Object::NetworkPolicy(policy));
                }
            }
            life.tables.kernel().history.clear();
            life.update().expect("written");
            let new = life.now();
            for image in &life.tables.kernel().history {
                for (ifindex, now) in verdicts(image) {
                    prop_assert!(now == old[&ifindex] || now == new[&ifindex], "a packet saw a mix: {}", seed);
                }
            }
            old = new;
        }
    }
}
