//! The compiler's answer, the kernel's answer and a naive reading of the specification are the same, over
//! generated clusters. Needs root: the kernel engine runs the real programs.

use bulkhead::{
    datapath::engine::KernelEngine,
    policy::{
        Simulator,
        probe::{Answer, ProbeProtocol, Verdict},
        testkit::{
            generate::{Case, describe},
            naive,
        },
    },
};

const PROBES: usize = 50;

/// `BULKHEAD_ENGINE_CLUSTERS` asks for a longer run.
fn clusters() -> u64 {
    std::env::var("BULKHEAD_ENGINE_CLUSTERS").ok().and_then(|n| n.parse().ok()).unwrap_or(300)
}

#[test]
fn kernel_compiler_and_a_naive_evaluator_agree_on_generated_clusters() {
    let (mut allowed, mut denied, mut translated) = (0, 0, [0, 0]);
    let mut of_family = [0, 0];
    let case = Case::of(0, 0);
    let mut kernel = KernelEngine::new(Simulator::new(case.index(), case.settings));
    for seed in 0..clusters() {
        let case = Case::of(seed, PROBES);
        let mut compiler = Simulator::new(case.index(), case.settings.clone());
        kernel.ask_about(Simulator::new(case.index(), case.settings.clone()));
        for probe in &case.probes {
            let context = || format!("seed {seed}, {}", describe(probe));
            let (want, have) = (compiler.answer(probe), kernel.answer(probe));
            let (Ok(want), Ok(have)) = (&want, &have) else {
                assert!(want.is_err() && have.is_err(), "{}: {want:?} {have:?}", context());
                continue;
            };
            assert_eq!(sides(have), sides(want), "{}\nkernel {have:?}\ncompiler {want:?}", context());
            let naive = naive::answer(&case.objects, &case.settings, probe).expect("it can be asked");
            assert_eq!(sides(have), (naive.egress, naive.ingress), "{}: naive", context());
            let flow = compiler.flow(probe).expect("it has an answer");
            if let Some(passes) = naive.before_translation {
                let side = kernel.before_translation(&flow).expect("a test run").expect("a Service");
                assert_eq!(side.verdict == Verdict::Allow, passes, "{}: {side:?}", context());
                translated[usize::from(passes)] += 1;
            }
            of_family[usize::from(flow.src.address.is_ipv6())] += 1;
            *if have.verdict == Verdict::Allow { &mut allowed } else { &mut denied } += 1;
        }
    }
    let [v4, v6] = of_family;
    let asked = v4 + v6;
    println!("{asked} probes answered alike ({v4} IPv4, {v6} IPv6): {allowed} allowed, {denied} denied");
    let [stopped, passed] = translated;
    println!("before translation {passed} passed and {stopped} stopped");
    assert!(stopped > asked / 100 && passed > asked / 100, "Services must be among what is asked about");
    assert!(allowed > asked / 10 && denied > asked / 10, "the clusters must ask for both verdicts");
}

/// Allowed at the source, allowed at the destination.
fn sides(answer: &Answer) -> (bool, bool) {
    (answer.egress.verdict == Verdict::Allow, answer.ingress.verdict == Verdict::Allow)
}

#[test]
fn every_protocol_is_shown_to_the_kernel() {
    let case = Case::of(7, 400);
    let mut kernel = KernelEngine::new(Simulator::new(case.index(), case.settings.clone()));
    for protocol in [ProbeProtocol::Tcp, ProbeProtocol::Udp, ProbeProtocol::Sctp, ProbeProtocol::Icmp] {
        let answered =
            case.probes.iter().filter(|p| p.protocol == protocol && kernel.answer(p).is_ok()).count();
        assert!(answered > 0, "{protocol}");
    }
}
