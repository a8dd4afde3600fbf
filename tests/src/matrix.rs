//! Who reaches whom: every pair of pods asked at once, and a table to look at.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    time::Duration,
};

use anyhow::Result;

use crate::{
    netns::Netns,
    patience::until,
    probe::{Attempt, Family, Outcome, Transport, attempt_all},
    topology::Lab,
};

/// How long a matrix waits before it calls a silence a denial. On an idle machine an exchange takes under a
/// millisecond; the rest is for a loaded one.
pub const PATIENCE: Duration = Duration::from_millis(700);

/// How long a change of manifests may take until traffic shows it, on a loaded machine.
pub const SETTLES_WITHIN: Duration = Duration::from_secs(10);

/// Outcomes by source and destination; a pod is not asked about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    title: String,
    sources: Vec<String>,
    destinations: Vec<String>,
    outcomes: BTreeMap<(String, String), Outcome>,
}

/// A row or a column before it is asked.
struct Source<'a> {
    name: String,
    netns: &'a Netns,
}

struct Destination {
    name: String,
    pod: String,
    transport: Transport,
    at: SocketAddr,
}

impl Lab {
    /// Every pod asks every other pod at this port.
    pub fn matrix(&self, transport: Transport, port: u16, family: Family) -> Result<Matrix> {
        let pods = self.pods();
        let sources: Vec<_> = pods.iter().map(|pod| Source { name: pod.key(), netns: pod.netns() }).collect();
        let destinations = self.at_port(transport, port, family);
        ask(format!("{transport} {port}, {family}"), &sources, &destinations)
    }

    /// As [`Lab::matrix`], asked again until exactly these pairs reach each other or [`SETTLES_WITHIN`] is over;
    /// gives the last answer.
    pub fn matrix_settled(
        &self,
        (transport, port, family): (Transport, u16, Family),
        reached: &BTreeSet<(&str, &str)>,
    ) -> Result<Matrix> {
        until(SETTLES_WITHIN, || self.matrix(transport, port, family), |matrix| matrix.reached() == *reached)
    }

    /// Every node itself (not a pod on it) asks every pod at this port, as the kubelet's probes do.
    pub fn node_matrix(&self, transport: Transport, port: u16, family: Family) -> Result<Matrix> {
        let sources: Vec<_> =
            self.nodes().iter().map(|node| Source { name: node.name(), netns: node.netns() }).collect();
        ask(format!("{transport} {port}, {family}"), &sources, &self.at_port(transport, port, family))
    }

    /// Every pod asks every other pod at each port that it serves.
    pub fn service_matrix(&self, family: Family) -> Result<Matrix> {
        let pods = self.pods();
        let sources: Vec<_> = pods.iter().map(|pod| Source { name: pod.key(), netns: pod.netns() }).collect();
        let destinations: Vec<_> = pods
            .iter()
            .flat_map(|pod| {
                pod.spec().ports().into_iter().map(|(transport, port)| Destination {
                    name: format!("{}:{port}", pod.key()),
                    pod: pod.key(),
                    transport,
                    at: SocketAddr::new(pod.ip(family), port),
                })
            })
            .collect();
        ask(family.to_string(), &sources, &destinations)
    }

    fn at_port(&self, transport: Transport, port: u16, family: Family) -> Vec<Destination> {
        let pods = self.pods();
        let destination = |pod: &std::sync::Arc<crate::pod::Pod>| Destination {
            name: pod.key(),
            pod: pod.key(),
            transport,
            at: SocketAddr::new(pod.ip(family), port),
        };
        pods.iter().map(destination).collect()
    }
}

fn ask(title: String, sources: &[Source<'_>], destinations: &[Destination]) -> Result<Matrix> {
    let pairs: Vec<_> = sources
        .iter()
        .flat_map(|source| destinations.iter().map(move |destination| (source, destination)))
        .filter(|(source, destination)| source.name != destination.pod)
        .collect();
    let attempts: Vec<_> = pairs
        .iter()
        .map(|(source, to)| Attempt { from: source.netns, to: to.at, transport: to.transport })
        .collect();
    let outcomes = attempt_all(&attempts, PATIENCE)?;
    let keys = pairs.iter().map(|(source, destination)| (source.name.clone(), destination.name.clone()));
    Ok(Matrix {
        title,
        outcomes: keys.zip(outcomes).collect(),
        sources: sources.iter().map(|s| s.name.clone()).collect(),
        destinations: destinations.iter().map(|d| d.name.clone()).collect(),
    })
}

impl Matrix {
    /// The same under another title.
    #[must_use]
    pub fn titled(mut self, title: &str) -> Self {
        title.clone_into(&mut self.title);
        self
    }

    /// Panics if the pair was not asked.
    pub fn outcome(&self, source: &str, destination: &str) -> Outcome {
        self.outcomes[&(source.to_owned(), destination.to_owned())]
    }

    /// Pairs whose exchange worked.
    pub fn reached(&self) -> BTreeSet<(&str, &str)> {
        self.with(|outcome| outcome == Outcome::Reached)
    }

    /// Pairs whose exchange did not work.
    pub fn denied(&self) -> BTreeSet<(&str, &str)> {
        self.with(|outcome| outcome != Outcome::Reached)
    }

    pub fn len(&self) -> usize {
        self.outcomes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
    }

    fn with(&self, wanted: impl Fn(Outcome) -> bool) -> BTreeSet<(&str, &str)> {
        let pairs = self.outcomes.iter().filter(|(_, outcome)| wanted(**outcome));
        pairs.map(|((source, destination), _)| (source.as_str(), destination.as_str())).collect()
    }
}

/// Rows are sources, columns destinations.
impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(
            [format!("{}, from \\ to", self.title)].into_iter().chain(self.destinations.iter().cloned()),
        );
        for source in &self.sources {
            let cells = self.destinations.iter().map(|destination| {
                match self.outcomes.get(&(source.clone(), destination.clone())) {
                    None => "·".to_owned(),
                    Some(Outcome::Reached) => "✔ reached".to_owned(),
                    Some(Outcome::Silent) => "✘ blocked".to_owned(),
                    Some(Outcome::Refused) => "refused".to_owned(),
                    Some(Outcome::Failed(errno)) => nix::errno::Errno::from_raw(*errno).to_string(),
                }
            });
            table.add_row([source.clone()].into_iter().chain(cells));
        }
        write!(f, "{table}")
    }
}
