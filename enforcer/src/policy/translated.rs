//! Probes to a Service: which ways kube-proxy may send the connection on, and what they come to together.
//!
//! Each backend is judged in full, as if the connection went straight to it. What is not the same for all
//! backends is a denial: a client that fails now and then is not allowed.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use super::{
    evaluate::{Flow, FlowEnd, Simulator, allow, allowed_by, boundary, deny, isolated_by},
    lookup::Decision,
    model::{Direction, Identity},
    probe::{Answer, EndpointRef, Probe, Side, Verdict},
};
use crate::cluster::{
    Frontend,
    object::{Key, Protocol},
    service::OTHER_NODES,
};

/// What the source's own hook says to a Service that leads into the overlay.
const TUNNEL_BEHIND: &str = "the overlay's tunnel port is behind it";

/// A connection to a frontend, and what it may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    /// Who claims the frontend: one, or several that are in conflict.
    pub services: BTreeSet<Key>,
    /// To each backend; every backend once.
    pub flows: Vec<Flow>,
}

/// The kube-proxy that a connection meets.
struct Translator {
    /// `None`: that of pods that no node has.
    node: Option<String>,
}

impl Simulator {
    /// `None`: the destination is no Service's, seen from the source's node. Only what comes from pods and from
    /// nodes that are named is translated; where an address outside meets kube-proxy is not known here.
    pub fn translated(&mut self, probe: &Probe, flow: &Flow) -> Option<Translated> {
        if flow.src.address == flow.dst.address {
            return None; // it never leaves the pod
        }
        let Translator { node } = self.translator(&probe.src, flow)?;
        let frontend = frontend(flow)?;
        let compiled = self.compiled(node.as_deref());
        compiled.services.get(&frontend)?;
        let address = frontend.address;
        let is_own = compiled.peers.get(&address).is_some_and(|peer| *peer.identity == Identity::Host);
        let services = self.index().services();
        let ports = services.at(frontend, is_own);
        let backends: BTreeSet<_> =
            ports.iter().flat_map(|port| services.backends(*port, address.is_ipv4())).collect();
        let to = |address: IpAddr| FlowEnd {
            address,
            endpoint: self.endpoint(&EndpointRef::Ip(address), address),
        };
        let flows = backends.into_iter().map(|b| Flow { dst: to(b.address), port: b.port, ..flow.clone() });
        Some(Translated {
            flows: flows.collect(),
            services: ports.iter().map(|port| port.service.clone()).collect(),
        })
    }

    /// The verdict of the source's own hook, which sees the Service; `None`: nobody judges there, or it is no
    /// Service's.
    pub fn before_translation(&mut self, flow: &Flow) -> Option<Side> {
        let source = flow.src.endpoint.as_ref()?;
        let compiled = self.compiled(source.node.as_deref());
        let class = compiled.services.get(&frontend(flow)?)?;
        if **class == Identity::Tunnel {
            return Some(deny(TUNNEL_BEHIND));
        }
        let Some(policy) = compiled.endpoints.get(&source.pod) else {
            return Some(deny("no policy was compiled for the pod"));
        };
        Some(match policy.decide_service(class) {
            Decision::Allow(grants) => allow(allowed_by(&grants, Direction::Egress)),
            Decision::NoRule | Decision::TenantBoundary => deny(isolated_by(policy, Direction::Egress)),
        })
    }

    /// A pod that reaches itself through a Service is subject to its egress (semantics 28), and comes back under
    /// its node's address, which every pod admits: without that it could not answer itself.
    pub(crate) fn hairpin(&mut self, flow: &Flow) -> [Side; 2] {
        let egress = flow.src.endpoint.as_ref().map_or_else(
            || allow("not a pod"),
            |source| {
                let compiled = self.compiled(source.node.as_deref());
                let policy = compiled.endpoints.get(&source.pod);
                let Some((policy, peer)) = policy.zip(compiled.peer(flow.dst.address)) else {
                    return deny("no policy was compiled for the pod");
                };
                match policy.decide(peer, Direction::Egress, flow.protocol, flow.port) {
                    Decision::Allow(grants) => allow(allowed_by(&grants, Direction::Egress)),
                    Decision::NoRule => deny(isolated_by(policy, Direction::Egress)),
                    Decision::TenantBoundary => deny(boundary(policy, peer, Direction::Egress)),
                }
            },
        );
        [egress, allow("own node")]
    }

    fn translator(&self, src: &EndpointRef, flow: &Flow) -> Option<Translator> {
        let node = match (&flow.src.endpoint, src) {
            (Some(pod), _) => pod.node.clone(),
            (None, EndpointRef::Node(name)) => Some(name.clone()),
            (None, EndpointRef::Pod(key)) => self.index().pod(key)?.node.as_deref().map(str::to_owned),
            (None, EndpointRef::Ip(_)) => return None,
        };
        Some(Translator { node })
    }
}

impl Translated {
    /// `sides`: what egress and ingress say to each of the flows. `before`: what the source's own hook says to
    /// the Service, which is stricter only where there may be backends that cannot be read, or that nobody may reach.
    pub fn answer(&self, sides: &[[Side; 2]], before: Option<Side>) -> Answer {
        let names: Vec<_> = self.services.iter().map(ToString::to_string).collect();
        let name = format!("service {}", names.join(" and "));
        if sides.is_empty() {
            let egress = deny(format!("{name} has no endpoints"));
            return Answer { verdict: egress.verdict, egress, ingress: allow("not reached") };
        }
        let side = |which: usize| {
            let sides = sides.iter().map(|sides| &sides[which]);
            together(&name, &self.flows.iter().zip(sides).collect::<Vec<_>>())
        };
        let (mut egress, ingress) = (side(0), side(1));
        if let Some(Side { verdict: Verdict::Deny, by }) = before
            && egress.verdict == Verdict::Allow
        {
            egress = deny(if by == TUNNEL_BEHIND {
                format!("{name}: {by}")
            } else {
                format!("{name}, not all of whose endpoints can be read: {by}")
            });
        }
        Answer { verdict: egress.verdict.max(ingress.verdict), egress, ingress }
    }
}

/// Allowed only if every backend is.
fn together(service: &str, backends: &[(&Flow, &Side)]) -> Side {
    let denied: Vec<_> = backends.iter().filter(|(_, side)| side.verdict == Verdict::Deny).collect();
    if denied.is_empty() {
        let by: BTreeSet<_> = backends.iter().map(|(_, side)| side.by.as_str()).collect();
        return allow(format!("{service}: {}", by.into_iter().collect::<Vec<_>>().join("; ")));
    }
    let why: BTreeSet<_> = denied
        .iter()
        .map(|(flow, side)| format!("{}: {}", SocketAddr::from((flow.dst.address, flow.port)), side.by))
        .collect();
    let (allowed, all) = (backends.len() - denied.len(), backends.len());
    let why = why.into_iter().collect::<Vec<_>>().join("; ");
    deny(format!("{service}: {allowed} of {all} backends allowed; {why}"))
}

/// The frontend of a port of other nodes.
pub(super) fn elsewhere(flow: &Flow) -> Option<Frontend> {
    let [v4, v6] = OTHER_NODES;
    let address = if flow.dst.address.is_ipv4() { v4 } else { v6 };
    Some(Frontend { address, ..frontend(flow)? })
}

/// `None`: kube-proxy translates no other protocols.
fn frontend(flow: &Flow) -> Option<Frontend> {
    let protocol = Protocol::of_number(flow.protocol)?;
    Some(Frontend { address: flow.dst.address, protocol, port: flow.port })
}
