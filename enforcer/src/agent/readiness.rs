//! Whether this node really enforces what the API says.

use super::status::Status;
use crate::endpoint::adoption::Unadopted;

/// Why the node is not ready, one line each; none: it is. A policy that cannot be honoured as written is no reason: what
/// it isolates is isolated (semantics 41). Nor is a way to other nodes that cannot be guarded: Services are then open to
/// fewer.
pub fn readiness(status: &Status) -> Vec<String> {
    let mut reasons = Vec::new();
    if !status.source.synced {
        reasons.push("the cluster's objects are still being read".to_owned());
    }
    if let Some(error) = &status.datapath.error {
        reasons.push(format!("the kernel is not up to date: {error}"));
    }
    if status.datapath.unlisted_services > 0 {
        reasons.push(format!(
            "the kernel has no room for addresses and ports of Services: {}",
            status.datapath.unlisted_services
        ));
    }
    let versions: Vec<String> = status.datapath.predecessors.iter().map(ToString::to_string).collect();
    if !versions.is_empty() {
        reasons
            .push(format!("programs of another version enforce on some interface: {}", versions.join(", ")));
    }
    if let Some(error) = &status.datapath.pins_missing {
        reasons.push(format!("the node would not enforce without the agent: {error}"));
    }
    if status.running.adopting > 0 {
        reasons.push(format!("pods are being adopted: {}", status.running.adopting));
    }
    for endpoint in &status.endpoints {
        let who = if endpoint.pod.is_empty() { &endpoint.container } else { &endpoint.pod };
        if !endpoint.attached && !endpoint.starting && status.running.adopting == 0 {
            reasons.push(format!("{who}: a program is missing on {}", endpoint.interface));
        } else if !endpoint.up_to_date && status.source.synced && status.datapath.error.is_none() {
            reasons.push(format!("{who}: its rules are not in the kernel"));
        }
    }
    if !status.running.surveyed {
        reasons.push("pods that run already are still being looked for".to_owned());
    }
    for Unadopted { pod, why, .. } in &status.running.unadopted {
        reasons.push(format!("{pod} is not enforced: {why}"));
    }
    if status.chain.chained.is_empty() {
        reasons.push(format!("bulkhead-cni is in no configuration list in {}", status.chain.directory));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::status::Endpoint;

    fn ready() -> Status {
        let mut status = Status::default();
        status.source.synced = true;
        status.running.surveyed = true;
        status.chain.directory = "/etc/cni/net.d".into();
        status.chain.chained = vec!["10-flannel.conflist".into()];
        status.endpoints = vec![Endpoint {
            pod: "shop/cart".into(),
            container: "c1".into(),
            interface: "veth1".into(),
            up_to_date: true,
            attached: true,
            ..Endpoint::default()
        }];
        status
    }

    #[test]
    fn a_node_is_ready_when_nothing_is_missing_and_says_what_is() {
        type Edit = fn(&mut Status);
        let cases: [(&[&str], Edit); 15] = [
            (&[], |_| {}),
            (&[], |status| status.endpoints.clear()),
            (&[], |status| _ = status.defects.insert("shop/broken".into(), vec!["port 0".into()])),
            (&["the kernel has no room for addresses and ports of Services: 7"], |status| {
                status.datapath.unlisted_services = 7;
            }),
            (&["the cluster's objects are still being read"], |status| {
                status.source.synced = false;
                status.endpoints[0].up_to_date = false; // as long as that is so
            }),
            (&["the kernel is not up to date: map RULES is too small"], |status| {
                status.datapath.error = Some("map RULES is too small".into());
                status.endpoints[0].up_to_date = false;
            }),
            (&["programs of another version enforce on some interface: 1"], |status| {
                status.datapath.predecessors = vec![1];
            }),
            (&["the node would not enforce without the agent: cannot pin"], |status| {
                status.datapath.pins_missing = Some("cannot pin".into());
            }),
            (&["shop/cart: a program is missing on veth1"], |status| status.endpoints[0].attached = false),
            (&[], |status| (status.endpoints[0].attached, status.endpoints[0].starting) = (false, true)),
            (&["c1: its rules are not in the kernel"], |status| {
                status.endpoints[0].up_to_date = false;
                status.endpoints[0].pod.clear();
            }),
            (&["pods are being adopted: 2"], |status| {
                status.running.adopting = 2;
                status.endpoints[0].attached = false; // one of them
            }),
            (&["pods that run already are still being looked for"], |status| status.running.surveyed = false),
            (&["shop/db is not enforced: veth2 is no port of a bridge"], |status| {
                let why = "veth2 is no port of a bridge".into();
                status.running.unadopted =
                    vec![Unadopted { pod: "shop/db".into(), container: "c2".into(), why }];
            }),
            (&["bulkhead-cni is in no configuration list in /etc/cni/net.d"], |status| {
                status.chain.unchained = std::mem::take(&mut status.chain.chained);
            }),
        ];
        for (want, edit) in cases {
            let mut status = ready();
            edit(&mut status);
            assert_eq!(readiness(&status), want);
        }
    }
}
