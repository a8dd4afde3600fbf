//! This node's enforcement as plain, synchronous code with one owner: what the cluster says and which pods
//! hang here go in, the kernel follows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use bulkhead_cni::protocol::Sandbox;
use bulkhead_ebpf::abi::PolicyWord;

use super::{
    adoption::{Running, is_gone},
    attaching::Attacher,
    boot,
    connections::Tracked,
    local,
    names::Publisher,
    overlay::{Links, Way},
    settings::Settings,
    succession::keep_marks,
};
use crate::{
    cluster::{
        index::Index,
        object::{Kind, Pod},
    },
    datapath::{
        DatapathError, Local, Tables, Written,
        kernel::Maps,
        programs::{Capacity, Programs, Role},
    },
    endpoint::{Endpoint, Endpoints, store::Store},
    metrics::Meters,
    policy::{self, Compiler},
    source::{Change, Problem, Update},
};

/// Income that a pod can save up for new connections.
const BUDGET_SAVINGS: Duration = Duration::from_secs(2);
/// Rules that nothing can reach any more are removed about this long after the update that left them ..
const TIDY_AFTER: Duration = Duration::from_secs(2);
/// .. and never this soon after another one: a packet under way may just have looked up an old number.
pub(super) const PACKET_UNDER_WAY: Duration = Duration::from_millis(20);

pub struct Node {
    pub(super) index: Index,
    pub(super) compiler: Compiler,
    pub(super) endpoints: Endpoints,
    pub(super) tables: Tables<Maps>,
    pub(super) programs: Programs,
    pub(super) source: SourceState,
    pub(super) health: Health,
    pub(super) meters: Meters,
    /// Rule set and generation that the last plan had for each interface; empty when it came to nothing.
    pub(super) wanted: BTreeMap<u32, PolicyWord>,
    pub(super) links: Links,
    pub(super) ways: Vec<Way>,
    pub(super) store: Store,
    /// Kernel records of a state file that was lost, by interface; kept as they are.
    pub(super) orphans: BTreeMap<u32, Local>,
    pub(super) running: Running,
    tidy_at: Option<Instant>,
    updated: Instant,
    pub(super) names: Publisher,
    /// Events lost in the kernel, as last reported.
    pub(super) lost_events: u64,
    pub(super) tracked: Tracked,
    pub(super) attacher: Attacher,
    /// Interfaces on which a program of ours was missing when last looked at.
    pub(super) bare: BTreeSet<u32>,
}

/// What the source said last.
#[derive(Debug, Default)]
pub struct SourceState {
    /// Updates so far.
    pub learned: u64,
    pub synced: bool,
    pub problems: Vec<Problem>,
    pub ignored: BTreeMap<String, usize>,
    /// When everything had been read, and when the last update came.
    pub synced_at: Option<Instant>,
    pub updated: Option<Instant>,
}

impl SourceState {
    fn take_in(&mut self, update: Update) {
        let now = Instant::now();
        self.updated = Some(now);
        if update.synced {
            self.synced_at.get_or_insert(now);
        }
        (self.synced, self.problems, self.ignored) = (update.synced, update.problems, update.ignored);
        self.learned += 1;
    }
}

/// How the last update went.
#[derive(Debug, Default)]
pub struct Health {
    pub updates: u64,
    /// By the first update after the start; zero everywhere says that the restart changed nothing.
    pub first_written: Option<Written>,
    pub last_written: Written,
    /// Why the kernel is not up to date: endpoints keep their last complete rule sets (semantics 42).
    pub error: Option<String>,
    /// Pins that were missing and are back, since the start.
    pub pins_restored: usize,
    /// Why pins cannot be put back: the node would not enforce on without the agent.
    pub pins_missing: Option<String>,
    /// A predecessor's programs have been replaced, or there were none.
    pub succeeded: bool,
}

impl Node {
    /// Takes over what an agent before us left: pins, endpoints, numbers. Nothing is written to the policy
    /// maps before the source has said everything once (fail static).
    pub fn open(
        settings: &Settings,
        names: Publisher,
        attacher: Attacher,
    ) -> anyhow::Result<(Self, aya::Ebpf)> {
        let store = Store::open(&settings.state.join("endpoints"))?;
        if boot::is_another(&settings.state) {
            tracing::info!("the node has been restarted: no endpoint of before is left");
            store.clear()?;
        }
        let (stored, errors) = store.load()?;
        for error in errors {
            tracing::error!(%error, "endpoint file cannot be read; its pod keeps its rules as they are");
        }
        let capacity = Capacity { connections: settings.max_connections };
        let (programs, mut ebpf) = Programs::open(&settings.bpffs, settings.abi(), capacity)?;
        let mut maps = Maps::take(&mut ebpf)?;
        maps.configure(bulkhead_ebpf::abi::Config {
            tunnel_port_be: settings.policy.tunnel_port.to_be_bytes(),
            lets: settings.let_pods_send.iter().fold(0, |lets, one| lets | one.bit()),
            mark_mask: settings.mark_mask,
        })?;
        maps.limit(settings.new_connections, BUDGET_SAVINGS)?;
        keep_marks(&programs, &mut maps, &stored);
        let tables = Tables::open(maps, Some(&settings.state.join("numbers.json")))?;
        let mut index = Index::new(Some(settings.node_name.clone()));
        index.set_local_addresses(local::addresses()?);
        let mut node = Self {
            index,
            compiler: Compiler::new(policy::Settings::from(&settings.policy)),
            endpoints: Endpoints::default(),
            tables,
            programs,
            source: SourceState::default(),
            health: Health::default(),
            meters: Meters::default(),
            wanted: BTreeMap::new(),
            links: Links::default(),
            ways: Vec::new(),
            store,
            orphans: BTreeMap::new(),
            running: Running::default(),
            tidy_at: None,
            updated: Instant::now(),
            names,
            lost_events: 0,
            tracked: Tracked::default(),
            attacher,
            bare: BTreeSet::new(),
        };
        for endpoint in stored {
            node.adopt(&endpoint);
        }
        node.adopt_orphans();
        if let Err(error) = boot::remember(&settings.state) {
            tracing::warn!(%error, "a restart of the node will not be noticed");
        }
        Ok((node, ebpf))
    }

    /// An endpoint of before. Its interface may be gone: the pod ended while no agent ran.
    fn adopt(&mut self, endpoint: &Endpoint) {
        let Sandbox { host_ifname, host_ifindex, .. } = &endpoint.sandbox;
        if is_gone(&endpoint.sandbox) {
            tracing::info!(container = endpoint.attachment.container, ifname = host_ifname, "pod is gone");
            if let Err(error) = self.store.remove(&endpoint.attachment) {
                tracing::warn!(%error, "stale endpoint file stays");
            }
            return;
        }
        if !self.is_succeeding() && !self.programs.holds(*host_ifindex) {
            return self.await_return(endpoint);
        }
        if !self.is_succeeding()
            && let Err(error) = self.programs.attach(Role::Pod, host_ifname, *host_ifindex)
        {
            // The others still need an agent; `repair` tries again.
            tracing::error!(ifname = host_ifname, error = error_chain(&error), "pod is not enforced");
        }
        self.endpoints.insert(endpoint.clone());
        self.follow_pod(endpoint);
        self.go_on_learning(endpoint);
    }

    pub(super) fn pods_here<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.index.pods().filter(move |pod| pod.node.as_deref() == Some(node))
    }

    /// Puts pins back that somebody has removed.
    fn restore_pins(&mut self) {
        match self.programs.restore_pins() {
            Ok(0) => self.health.pins_missing = None,
            Ok(restored) => {
                tracing::error!(restored, "pins were missing, and are back");
                self.health.pins_restored += restored;
                self.health.pins_missing = None;
            }
            Err(error) => {
                let error = error_chain(&error);
                if self.health.pins_missing.as_ref() != Some(&error) {
                    tracing::error!(error, "pins are missing: the node enforces only while the agent runs");
                }
                self.health.pins_missing = Some(error);
            }
        }
    }

    fn adopt_orphans(&mut self) {
        let known: BTreeSet<u32> = self.endpoints.iter().map(|e| e.sandbox.host_ifindex).collect();
        for (ifindex, record) in &self.tables.actual().endpoints {
            if known.contains(ifindex) || !local::exists(*ifindex) {
                continue;
            }
            tracing::warn!(ifindex, endpoint = record.id, "endpoint without a state file keeps its rules");
            let addresses = [IpAddr::from(record.ipv4), IpAddr::from(record.ipv6)];
            self.orphans.insert(
                *ifindex,
                Local {
                    id: record.id,
                    ifindex: *ifindex,
                    pod: None,
                    mac: record.mac,
                    addresses: addresses.into_iter().filter(|a| !a.is_unspecified()).collect(),
                    adopted: false,
                    silent: false,
                },
            );
        }
    }

    /// Takes in what the cluster says; the kernel follows at once.
    pub fn learn(&mut self, mut update: Update) {
        let is_first = update.synced && !self.source.synced;
        let of_nodes = update.changes.iter().any(|change| change.kind() == Kind::Node);
        for change in std::mem::take(&mut update.changes) {
            match change {
                Change::Upsert(object) => self.index.apply(object),
                Change::Delete(object) => self.index.delete(&object),
            };
        }
        self.source.take_in(update);
        self.names.look_again();
        if of_nodes {
            self.guard_ways(); // before anything is opened that is to be judged there
        }
        self.enforce();
        if is_first {
            crate::allocator::give_back();
        }
        self.succeed();
    }

    /// Brings the kernel to the index. An error is kept for status and tried again at the next tick.
    pub(super) fn enforce(&mut self) {
        if !self.source.synced {
            return; // half a list must neither open nor close anything
        }
        match self.update_or_make_room() {
            Ok(written) => {
                self.health.error = None;
                self.health.last_written = written;
                self.health.first_written.get_or_insert(written);
                self.updated = Instant::now();
                self.tidy_at.get_or_insert(self.updated + TIDY_AFTER);
            }
            Err(error) => {
                let error = error_chain(&error);
                tracing::error!(error, "the kernel is not up to date");
                self.meters.update_failed();
                self.health.error = Some(error);
            }
        }
    }

    /// The kernel holds everything that has been learnt.
    pub fn is_in_force(&self) -> bool {
        self.source.synced && self.health.error.is_none()
    }

    /// Rules that nothing reaches any more may take up the room that is missing.
    fn update_or_make_room(&mut self) -> Result<Written, DatapathError> {
        let updated = self.update();
        if !matches!(updated, Err(DatapathError::Full { .. })) {
            return updated;
        }
        let retried = if self.updated.elapsed() > PACKET_UNDER_WAY {
            self.tables.tidy()?;
            self.update()
        } else {
            updated
        };
        if retried.is_err() {
            self.tables.withdraw(self.compiler.compiled(), &self.locals())?;
        }
        retried
    }

    fn locals(&self) -> BTreeMap<u32, Local> {
        let own = self.endpoints.iter().map(|endpoint| {
            let silent = self.running.is_silent(&endpoint.attachment);
            (endpoint.sandbox.host_ifindex, Local { silent, ..endpoint.local() })
        });
        own.chain(self.orphans.clone()).collect()
    }

    fn update(&mut self) -> Result<Written, DatapathError> {
        let locals = self.locals();
        self.health.updates += 1;
        let touched = self.index.take_touched();
        let renamed = self.names.follow_services(&self.index, &touched);
        let began = Instant::now();
        self.wanted.clear();
        let planned = self.tables.plan(&mut self.compiler, &self.index, &touched, &locals);
        let plan = planned.inspect_err(|_| self.names.forget())?;
        self.wanted.extend(plan.endpoints.iter().map(|(ifindex, record)| (*ifindex, record.policy)));
        self.meters.planned(began.elapsed());
        // Names first: no event may come from a number that the flow log cannot resolve.
        self.publish_names(&touched, &renamed, &plan);
        let began = Instant::now();
        let written = self.tables.carry_out(plan).inspect_err(|_| self.names.forget());
        self.meters.written(began.elapsed());
        written
    }

    /// Now and then: what changed without anybody telling us, what failed before, what can go.
    pub fn tick(&mut self) {
        if self.health.error.is_some() {
            self.enforce();
        }
        if self.tidy_at.is_some_and(|at| at <= Instant::now()) && self.updated.elapsed() > PACKET_UNDER_WAY {
            self.tidy_at = None;
            if let Err(error) = self.tables.tidy() {
                tracing::warn!(error = error_chain(&error), "stale rules stay for now");
            }
        }
        self.orphans.retain(|ifindex, _| local::exists(*ifindex));
        self.succeed();
        self.tend_running();
        self.tend_names();
        self.restore_pins();
        self.sweep_links();
    }

    fn sweep_links(&mut self) {
        if self.is_succeeding() {
            return; // what a predecessor holds is still to be taken over
        }
        if let Err(error) = self.programs.sweep_links(local::exists) {
            tracing::warn!(error = error_chain(&error), "stale link pins stay for now");
        }
    }
}

/// An error with its causes, in one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}
