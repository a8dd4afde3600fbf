//! The flow log as a test or the demo reads it: blocked attempts with both ends and who decided.

use std::{collections::BTreeSet, fmt};

use serde_json::Value;

use crate::probe::Transport;

/// A denied connection attempt, without what differs from one packet to the next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blocked {
    pub node: String,
    /// `namespace/name`, or the address where no pod is known.
    pub source: String,
    pub destination: String,
    pub transport: Transport,
    pub port: u64,
    /// `INGRESS` or `EGRESS`.
    pub direction: String,
    /// `drop_reason_desc`.
    pub reason: String,
    /// `namespace/name` of the policies that isolate the pod.
    pub policies: BTreeSet<String>,
}

impl Blocked {
    /// `None`: the record is not a drop of TCP or UDP.
    pub fn read(record: &Value) -> Option<Self> {
        let flow = &record["flow"];
        if flow["verdict"] != "DROPPED" {
            return None;
        }
        let (transport, l4) = [(Transport::Tcp, "TCP"), (Transport::Udp, "UDP")]
            .into_iter()
            .find_map(|(transport, name)| Some((transport, flow["l4"].get(name)?)))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let end = |side: &str| match flow[side]["pod_name"].as_str() {
            Some(pod) => format!("{}/{pod}", text(&flow[side]["namespace"])),
            None => text(&flow["IP"][side]),
        };
        let policies = ["ingress_denied_by", "egress_denied_by"]
            .into_iter()
            .flat_map(|field| flow[field].as_array().into_iter().flatten())
            .map(|policy| format!("{}/{}", text(&policy["namespace"]), text(&policy["name"])))
            .collect();
        Some(Self {
            node: text(&record["node_name"]),
            source: end("source"),
            destination: end("destination"),
            transport,
            port: l4["destination_port"].as_u64()?,
            direction: text(&flow["traffic_direction"]),
            reason: text(&flow["drop_reason_desc"]),
            policies,
        })
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policies: Vec<_> = self.policies.iter().map(String::as_str).collect();
        write!(
            f,
            "{}: {} -> {}:{} {}, {} {}, isolated by {}",
            self.node,
            self.source,
            self.destination,
            self.port,
            self.transport,
            self.direction.to_lowercase(),
            self.reason,
            if policies.is_empty() { "nobody".to_owned() } else { policies.join(", ") },
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_drop_names_both_ends_and_the_policies() {
        let record = json!({"node_name": "node-2", "time": "2026-01-01T00:00:00Z", "flow": {
            "verdict": "DROPPED", "drop_reason_desc": "POLICY_DENIED", "traffic_direction": "INGRESS",
            "IP": {"source": "10.244.2.4", "destination": "10.244.2.3", "ipVersion": "IPv4"},
            "l4": {"TCP": {"source_port": 40000, "destination_port": 5432, "flags": {"SYN": true}}},
            "source": {"labels": ["reserved:world"]},
            "destination": {"namespace": "shop", "pod_name": "database"},
            "ingress_denied_by": [{"namespace": "shop", "name": "default-deny", "kind": "NetworkPolicy"}],
        }});
        let want = Blocked {
            node: "node-2".into(),
            source: "10.244.2.4".into(),
            destination: "shop/database".into(),
            transport: Transport::Tcp,
            port: 5432,
            direction: "INGRESS".into(),
            reason: "POLICY_DENIED".into(),
            policies: ["shop/default-deny".into()].into(),
        };
        assert_eq!(Blocked::read(&record), Some(want));
        let mut forwarded = record;
        forwarded["flow"]["verdict"] = "FORWARDED".into();
        assert_eq!(Blocked::read(&forwarded), None);
    }
}
