//! The real object in the real kernel, by BPF test runs: the verifier takes it, and every verdict is the
//! host build's. Needs root.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../enforcer-ebpf/tests/scene/mod.rs"]
mod scene;

use std::{net::IpAddr, time::Duration};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        Array, HashMap, MapData, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use bulkhead_ebpf::{
    abi::{
        Config, Conn, ConnKey4, ConnKey6, DropCount, DropKey, ENDPOINT_ADOPTED, Endpoint, Fragment,
        FragmentKey, Limits, Peer, PolicyWord, Purses, RuleKey, ServiceKey, ServiceKey4, ServiceKey6,
        TenantWord, names,
    },
    decide::{Hook, decide},
    host::Frame,
    packet::{TCP_ACK, TCP_SYN},
    reason::{REASONS, Reason},
};
use proptest::{
    prelude::*,
    test_runner::{Config as RunnerConfig, TestRunner},
};
use scene::{
    A, B, Host, IFINDEX, Remote, Sight, Step, Vip, Who, World, between, cases, endpoint, memory, octets,
};

/// The loaded object, its maps filled with the scene.
struct Kernel(Ebpf);

impl Kernel {
    fn load() -> Self {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(names::CONNS_V4, 4096)
            .map_max_entries(names::CONNS_V6, 4096)
            .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bulkhead-programs")))
            .unwrap();
        for name in [names::FROM_POD, names::TO_POD, names::TO_OVERLAY, names::NOTHING] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        let mut kernel = Self(ebpf);
        for (address, peer) in scene::peers() {
            match address {
                IpAddr::V4(address) => {
                    kernel.hash::<[u8; 4], Peer>(names::PEERS_V4).insert(address.octets(), peer, 0).unwrap();
                }
                IpAddr::V6(address) => {
                    kernel.hash::<[u8; 16], Peer>(names::PEERS_V6).insert(address.octets(), peer, 0).unwrap();
                }
            }
        }
        for (bits, address, peer) in scene::prefixes() {
            let (four, six) = octets(address);
            if address.is_ipv4() {
                kernel
                    .trie::<[u8; 4], Peer>(names::PREFIXES_V4)
                    .insert(&Key::new(bits, four), peer, 0)
                    .unwrap();
            } else {
                kernel
                    .trie::<[u8; 16], Peer>(names::PREFIXES_V6)
                    .insert(&Key::new(bits, six), peer, 0)
                    .unwrap();
            }
        }
        for (bits, key, rule) in scene::rules() {
            kernel.trie::<RuleKey, u32>(names::RULES).insert(&Key::new(bits, key), rule, 0).unwrap();
        }
        for (address, protocol, port, backends) in scene::services() {
            let port_be = port.to_be_bytes();
            match address {
                IpAddr::V4(a) => {
                    let key = ServiceKey { address: a.octets(), port_be, protocol, pad: 0 };
                    kernel.hash::<ServiceKey4, u32>(names::SERVICES_V4).insert(key, backends, 0).unwrap();
                }
                IpAddr::V6(a) => {
                    let key = ServiceKey { address: a.octets(), port_be, protocol, pad: 0 };
                    kernel.hash::<ServiceKey6, u32>(names::SERVICES_V6).insert(key, backends, 0).unwrap();
                }
            }
        }
        let mut origins: Array<_, u32> = kernel.0.map_mut(names::ORIGINS).unwrap().try_into().unwrap();
        for who in [A, B] {
            origins.set(who.mark().into(), who.ifindex(), 0).unwrap();
        }
        let mut config: Array<_, Config> = kernel.0.map_mut(names::CONFIG).unwrap().try_into().unwrap();
        config.set(0, scene::CONFIG, 0).unwrap();
        kernel
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        self.0.map_mut(name).unwrap().try_into().unwrap()
    }

    fn trie<K: Pod, V: Pod>(&mut self, name: &str) -> LpmTrie<&mut MapData, K, V> {
        self.0.map_mut(name).unwrap().try_into().unwrap()
    }

    fn set_endpoints(&mut self, pods: [Endpoint; 2], at_hook: Option<Who>) {
        let mut endpoints: Array<_, Endpoint> = self.0.map_mut(names::ENDPOINTS).unwrap().try_into().unwrap();
        endpoints.set(IFINDEX, Endpoint::default(), 0).unwrap();
        for (ifindex, record) in scene::endpoints(pods, at_hook) {
            endpoints.set(ifindex, record, 0).unwrap();
        }
    }

    fn set_endpoint(&mut self, a: Endpoint) {
        self.set_endpoints([a, endpoint(B)], Some(A));
    }

    fn clear<K: Pod, V: Pod>(&mut self, name: &str) {
        let mut map = self.hash::<K, V>(name);
        let keys: Vec<K> = map.keys().map(Result::unwrap).collect();
        for key in &keys {
            map.remove(key).unwrap();
        }
    }

    /// Forgets connections, fragments and drops.
    fn reset(&mut self) {
        self.clear::<ConnKey4, Conn>(names::CONNS_V4);
        self.clear::<ConnKey6, Conn>(names::CONNS_V6);
        self.clear::<FragmentKey, Fragment>(names::FRAGMENTS);
        self.clear::<DropKey, DropCount>(names::DROPS);
        let mut purses: Array<_, Purses> = self.0.map_mut(names::PURSES).unwrap().try_into().unwrap();
        for mark in [A.mark(), B.mark()] {
            purses.set(mark.into(), Purses::default(), 0).unwrap();
        }
        self.limit(Limits::default());
        self.set_endpoint(endpoint(A));
    }

    fn limit(&mut self, to: Limits) {
        let mut limits: Array<_, Limits> = self.0.map_mut(names::LIMITS).unwrap().try_into().unwrap();
        limits.set(0, to, 0).unwrap();
    }

    fn counters(&self) -> Vec<u64> {
        let counters: PerCpuArray<_, u64> = self.0.map(names::COUNTERS).unwrap().try_into().unwrap();
        (0..REASONS).map(|code| counters.get(&code, 0).unwrap().iter().sum()).collect()
    }

    /// Runs a frame, `repeat` times; gives the return value and the time of one run.
    fn run_program(&self, name: &str, frame: &[u8], repeat: u32) -> (i32, Duration) {
        let program: &SchedClassifier = self.0.program(name).unwrap().try_into().unwrap();
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::new() };
        let result = program.test_run(options).unwrap();
        (result.return_value.cast_signed(), result.duration)
    }

    /// Runs a frame once; gives the return value and the packet's mark afterwards.
    fn see(&self, hook: Hook, frame: &[u8], way: Way) -> (i32, u32) {
        let name = match hook {
            Hook::FromPod => names::FROM_POD,
            Hook::ToPod => names::TO_POD,
            Hook::ToOverlay => names::TO_OVERLAY,
        };
        let program: &SchedClassifier = self.0.program(name).unwrap().try_into().unwrap();
        let (context, mut after) = (way.context(), [0; CONTEXT]);
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            ctx_out: Some(&mut after),
            ..TestRunOptions::new()
        };
        let action = program.test_run(options).unwrap().return_value.cast_signed();
        (action, u32::from_ne_bytes(after[MARK..MARK + 4].try_into().unwrap()))
    }

    /// The verdict's reason, by the counter that has moved.
    fn reason(&self, hook: Hook, frame: &[u8], way: Way) -> Reason {
        let before = self.counters();
        let (action, mark) = self.see(hook, frame, way);
        assert!(mark == way.mark || hook == Hook::FromPod, "only `from_pod` marks");
        let moved: Vec<_> = (0..)
            .zip(self.counters().iter().zip(&before))
            .filter(|(_, (after, before))| after != before)
            .map(|(code, _): (u8, _)| Reason::try_from(code).unwrap())
            .collect();
        let [reason] = moved[..] else { panic!("one counter moves with each packet: {moved:?}") };
        assert_eq!(action, if reason.is_drop() { 2 } else { -1 }, "{reason:?}");
        reason
    }
}

/// What the frame brings along besides its bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Way {
    came_in_by: u32,
    mark: u32,
}

/// Bytes of `struct __sk_buff` (linux/bpf.h), and where two of its fields are.
const CONTEXT: usize = 192;
const MARK: usize = 8;
const INGRESS_IFINDEX: usize = 36;

impl Way {
    fn context(self) -> [u8; CONTEXT] {
        let mut context = [0; CONTEXT];
        context[MARK..MARK + 4].copy_from_slice(&self.mark.to_ne_bytes());
        context[INGRESS_IFINDEX..INGRESS_IFINDEX + 4].copy_from_slice(&self.came_in_by.to_ne_bytes());
        context
    }
}

#[test]
fn what_goes_to_a_service_or_the_node_leaves_with_the_endpoints_mark() {
    let mut kernel = Kernel::load();
    for v6 in [false, true] {
        kernel.reset();
        let others = Way { mark: 0xabc0_4001, ..Way::default() };
        for (to, port, want) in [(Vip, 80, 0x0050_4001), (Host, 22, 0x0050_4001), (Remote, 80, 0xabc0_4001)] {
            for flags in [TCP_SYN, TCP_ACK] {
                let frame = between(A, to, v6).tcp(9, port, flags);
                let seen = kernel.see(Hook::FromPod, &frame, others);
                assert_eq!(seen, (-1, want), "{to:?}, flags {flags}");
            }
        }
    }
}

#[test]
fn every_case_comes_to_its_verdict_in_the_kernel() {
    let mut kernel = Kernel::load();
    let mut wrong = vec![];
    for case in [false, true].into_iter().flat_map(cases) {
        kernel.reset();
        let mut pods = [endpoint(A), endpoint(B)];
        let mut gone = false;
        for (number, step) in case.steps.iter().enumerate() {
            let index = |who| usize::from(who == B);
            match step {
                Step::Policy(who, rule_set, generation) => {
                    pods[index(*who)].policy = PolicyWord::new(*rule_set, *generation);
                }
                Step::Tenant(who, tenant, view) => {
                    pods[index(*who)].tenant = TenantWord::new(*tenant, *view);
                }
                Step::Adopted(who) => pods[index(*who)].flags |= ENDPOINT_ADOPTED,
                Step::Gone => gone = true,
                Step::Limits(limits) => kernel.limit(*limits),
                Step::Packet(..) | Step::Translated(..) | Step::Marked(..) => {
                    let Some(Sight { who, hook, bytes, came_in_by, mark, want }) = step.sight() else {
                        continue;
                    };
                    if bytes.len() < shortest(bytes) {
                        continue;
                    }
                    kernel.set_endpoints(pods, (!gone).then_some(who));
                    let got = kernel.reason(hook, bytes, Way { came_in_by, mark });
                    if got != want {
                        wrong.push(format!(
                            "{} (v6: {}), step {number}: {got:?}, not {want:?}",
                            case.name, case.v6
                        ));
                        break;
                    }
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// A test run refuses a frame that ends inside its network header; a device's would reach the programs.
fn shortest(frame: &[u8]) -> usize {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => 14,
    }
}

/// A frame of a few known shapes with a few bytes changed, at least as long as a test run takes.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<Vec<u8>> = [false, true]
        .into_iter()
        .flat_map(cases)
        .flat_map(|case| case.steps)
        .filter_map(|step| step.sight().map(|sight| sight.bytes.to_vec()))
        .collect();
    let edits = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let cut = (any::<bool>(), any::<prop::sample::Index>());
    let shaped = (prop::sample::select(known), edits, cut).prop_map(|(mut frame, edits, (cut, at))| {
        for (at, byte) in edits {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        if cut {
            frame.truncate(at.index(frame.len()));
        }
        frame
    });
    prop_oneof![4 => shaped, 1 => proptest::collection::vec(any::<u8>(), 0..200)].prop_map(|mut frame| {
        frame.resize(frame.len().max(14), 0);
        let least = shortest(&frame);
        frame.resize(frame.len().max(least), 0);
        frame
    })
}

#[test]
fn kernel_and_host_agree_on_sequences_of_frames() {
    let mut kernel = Kernel::load();
    let hooks = prop::sample::select(vec![Hook::FromPod, Hook::ToPod, Hook::ToOverlay]);
    let ways = (any::<bool>(), prop::sample::select(vec![0, A.mark(), B.mark(), 77]));
    let ways = ways.prop_map(|(forwarded, mark)| Way {
        came_in_by: if forwarded { scene::BRIDGE } else { 0 },
        mark: u32::from(mark) << 20,
    });
    let steps = proptest::collection::vec((frames(), hooks, ways), 1..8);
    let mut runner =
        TestRunner::new(RunnerConfig { cases: 1000, failure_persistence: None, ..RunnerConfig::default() });
    let kernel = std::cell::RefCell::new(&mut kernel);
    runner
        .run(&steps, |steps| {
            let mut kernel = kernel.borrow_mut();
            let memory = memory();
            kernel.reset();
            for (frame, hook, way) in steps {
                let Way { came_in_by, mark } = way;
                let on_host = Frame { came_in_by, mark: mark.into(), ..Frame::new(&frame, IFINDEX) };
                let host = decide(&on_host, &memory, hook);
                prop_assert_eq!(kernel.reason(hook, &frame, way), host, "{:?} {:02x?}", way, frame);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
#[ignore = "measures; run alone and with --nocapture"]
fn what_a_packet_costs() {
    let mut kernel = Kernel::load();
    kernel.reset();
    let median = |kernel: &Kernel, name: &str, frame: &[u8]| {
        let mut times: Vec<_> =
            (0..15).map(|_| kernel.run_program(name, frame, 200_000).1.as_nanos()).collect();
        times.sort_unstable();
        if std::env::var_os("MIN").is_some() {
            return times[0];
        }
        times[times.len() / 2]
    };
    let run = |kernel: &Kernel, hook, frame: &[u8]| {
        let name = if hook == Hook::FromPod { names::FROM_POD } else { names::TO_POD };
        // As near in time as can be: other work comes and goes.
        let nothing = median(kernel, names::NOTHING, frame);
        format!("{} - {nothing}", median(kernel, name, frame))
    };
    let arp = bulkhead_ebpf::host::frames::arp(B.mac(), 1, B.mac(), [10, 1, 0, 3], [10, 1, 0, 2]);
    println!("ARP to_pod {} ns", run(&kernel, Hook::ToPod, &arp));
    for v6 in [false, true] {
        let ab = between(A, B, v6);
        let (syn, ack) = (ab.tcp(999, 80, TCP_SYN), ab.tcp(999, 80, TCP_ACK));
        assert_eq!(kernel.reason(Hook::FromPod, &syn, Way::default()), Reason::Allowed);
        assert_eq!(kernel.reason(Hook::FromPod, &ack, Way::default()), Reason::Tracked);
        println!("v6 {v6}: tracked from_pod {} ns", run(&kernel, Hook::FromPod, &ack));
        let reply = ab.reply().tcp(80, 999, TCP_ACK);
        println!("v6 {v6}: tracked to_pod {} ns", run(&kernel, Hook::ToPod, &reply));
        println!(
            "v6 {v6}: denied {} ns",
            run(&kernel, Hook::FromPod, &between(A, World, v6).tcp(1, 80, TCP_SYN))
        );
        kernel.set_endpoint(Endpoint { policy: PolicyWord::new(scene::RULES_A, 0), ..endpoint(A) });
        println!("v6 {v6}: judged each time {} ns", run(&kernel, Hook::FromPod, &ack));
        kernel.set_endpoint(endpoint(A));
        // What a flood comes to: all of it as dear as the next.
        let aw = between(A, Remote, v6);
        kernel.limit(Limits { entry_cost: 3600 * 1_000_000_000, savings: 0 });
        assert_eq!(kernel.reason(Hook::FromPod, &aw.udp(9, 10), Way::default()), Reason::Allowed);
        for (kind, frame) in
            [("SYN", aw.tcp(1, 80, TCP_SYN)), ("UDP", aw.udp(1, 53)), ("echo request", aw.echo(false, 1))]
        {
            assert_eq!(kernel.reason(Hook::FromPod, &frame, Way::default()), Reason::OverBudget);
            println!("v6 {v6}: {kind} over budget {} ns", run(&kernel, Hook::FromPod, &frame));
        }
        kernel.reset();
    }
}
