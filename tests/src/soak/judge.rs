//! Which outcomes of a probe the naive evaluator can explain, given how far each node's agent had come.
//!
//! An agent watches each kind of object by itself: while changes are under way, what it holds is a state of each kind
//! out of a span, in any combination. The span begins where the agent was known to have come before the probe began, and
//! ends with what was written when the probe was over. An outcome that no combination explains is a wrong verdict; where
//! nothing changes, the span is one state, and exactly one outcome is right.

use std::{collections::BTreeSet, fmt::Write, net::IpAddr, sync::Arc};

use bulkhead::{
    cluster::object::{Key, Kind, Object, Pod},
    policy::{
        Settings,
        probe::{EndpointRef, Probe, ProbeProtocol},
        testkit::naive,
    },
};

use super::history::{History, Versions};
use crate::probe::{Outcome, Transport};

/// A pod that takes part in a probe, as its own node knows it.
#[derive(Clone, Debug)]
pub struct End {
    pub key: Key,
    /// From 0.
    pub node: usize,
    /// Of both families.
    pub addresses: BTreeSet<IpAddr>,
}

#[derive(Clone, Debug)]
pub struct Question {
    pub from: End,
    pub to: End,
    pub transport: Transport,
    pub ipv4: bool,
    pub port: u16,
}

/// From where each node was known to be, to where the API server was afterwards.
#[derive(Clone, Debug)]
pub struct Span {
    pub from: Vec<Versions>,
    pub to: Versions,
}

/// What a side may have said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Side {
    pub allows: bool,
    pub denies: bool,
    /// Combinations looked at.
    pub states: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Possible {
    pub egress: Side,
    pub ingress: Side,
}

impl Possible {
    pub fn reached(self) -> bool {
        self.egress.allows && self.ingress.allows
    }

    pub fn denied(self) -> bool {
        self.egress.denies || self.ingress.denies
    }

    /// Only one outcome is right.
    pub fn is_certain(self) -> bool {
        self.reached() != self.denied()
    }

    pub fn explains(self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Reached => self.reached(),
            Outcome::Silent => self.denied(),
            // Everybody serves what is asked, and a denial is silent.
            Outcome::Refused | Outcome::Failed(_) => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Egress,
    Ingress,
}

impl Question {
    pub fn address(&self, of: &End) -> IpAddr {
        *of.addresses.iter().find(|address| address.is_ipv4() == self.ipv4).expect("pods have both families")
    }

    pub fn possible(&self, history: &History, span: &Span) -> Possible {
        Possible {
            egress: self.side(history, span, Way::Egress, &mut |_, _| ()),
            ingress: self.side(history, span, Way::Ingress, &mut |_, _| ()),
        }
    }

    /// Every state that was considered, for people.
    pub fn considered(&self, history: &History, span: &Span) -> String {
        let mut text = String::new();
        for way in [Way::Egress, Way::Ingress] {
            let mut number = 0;
            self.side(history, span, way, &mut |objects, allowed| {
                number += 1;
                if number <= 8 {
                    writeln!(
                        text,
                        "  {way:?} state {number}: {}",
                        if allowed { "allowed" } else { "denied" }
                    )
                    .expect("a string takes everything");
                    for object in objects.iter().filter(|o| !matches!(o, Object::Node(_))) {
                        writeln!(text, "    {object:?}").expect("a string takes everything");
                    }
                }
            });
            writeln!(text, "  {way:?}: {number} states").expect("a string takes everything");
        }
        text
    }

    fn side(&self, history: &History, span: &Span, way: Way, tell: &mut impl FnMut(&[Object], bool)) -> Side {
        let (subject, other) = match way {
            Way::Egress => (&self.from, &self.to),
            Way::Ingress => (&self.to, &self.from),
        };
        let of = |kind: Kind| (span.from[subject.node].get(&kind).copied().unwrap_or(0), span.to[&kind]);
        let ends = [&*subject.key.namespace, &*other.key.namespace];
        let namespaces = history.states(
            Kind::Namespace,
            of(Kind::Namespace),
            |object| matches!(object, Object::Namespace(namespace) if ends.contains(&namespace.name.as_str())),
        );
        let policies = history.states(
            Kind::NetworkPolicy,
            of(Kind::NetworkPolicy),
            |object| matches!(object, Object::NetworkPolicy(policy) if policy.key.namespace == subject.key.namespace),
        );
        let asked = [self.address(subject), self.address(other)];
        let pods = history.states(Kind::Pod, of(Kind::Pod), |object| {
            matches!(object, Object::Pod(pod) if pod.key == subject.key || pod.key == other.key
                || pod.ips.iter().any(|ip| asked.contains(ip)))
        });
        let nodes = history.states(Kind::Node, of(Kind::Node), |_| true).pop().unwrap_or_default();
        let newest = pods.last().cloned().unwrap_or_default();
        let mut side = Side::default();
        for pods in &pods {
            let pods = as_known(pods, &newest, subject, other);
            for namespaces in &namespaces {
                for policies in &policies {
                    let shared = nodes.iter().chain(namespaces).chain(policies);
                    let objects: Vec<_> =
                        shared.map(|object| Object::clone(object)).chain(pods.iter().cloned()).collect();
                    let allowed = self.allowed(&objects, way);
                    tell(&objects, allowed);
                    side.allows |= allowed;
                    side.denies |= !allowed;
                    side.states += 1;
                }
            }
        }
        side
    }

    fn allowed(&self, objects: &[Object], way: Way) -> bool {
        let (from, to) = (self.address(&self.from), self.address(&self.to));
        let probe = Probe {
            src: EndpointRef::Ip(from),
            dst: EndpointRef::Ip(to),
            protocol: match self.transport {
                Transport::Tcp => ProbeProtocol::Tcp,
                Transport::Udp => ProbeProtocol::Udp,
            },
            port: Some(self.port),
            family: None,
        };
        let verdicts = naive::answer(objects, &Settings::default(), &probe);
        let verdicts = verdicts.expect("a question about addresses of one family can be asked");
        match way {
            Way::Egress => verdicts.egress,
            Way::Ingress => verdicts.ingress,
        }
    }
}

/// A node knows its own pods' addresses from their start, before the API server does; of the subject also its labels.
fn as_known(pods: &[Arc<Object>], newest: &[Arc<Object>], subject: &End, other: &End) -> Vec<Object> {
    let mut known: Vec<_> = pods.iter().map(|object| Object::clone(object)).collect();
    for end in [subject, other].into_iter().filter(|end| end.node == subject.node) {
        let is_it = |object: &Object| matches!(object, Object::Pod(pod) if pod.key == end.key);
        if !known.iter().any(is_it) {
            known.extend(newest.iter().filter(|object| is_it(object)).map(|object| Object::clone(object)));
        }
        for object in &mut known {
            match object {
                Object::Pod(pod) if pod.key == end.key => pod.ips = end.addresses.clone().into(),
                // One that had the address before has ended.
                Object::Pod(pod) => withdraw(pod, &end.addresses),
                _ => {}
            }
        }
    }
    known
}

fn withdraw(pod: &mut Pod, addresses: &BTreeSet<IpAddr>) {
    let left: BTreeSet<_> = pod.ips.iter().copied().filter(|ip| !addresses.contains(ip)).collect();
    pod.ips = left.into();
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::{Value, json};

    use super::*;
    use crate::apiserver::{Resource, Store};

    /// A web on node 1 and a db on node 2, with addresses known to the API server or not yet.
    struct Scene {
        store: Arc<Store>,
        history: History,
    }

    impl Scene {
        fn new() -> Self {
            let store = Arc::new(Store::default());
            let scene = Self { history: History::of(Arc::clone(&store)), store };
            for node in [1, 2] {
                scene.put(&json!({
                    "kind": "Node", "metadata": {"name": format!("node-{node}")},
                    "spec": {"podCIDRs": [format!("10.244.{node}.0/24")]},
                    "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.77.{node}")}]},
                }));
            }
            scene.put(&json!({"kind": "Namespace", "metadata": {"name": "shop"}}));
            scene
        }

        fn put(&self, object: &Value) -> Versions {
            let resource = Resource::of_kind(object["kind"].as_str().unwrap()).unwrap();
            self.store.put(resource, object.clone(), false).unwrap();
            self.history.catch_up().unwrap()
        }

        fn pod(&self, name: &str, node: u8, app: &str, ip: Option<&str>) -> Versions {
            let mut pod = json!({
                "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "labels": {"app": app}},
                "spec": {"nodeName": format!("node-{node}"), "containers": []},
            });
            if let Some(ip) = ip {
                pod["status"] = json!({"podIPs": [{"ip": ip}]});
            }
            self.put(&pod)
        }

        fn admit(&self, app: &str) -> Versions {
            self.put(&json!({
                "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "db"},
                "spec": {"podSelector": {"matchLabels": {"app": "db"}},
                         "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]},
            }))
        }

        fn possible(&self, question: &Question, near: &Versions, far: &Versions, to: &Versions) -> Possible {
            question.possible(&self.history, &Span { from: vec![near.clone(), far.clone()], to: to.clone() })
        }
    }

    fn end(name: &str, node: usize, ip: &str) -> End {
        End { key: Key::new("shop", name), node, addresses: [ip.parse().unwrap()].into() }
    }

    fn web_asks_db() -> Question {
        Question {
            from: end("web", 0, "10.244.1.2"),
            to: end("db", 1, "10.244.2.2"),
            transport: Transport::Tcp,
            ipv4: true,
            port: 80,
        }
    }

    const OUTCOMES: [Outcome; 4] =
        [Outcome::Reached, Outcome::Silent, Outcome::Refused, Outcome::Failed(113)];

    fn explained(possible: Possible) -> [bool; 4] {
        OUTCOMES.map(|outcome| possible.explains(outcome))
    }

    #[test]
    fn where_nothing_changes_one_outcome_is_right() {
        let scene = Scene::new();
        scene.pod("web", 1, "web", Some("10.244.1.2"));
        scene.pod("db", 2, "db", Some("10.244.2.2"));
        let open = scene.admit("web");
        assert_eq!(
            explained(scene.possible(&web_asks_db(), &open, &open, &open)),
            [true, false, false, false]
        );
        let closed = scene.admit("job");
        let possible = scene.possible(&web_asks_db(), &closed, &closed, &closed);
        assert_eq!((explained(possible), possible.is_certain()), ([false, true, false, false], true));
    }

    #[test]
    fn while_the_destinations_agent_may_lag_both_are_and_the_sources_lag_does_not_matter() {
        let scene = Scene::new();
        scene.pod("web", 1, "web", Some("10.244.1.2"));
        scene.pod("db", 2, "db", Some("10.244.2.2"));
        let open = scene.admit("web");
        let closed = scene.admit("job");
        let lagging = scene.possible(&web_asks_db(), &closed, &open, &closed);
        assert_eq!((explained(lagging), lagging.is_certain()), ([true, true, false, false], false));
        let elsewhere = scene.possible(&web_asks_db(), &open, &closed, &closed);
        assert_eq!(explained(elsewhere), [false, true, false, false]);
    }

    #[test]
    fn kinds_lag_independently_of_each_other() {
        let scene = Scene::new();
        scene.pod("db", 2, "db", Some("10.244.2.2"));
        scene.pod("web", 1, "old", Some("10.244.1.2"));
        let before = scene.admit("new");
        // The policy admits whoever the label does not name at the time: only a mixture opens.
        scene.admit("old");
        let after = scene.pod("web", 1, "new", Some("10.244.1.2"));
        let possible = scene.possible(&web_asks_db(), &before, &before, &after);
        assert!(possible.reached() && possible.denied(), "{possible:?}");
        assert_eq!(possible.ingress.states, 4);
    }

    #[test]
    fn an_address_that_is_not_published_is_nobodys_on_other_nodes_and_known_on_its_own() {
        let scene = Scene::new();
        scene.pod("db", 2, "db", Some("10.244.2.2"));
        scene.admit("web");
        let pending = scene.pod("web", 1, "web", None);
        let far = scene.possible(&web_asks_db(), &pending, &pending, &pending);
        assert_eq!(explained(far), [false, true, false, false]);
        let mut near = web_asks_db();
        near.from.node = 1; // as if both ran there
        let near = scene.possible(&near, &pending, &pending, &pending);
        assert_eq!(explained(near), [true, false, false, false]);
        let running = scene.pod("web", 1, "web", Some("10.244.1.2"));
        let published = scene.possible(&web_asks_db(), &pending, &pending, &running);
        assert_eq!(explained(published), [true, true, false, false]);
    }

    #[test]
    fn who_had_the_address_before_may_still_be_known_elsewhere() {
        let scene = Scene::new();
        scene.pod("db", 2, "db", Some("10.244.2.2"));
        scene.admit("web");
        let before = scene.pod("old", 1, "web", Some("10.244.1.2"));
        scene.store.delete(Resource::of_kind("Pod").unwrap(), "shop", "old").unwrap();
        let after = scene.pod("web", 1, "stranger", Some("10.244.1.2"));
        let known = scene.possible(&web_asks_db(), &after, &before, &after);
        assert_eq!(explained(known), [true, true, false, false]);
        let settled = scene.possible(&web_asks_db(), &after, &after, &after);
        assert_eq!(explained(settled), [false, true, false, false]);
    }
}
