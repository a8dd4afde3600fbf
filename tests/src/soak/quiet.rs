//! A moment in which nothing changes: the agents come to the present state, everybody asks everybody, the flow log names
//! who denied, and what there is is counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
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
    judge::Question,
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
/// Drops of a pair within seconds are one record (`DROP_EVENT_TICKS`); sockets that were cut repeat themselves for a while.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(20);
/// Prefix of figures of the kernel's maps.
const MAP: &str = "map ";

pub fn moment(soak: &Soak<'_>) -> Result<Vec<Sample>> {
    let _alone = soak.gate.write().expect("no holder panics");
    for (number, agent) in (1..).zip(soak.lab.agents()) {
        if let Some(status) = agent.ended()? {
            bail!("the agent of node-{number} has ended by itself ({status}):\n{}", agent.log());
        }
    }
    let began = Instant::now();
    let versions = soak.history.catch_up()?;
    if let Err(error) = soak.standing.reach(&versions, soak.lab.agents(), SETTLES_WITHIN) {
        soak.tally.wrong(|| format!("no quiet moment: {error:#}"));
        return Err(error);
    }
    let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    soak.tally.most("ms until the agents were up to date in a quiet moment, at most", took);
    soak.history.forget();
    let mut lately = std::mem::take(&mut *soak.asked.lock().expect("no holder panics"));
    lately.retain(|_, at| at.elapsed() < FORGOTTEN_AFTER);
    let mut answers = ask_everybody(soak)?;
    answers.retain(|(asked, _)| !lately.contains_key(&asked.name()));
    look_up(soak, &answers)?;
    let objects = soak.history.present();
    (0..soak.lab.agents().len()).map(|node| sample(soak, node, &objects)).collect()
}

/// Denials: the newest record in the flow log of the node that denies names the policies.
fn look_up(soak: &Soak<'_>, answers: &[(Asked, Outcome)]) -> Result<()> {
    let objects = soak.history.present();
    let denied: Vec<_> =
        answers.iter().filter(|(_, outcome)| *outcome == Outcome::Silent).map(|(asked, _)| asked).collect();
    let every = denied.len().div_ceil(LOOKED_UP).max(1);
    // Without those whose outcome was judged wrong already.
    let some = denied.into_iter().step_by(every);
    let wanted: Vec<_> = some.filter_map(|asked| Some((asked, denial(&objects, asked)?))).collect();
    let is_told = |told: &[Newest], asked: &Asked, want: &Denial| {
        told[want.node].get(&Pair::of(asked)) == Some(&want.record)
    };
    let told = until(
        TIDIES_WITHIN,
        || soak.lab.agents().iter().map(newest).collect::<Result<Vec<_>>>(),
        |told| wanted.iter().all(|(asked, want)| is_told(told, asked, want)),
    )?;
    for (asked, want) in &wanted {
        if is_told(&told, asked, want) {
            soak.tally.count("denials looked up in the flow log");
            continue;
        }
        soak.tally.wrong(|| {
            let found = told[want.node].get(&Pair::of(asked));
            let (name, circumstances) = (asked.name(), soak.circumstances(asked));
            format!("{name}: the flow log says {found:?}, and should {:?}\n{circumstances}", want.record)
        });
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

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    from: String,
    to: String,
    transport: Transport,
    port: u64,
    ipv4: bool,
}

impl Pair {
    fn of(asked: &Asked) -> Self {
        let Question { from, to, transport, ipv4, port } = &asked.question;
        let (from, to) = (from.key.to_string(), to.key.to_string());
        Self { from, to, transport: *transport, port: (*port).into(), ipv4: *ipv4 }
    }
}

type Newest = BTreeMap<Pair, Record>;

/// What an agent remembers of each pair's last denial.
fn newest(agent: &Agent) -> Result<Newest> {
    let lines = agent.flows(&["-o", "json", "--verdict", "dropped", "--last", "100000"])?;
    let mut newest = Newest::new();
    for line in lines.lines() {
        let record: serde_json::Value = serde_json::from_str(line).context("a flow record")?;
        let ipv4 = record["flow"]["IP"]["ipVersion"] == "IPv4";
        let Some(Blocked {
            source: from, destination: to, transport, port, direction, reason, policies, ..
        }) = Blocked::read(&record)
        else {
            continue;
        };
        let record = (direction, reason == "POLICY_DENIED", policies);
        newest.insert(Pair { from, to, transport, port, ipv4 }, record);
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
