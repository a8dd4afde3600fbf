//! From a policy's write at the API server to the first packet that meets it.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    plan::Plan,
    pod::PodSpec,
    probe::{Family, Transport},
};

/// Between two packets: how finely time is told.
const PACE: Duration = Duration::from_micros(200);

#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Pods on the two nodes together
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(2..=400))]
    pods: u32,
    /// Edits of the policy; every other one opens
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    edits: u32,
    /// Milliseconds from one edit to the next
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(20..))]
    pause: u64,
}

/// One packet: when it was sent, and whether it was answered.
struct Asked {
    sent: Instant,
    answered: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let lab = Plan::bulkhead().api_server().raise()?;
    lab.namespace("shop", &[])?;
    let spec = |number: u32| {
        let node = 1 + u8::try_from(number % 2).expect("below 2");
        PodSpec::new(&format!("shop/p-{number}"))
            .on(node)
            .label("app", &format!("p-{number}"))
            .serve(Transport::Udp, 53)
    };
    lab.start_pods((0..options.pods).map(spec))?;
    lab.manifests().write(&policy(true))?;
    lab.settle()?;
    let (client, server) = (lab.pod("shop/p-1"), lab.pod("shop/p-0"));
    let at = SocketAddr::new(server.ip(Family::V4), 53);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let asking = client.netns().spawn(move || ask(at, &stopped))?;
    thread::sleep(Duration::from_millis(200));

    let mut edits = Vec::new();
    for number in 0..options.edits {
        let opens = number % 2 == 1;
        let begun = Instant::now();
        lab.api().admin().apply(&policy(opens))?;
        edits.push((opens, begun, Instant::now()));
        thread::sleep(Duration::from_millis(options.pause));
    }
    stop.store(true, Ordering::Relaxed);
    let asked = asking.join().expect("asking does not panic")?;
    let end = Instant::now();

    let ends = edits.iter().skip(1).map(|(_, begun, _)| *begun).chain([end]);
    let (mut from_begin, mut from_answer, mut missing) = (Vec::new(), Vec::new(), 0);
    for ((opens, begun, answered), until) in edits.iter().zip(ends) {
        let of_edit = asked.iter().filter(|packet| packet.sent >= *begun && packet.sent < until);
        let mut met = of_edit.skip_while(|packet| packet.answered != *opens);
        match met.next() {
            Some(packet) => {
                from_begin.push(packet.sent.duration_since(*begun));
                from_answer.push(packet.sent.saturating_duration_since(*answered));
            }
            None => missing += 1,
        }
    }
    ensure!(!from_begin.is_empty(), "no edit took effect");
    println!("{} pods on two nodes, {} packets, {} edits", options.pods, asked.len(), edits.len());
    println!("from the request to the first packet that meets it: {}", percentiles(&mut from_begin));
    println!("from the API server's answer: {}", percentiles(&mut from_answer));
    println!("edits that did not take effect before the next one: {missing}");
    Ok(())
}

fn policy(open: bool) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "door"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "p-0"}}, "policyTypes": ["Ingress"],
            "ingress": if open { json!([{"from": [{"podSelector": {"matchLabels": {"app": "p-1"}}}]}]) } else { json!([]) },
        },
    })
}

/// Asks until told to stop. The answer carries the question's number.
fn ask(at: SocketAddr, stop: &AtomicBool) -> Result<Vec<Asked>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(at)?;
    socket.set_nonblocking(true)?;
    let (mut asked, mut next) = (Vec::<Asked>::new(), Instant::now());
    let hear = |asked: &mut Vec<Asked>| {
        let mut buffer = [0; 8];
        while let Ok(length) = socket.recv(&mut buffer) {
            let number = usize::from_be_bytes(buffer);
            if let Some(packet) = asked.get_mut(number).filter(|_| length == buffer.len()) {
                packet.answered = true;
            }
        }
    };
    while !stop.load(Ordering::Relaxed) {
        asked.push(Asked { sent: Instant::now(), answered: false });
        let _ = socket.send(&(asked.len() - 1).to_be_bytes()); // a refusal is an answer that does not come
        next += PACE;
        thread::sleep(next.saturating_duration_since(Instant::now()));
        hear(&mut asked);
    }
    thread::sleep(Duration::from_millis(100));
    hear(&mut asked);
    asked.pop().context("nothing was asked")?;
    Ok(asked)
}

fn percentiles(times: &mut [Duration]) -> String {
    times.sort();
    let of = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    format!("p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, at most {:.1} ms", of(50), of(90), of(99), of(100))
}
