//! A source without an agent, and a cluster's objects.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bulkhead::{
    cluster::object::{Kind, Object, ObjectRef},
    source::{
        Change, Problem, Update,
        kubernetes::{Fetched, Kubernetes, Pace, WatchStatus},
    },
};
use bulkhead_cni::protocol::PodName;
use lab::apiserver::{ApiServer, Kubeconfig};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::mpsc, time::timeout};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// This node.
pub const NODE: &str = "node-1";

/// Small pages and little patience.
pub const PACE: Pace = Pace {
    page: 3,
    answer: Duration::from_secs(2),
    silence: Duration::from_secs(2),
    pause: (Duration::from_millis(20), Duration::from_millis(200)),
    good: Duration::from_mins(1),
    quiet: Duration::from_millis(5),
    longest: Duration::from_millis(50),
    fetch: Duration::from_millis(1500),
};

/// An API server with a small cluster, and what a source says of it.
pub struct Stage {
    pub seen: Seen,
    updates: mpsc::Receiver<Update>,
    fetched: mpsc::Receiver<Fetched>,
    source: Kubernetes,
    pub api: ApiServer,
    pub kubeconfig: Kubeconfig,
    runtime: Runtime,
    dirs: Vec<TempDir>,
}

/// All that was told so far.
#[derive(Debug, Default)]
pub struct Seen {
    pub objects: BTreeMap<ObjectRef, Object>,
    pub problems: Vec<Problem>,
    pub synced: bool,
    /// Changes of each update, since the last look.
    pub updates: Vec<Vec<Change>>,
}

impl Stage {
    /// A cluster that has been read.
    pub fn synced() -> Self {
        let mut stage = Self::begin(|_| {});
        stage.until("synced", |seen| seen.synced);
        stage.seen.updates.clear();
        stage
    }

    /// `trouble` comes before the source starts.
    pub fn begin(trouble: impl FnOnce(&ApiServer)) -> Self {
        let home = TempDir::new().unwrap();
        let mut stage = Self::begin_by(|api| {
            trouble(api);
            api.kubeconfig(home.path()).unwrap()
        });
        stage.dirs.push(home);
        stage
    }

    /// `reached` tells the source how.
    pub fn begin_by(reached: impl FnOnce(&ApiServer) -> Kubeconfig) -> Self {
        let dir = TempDir::new().unwrap();
        let api = ApiServer::start(dir.path()).unwrap();
        for object in cluster() {
            api.admin().apply(&object).unwrap();
        }
        let kubeconfig = reached(&api);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (updates_in, updates) = mpsc::channel(16);
        let (fetched_in, fetched) = mpsc::channel(16);
        let source = Kubernetes::start(Some(&kubeconfig.path), NODE, PACE, updates_in, fetched_in);
        let source = runtime.block_on(source).unwrap();
        let seen = Seen::default();
        Self { seen, updates, fetched, source, api, kubeconfig, runtime, dirs: vec![dir] }
    }

    /// Takes in what is told until it is enough; fails when that takes too long.
    pub fn until(&mut self, what: &str, enough: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !enough(&self.seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not {what}: {:#?}\n{:#?}", self.seen, self.watches());
            self.take(left.min(Duration::from_millis(200)));
        }
    }

    /// Until a condition holds that is not about what is told.
    pub fn until_so(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so(self) {
            assert!(Instant::now() < deadline, "not {what}: {:#?}\n{:#?}", self.seen, self.watches());
            self.take(Duration::from_millis(20));
        }
    }

    /// Takes in what is told in this time.
    pub fn for_a_while(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            self.take(left);
        }
    }

    fn take(&mut self, within: Duration) {
        let update = self.runtime.block_on(async { timeout(within, self.updates.recv()).await });
        let Ok(update) = update else { return };
        let update = update.expect("the source goes on");
        assert!(update.synced || !self.seen.synced, "a source that was synced stays so");
        for change in &update.changes {
            match change.clone() {
                Change::Upsert(object) => _ = self.seen.objects.insert(object.reference(), object),
                // What came and went in one step was never there.
                Change::Delete(reference) => _ = self.seen.objects.remove(&reference),
            }
        }
        if !update.changes.is_empty() {
            self.seen.updates.push(update.changes);
        }
        (self.seen.problems, self.seen.synced) = (update.problems, update.synced);
    }

    pub fn fetch(&mut self, pod: &PodName) -> Result<(), String> {
        let _inside = self.runtime.enter();
        self.source.fetch(pod.clone());
        let answer = self.runtime.block_on(async { timeout(PATIENCE, self.fetched.recv()).await });
        let answer = answer.unwrap().unwrap();
        assert_eq!(answer.pod, *pod);
        answer.result
    }

    pub fn watches(&self) -> BTreeMap<Kind, WatchStatus> {
        self.source.health().watches()
    }

    pub fn watch(&self, kind: Kind) -> WatchStatus {
        self.watches()[&kind].clone()
    }

    pub fn apply(&self, object: &Value) {
        self.api.admin().apply(object).unwrap();
    }

    pub fn delete(&self, kind: &str, key: &str) {
        self.api.admin().delete(kind, key).unwrap();
    }
}

impl Seen {
    pub fn has(&self, kind: &str, key: &str) -> bool {
        self.names().contains(&format!("{kind} {key}"))
    }

    /// `Kind name` or `Kind namespace/name` of all objects that a test made (a real API server has a few of its own).
    pub fn names(&self) -> Vec<String> {
        let names = self.objects.keys().map(ToString::to_string);
        names.filter(|name| !name.contains("kube") && !name.contains("default")).collect()
    }

    pub fn problems(&self) -> Vec<String> {
        self.problems.iter().map(ToString::to_string).collect()
    }
}

/// A namespace, two nodes, four pods, a policy, a Service and its slice.
pub fn cluster() -> Vec<Value> {
    vec![
        namespace("shop", "blue"),
        node("node-1", 1),
        node("node-2", 2),
        pod("shop/web-0", "node-1", "10.244.1.10"),
        pod("shop/web-1", "node-2", "10.244.2.10"),
        pod("shop/db", "node-1", "10.244.1.11"),
        pod("shop/job", "node-2", "10.244.2.11"),
        policy("shop/guard", 80),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20"], "ports": [{"port": 80}],
                     "selector": {"app": "web"}},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.244.1.10"], "conditions": {"ready": true}}],
        }),
    ]
}

pub fn namespace(name: &str, tenant: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"bulkhead.io/tenant": tenant}},
    })
}

pub fn node(name: &str, number: u8) -> Value {
    let cidr = format!("10.244.{number}.0/24");
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.77.{number}")}]},
    })
}

/// Running, or pending without an address.
pub fn pod(key: &str, node: &str, address: &str) -> Value {
    let (namespace, name) = key.split_once('/').unwrap();
    let app = name.split('-').next();
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "lab"}]},
    });
    pod["status"] = match address {
        "" => json!({"phase": "Pending"}),
        ip => json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}),
    };
    pod
}

/// For every pod of its namespace: nobody enters but by this port.
pub fn policy(key: &str, port: u16) -> Value {
    let (namespace, name) = key.split_once('/').unwrap();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": port, "protocol": "TCP"}]}]},
    })
}

pub const ALL: [&str; 10] = [
    "Namespace shop",
    "Pod shop/db",
    "Pod shop/job",
    "Pod shop/web-0",
    "Pod shop/web-1",
    "Node node-1",
    "Node node-2",
    "NetworkPolicy shop/guard",
    "Service shop/web",
    "EndpointSlice shop/web-x",
];
