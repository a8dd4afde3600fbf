//! What a reader of the flow log asks for.

use serde::{Deserialize, Serialize};

use super::{
    clock::Timestamp,
    enrich::Flow,
    names::{Party, Who},
    record::Verdict,
};

/// All given conditions must hold; empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// One end is a pod of this namespace, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// ... and the same end is the pod `name` or `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Source or destination port; ICMP has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// IANA number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

impl Filter {
    pub fn matches(&self, flow: &Flow) -> bool {
        self.since.is_none_or(|since| flow.time >= since)
            && self.verdict.is_none_or(|verdict| (verdict == Verdict::Dropped) == flow.dropped())
            && self
                .protocol
                .is_none_or(|number| flow.seen.packet.as_ref().is_some_and(|p| p.protocol == number))
            && self.port.is_none_or(|port| flow.seen.packet.as_ref().is_some_and(|p| p.has_port(port)))
            && (self.end_matches(&flow.source) || self.end_matches(&flow.destination))
    }

    fn end_matches(&self, party: &Party) -> bool {
        if self.namespace.is_none() && self.pod.is_none() {
            return true;
        }
        let Who::Pod { pod: of, .. } = &party.who else { return false };
        self.namespace.as_ref().is_none_or(|namespace| *of.key.namespace == **namespace)
            && self.pod.as_ref().is_none_or(|pod| match pod.split_once('/') {
                Some((namespace, name)) => *of.key.namespace == *namespace && *of.key.name == *name,
                None => *of.key.name == **pod,
            })
    }
}
