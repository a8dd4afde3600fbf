//! Faults of the node around an agent that runs, or that has just died.

use std::{
    fs::{self, File},
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use bulkhead::datapath::removal::remove_all;
use bulkhead_ebpf::abi::ABI_VERSION;
use lab::{Family, Lab, Outcome, Plan, PodSpec, Transport, probe::attempt};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::shop::{Shop, status};

const SILENCE: Duration = Duration::from_millis(400);

/// Everything under a directory, as paths relative to it.
fn pins(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(directory).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn pins_that_somebody_wipes_are_put_back_and_nothing_is_open_meanwhile() {
    let shop = Shop::open(Plan::bulkhead());
    let agent = shop.lab.agent(1);
    let before = pins(agent.bpffs());
    assert_eq!(remove_all(agent.bpffs()).failed.len(), 0); // as an operator's `rm -r` would
    let restored = |status: &Value| status["datapath"]["pinsRestored"] == before.len();
    status(agent, "puts all pins back", restored);
    assert_eq!(pins(agent.bpffs()), before);
    shop.goes_on("with new pins");
    // And they hold: without the agent, and for the next one.
    agent.kill9();
    shop.goes_on("without the agent");
    agent.start().unwrap();
    let next = agent.status().unwrap();
    assert_eq!(next["datapath"]["adoption"]["mapsCreated"], 0, "{next:#}");
    // It holds what it has found in place as well, the ways to other nodes included.
    assert_eq!(remove_all(agent.bpffs()).failed.len(), 0);
    status(agent, "puts all pins back", restored);
    assert_eq!(pins(agent.bpffs()), before);
    shop.close();
}

#[test]
fn programs_that_somebody_detaches_are_put_back_and_counted() {
    let shop = Shop::open(Plan::bulkhead());
    let agent = shop.lab.agent(1);
    let host = |pod: &str| {
        let status = agent.status().unwrap();
        let endpoints = status["endpoints"].as_array().unwrap();
        let own = endpoints.iter().find(|endpoint| endpoint["pod"] == pod).unwrap();
        own["interface"].as_str().unwrap().to_owned()
    };
    let interfaces = [host("shop/web-near"), "flannel.1".to_owned()];
    detach_all(&shop.lab, &interfaces);
    let repaired = |status: &Value| status["datapath"]["repaired"].as_u64() >= Some(2);
    let after = status(agent, "puts programs back", repaired);
    let attached = |status: &Value| {
        status["endpoints"].as_array().unwrap().iter().all(|endpoint| endpoint["attached"] == true)
    };
    assert!(attached(&after), "{after:#}");
    shop.goes_on("with new links");
    shop.lab.stop_pod("shop/stranger-near").unwrap();
}

/// As `bpftool link detach` does with every TCX link of ours on these interfaces.
fn detach_all(lab: &Lab, interfaces: &[String]) {
    let _inside = lab.node(1).netns().enter().unwrap();
    for interface in interfaces {
        let index = nix::net::if_::if_nametoindex(interface.as_str()).unwrap();
        let links = lab.agent(1).bpffs().join(format!("v{ABI_VERSION}/links"));
        for pin in fs::read_dir(&links).unwrap().map(|entry| entry.unwrap().path()) {
            if pin.file_name().unwrap().to_string_lossy().starts_with(&format!("{index}-")) {
                lab::links::detach(&pin).unwrap();
            }
        }
    }
}

/// A file system of a few pages.
struct TinyDisk(PathBuf, Option<PathBuf>);

impl TinyDisk {
    fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), Some("size=256k,mode=700")).unwrap();
        Self(at.to_owned(), None)
    }

    /// A file of it is this one too (by no link: a log goes through none).
    fn lend(&mut self, name: &str, at: &Path) {
        let file = self.0.join(name);
        for path in [&file, at] {
            File::create(path).unwrap();
        }
        mount(Some(&file), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        self.1 = Some(at.to_owned());
    }

    /// Nothing more fits, not even a directory entry's page.
    fn fill(&self) {
        for number in 0.. {
            let Ok(mut file) = File::create(self.0.join(format!("ballast-{number}"))) else { return };
            let wrote = (0..64).map(|_| file.write_all(&[7; 4096])).find(Result::is_err);
            if wrote.is_some() && number > 8 {
                return;
            }
        }
    }

    fn free(&self) {
        for entry in fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.file_name().unwrap().to_string_lossy().starts_with("ballast") {
                fs::remove_file(entry).unwrap();
            }
        }
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        for mount in self.1.iter().chain([&self.0]) {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
    }
}

#[test]
fn on_a_full_disk_new_pods_wait_and_the_others_stay_enforced() {
    let lab = Plan::installed_later().nodes(1).raise().unwrap();
    let disk = TinyDisk::mount(&lab.node(1).dir().join("state"));
    lab.namespace("shop", &[]).unwrap();
    lab.install().unwrap();
    let serving =
        |name: &str| PodSpec::new(&format!("shop/{name}")).label("app", name).serve(Transport::Tcp, 80);
    lab.start_pods([serving("db"), serving("web"), serving("stranger")]).unwrap();
    lab.policy(
        "shop/db",
        "db",
        "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]",
    )
    .unwrap();
    lab.settle().unwrap();
    let verdicts = || {
        let to = SocketAddr::new(lab.pod("shop/db").ip(Family::V4), 80);
        ["shop/web", "shop/stranger"]
            .map(|from| attempt(lab.pod(from).netns(), to, Transport::Tcp, SILENCE).unwrap())
    };
    assert_eq!(verdicts(), [Outcome::Reached, Outcome::Silent]);
    disk.fill();
    let error = format!("{:#}", lab.start_pod(serving("late")).unwrap_err());
    assert!(error.contains("error 11") && error.contains("No space left on device"), "{error}");
    assert_eq!(verdicts(), [Outcome::Reached, Outcome::Silent], "while the disk is full");
    disk.free();
    lab.start_pod(serving("late")).unwrap();
    let agent = status(lab.agent(1), "recovers", |status| status["datapath"]["error"].is_null());
    assert_eq!(agent["endpoints"].as_array().unwrap().len(), 4, "{agent:#}");
    assert_eq!(verdicts(), [Outcome::Reached, Outcome::Silent], "and again");
}

#[test]
fn a_flow_log_that_cannot_be_written_is_counted_and_harms_nobody() {
    let lab = Plan::installed_later().nodes(1).raise().unwrap();
    let mut disk = TinyDisk::mount(&lab.dir().join("full"));
    disk.lend("flows.jsonl", &lab.node(1).dir().join("flows.jsonl"));
    lab.namespace("shop", &[]).unwrap();
    lab.install().unwrap();
    disk.fill();
    let serving = |name: &str| PodSpec::new(&format!("shop/{name}")).serve(Transport::Tcp, 80);
    lab.start_pods([serving("db"), serving("web")]).unwrap();
    let to = SocketAddr::new(lab.pod("shop/db").ip(Family::V4), 80);
    let ask = || attempt(lab.pod("shop/web").netns(), to, Transport::Tcp, SILENCE).unwrap();
    assert_eq!(ask(), Outcome::Reached);
    status(lab.agent(1), "counts what it cannot write", |status| {
        status["flows"]["exportErrors"].as_u64() > Some(0)
    });
    assert_eq!(ask(), Outcome::Reached);
}

#[test]
fn after_a_restart_of_the_node_state_says_nothing_of_pods_that_are_gone() {
    let lab = Plan::bulkhead().nodes(1).raise().unwrap();
    lab.namespace("shop", &[]).unwrap();
    let serving =
        |name: &str| PodSpec::new(&format!("shop/{name}")).label("app", name).serve(Transport::Tcp, 80);
    lab.start_pods([serving("db"), serving("stays")]).unwrap();
    let agent = lab.agent(1);
    let pods = |status: &Value| {
        status["endpoints"].as_array().unwrap().iter().map(|e| e["pod"].clone()).collect::<Vec<_>>()
    };
    agent.kill9();
    // A restart leaves nothing but the disk. Interfaces of pods are gone, one by one ..
    assert_eq!(remove_all(agent.bpffs()).failed.len(), 0);
    lab.node(1).netns().ip(&format!("link del {}\n", host_end(&lab, "shop/db"))).unwrap();
    lab.delete("Pod", "shop/db").unwrap();
    agent.start().unwrap();
    lab.adopted().unwrap();
    assert_eq!(pods(&agent.status().unwrap()), ["shop/stays"], "{}", agent.log());
    agent.kill9();
    // .. and if another interface has the name and the number of one, its state is still of another boot.
    assert_eq!(remove_all(agent.bpffs()).failed.len(), 0);
    let state = lab.node(1).dir().join("state");
    fs::write(state.join("boot-id"), "8c5e2b9a-0000-4000-8000-000000000000").unwrap();
    fs::remove_dir_all(lab.node(1).dir().join("cni-cache")).unwrap();
    agent.start().unwrap();
    let seen = status(agent, "looks around", |status| status["running"]["surveyed"] == true);
    assert_eq!(pods(&seen), Vec::<Value>::new(), "{}", agent.log());
    assert_eq!(seen["running"]["unadopted"][0]["pod"], "shop/stays", "{:#}", seen["running"]);
    assert_eq!(fs::read_dir(state.join("endpoints")).unwrap().count(), 0);
    let new = lab.start_pod(serving("new"));
    assert!(new.is_ok(), "{new:?}\n{}", agent.log());
}

fn host_end(lab: &Lab, pod: &str) -> String {
    let pod = lab.pod(pod);
    let interfaces = pod.added().result["interfaces"].as_array().unwrap();
    let host = interfaces.iter().find(|i| i["name"].as_str().is_some_and(|name| name.starts_with("veth")));
    host.unwrap()["name"].as_str().unwrap().to_owned()
}

#[test]
fn an_interface_that_goes_without_del_takes_its_endpoint_along() {
    let lab = Plan::bulkhead().nodes(1).raise().unwrap();
    lab.namespace("shop", &[]).unwrap();
    lab.start_pods(["a", "b"].map(|name| PodSpec::new(&format!("shop/{name}")))).unwrap();
    lab.node(1).netns().ip(&format!("link del {}\n", host_end(&lab, "shop/a"))).unwrap();
    let pods = |status: &Value| {
        status["endpoints"].as_array().unwrap().iter().map(|e| e["pod"].clone()).collect::<Vec<_>>()
    };
    let left = status(lab.agent(1), "forgets it", |status| pods(status) == [json!("shop/b")]);
    assert_eq!(left["datapath"]["error"], Value::Null);
    lab.stop_pod("shop/a").unwrap(); // DEL comes late, and is no error
}

/// As out of memory would: SIGKILL whenever it may be worst.
#[test]
fn an_agent_killed_again_and_again_while_policies_change_never_opens_nor_cuts_what_stays() {
    let shop = Shop::open(Plan::bulkhead());
    let agent = shop.lab.agent(1);
    // Another policy for the same pods, each with new selectors: identities split, rule sets and generations move.
    for round in 0_u64..4 {
        for edit in 0..3 {
            let rules = format!(
                "policyTypes: [Ingress], ingress: [{{from: [{{podSelector: {{matchLabels: {{app: web, round: r{round}-{edit}}}}}}}]}}]"
            );
            shop.lab.policy("shop/more", "db", &rules).unwrap();
            // From the first look at the file to long after the last write.
            thread::sleep(Duration::from_millis((round * 17 + edit * 5) % 60));
        }
        agent.kill9();
        shop.goes_on(&format!("killed in round {round}"));
        agent.start().unwrap();
        shop.lab.settle().unwrap();
        shop.goes_on(&format!("started in round {round}"));
    }
    shop.close();
}
