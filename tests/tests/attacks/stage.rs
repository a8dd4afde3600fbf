//! One pod with a raw socket, its victims on both nodes, and the ways between them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bulkhead::flow::clock::Timestamp;
use lab::{
    Family, Lab, Plan, Pod, PodSpec, Transport,
    netns::Netns,
    node::{WORLD_V4, WORLD_V6},
    raw::Packet,
    until,
};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    libc::PACKET_OUTGOING,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, setsockopt,
        socket, sockopt,
    },
};
use serde_json::Value;

use crate::frame::{Mac, ethernet, is_same, kind};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
pub const ARRIVES_WITHIN: Duration = Duration::from_secs(5);
/// On a loaded machine one question to the agent may take seconds.
const COUNTED_WITHIN: Duration = Duration::from_secs(20);
/// From which the pod, and another one, have already said hello to the victims' echo servers.
pub const OWN_PORT: u16 = 50_001;
pub const NEIGHBOURS_PORT: u16 = 50_002;
/// From which the pod says the last word.
pub const LAST_PORT: u16 = 50_003;
pub const HELLO: &[u8] = b"hello";
const ROOT: &str = "shop/root-1";
const VICTIMS: [&str; 2] = ["shop/near-1", "shop/far-2"];
const NEIGHBOUR: &str = "shop/neighbour-1";

/// Everything between the pods of `shop` is allowed, and none of them is left to the default.
const ALLOW_ALL: &str = "policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]";
/// Nobody stands behind it; its addresses are what matters.
const SERVICE_V4: &str = "10.96.0.53";
const SERVICE_V6: &str = "fd00:10:96::53";

/// One kind of trick, on one way.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub name: &'static str,
    /// Word of the reason that drops every frame.
    pub reason: &'static str,
    pub frames: Vec<Vec<u8>>,
    /// Frames that would come out of these; the same unless something is wrapped.
    pub arrivals: Vec<Vec<u8>>,
    /// A network without bulkhead delivers it, so that an arrival would be seen.
    pub seen: bool,
    /// Sent before, whatever becomes of it.
    pub lead: Vec<Vec<u8>>,
    /// It would arrive at the other node itself, and not at the victim.
    pub at_node: bool,
    /// The flow log tells of it.
    pub told: bool,
}

impl Attempt {
    pub fn new(name: &'static str, reason: &'static str, frames: Vec<Vec<u8>>) -> Self {
        Self {
            name,
            reason,
            arrivals: frames.clone(),
            frames,
            seen: true,
            lead: Vec::new(),
            at_node: false,
            told: true,
        }
    }

    #[must_use]
    pub fn after(mut self, lead: Vec<Vec<u8>>) -> Self {
        self.lead = lead;
        self
    }

    #[must_use]
    pub fn at_node(mut self) -> Self {
        self.at_node = true;
        self
    }

    /// Lawful to say and not for the victim to hear: counted, and nobody's fault.
    #[must_use]
    pub fn untold(mut self) -> Self {
        self.told = false;
        self
    }

    /// What some step of the way loses on any network: the counter and the log have to do.
    #[must_use]
    pub fn lost_anyway(mut self, lost: bool) -> Self {
        self.seen = !lost;
        self
    }
}

/// A record of the log with the time of its packet.
#[derive(Clone, Debug)]
pub struct Told {
    /// `namespace/name`
    pub pod: String,
    pub reason: String,
    pub time: Timestamp,
    /// Packets that it stands for.
    pub packets: u64,
}

/// Somebody with whom frames are exchanged, or in whose name.
#[derive(Clone, Copy, Debug)]
pub struct Party {
    pub mac: Mac,
    pub ip: IpAddr,
}

impl Party {
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }
}

/// From the pod to one victim in one family.
#[derive(Clone, Debug)]
pub struct Way {
    pub family: Family,
    /// To a pod on the same node.
    pub near: bool,
    pub me: Party,
    /// The victim, under the link-layer address of the next hop to it.
    pub to: Party,
    pub gateway: Party,
    /// A third pod, on the same node.
    pub neighbour: Party,
    /// Addresses of the own node and the other one.
    pub nodes: [IpAddr; 2],
    /// Of the other node on the overlay, and the link-layer address of its overlay device.
    pub overlay: Party,
    pub service: IpAddr,
    pub world: IpAddr,
}

impl Way {
    /// A frame to the victim with this IP packet, whoever that says it is from.
    pub fn carry(&self, packet: &[u8]) -> Vec<u8> {
        ethernet(self.to.mac, self.me.mac, kind(packet), packet)
    }

    /// A frame that says what its payload is.
    pub fn send(&self, packet: &Packet) -> Vec<u8> {
        self.carry(&packet.bytes())
    }

    /// A datagram that would be fine; by its port what is made of it can be told from all else.
    pub fn datagram(&self, port: u16) -> Packet {
        Packet::udp(self.me.at(port), self.to.at(53), b"a datagram that would be fine")
    }

    pub fn segment(&self, flags: u8) -> Packet {
        Packet::tcp(self.me.at(40_000), self.to.at(80), flags, b"")
    }
}

/// Sends and receives whole frames at a pod's `eth0`.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    eth0: LinkAddr,
    seen: Vec<Vec<u8>>,
}

impl Wire {
    fn open(netns: &Netns) -> Self {
        let _inside = netns.enter().unwrap();
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)).unwrap();
        let eth0 = getifaddrs()
            .unwrap()
            .filter(|interface| interface.interface_name == "eth0")
            .find_map(|interface| interface.address?.as_link_addr().copied())
            .unwrap();
        Self { socket, eth0, seen: Vec::new() }
    }

    fn mac(&self) -> Mac {
        self.eth0.addr().unwrap()
    }

    fn send(&self, frame: &[u8]) {
        sendto(self.socket.as_raw_fd(), frame, &self.eth0, MsgFlags::empty())
            .unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
    }

    /// Whether this frame has arrived since the wire was opened.
    pub fn has_seen(&mut self, frame: &[u8]) -> bool {
        self.read();
        self.seen.iter().any(|seen| is_same(frame, seen))
    }

    fn read(&mut self) {
        let mut bytes = vec![0; 1 << 17];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut bytes) {
                Ok((_, Some(from))) if from.pkttype() == PACKET_OUTGOING => {}
                Ok((length, _)) => self.seen.push(bytes[..length].to_vec()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// What has arrived since the wire was opened.
    pub fn frames(&mut self) -> impl Iterator<Item = &[u8]> {
        self.read();
        self.seen.iter().map(Vec::as_slice)
    }

    /// Bytes of the largest frame that has arrived: more than a link takes if it is yet to be cut.
    pub fn largest(&mut self) -> usize {
        self.frames().map(<[u8]>::len).max().unwrap_or_default()
    }

    /// Waits until all of these have arrived.
    pub fn await_all(&mut self, frames: &[Vec<u8>], what: &str) {
        let deadline = Instant::now() + ARRIVES_WITHIN;
        while !frames.iter().all(|frame| self.has_seen(frame)) {
            assert!(Instant::now() < deadline, "has not arrived: {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A pod in which somebody is root, and its ways to the victims.
pub struct Hand {
    pub pod: Arc<Pod>,
    wire: Wire,
    pub ways: Vec<Way>,
}

impl Hand {
    /// From the pod's raw socket.
    pub fn send(&self, frames: &[Vec<u8>]) {
        for frame in frames {
            self.wire.send(frame);
        }
    }
}

pub struct Stage {
    pub lab: Lab,
    /// The first hand's.
    pub root: Arc<Pod>,
    pub ways: Vec<Way>,
    pub hands: Vec<Hand>,
    /// Near and far.
    pub at_victims: [Wire; 2],
    pub at_node: Wire,
}

impl Stage {
    pub fn raise(plan: Plan) -> Self {
        Self::with_hands(plan, 1)
    }

    pub fn with_hands(plan: Plan, hands: usize) -> Self {
        // What is only bridged is looked at by nobody else.
        let lab = plan.bridge_nf(false).raise().unwrap();
        lab.namespace("shop", &[]).unwrap();
        let roots = std::iter::once(ROOT.to_owned()).chain((2..=hands).map(|n| format!("shop/root-{n}-1")));
        let roots: Vec<_> = roots.collect();
        let pods = roots.iter().map(String::as_str).chain([VICTIMS[0], VICTIMS[1], NEIGHBOUR]);
        lab.start_pods(pods.map(|key| {
            let node = if key.ends_with('1') { 1 } else { 2 };
            PodSpec::new(key).on(node).serve(Transport::Tcp, 80).serve(Transport::Udp, 53)
        }))
        .unwrap();
        lab.policy("shop/allow-all", "*", ALLOW_ALL).unwrap();
        lab.apply(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: dns, namespace: shop}}, spec: {{\
              clusterIPs: [{SERVICE_V4}, '{SERVICE_V6}'], clusterIP: {SERVICE_V4}, \
              ports: [{{port: 53, protocol: UDP}}]}}}}"
        ))
        .unwrap();
        lab.settle().unwrap();
        let victims = VICTIMS.map(|victim| lab.pod(victim));
        let at_victims = victims.each_ref().map(|victim| Wire::open(victim.netns()));
        let at_node = Wire::open(lab.node(2).netns());
        let neighbour = Wire::open(lab.pod(NEIGHBOUR).netns()).mac();
        let way = |(pod, wire): (&Pod, &Wire), near: bool, family: Family| {
            let victim = &victims[usize::from(!near)];
            let gateway = mac_of(pod, "cni0");
            let hop = if near { at_victims[0].mac() } else { gateway };
            let (number, service, world): (u8, &str, IpAddr) = match family {
                Family::V4 => (4, SERVICE_V4, WORLD_V4.into()),
                Family::V6 => (6, SERVICE_V6, WORLD_V6.into()),
            };
            let device = [0x0e, 0, 0, 0, number, 2];
            Way {
                family,
                near,
                me: Party { mac: wire.mac(), ip: pod.ip(family) },
                to: Party { mac: hop, ip: victim.ip(family) },
                gateway: Party { mac: gateway, ip: lab.node(1).gateway(family) },
                neighbour: Party { mac: neighbour, ip: lab.pod(NEIGHBOUR).ip(family) },
                nodes: [1, 2].map(|node| lab.node(node).ip(family)),
                overlay: Party { mac: device, ip: lab.node(2).overlay(family) },
                service: service.parse().unwrap(),
                world,
            }
        };
        let hand = |key: &String| {
            let pod = lab.pod(key);
            let wire = Wire::open(pod.netns());
            let on = |near| FAMILIES.map(|family| way((&pod, &wire), near, family));
            Hand { ways: [on(true), on(false)].concat(), pod, wire }
        };
        let hands: Vec<_> = roots.iter().map(hand).collect();
        let (root, ways) = (Arc::clone(&hands[0].pod), hands[0].ways.clone());
        let mut stage = Self { lab, root, ways, hands, at_victims, at_node };
        stage.sees_through(OWN_PORT); // and every neighbour is resolved
        for way in &stage.ways {
            let hello = Packet::udp(way.neighbour.at(NEIGHBOURS_PORT), way.to.at(53), HELLO);
            hello.send(stage.lab.pod(NEIGHBOUR).netns()).unwrap();
        }
        stage
    }

    /// From the first pod's raw socket.
    pub fn send(&self, frames: &[Vec<u8>]) {
        self.hands[0].send(frames);
    }

    /// Each pod sends a lawful datagram from this port on each way and it is seen to arrive: whatever was sent before is
    /// through.
    pub fn sees_through(&mut self, port: u16) {
        for hand in &self.hands {
            for way in &hand.ways {
                let frame = way.send(&Packet::udp(way.me.at(port), way.to.at(53), HELLO));
                let victim = &mut self.at_victims[usize::from(!way.near)];
                hand.wire.send(&frame);
                victim.await_all(&[frame], &format!("the last of all, {way:?}"));
            }
        }
        thread::sleep(Duration::from_millis(50)); // what another processor still holds
    }

    /// Packets that the programs of the pod's node have judged so.
    pub fn packets(&self) -> BTreeMap<String, u64> {
        let status = self.lab.agent(1).status().unwrap();
        let counters = status["datapath"]["packets"].as_object().unwrap();
        counters.iter().map(|(reason, count)| (reason.clone(), count.as_u64().unwrap())).collect()
    }

    /// What the flow log of the pods' node says that they have lost.
    pub fn logged(&self) -> Vec<Told> {
        let read = |record: Value| {
            let (flow, ours) = (&record["flow"], &record["flow"]["extensions"]["value"]);
            let source = &flow["source"];
            let told = || Told {
                pod: format!(
                    "{}/{}",
                    source["namespace"].as_str().unwrap_or_default(),
                    source["pod_name"].as_str().unwrap_or_default()
                ),
                reason: ours["reason"].as_str().unwrap().to_owned(),
                time: Timestamp::parse(flow["time"].as_str().unwrap()).unwrap(),
                packets: ours["aggregated"].as_u64().unwrap(),
            };
            (flow["verdict"] == "DROPPED").then(told)
        };
        self.lab.agent(1).flow_log().unwrap().into_iter().filter_map(read).collect()
    }

    /// Waits for the counter to come to as much; all of them as they are then.
    pub fn counted(&self, reason: &str, to: u64) -> BTreeMap<String, u64> {
        until(COUNTED_WITHIN, || Ok(self.packets()), |now| now[reason] >= to).unwrap()
    }
}

fn mac_of(pod: &Pod, interface: &str) -> Mac {
    let result = &pod.added().result;
    let interfaces = result["interfaces"].as_array().unwrap();
    let found = interfaces.iter().find(|found| found["name"] == interface).unwrap();
    let bytes: Vec<u8> =
        found["mac"].as_str().unwrap().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}
