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
        FragmentKey, Peer, PolicyWord, RuleKey, names,
    },
    decide::{Hook, decide},
    host::{Frame, Memory},
    packet::{TCP_ACK, TCP_SYN},
    reason::{REASONS, Reason},
};
use proptest::{
    prelude::*,
    test_runner::{Config as RunnerConfig, TestRunner},
};
use scene::{A, B, IFINDEX, Step, World, between, cases, endpoint, octets};

/// The loaded object, its maps filled with the scene.
struct Kernel(Ebpf);

impl Kernel {
    fn load() -> Self {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(names::CONNS_V4, 4096)
            .map_max_entries(names::CONNS_V6, 4096)
            .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bulkhead-programs")))
            .unwrap();
        for name in [names::FROM_POD, names::TO_POD, names::NOTHING] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        let mut kernel = Self(ebpf);
        for (address, peer) in scene::peers() {
            match address {
                IpAddr::V4(address) => {
                    kernel.hash::<[u8; 4], Peer>(names::PEERS_V4).insert(address.octets(), peer, 0).unwrap()
                }
                IpAddr::V6(address) => {
                    kernel.hash::<[u8; 16], Peer>(names::PEERS_V6).insert(address.octets(), peer, 0).unwrap()
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

    fn set_endpoint(&mut self, endpoint: Endpoint) {
        let mut endpoints: Array<_, Endpoint> = self.0.map_mut(names::ENDPOINTS).unwrap().try_into().unwrap();
        endpoints.set(IFINDEX, endpoint, 0).unwrap();
    }

    fn clear<K: Pod, V: Pod>(&mut self, name: &str) {
        let mut map = self.hash::<K, V>(name);
        let keys: Vec<K> = map.keys().map(Result::unwrap).collect();
        keys.iter().for_each(|key| map.remove(key).unwrap());
    }

    /// Forgets connections, fragments and drops.
    fn reset(&mut self) {
        self.clear::<ConnKey4, Conn>(names::CONNS_V4);
        self.clear::<ConnKey6, Conn>(names::CONNS_V6);
        self.clear::<FragmentKey, Fragment>(names::FRAGMENTS);
        self.clear::<DropKey, DropCount>(names::DROPS);
        self.set_endpoint(endpoint(A));
    }

    fn counters(&self) -> Vec<u64> {
        let counters: PerCpuArray<_, u64> = self.0.map(names::COUNTERS).unwrap().try_into().unwrap();
        (0..REASONS).map(|code| counters.get(&code, 0).unwrap().iter().sum()).collect()
    }

    /// Runs a frame, `repeat` times; gives the return value and the time of one run.
    fn run(&self, hook: Hook, frame: &[u8], repeat: u32) -> (i32, Duration) {
        self.run_program(
            match hook {
                Hook::FromPod => names::FROM_POD,
                Hook::ToPod => names::TO_POD,
            },
            frame,
            repeat,
        )
    }

    fn run_program(&self, name: &str, frame: &[u8], repeat: u32) -> (i32, Duration) {
        let program: &SchedClassifier = self.0.program(name).unwrap().try_into().unwrap();
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::new() };
        let result = program.test_run(options).unwrap();
        (result.return_value.cast_signed(), result.duration)
    }

    /// The verdict's reason, by the counter that has moved.
    fn reason(&self, hook: Hook, frame: &[u8]) -> Reason {
        let before = self.counters();
        let (action, _) = self.run(hook, frame, 1);
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

/// The scene in memory.
fn memory() -> Memory {
    let mut memory = Memory::default();
    memory.config = scene::CONFIG;
    memory.now.set(1 << 40);
    for (address, peer) in scene::peers() {
        match address {
            IpAddr::V4(address) => memory.peers_v4.insert(address.octets(), peer),
            IpAddr::V6(address) => memory.peers_v6.insert(address.octets(), peer),
        };
    }
    for (bits, address, peer) in scene::prefixes() {
        match address {
            IpAddr::V4(_) => memory.prefix_v4(bits, octets(address).0, peer),
            IpAddr::V6(_) => memory.prefix_v6(bits, octets(address).1, peer),
        }
    }
    for (bits, key, rule) in scene::rules() {
        memory.allow(bits, key, rule);
    }
    memory.endpoints.insert(IFINDEX, endpoint(A));
    memory
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
                Step::Tenant(who, tenant) => pods[index(*who)].tenant = *tenant,
                Step::Adopted(who) => pods[index(*who)].flags |= ENDPOINT_ADOPTED,
                Step::Gone => gone = true,
                Step::Packet(_, _, frame, _) if frame.len() < shortest(frame) => {}
                Step::Packet(who, hook, frame, want) => {
                    kernel.set_endpoint(if gone { Endpoint::default() } else { pods[index(*who)] });
                    let got = kernel.reason(*hook, frame);
                    if got != *want {
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
        .filter_map(|step| if let Step::Packet(_, _, frame, _) = step { Some(frame) } else { None })
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
    let steps = proptest::collection::vec((frames(), any::<bool>()), 1..8);
    let mut runner =
        TestRunner::new(RunnerConfig { cases: 1000, failure_persistence: None, ..RunnerConfig::default() });
    let kernel = std::cell::RefCell::new(&mut kernel);
    runner
        .run(&steps, |steps| {
            let mut kernel = kernel.borrow_mut();
            let memory = memory();
            kernel.reset();
            for (frame, from) in steps {
                let hook = if from { Hook::FromPod } else { Hook::ToPod };
                let host = decide(&Frame::new(&frame, IFINDEX), &memory, hook);
                prop_assert_eq!(kernel.reason(hook, &frame), host, "{:02x?}", frame);
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
            (0..9).map(|_| kernel.run_program(name, frame, 200_000).1.as_nanos()).collect();
        times.sort_unstable();
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
        assert_eq!(kernel.reason(Hook::FromPod, &syn), Reason::Allowed);
        assert_eq!(kernel.reason(Hook::FromPod, &ack), Reason::Tracked);
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
    }
}
