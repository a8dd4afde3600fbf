//! What one change costs the agent, from an event to the writes for the kernel, and how much memory a cluster
//! takes. No kernel and no privilege: writes go to a kernel that only counts them.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bulkhead::{
    cluster::{
        Index, Owner,
        object::{
            IpBlock, Key, Labels, NAMESPACE_NAME_LABEL, Namespace, NetworkPolicy, Node, Object, Operator,
            Peer, Pod, Port, Ports, Protocol, Requirement, Rule, Selector, Workload,
        },
    },
    datapath::{DatapathError, Image, Local, Op, Sizes, Tables, kernel::Kernel},
    flow::names::{Names, Party, Who},
    policy::{Compiler, Settings},
};
use clap::Args;
use comfy_table::{Table, presets};

#[derive(Clone, Debug, Args)]
pub struct Options {
    #[arg(long, default_value_t = 100_000)]
    pods: u32,
    #[arg(long, default_value_t = 1_000)]
    namespaces: u32,
    #[arg(long, default_value_t = 10_000)]
    policies: u32,
    /// Pods of this node
    #[arg(long, default_value_t = 110)]
    local: u32,
    /// Times that every change is made
    #[arg(long, default_value_t = 20)]
    rounds: u32,
}

/// Takes everything and keeps nothing: what remains is the agent's own work.
#[derive(Default)]
struct Paper {
    writes: usize,
}

impl Kernel for Paper {
    fn snapshot(&self) -> Result<Image, DatapathError> {
        Ok(Image::default())
    }

    fn capacity(&self) -> Result<Sizes, DatapathError> {
        Ok(Sizes::UNLIMITED)
    }

    fn apply(&mut self, _: &Op) -> Result<(), DatapathError> {
        self.writes += 1;
        Ok(())
    }
}

pub fn run(options: &Options) -> Result<()> {
    let empty = resident()?;
    let mut bench = Bench::new(options)?;
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["CHANGE", "MEDIAN", "MAX", "WRITES"]);
    let mut row = |name: &str, samples: Vec<(Duration, usize)>| {
        let mut times: Vec<_> = samples.iter().map(|(time, _)| *time).collect();
        times.sort();
        let writes = samples.iter().map(|(_, writes)| *writes).max().unwrap_or_default();
        let of = |time: Option<&Duration>| format!("{:.3} ms", time.map_or(0.0, |t| t.as_secs_f64() * 1e3));
        table.add_row([
            name.to_owned(),
            of(times.get(times.len() / 2)),
            of(times.last()),
            writes.to_string(),
        ]);
    };
    row("everything, from nothing", vec![bench.update()?]);
    row("nothing", vec![bench.update()?]);
    let memory = (allocated(), resident()?.saturating_sub(empty));
    let names = bench.names();
    let with_names = (allocated(), resident()?.saturating_sub(empty));
    drop(names);
    for (name, change) in CHANGES {
        let samples = (0..options.rounds).map(|round| {
            change(&mut bench, round);
            bench.update()
        });
        row(name, samples.collect::<Result<_>>()?);
    }
    println!(
        "{} pods, {} namespaces, {} policies, {} pods here",
        options.pods, options.namespaces, options.policies, options.local
    );
    println!("{table}");
    println!("memory: {} MB allocated, {} MB resident", memory.0, memory.1);
    println!("with the flow log's names: {} MB allocated, {} MB resident", with_names.0, with_names.1);
    println!(
        "after the changes: {} MB allocated, {} MB resident",
        allocated(),
        resident()?.saturating_sub(empty)
    );
    Ok(())
}

type Change = fn(&mut Bench, u32);
const CHANGES: [(&str, Change); 7] = [
    ("a pod elsewhere goes or comes", |bench, round| {
        let pod = bench.pod(bench.options.local + 7 + round / 2);
        bench.index.delete(&Object::Pod(pod.clone()).reference());
        if round % 2 == 1 {
            bench.index.apply(Object::Pod(pod));
        }
    }),
    ("a pod elsewhere gets a label that nobody has", |bench, round| {
        let mut pod = bench.pod(bench.options.local + 1000 + round);
        pod.labels.insert("app", format!("new-{round}"));
        bench.index.apply(Object::Pod(pod));
    }),
    ("a namespace gets another label", |bench, round| {
        bench.index.apply(Object::Namespace(namespace(round % bench.options.namespaces, "moved")));
    }),
    ("a policy of a pod here", |bench, round| {
        let mut policy = bench.policy(round % bench.options.local);
        policy.ingress.iter_mut().flatten().for_each(|rule| rule.ports = vec![tcp(9000)]);
        bench.index.apply(Object::NetworkPolicy(policy));
    }),
    ("a policy of pods elsewhere", |bench, round| {
        let mut policy = bench.policy(bench.options.policies - 1 - round);
        policy.ingress.iter_mut().flatten().for_each(|rule| rule.ports = vec![tcp(9000)]);
        bench.index.apply(Object::NetworkPolicy(policy));
    }),
    ("a policy with a new, rare label key, or without", |bench, round| {
        bench.with_key("rare", round);
    }),
    ("a policy with a new label key of every pod, or without", |bench, round| {
        bench.with_key("version", round);
    }),
];

struct Bench {
    options: Options,
    index: Index,
    compiler: Compiler,
    locals: BTreeMap<u32, Local>,
    tables: Tables<Paper>,
}

impl Bench {
    fn new(options: &Options) -> Result<Self> {
        let mut bench = Self {
            options: options.clone(),
            index: Index::new(Some("node-0".to_owned())),
            compiler: Compiler::new(Settings::default()),
            locals: BTreeMap::new(),
            tables: Tables::open(Paper::default(), None)?,
        };
        for node in 0..options.pods.div_ceil(200).max(1) {
            let network = Ipv4Addr::from(0x0a00_0000 + (node << 8));
            bench.index.apply(Object::Node(Node {
                name: format!("node-{node}"),
                addresses: [IpAddr::from(Ipv4Addr::from(0xc0a8_0000 + node))].into(),
                pod_cidrs: [ipnetwork::Ipv4Network::new(network, 24)?.into()].into(),
            }));
        }
        for number in 0..options.namespaces {
            bench.index.apply(Object::Namespace(namespace(number, "team")));
        }
        for number in 0..options.pods {
            let pod = bench.pod(number);
            if number < options.local {
                let local = Local {
                    id: number + 1,
                    ifindex: number + 10,
                    pod: Some(pod.key.clone()),
                    mac: [2; 6],
                    addresses: pod.ips.iter().copied().collect(),
                    adopted: false,
                    silent: false,
                };
                bench.locals.insert(local.ifindex, local);
            }
            bench.index.apply(Object::Pod(pod));
        }
        for number in 0..options.policies {
            let policy = bench.policy(number);
            bench.index.apply(Object::NetworkPolicy(policy));
        }
        Ok(bench)
    }

    /// What the flow log calls every pod, as the agent tells it.
    fn names(&self) -> Names {
        let image = self.tables.actual();
        let party = |pod: &Arc<Pod>, address: IpAddr| {
            let who = Who::Pod { pod: Arc::clone(pod), endpoint: 0 };
            Party { who, identity: image.peers.get(&address).map_or(0, |peer| peer.identity), tenant: None }
        };
        let mut names = Names::default();
        for (address, owner) in self.index.owned_addresses() {
            let Owner::Pod(pod) = owner else { continue };
            names.parties.set(address, party(pod, address), 0);
        }
        names
    }

    /// As the agent does: from the index to the kernel.
    fn update(&mut self) -> Result<(Duration, usize)> {
        let before = self.tables.kernel().writes;
        let started = Instant::now();
        let touched = self.index.take_touched();
        let plan = self.tables.plan(&mut self.compiler, &self.index, &touched, &self.locals)?;
        self.tables.carry_out(plan)?;
        Ok((started.elapsed(), self.tables.kernel().writes - before))
    }

    /// Ten applications in each namespace, as many replicas as it takes.
    fn pod(&self, number: u32) -> Pod {
        let namespaces = self.options.namespaces;
        let (space, app) = (number % namespaces, number / namespaces % 10);
        let (node, host) = (number / 200, 2 + number % 200);
        let node = if number < self.options.local { 0 } else { node.max(1) };
        let labels = [
            ("app", format!("app-{app}")),
            ("app.kubernetes.io/name", format!("app-{app}")),
            ("app.kubernetes.io/part-of", format!("suite-{}", space % 50)),
            ("tier", if app < 3 { "back" } else { "front" }.to_owned()),
            ("version", format!("{}", app % 3)),
            ("pod-template-hash", format!("{:08x}", space * 31 + app)),
        ];
        let rare = (number % 10_000 == 77).then(|| ("rare", "yes".to_owned()));
        Pod {
            key: Key::new(format!("ns-{space}"), format!("app-{app}-{:08x}-{number:05x}", space * 31 + app)),
            uid: None,
            labels: labels.into_iter().chain(rare).map(|(k, v)| (k.to_owned(), v)).collect(),
            node: Some(format!("node-{node}").into()),
            host_network: false,
            finished: false,
            ips: [IpAddr::from(Ipv4Addr::from(0x0a00_0000 + ((number / 200) << 8) + host))].into(),
            ports: [].into(),
            workload: Some(Arc::new(Workload {
                kind: "Deployment".into(),
                name: format!("app-{app}").into(),
            })),
        }
    }

    fn policy(&self, number: u32) -> NetworkPolicy {
        let namespaces = self.options.namespaces;
        let (space, app) = (number % namespaces, number / namespaces);
        let near = Peer::Pods { namespaces: None, pods: label("app", &format!("app-{}", (app + 1) % 10)) };
        let team = Peer::Pods {
            namespaces: Some(label("team", &format!("team-{}", space % 50))),
            pods: label("tier", "front"),
        };
        let office = Peer::Block(IpBlock {
            cidr: format!("172.{}.{}.0/24", 16 + number % 16, number / 16 % 256).parse().expect("a prefix"),
            except: [].into(),
        });
        let mut peers = vec![near, team];
        if number.is_multiple_of(5) {
            peers.push(office);
        }
        let ingress = Rule { index: 0, peers, ports: vec![tcp(8080)] };
        let back = Peer::Pods { namespaces: None, pods: label("tier", "back") };
        let egress = Rule { index: 0, peers: vec![back], ports: vec![tcp(5432)] };
        NetworkPolicy {
            key: Key::new(format!("ns-{space}"), format!("policy-{app}")),
            labels: Labels::new(),
            subjects: label("app", &format!("app-{}", app % 10)),
            ingress: Some(vec![ingress]),
            egress: (number.is_multiple_of(2)).then(|| vec![egress]),
            defects: Vec::new(),
        }
    }

    fn with_key(&mut self, key: &str, round: u32) {
        let mut policy = self.policy(3);
        if round.is_multiple_of(2) {
            let peer = Peer::Pods { namespaces: None, pods: label(key, "yes") };
            policy.ingress.iter_mut().flatten().for_each(|rule| rule.peers.push(peer.clone()));
        }
        self.index.apply(Object::NetworkPolicy(policy));
    }
}

fn namespace(number: u32, team: &str) -> Namespace {
    let name = format!("ns-{number}");
    let labels = [(NAMESPACE_NAME_LABEL, name.clone()), ("team", format!("{team}-{}", number % 50))];
    let labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    Namespace { name, labels, annotations: Labels::new() }
}

fn label(key: &str, value: &str) -> Selector {
    let operator = Operator::In([value.to_owned()].into());
    Selector { requirements: [Requirement { key: key.into(), operator }].into() }
}

fn tcp(port: u16) -> Port {
    Port { protocol: Protocol::Tcp, ports: Ports::Range(port, port) }
}

/// Megabytes that are allocated: without what the allocator keeps for later.
fn allocated() -> usize {
    // SAFETY: it reads the allocator's own counters and touches nothing of ours.
    let counters = unsafe { nix::libc::mallinfo2() };
    (counters.uordblks + counters.hblkhd) >> 20
}

/// Megabytes of memory that this process has.
fn resident() -> Result<usize> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: usize = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes / 1024)
}
