//! A guarded shop that talks, and strangers that never tire.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use lab::{
    Family, Knock, Lab, Plan, Pod, PodSpec, Stream, Transport, agent::Agent, matrix::SETTLES_WITHIN, until,
};
use serde_json::Value;

const PACE: Duration = Duration::from_millis(1);

/// The db answers webs and asks nobody; the near web asks nobody but the db.
const POLICIES: &str = r"
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db, namespace: shop}, spec: {
  podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress],
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: shop}, spec: {
  podSelector: {matchLabels: {app: web, copy: near}}, policyTypes: [Ingress, Egress],
  egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}}
";

const STRANGERS: [&str; 2] = ["shop/stranger-near", "shop/stranger-far"];

pub struct Shop {
    pub lab: Lab,
    streams: Vec<(String, Stream)>,
    knocks: Vec<(String, Knock)>,
    heard: BTreeMap<String, u64>,
}

impl Shop {
    /// Talks when this returns.
    pub fn open(plan: Plan) -> Self {
        let lab = plan.raise().unwrap();
        lab.namespace("shop", &[]).unwrap();
        let pods = [("db", 1), ("web-near", 1), ("web-far", 2), ("stranger-near", 1), ("stranger-far", 2)];
        lab.start_pods(pods.map(|(name, node)| pod(name, node))).unwrap();
        lab.apply(POLICIES).unwrap();
        lab.settle().unwrap();
        let mut shop = Self { lab, streams: Vec::new(), knocks: Vec::new(), heard: BTreeMap::new() };
        let db = shop.lab.pod("shop/db");
        for (who, family) in ["shop/web-near", "shop/web-far"].into_iter().flat_map(both) {
            let stream = Stream::start(shop.lab.pod(who).netns(), at(&db, family), PACE).unwrap();
            shop.streams.push((format!("{who} {family}"), stream));
        }
        for (who, family) in STRANGERS.into_iter().flat_map(both) {
            let knock = Knock::start(shop.lab.pod(who).netns(), at(&db, family), Transport::Tcp).unwrap();
            shop.knocks.push((format!("{who} {family}"), knock));
        }
        shop.heard = shop.heard_of_strangers();
        shop
    }

    fn heard_of_strangers(&self) -> BTreeMap<String, u64> {
        let db = self.lab.pod("shop/db");
        let ways = STRANGERS.into_iter().flat_map(both);
        ways.map(|(who, family)| (format!("{who} {family}"), db.heard_from(self.lab.pod(who).ip(family))))
            .collect()
    }

    /// All webs are answered from now on, and no stranger has ever been.
    pub fn goes_on(&self, when: &str) {
        let now = Instant::now();
        for (who, stream) in &self.streams {
            let echo = until(SETTLES_WITHIN, || Ok(stream.last_echo()), |echo| *echo > now).unwrap();
            assert!(echo > now, "{when}: {who} is silent\n{}", self.drops());
        }
        assert_eq!(self.heard_of_strangers(), self.heard, "{when}");
    }

    /// And nobody has had to say anything twice.
    pub fn close(self) {
        self.goes_on("at last");
        let drops = self.drops();
        for (who, stream) in self.streams {
            let report = stream.stop();
            let told = (report.echoed, report.retransmitted, report.broken.clone());
            assert_eq!(told, (report.sent, 0, None), "{who}: {report:?}\n{drops}");
        }
        for (who, knock) in self.knocks {
            let report = knock.stop();
            assert!(report.sent > 10 && report.reached == 0, "{who}: {report:?}");
        }
    }

    fn drops(&self) -> String {
        let of =
            |agent: &Agent| agent.flows(&["--verdict", "dropped", "--namespace", "shop"]).unwrap_or_default();
        self.lab.agents().iter().map(of).collect()
    }
}

fn both(who: &str) -> [(&str, Family); 2] {
    Family::BOTH.map(|family| (who, family))
}

fn pod(name: &str, node: u8) -> PodSpec {
    let (app, copy) = name.split_once('-').unwrap_or((name, "one"));
    let spec = PodSpec::new(&format!("shop/{name}")).on(node).label("app", app).label("copy", copy);
    spec.serve(Transport::Tcp, 80)
}

fn at(pod: &Pod, family: Family) -> SocketAddr {
    SocketAddr::new(pod.ip(family), 80)
}

/// Waits for what an agent's status says, and returns it.
pub fn status(agent: &Agent, what: &str, enough: impl Fn(&Value) -> bool) -> Value {
    let status = until(SETTLES_WITHIN, || agent.status(), &enough).unwrap();
    assert!(enough(&status), "{what}: {status:#}");
    status
}
