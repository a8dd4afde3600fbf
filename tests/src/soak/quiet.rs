//! A moment in which nothing changes: the agents come to the present state, everybody asks everybody, the flow log names
//! who denied, and what there is is counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bulkhead::{
    cluster::object::Object,
    policy::{
        Settings,
        probe::{EndpointRef, Probe, ProbeProtocol},
        testkit::naive,
    },
};

use super::{
    Soak,
    growth::{Sample, Tolerance, files, of_process},
    kernel_maps, needs,
    probes::{Asked, ask_everybody},
};
use crate::{
    agent::Agent,
    flowlog::Blocked,
    patience::until,
    probe::{Outcome, Transport},
    topology::Lab,
};

/// How long agents may take to come to the present state, an agent that has just been started and a watch that pauses
/// after many failures (20 s at most) included.
const SETTLES_WITHIN: Duration = Duration::from_mins(1);
/// How long stale entries may stay, and records may be on their way.
const TIDIES_WITHIN: Duration = Duration::from_secs(10);
/// Denied exchanges of a moment that are looked up in the flow log.
const LOOKED_UP: usize = 40;
/// Prefix of figures of the kernel's maps.
const MAP: &str = "map ";

pub fn moment(soak: &Soak<'_>) -> Result<Vec<Sample>> {
    let _alone = soak.gate.write().expect("no holder panics");
    let began = Instant::now();
    let versions = soak.history.catch_up()?;
    if let Err(error) = soak.standing.reach(&versions, soak.lab.agents(), SETTLES_WITHIN) {
        soak.tally.wrong(|| format!("no quiet moment: {error:#}"));
        return Err(error);
    }
    let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    soak.tally.most("ms until the agents were up to date in a quiet moment, at most", took);
    soak.history.forget();
    let answers = ask_everybody(soak)?;
    look_up(soak, &answers)?;
    let objects = soak.history.present();
    (0..soak.lab.agents().len()).map(|node| sample(soak, node, &objects)).collect()
}

/// Denials of pods on the node that denies: its flow log's newest record names the policies.
fn look_up(soak: &Soak<'_>, answers: &[(Asked, Outcome)]) -> Result<()> {
    let objects = soak.history.present();
    let denied: Vec<_> =
        answers.iter().filter(|(_, outcome)| *outcome == Outcome::Silent).map(|(asked, _)| asked).collect();
    let every = denied.len().div_ceil(LOOKED_UP).max(1);
    for asked in denied.iter().step_by(every) {
        let Some(want) = denial(&objects, asked) else { continue }; // an outcome that was judged wrong already
        let agent = &soak.lab.agents()[want.node];
        let found =
            until(TIDIES_WITHIN, || newest(agent, asked), |found| found.as_ref() == Some(&want.record))?;
        if found.as_ref() == Some(&want.record) {
            soak.tally.count("denials looked up in the flow log");
        } else {
            soak.tally.wrong(|| {
                format!(
                    "{}: the flow log says {found:?}, and should {:?}\n{}",
                    asked.name(),
                    want.record,
                    soak.circumstances(asked)
                )
            });
            break; // the others would be waited for as well
        }
    }
    Ok(())
}

/// Direction, whether policies denied (or else a tenant's boundary), and which isolate.
type Record = (String, bool, BTreeSet<String>);

#[derive(Debug)]
struct Denial {
    node: usize,
    record: Record,
}

fn denial(objects: &[Object], asked: &Asked) -> Option<Denial> {
    let question = &asked.question;
    let probe = Probe {
        src: EndpointRef::Ip(question.address(&question.from)),
        dst: EndpointRef::Ip(question.address(&question.to)),
        protocol: match question.transport {
            Transport::Tcp => ProbeProtocol::Tcp,
            Transport::Udp => ProbeProtocol::Udp,
        },
        port: Some(question.port),
        family: None,
    };
    let settings = Settings::default();
    let verdicts = naive::answer(objects, &settings, &probe)?;
    if verdicts.egress && verdicts.ingress {
        return None;
    }
    let egress = !verdicts.egress;
    let without_policies: Vec<_> =
        objects.iter().filter(|object| !matches!(object, Object::NetworkPolicy(_))).cloned().collect();
    let tenants = naive::answer(&without_policies, &settings, &probe)?;
    let by_policy = if egress { tenants.egress } else { tenants.ingress };
    let end = if egress { &question.from } else { &question.to };
    let isolating = if by_policy { naive::isolating(objects, &end.key, !egress) } else { BTreeSet::new() };
    let direction = if egress { "EGRESS" } else { "INGRESS" };
    let policies = isolating.iter().map(ToString::to_string).collect();
    Some(Denial { node: end.node, record: (direction.to_owned(), by_policy, policies) })
}

fn newest(agent: &Agent, asked: &Asked) -> Result<Option<Record>> {
    let question = &asked.question;
    let (from, to) = (question.from.key.to_string(), question.to.key.to_string());
    let (port, protocol) = (question.port.to_string(), question.transport.to_string());
    let lines = agent.flows(&[
        "-o",
        "json",
        "--verdict",
        "dropped",
        "--last",
        "100000",
        "--pod",
        &from,
        "--port",
        &port,
        "--protocol",
        &protocol,
    ])?;
    let mut newest = None;
    for line in lines.lines() {
        let record: serde_json::Value = serde_json::from_str(line).context("a flow record")?;
        let version = record["flow"]["IP"]["ipVersion"].as_str().unwrap_or_default();
        let is_family = version == if question.ipv4 { "IPv4" } else { "IPv6" };
        let Some(blocked) = Blocked::read(&record).filter(|_| is_family) else { continue };
        let is_pair = blocked.source == from && blocked.destination == to;
        if is_pair && (blocked.transport, blocked.port) == (question.transport, u64::from(question.port)) {
            newest = Some((blocked.direction, blocked.reason == "POLICY_DENIED", blocked.policies));
        }
    }
    Ok(newest)
}

fn sample(soak: &Soak<'_>, node: usize, objects: &[Object]) -> Result<Sample> {
    let (lab, agent): (&Lab, &Agent) = (soak.lab, &soak.lab.agents()[node]);
    let pods = lab.pods();
    let needed = needs::entries(objects, &lab.nodes()[node], pods.iter().map(|pod| &**pod))?;
    // Stale rules go a few seconds after they went out of use.
    let held = until(
        TIDIES_WITHIN,
        || kernel_maps::entries(agent.bpffs()),
        |held| needed.iter().all(|(map, needed)| held.get(map) == Some(needed)),
    )?;
    for (map, needed) in &needed {
        let held = held.get(map).copied().unwrap_or_default();
        if held != *needed {
            soak.tally.wrong(|| {
                let status = agent.status().unwrap_or_default();
                format!(
                    "{map} of node-{} has {held} entries, and the present state needs {needed}; the agent's own count: {}",
                    node + 1,
                    status["datapath"]["maps"][map]
                )
            });
        }
    }
    let mut figures: BTreeMap<_, _> =
        held.into_iter().map(|(map, count)| (format!("{MAP}{map}"), count as u64)).collect();
    figures.extend(of_process(agent.pid()?)?);
    figures.insert("pins".to_owned(), files(agent.bpffs())?);
    figures.insert("state files".to_owned(), files(&lab.nodes()[node].dir().join("state"))?);
    Ok(Sample { at: soak.began.elapsed(), node, figures })
}

/// Policy maps are compared with what is needed at every moment; the tables of connections, fragments and drops are as full
/// as traffic makes them.
pub fn tolerance(figure: &str) -> Option<Tolerance> {
    match figure {
        "memory, KiB" => Some(Tolerance { more: 6 << 10, percent: 15 }),
        "threads" => Some(Tolerance { more: 2, percent: 0 }),
        "descriptors" => Some(Tolerance { more: 6, percent: 0 }),
        "pins" => Some(Tolerance { more: 0, percent: 0 }),
        "state files" => Some(Tolerance { more: 1, percent: 0 }),
        _ => None,
    }
}
