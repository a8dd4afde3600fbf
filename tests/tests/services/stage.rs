//! Two nodes, a handful of pods, and one Service of each kind in front of them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lab::{
    Family, Lab, Outcome, Plan, Pod, PodSpec, ProxyMode, Transport,
    matrix::SETTLES_WITHIN,
    netns::Netns,
    node::{WORLD_V4, WORLD_V6},
    probe::{Attempt, attempt_all},
    server::Server,
    until,
};
use serde_json::{Value, json};

/// How long an answer is waited for; what comes later is asked for again if it is wanted.
pub const SILENCE: Duration = Duration::from_millis(400);

/// What stands behind a Service.
enum Behind {
    /// Pods with this label.
    Pods(&'static str, &'static str),
    /// Port 6443 of a node itself.
    Node(u8),
    /// Port 443 of a host outside the cluster.
    World,
    /// Whatever a test writes.
    Nothing,
}

/// Each Service offers `web` (TCP 80) and `dns` (UDP 53) and has all kinds of addresses; they follow from its
/// place in this list.
const SERVICES: [(&str, Behind); 12] = [
    ("shop/local", Behind::Pods("app", "local")),
    ("shop/far-a", Behind::Pods("copy", "a")),
    ("shop/far-b", Behind::Pods("copy", "b")),
    ("shop/both", Behind::Pods("app", "far")),
    ("shop/sticky", Behind::Pods("app", "far")),
    ("shop/self", Behind::Pods("app", "client")),
    ("shop/nobody", Behind::Pods("app", "nobody")),
    ("shop/moving", Behind::Nothing),
    ("shop/renewed", Behind::Nothing),
    ("shop/outside", Behind::World),
    ("default/kubernetes", Behind::Node(2)),
    ("default/own-node", Behind::Node(1)),
];

/// By which of its addresses a Service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    Cluster,
    External,
    Balancer,
    /// A port of this node.
    NodePort(u8),
    /// The same by the address that node 1 has on the bridge. kube-proxy's nftables mode leaves it alone.
    Gateway,
}

/// Who asks which Service by which address, and what comes of it, in both families over both transports.
pub type Row = (&'static str, &'static str, Door, Outcome);

pub struct Stage {
    pub lab: Lab,
    /// What runs outside of pods: in the world, and on the nodes.
    pub world: Server,
    _nodes: Vec<Server>,
}

impl Stage {
    pub fn raise(plan: Plan, mode: ProxyMode) -> Self {
        let lab = plan.proxy(mode).raise().unwrap();
        for namespace in ["shop", "rival", "default"] {
            lab.namespace(namespace, &[]).unwrap();
        }
        // The ports have one name and two numbers.
        lab.start_pods([
            pod("shop/client", 1, &[("app", "client")], 8080),
            pod("shop/stranger", 1, &[("app", "stranger")], 8080),
            pod("shop/local", 1, &[("app", "local")], 8080),
            pod("shop/far-a", 2, &[("app", "far"), ("copy", "a")], 8080),
            pod("rival/intruder", 1, &[], 8080),
            pod("shop/far-b", 2, &[("app", "far"), ("copy", "b")], 9090),
        ])
        .unwrap();
        let serve = |netns: &Netns, port| {
            Server::start(netns, &[(Transport::Tcp, port), (Transport::Udp, port)]).unwrap()
        };
        let world = serve(lab.world(), 443);
        let nodes = lab.nodes().iter().map(|node| serve(node.netns(), 6443)).collect();
        let stage = Self { lab, world, _nodes: nodes };
        for (key, behind) in &SERVICES {
            stage.offer(key, behind);
        }
        stage.refresh();
        stage
    }

    pub fn pod(&self, name: &str) -> Arc<Pod> {
        self.lab.pod(&format!("shop/{name}"))
    }

    pub fn bridge_nf(&self, on: bool) {
        self.lab.nodes().iter().for_each(|node| node.bridge_nf(on).unwrap());
    }

    /// Endpoints, agents and proxies follow what the manifests say.
    pub fn refresh(&self) {
        self.lab.publish_endpoints().unwrap();
        self.lab.settle().unwrap();
        self.lab.sync_proxies().unwrap();
    }

    /// The slices of a Service that has no selector.
    pub fn place(&self, key: &str, backends: &[(IpAddr, u16)]) {
        self.slices(key, "", backends, true);
    }

    /// Further slices of it, of endpoints that are alive and not ready.
    pub fn drain(&self, key: &str, backends: &[(IpAddr, u16)]) {
        self.slices(key, "draining-", backends, false);
    }

    fn slices(&self, key: &str, kind: &str, backends: &[(IpAddr, u16)], ready: bool) {
        let (namespace, name) = key.split_once('/').unwrap();
        for (family, address_type) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
            let backends: Vec<_> = backends.iter().filter(|(ip, _)| family.has(*ip)).collect();
            let port = backends.first().map_or(1, |(_, port)| *port);
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "namespace": namespace, "name": format!("{name}-{kind}{}", address_type.to_lowercase()),
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": address_type,
                "ports": [
                    {"name": "web", "protocol": "TCP", "port": port},
                    {"name": "dns", "protocol": "UDP", "port": port},
                ],
                "endpoints": backends.iter().map(|(ip, _)| endpoint(*ip, ready)).collect::<Vec<_>>(),
            });
            self.lab.manifests().write(&slice).unwrap();
        }
    }

    fn offer(&self, key: &str, behind: &Behind) {
        let (namespace, name) = key.split_once('/').unwrap();
        let address = |door| Family::BOTH.map(|family| self.at(key, door, family, Transport::Tcp).ip());
        let node_port = |transport| self.at(key, Door::NodePort(1), Family::V4, transport).port();
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": namespace, "name": name},
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": address(Door::Cluster)[0],
                "clusterIPs": address(Door::Cluster),
                "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
                "externalIPs": address(Door::External),
                "ports": [
                    {
                        "name": "web", "protocol": "TCP", "port": 80, "targetPort": "web",
                        "nodePort": node_port(Transport::Tcp),
                    },
                    {
                        "name": "dns", "protocol": "UDP", "port": 53, "targetPort": "dns",
                        "nodePort": node_port(Transport::Udp),
                    },
                ],
            },
            "status": {"loadBalancer": {"ingress": address(Door::Balancer).map(|ip| json!({"ip": ip}))}},
        });
        if key == "shop/sticky" {
            service["spec"]["sessionAffinity"] = "ClientIP".into();
        }
        if key == "shop/far-a" {
            // By number here, by name elsewhere.
            service["spec"]["ports"][0]["targetPort"] = 8080.into();
            service["spec"]["ports"][1]["targetPort"] = 8080.into();
        }
        match behind {
            Behind::Pods(label, value) => service["spec"]["selector"] = json!({*label: value}),
            Behind::Node(number) => {
                let node = self.lab.node(*number);
                self.place(key, &Family::BOTH.map(|family| (node.ip(family), 6443)));
            }
            Behind::World => self.place(key, &[(WORLD_V4.into(), 443), (WORLD_V6.into(), 443)]),
            Behind::Nothing => {}
        }
        self.lab.manifests().write(&service).unwrap();
    }

    /// The address of a Service.
    pub fn at(&self, key: &str, door: Door, family: Family, transport: Transport) -> SocketAddr {
        let place = SERVICES.iter().position(|(name, _)| *name == key).unwrap();
        let n = u8::try_from(place + 1).unwrap();
        let (v4, v6) = match door {
            Door::Cluster => ([10, 96, 0, n], [0xfd00, 0x10, 0x96, 0, 0, 0, 0, n.into()]),
            Door::External => ([203, 0, 113, n], [0xfd00, 0x203, 0x113, 0, 0, 0, 0, n.into()]),
            Door::Balancer => ([198, 51, 100, n], [0xfd00, 0x198, 0x51, 0x100, 0, 0, 0, n.into()]),
            Door::NodePort(_) | Door::Gateway => {
                let port = match transport {
                    Transport::Tcp => 30_000,
                    Transport::Udp => 31_000,
                };
                let ip = match door {
                    Door::NodePort(node) => self.lab.node(node).ip(family),
                    _ => self.lab.node(1).gateway(family),
                };
                return SocketAddr::new(ip, port + u16::from(n));
            }
        };
        let ip = match family {
            Family::V4 => IpAddr::from(v4),
            Family::V6 => Ipv6Addr::from(v6).into(),
        };
        let port = match transport {
            Transport::Tcp => 80,
            Transport::Udp => 53,
        };
        SocketAddr::new(ip, port)
    }

    /// Asks until every row has come true, and fails with those that do not in time.
    pub fn expect(&self, when: &str, rows: &[Row]) {
        let wrong = |seen: &Vec<Vec<Outcome>>| {
            rows.iter()
                .zip(seen)
                .filter(|(row, seen)| seen.iter().any(|outcome| *outcome != row.3))
                .fold(String::new(), |text, (row, seen)| text + &format!("\n  {row:?}: {seen:?}"))
        };
        let seen = until(SETTLES_WITHIN, || Ok(self.ask(rows)), |seen| wrong(seen).is_empty()).unwrap();
        assert!(wrong(&seen).is_empty(), "{when}, (IPv4 TCP, IPv4 UDP, IPv6 TCP, IPv6 UDP):{}", wrong(&seen));
    }

    fn ask(&self, rows: &[Row]) -> Vec<Vec<Outcome>> {
        let pods: BTreeMap<_, _> =
            self.lab.pods().into_iter().map(|pod| (pod.spec().name().to_owned(), pod)).collect();
        let inside = |name: &str| match name {
            "world" => self.lab.world(),
            "node-1" => self.lab.node(1).netns(),
            "node-2" => self.lab.node(2).netns(),
            pod => pods[pod].netns(),
        };
        let attempts: Vec<_> = rows
            .iter()
            .flat_map(|(from, service, door, _)| {
                WAYS.map(|(family, transport)| Attempt {
                    from: inside(from),
                    to: self.at(service, *door, family, transport),
                    transport,
                })
            })
            .collect();
        // A refusal that comes while `connect` still holds the socket is heard at the second attempt, after a second.
        let refusal = rows.iter().any(|row| row.3 == Outcome::Refused);
        let patience = if refusal { SILENCE + Duration::from_secs(1) } else { SILENCE };
        attempt_all(&attempts, patience).unwrap().chunks(WAYS.len()).map(<[_]>::to_vec).collect()
    }
}

/// Every row is asked in each of these ways.
pub const WAYS: [(Family, Transport); 4] = [
    (Family::V4, Transport::Tcp),
    (Family::V4, Transport::Udp),
    (Family::V6, Transport::Tcp),
    (Family::V6, Transport::Udp),
];

/// Serves TCP as `web` and UDP as `dns` at this port.
fn pod(key: &str, node: u8, labels: &[(&str, &str)], port: u16) -> PodSpec {
    let (namespace, name) = key.split_once('/').unwrap();
    let labels: BTreeMap<_, _> = labels.iter().copied().collect();
    PodSpec::from_manifest(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"nodeName": format!("node-{node}"), "containers": [{"name": "main", "image": "lab", "ports": [
            {"name": "web", "containerPort": port, "protocol": "TCP"},
            {"name": "dns", "containerPort": port, "protocol": "UDP"},
        ]}]},
    }))
    .unwrap()
}

fn endpoint(ip: IpAddr, ready: bool) -> Value {
    json!({"addresses": [ip], "conditions": {"ready": ready, "serving": ready, "terminating": false}})
}
