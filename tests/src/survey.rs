//! Everybody asks everybody: pods, nodes and the world outside, in both families, at several ports at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::Result;

use crate::{
    matrix::{PATIENCE, SETTLES_WITHIN},
    netns::Netns,
    node::{Node, WORLD_V4, WORLD_V6},
    patience::until,
    pod::Pod,
    probe::{Attempt, Family, Outcome, Transport, attempt_all},
    server::Server,
    topology::Lab,
};

/// Exchanges tried at once: each has a socket at both ends in this process, which may have 1024.
const AT_ONCE: usize = 300;

/// What is asked of every pair.
pub type Question = (Transport, u16, Family);
/// Pairs (from, to) that an exchange worked for, by the names of [`Survey::names`].
pub type Reached = BTreeSet<(String, String)>;

/// The hosts of a lab that take part beside its pods serve as long as this lives.
#[derive(Debug)]
pub struct Survey<'l> {
    lab: &'l Lab,
    _servers: Vec<Server>,
}

/// One that asks and is asked.
enum Party {
    Pod(Arc<Pod>),
    Node(Arc<Node>),
    World,
}

impl<'l> Survey<'l> {
    /// Nodes and the world serve these ports.
    pub fn of(lab: &'l Lab, ports: &[(Transport, u16)]) -> Result<Self> {
        let hosts = lab.nodes().iter().cloned().map(Party::Node).chain([Party::World]);
        let serve = |host: Party| {
            let addresses = [Family::V4, Family::V6].map(|family| host.ip(family));
            Server::start_at(host.netns(lab), &addresses, ports)
        };
        let servers = hosts.map(serve).collect::<Result<_>>()?;
        Ok(Self { lab, _servers: servers })
    }

    /// Pods by their name without the namespace, nodes, and `world`.
    pub fn names(&self) -> Vec<String> {
        self.parties().iter().map(Party::name).collect()
    }

    /// The node that a pod runs on; of a node or the world: none.
    pub fn node_of(&self, name: &str) -> Option<String> {
        let parties = self.parties();
        parties.iter().filter(|party| party.name() == name).find_map(|party| match party {
            Party::Pod(pod) => Some(pod.spec().node().to_owned()),
            Party::Node(_) | Party::World => None,
        })
    }

    /// Every pair that is asked: pods ask everybody else, nodes and the world ask pods.
    pub fn pairs(&self) -> Reached {
        let parties = self.parties();
        pairs(&parties).map(|(from, to)| (from.name(), to.name())).collect()
    }

    /// Asks every question of every pair.
    pub fn ask(&self, questions: &BTreeSet<Question>) -> Result<BTreeMap<Question, Reached>> {
        let parties = self.parties();
        let asked: Vec<_> = questions
            .iter()
            .flat_map(|question| pairs(&parties).map(move |(from, to)| (*question, from, to)))
            .collect();
        let mut reached: BTreeMap<_, _> = questions.iter().map(|q| (*q, Reached::new())).collect();
        for some in asked.chunks(AT_ONCE) {
            let attempts: Vec<_> = some
                .iter()
                .map(|((transport, port, family), from, to)| Attempt {
                    from: from.netns(self.lab),
                    to: SocketAddr::new(to.ip(*family), *port),
                    transport: *transport,
                })
                .collect();
            for ((question, from, to), outcome) in some.iter().zip(attempt_all(&attempts, PATIENCE)?) {
                if outcome == Outcome::Reached {
                    reached.entry(*question).or_default().insert((from.name(), to.name()));
                }
            }
        }
        Ok(reached)
    }

    /// As [`Survey::ask`] for the questions of `want`, again until the answer is `want` or
    /// [`SETTLES_WITHIN`] is over; gives the last answer.
    pub fn settled(&self, want: &BTreeMap<Question, Reached>) -> Result<BTreeMap<Question, Reached>> {
        let questions = want.keys().copied().collect();
        until(SETTLES_WITHIN, || self.ask(&questions), |reached| reached == want)
    }

    fn parties(&self) -> Vec<Party> {
        let pods = self.lab.pods().into_iter().map(Party::Pod);
        pods.chain(self.lab.nodes().iter().cloned().map(Party::Node)).chain([Party::World]).collect()
    }
}

fn pairs(parties: &[Party]) -> impl Iterator<Item = (&Party, &Party)> {
    let all = parties.iter().flat_map(|from| parties.iter().map(move |to| (from, to)));
    all.filter(|(from, to)| from.name() != to.name() && (from.is_pod() || to.is_pod()))
}

impl Party {
    fn is_pod(&self) -> bool {
        matches!(self, Self::Pod(_))
    }

    fn name(&self) -> String {
        match self {
            Self::Pod(pod) => pod.spec().name().to_owned(),
            Self::Node(node) => node.name(),
            Self::World => "world".to_owned(),
        }
    }

    fn netns<'a>(&'a self, lab: &'a Lab) -> &'a Netns {
        match self {
            Self::Pod(pod) => pod.netns(),
            Self::Node(node) => node.netns(),
            Self::World => lab.world(),
        }
    }

    fn ip(&self, family: Family) -> IpAddr {
        match (self, family) {
            (Self::Pod(pod), _) => pod.ip(family),
            (Self::Node(node), _) => node.ip(family),
            (Self::World, Family::V4) => WORLD_V4.into(),
            (Self::World, Family::V6) => WORLD_V6.into(),
        }
    }
}
