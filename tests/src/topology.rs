//! A whole cluster on one machine: an underlay, nodes joined as flannel joins them, pods, and (unless the
//! lab is flat) one agent per node.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{
    agent::Agent,
    apiserver::ApiServer,
    binaries,
    chain::Chain,
    kubelet::Manifests,
    netns::{NETNS_DIR, Netns, remove_namespace, require_root},
    node::{Node, UNDERLAY_MTU, WORLD_V4, WORLD_V6},
    plan::Plan,
    pod::{Pod, PodSpec, Start},
    proxy::Proxy,
};

/// One directory per lab; a lab lives as long as a process holds the lock on its `owner` file.
pub const LABS_DIR: &str = "/run/bulkhead-lab";
/// Where the API server listens.
const API_PORT: u16 = 6443;
/// File in the directory of a lab that was left running on purpose.
const KEPT: &str = "kept";

/// A running cluster. Dropping it removes everything: pods, agents, namespaces, mounts, directory.
///
/// Fields are in the order in which they must go.
#[derive(Debug)]
pub struct Lab {
    pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    agents: Vec<Agent>,
    chains: Vec<Chain>,
    proxies: Vec<Proxy>,
    nodes: Vec<Arc<Node>>,
    world: Netns,
    manifests: Manifests,
    api: Option<Arc<ApiServer>>,
    pod_numbers: AtomicU32,
    dir: LabDir,
}

impl Lab {
    pub(crate) fn raise(plan: &Plan) -> Result<Self> {
        require_root()?;
        sweep();
        let dir = LabDir::create()?;
        let world = underlay(&dir.name)?;
        let api =
            (plan.api_server && plan.agent.is_some()).then(|| api_server(&dir.path, &world)).transpose()?;
        let manifests = Manifests::create(&dir.path.join("manifests"), api.clone())?;
        let nodes = (1..=plan.nodes)
            .map(|number| Ok(Arc::new(Node::create(number, plan.pod_bits, &dir.name, &dir.path, &world)?)))
            .collect::<Result<Vec<_>>>()?;
        for node in &nodes {
            node.join(&nodes)?;
            manifests.write(&node.manifest())?;
            plan.bridge_nf.map_or(Ok(()), |on| node.bridge_nf(on))?;
        }
        let flannel: Vec<_> = nodes.iter().map(|node| Chain::flannel(node, None)).collect();
        for (node, chain) in nodes.iter().zip(&flannel) {
            node.write_cni_configuration(&chain.conflist()?)?;
        }
        let proxies = plan.proxy.iter().flat_map(|mode| nodes.iter().map(|node| Proxy::start(node, *mode)));
        let proxies = proxies.collect::<Result<Vec<_>>>()?;
        let agents = match &plan.agent {
            None => Vec::new(),
            Some(options) => {
                dir.mount_bpffs()?;
                let kubeconfig = api.as_ref().map(|api| api.kubeconfig(&dir.path)).transpose()?;
                let source = match &kubeconfig {
                    Some(kubeconfig) => ("--kubeconfig", kubeconfig.path.as_path()),
                    None => ("--manifests", manifests.dir()),
                };
                let agents = nodes
                    .iter()
                    .map(|node| Agent::new(node, &dir.bpffs(), source, options))
                    .collect::<Result<Vec<_>>>()?;
                if !plan.later {
                    start(&agents)?;
                }
                agents
            }
        };
        let chains: Vec<Chain> = match &plan.agent {
            None => flannel,
            Some(options) if options.keeps_chain => {
                nodes.iter().map(|node| Chain::of_directory(node)).collect()
            }
            Some(options) => {
                let binary = binaries::cni()?;
                let chained = nodes.iter().zip(&agents).map(|(node, agent)| {
                    let chain = Chain::flannel(node, Some((options.cni_entry(&agent.socket()), &binary)));
                    node.write_cni_configuration(&chain.conflist()?)?;
                    Ok(chain)
                });
                chained.collect::<Result<Vec<_>>>()?
            }
        };
        for chain in &chains {
            chain.set_complete(!plan.later);
        }
        Ok(Self {
            pods: Mutex::default(),
            agents,
            chains,
            proxies,
            nodes,
            world,
            manifests,
            api,
            pod_numbers: AtomicU32::new(0),
            dir,
        })
    }

    /// Brings bulkhead to a cluster that was raised without: agents start, and the plugin is in the list from now on.
    pub fn install(&self) -> Result<()> {
        start(&self.agents)?;
        for chain in &self.chains {
            chain.set_complete(true);
        }
        Ok(())
    }

    /// Unique on this machine; prefix of all namespaces.
    pub fn name(&self) -> &str {
        &self.dir.name
    }

    pub fn dir(&self) -> &Path {
        &self.dir.path
    }

    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Node `number`, from 1.
    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number) - 1]
    }

    pub fn chain(&self, number: u8) -> &Chain {
        &self.chains[usize::from(number) - 1]
    }

    pub fn agents(&self) -> &[Agent] {
        &self.agents
    }

    pub fn agent(&self, number: u8) -> &Agent {
        &self.agents[usize::from(number) - 1]
    }

    /// One per node, if the plan has them.
    pub fn proxies(&self) -> &[Proxy] {
        &self.proxies
    }

    /// The namespace of the underlay: a host outside the cluster.
    pub fn world(&self) -> &Netns {
        &self.world
    }

    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// If the plan has one.
    pub fn api(&self) -> &ApiServer {
        self.api.as_ref().expect("the plan has an API server")
    }

    pub(crate) fn has_api(&self) -> bool {
        self.api.is_some()
    }

    /// Starts a pod the way the kubelet does: scheduled, wired by CNI ADD, then Running.
    pub fn start_pod(&self, spec: PodSpec) -> Result<Arc<Pod>> {
        self.start_pod_with(spec, Start::default())
    }

    /// As [`Lab::start_pod`], with something that happens inside the pod before or right after ADD.
    pub fn start_pod_with(&self, spec: PodSpec, start: Start<'_>) -> Result<Arc<Pod>> {
        let node = self.nodes.iter().position(|node| node.name() == spec.node()).with_context(|| {
            format!("{} is scheduled to {}, which this lab does not have", spec.key(), spec.node())
        })?;
        let number = self.pod_numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let netns = format!("{}-pod{number}", self.dir.name);
        let pod = Pod::start(spec, &netns, &self.nodes[node], &self.chains[node], &self.manifests, start)?;
        let pod = Arc::new(pod);
        self.pods.lock().expect("no pod start panics").insert(pod.key(), Arc::clone(&pod));
        Ok(pod)
    }

    /// Starts several pods at once.
    pub fn start_pods(&self, specs: impl IntoIterator<Item = PodSpec>) -> Result<Vec<Arc<Pod>>> {
        thread::scope(|scope| {
            let starts: Vec<_> = specs.into_iter().map(|spec| scope.spawn(|| self.start_pod(spec))).collect();
            starts.into_iter().map(|start| start.join().expect("a pod start does not panic")).collect()
        })
    }

    /// CNI DEL, then the manifest and the namespace go.
    pub fn stop_pod(&self, key: &str) -> Result<()> {
        let pod = self.pods.lock().expect("no pod start panics").remove(key);
        let pod = pod.with_context(|| format!("no pod {key}"))?;
        let node =
            self.nodes.iter().position(|n| n.name() == pod.spec().node()).expect("it was started there");
        pod.stop(&self.nodes[node], &self.chains[node], &self.manifests)
    }

    /// A running pod, by `namespace/name`.
    pub fn pod(&self, key: &str) -> Arc<Pod> {
        let pods = self.pods.lock().expect("no pod start panics");
        Arc::clone(pods.get(key).unwrap_or_else(|| panic!("no pod {key} runs; there are {:?}", pods.keys())))
    }

    /// All running pods, sorted by name.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().expect("no pod start panics").values().cloned().collect()
    }

    /// Marks the lab as one that [`kept`] lists.
    pub fn keep(&self) -> Result<()> {
        Ok(fs::write(self.dir.path.join(KEPT), "")?)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // DEL first: what a plugin leaves behind in a namespace goes with the namespace, what it leaves in the
        // agent goes with the agent; nothing here may fail the test that is ending, or panic while it panics.
        self.agents.iter().for_each(Agent::kill9);
        if let Ok(pods) = self.pods.lock() {
            pods.values().for_each(|pod| pod.quiet());
        }
    }
}

/// The directory of a lab, locked by its owner.
#[derive(Debug)]
struct LabDir {
    name: String,
    path: PathBuf,
    _owner: File,
}

impl LabDir {
    fn create() -> Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let name = format!("bh-{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed) + 1);
        fs::create_dir_all(LABS_DIR)?;
        // Locked under another name first: a sweep must not see a lab that nobody seems to own.
        let (path, nascent) = (Path::new(LABS_DIR).join(&name), Path::new(LABS_DIR).join(format!(".{name}")));
        fs::create_dir(&nascent).with_context(|| format!("cannot create {}", nascent.display()))?;
        let owner = File::create(nascent.join("owner"))?;
        owner.lock()?;
        fs::rename(&nascent, &path)?;
        Ok(Self { name, path, _owner: owner })
    }

    fn bpffs(&self) -> PathBuf {
        self.path.join("bpf")
    }

    fn mount_bpffs(&self) -> Result<()> {
        fs::create_dir(self.bpffs())?;
        mount(Some("none"), &self.bpffs(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("cannot mount a private bpffs")
    }
}

impl Drop for LabDir {
    fn drop(&mut self) {
        remove_lab(&self.name);
    }
}

/// Removes what labs of dead processes left behind; returns their names.
pub fn sweep() -> Vec<String> {
    let names = labs().unwrap_or_default().into_iter().filter(|name| !is_owned(name));
    names.inspect(|name| remove_lab(name)).collect()
}

/// Names of all labs on this machine, with or without an owner.
pub fn labs() -> Result<Vec<String>> {
    if !Path::new(LABS_DIR).exists() {
        return Ok(Vec::new());
    }
    let mut names: Vec<_> = fs::read_dir(LABS_DIR)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("bh-"))
        .collect();
    names.sort();
    Ok(names)
}

/// Names of the labs that were left running on purpose.
pub fn kept() -> Result<Vec<String>> {
    let is_kept = |name: &String| Path::new(LABS_DIR).join(name).join(KEPT).exists() && is_owned(name);
    Ok(labs()?.into_iter().filter(is_kept).collect())
}

/// Removes the labs of this process, for a process that ends without unwinding.
pub fn remove_own() {
    let own = format!("bh-{}-", std::process::id());
    labs().unwrap_or_default().iter().filter(|name| name.starts_with(&own)).for_each(|name| remove_lab(name));
}

/// The process that a lab belongs to, if it still runs.
pub fn owner(name: &str) -> Result<nix::unistd::Pid> {
    if !is_owned(name) {
        bail!("{name} has no owner any more");
    }
    let pid = name.split('-').nth(1).and_then(|pid| pid.parse().ok()).context("not the name of a lab")?;
    Ok(nix::unistd::Pid::from_raw(pid))
}

fn is_owned(name: &str) -> bool {
    let file = File::open(Path::new(LABS_DIR).join(name).join("owner"));
    file.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

fn remove_lab(name: &str) {
    let prefix = format!("{name}-");
    for entry in fs::read_dir(NETNS_DIR).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            remove_namespace(&entry.path());
        }
    }
    let dir = Path::new(LABS_DIR).join(name);
    let _ = umount2(&dir.join("bpf"), MntFlags::MNT_DETACH);
    let _ = fs::remove_dir_all(&dir);
}

/// Agents reach it at an address of the world.
fn api_server(dir: &Path, world: &Netns) -> Result<Arc<ApiServer>> {
    let at = SocketAddr::from((WORLD_V4, API_PORT));
    Ok(Arc::new(ApiServer::start_at(dir, at, Arc::new(world.listener()?))?))
}

fn start(agents: &[Agent]) -> Result<()> {
    agents.iter().try_for_each(|agent| agent.spawn(&[]))?;
    agents.iter().try_for_each(Agent::await_ready)
}

fn underlay(lab: &str) -> Result<Netns> {
    let netns = Netns::create(&format!("{lab}-world"))?;
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/default/forwarding"] {
        netns.sysctl(key, "1")?;
    }
    netns.ip(&format!(
        "link add br0 mtu {UNDERLAY_MTU} type bridge\n\
         addr add {WORLD_V4}/24 dev br0\n\
         addr add {WORLD_V6}/64 dev br0 nodad\n\
         link set br0 up\n"
    ))?;
    Ok(netns)
}
