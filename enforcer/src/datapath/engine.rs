//! `simulate --engine kernel`: the same questions, answered by the real programs over the real maps.
//!
//! One private set of programs and maps per node that judges, filled by the agent's own [`Tables`]; each side
//! of a probe is one `BPF_PROG_TEST_RUN` of the opening packet. Test runs carry interface index 1
//! (loopback), so the judging pod's record is copied there first.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use aya::{
    Ebpf,
    programs::{TestRun, TestRunOptions},
};
use bulkhead_ebpf::abi::{Conn, Endpoint, names};

use super::{
    DatapathError, Local, Op, Tables,
    frame::Opening,
    kernel::{Kernel, Maps},
    programs::{Capacity, classifier, load_private},
};
use crate::cluster::object::Key;
use crate::policy::{
    Answer, Probe, ProbeError, Simulator,
    evaluate::{self, Flow},
    lookup::Decision,
    model::{Compiled, Direction, Grant},
    probe::{Side, Verdict},
};

/// Interface index that a test run carries.
const LOOPBACK: u32 = 1;
/// Programs that return this let the packet on (`TC_ACT_UNSPEC`).
const NEXT: u32 = u32::MAX;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("the kernel engine (it needs root)")]
    Datapath(#[from] DatapathError),
}

pub struct KernelEngine {
    simulator: Simulator,
    nodes: BTreeMap<Option<String>, NodeKernel>,
    /// Loaded for an earlier cluster: loading costs a second, mostly the verifier's.
    spare: Vec<NodeKernel>,
    source_port: u16,
}

impl KernelEngine {
    pub fn new(simulator: Simulator) -> Self {
        Self { simulator, nodes: BTreeMap::new(), spare: Vec::new(), source_port: 0 }
    }

    /// The same programs, to be asked about another cluster.
    pub fn ask_about(&mut self, simulator: Simulator) {
        self.simulator = simulator;
        self.spare.extend(std::mem::take(&mut self.nodes).into_values());
    }

    pub fn answer(&mut self, probe: &Probe) -> Result<Answer, EngineError> {
        let flow = self.simulator.flow(probe)?;
        let Some(translated) = self.simulator.translated(probe, &flow) else {
            let [egress, ingress] = self.sides(&flow)?;
            return Ok(Answer { verdict: egress.verdict.max(ingress.verdict), egress, ingress });
        };
        let mut sides = Vec::new();
        for flow in &translated.flows {
            let is_hairpin = flow.src.address == flow.dst.address;
            // It needs a translated packet to tell it from one that never leaves the pod.
            sides.push(if is_hairpin { self.simulator.hairpin(flow) } else { self.sides(flow)? });
        }
        Ok(translated.answer(&sides, self.before_translation(&flow)?))
    }

    /// What `from_pod` says to the packet while it still bears a Service's address; `None`: it bears none, or
    /// no pod sends it.
    pub fn before_translation(&mut self, flow: &Flow) -> Result<Option<Side>, EngineError> {
        if self.simulator.before_translation(flow).is_none() {
            return Ok(None);
        }
        let sides = self.side(flow, Direction::Egress);
        self.forget_connections()?;
        sides.map(Some)
    }

    fn sides(&mut self, flow: &Flow) -> Result<[Side; 2], EngineError> {
        let sides = [self.side(flow, Direction::Egress)?, self.side(flow, Direction::Ingress)?];
        self.forget_connections()?;
        Ok(sides)
    }

    fn forget_connections(&mut self) -> Result<(), DatapathError> {
        self.nodes.values_mut().try_for_each(NodeKernel::forget_connections)
    }

    fn side(&mut self, flow: &Flow, direction: Direction) -> Result<Side, EngineError> {
        let (own, other) = match direction {
            Direction::Egress => (&flow.src, &flow.dst),
            Direction::Ingress => (&flow.dst, &flow.src),
        };
        let Some(endpoint) = &own.endpoint else { return Ok(evaluate::allow("not a pod")) };
        // A new port for each question: a new connection.
        self.source_port = self.source_port.checked_add(1).unwrap_or(1).max(1024);
        if !self.nodes.contains_key(&endpoint.node) {
            let compiled = self.simulator.compiled(endpoint.node.as_deref());
            let mut kernel = self.spare.pop().map_or_else(NodeKernel::load, Ok)?;
            kernel.hold(compiled)?;
            self.nodes.insert(endpoint.node.clone(), kernel);
        }
        let node = self.nodes.get_mut(&endpoint.node).expect("inserted above");
        let record = node.record(&endpoint.pod, own.address);
        let opening = Opening {
            source_mac: record.mac,
            destination_mac: record.mac,
            source: flow.src.address,
            destination: flow.dst.address,
            protocol: flow.protocol,
            source_port: self.source_port,
            destination_port: flow.port,
        };
        let verdict = node.judge(record, &opening, direction)?;
        if other.address == own.address {
            return Ok(Side { verdict, by: "own address".to_owned() });
        }
        let by = match verdict {
            Verdict::Allow => evaluate::allowed_by(&node.granted(own.address)?, direction),
            Verdict::Deny => node.denied(&endpoint.pod, other.address, direction, (flow.protocol, flow.port)),
        };
        Ok(Side { verdict, by })
    }
}

struct NodeKernel {
    ebpf: Ebpf,
    tables: Tables<Maps>,
    compiled: Arc<Compiled>,
    /// Interface index of each pod, as the maps know it.
    interfaces: BTreeMap<Key, u32>,
}

impl NodeKernel {
    fn load() -> Result<Self, DatapathError> {
        let mut ebpf = load_private(Capacity { connections: 1024 })?;
        let tables = Tables::open(Maps::take(&mut ebpf)?, None)?;
        Ok(Self { ebpf, tables, compiled: Arc::default(), interfaces: BTreeMap::new() })
    }

    /// Fills the maps as the agent would, whatever they held before.
    fn hold(&mut self, compiled: Arc<Compiled>) -> Result<(), DatapathError> {
        let pods = compiled.endpoints.keys().zip(LOOPBACK + 1..);
        self.interfaces = pods.map(|(pod, ifindex)| (pod.clone(), ifindex)).collect();
        let locals = self.interfaces.iter().map(|(pod, ifindex)| {
            let local = Local {
                id: *ifindex,
                ifindex: *ifindex,
                pod: Some(pod.clone()),
                mac: [2, 0, 0, 0, 0, 1],
                addresses: [].into(),
                adopted: false,
                silent: false,
            };
            (*ifindex, local)
        });
        let plan = self.tables.plan_whole(&compiled, &locals.collect())?;
        self.tables.carry_out(plan)?;
        self.tables.tidy()?;
        self.compiled = compiled;
        Ok(())
    }

    /// The pod's record as if it hung on the test run's interface, owning `address`.
    fn record(&self, pod: &Key, address: IpAddr) -> Endpoint {
        let ifindex = self.interfaces.get(pod);
        let record = ifindex.and_then(|ifindex| self.tables.actual().endpoints.get(ifindex));
        let mut record = Endpoint { ifindex: LOOPBACK, ..record.copied().unwrap_or_default() };
        match address {
            IpAddr::V4(a) => record.ipv4 = a.octets(),
            IpAddr::V6(a) => record.ipv6 = a.octets(),
        }
        record
    }

    fn judge(
        &mut self,
        record: Endpoint,
        opening: &Opening,
        direction: Direction,
    ) -> Result<Verdict, DatapathError> {
        self.tables.kernel().apply(&Op::SetEndpoint(record))?;
        let program = match direction {
            Direction::Egress => names::FROM_POD,
            Direction::Ingress => names::TO_POD,
        };
        let frame = opening.frame();
        let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() };
        let result = classifier(&mut self.ebpf, program)?.test_run(options)?;
        Ok(if result.return_value == NEXT { Verdict::Allow } else { Verdict::Deny })
    }

    /// Why the connection that was just tracked may pass, at the end of this address.
    fn granted(&mut self, own: IpAddr) -> Result<Vec<Grant>, DatapathError> {
        let maps = self.tables.kernel();
        let mut rule = None;
        for entry in maps.conns_v4().entries() {
            let (key, conn) = entry?;
            rule = rule.or(own_rule(&key.addresses.map(IpAddr::from), &conn, own));
        }
        for entry in maps.conns_v6().entries() {
            let (key, conn) = entry?;
            rule = rule.or(own_rule(&key.addresses.map(IpAddr::from), &conn, own));
        }
        let grant = rule.and_then(|rule| self.tables.numbers().grants.value(rule));
        Ok(grant.map(|grant| Grant::clone(grant)).into_iter().collect())
    }

    fn denied(&self, pod: &Key, other: IpAddr, direction: Direction, (protocol, port): (u8, u16)) -> String {
        let (Some(policy), Some(peer)) = (self.compiled.endpoints.get(pod), self.compiled.peer(other)) else {
            return "the pod has no policy in the kernel".to_owned();
        };
        match policy.decide(peer, direction, protocol, port) {
            Decision::TenantBoundary => evaluate::boundary(policy, peer, direction),
            Decision::Allow(_) | Decision::NoRule => evaluate::isolated_by(policy, direction),
        }
    }

    /// The next probe must not ride on this one's connection.
    fn forget_connections(&mut self) -> Result<(), DatapathError> {
        let maps = self.tables.kernel();
        let keys: Vec<_> = maps.conns_v4().entries().collect::<Result<_, _>>()?;
        keys.iter().try_for_each(|(key, _)| maps.conns_v4().remove(key))?;
        let keys: Vec<_> = maps.conns_v6().entries().collect::<Result<_, _>>()?;
        keys.iter().try_for_each(|(key, _)| maps.conns_v6().remove(key))
    }
}

/// The rule that allowed the connection at the side that has this address.
fn own_rule(addresses: &[IpAddr; 2], conn: &Conn, own: IpAddr) -> Option<u32> {
    let side = addresses.iter().position(|address| *address == own)?;
    Some(conn.ends[side].rule())
}
