//! Connections that the node's hooks have not seen begin, into the tables.

use std::net::IpAddr;

use bulkhead_ebpf::abi::ConnKey;

use super::{
    local,
    node::{Node, error_chain},
};
use crate::{
    datapath::imports::Known,
    endpoint::{
        Endpoint,
        sockets::{Conversation, Sockets},
        translations,
    },
    flow::clock,
};

impl Node {
    /// Imports whatever conversations these endpoints are in; `replace` as for `import`.
    pub(super) fn read_sockets(&mut self, adopted: &[Endpoint], replace: Option<u64>) {
        let mut conversations = Vec::new();
        for endpoint in adopted {
            let sandbox = &endpoint.sandbox;
            match Sockets::of(&sandbox.netns) {
                Ok(sockets) => {
                    conversations.extend(sockets.conversations().map(|c| (sandbox.host_ifindex, c)));
                }
                // The pod may be gone; otherwise the hooks judge what they meet as they meet it.
                Err(error) => {
                    tracing::warn!(%error, ifname = sandbox.host_ifname, "sockets cannot be read");
                }
            }
        }
        self.import(adopted, &conversations, replace);
    }

    /// Enters connections that are not known yet; those that the hooks have entered since `replace` give way if they
    /// say otherwise who began.
    pub(super) fn import(
        &mut self,
        adopted: &[Endpoint],
        conversations: &[(u32, Conversation)],
        replace: Option<u64>,
    ) {
        let node = match local::addresses() {
            Ok(addresses) => addresses,
            Err(error) => {
                // Who is masqueraded would be taken for the node: the hooks judge what they meet as they meet it.
                tracing::warn!(%error, "this node's addresses cannot be read: no connection is imported");
                return;
            }
        };
        let tracked = translations::tracked()
            .inspect_err(|error| tracing::warn!(%error, "what the node translates cannot be read"));
        let known = Known {
            endpoints: self.addresses_of_endpoints(),
            adopted: adopted.iter().map(|endpoint| endpoint.sandbox.host_ifindex).collect(),
            node,
            tracked: tracked.ok(),
            now: clock::monotonic(),
        };
        let maps = self.tables.kernel();
        for (key, conn) in known.entries(conversations) {
            let entered = match key.addresses {
                [IpAddr::V4(a), IpAddr::V4(b)] => {
                    maps.conns_v4().learn(&with(&key, [a.octets(), b.octets()]), &conn, replace)
                }
                [IpAddr::V6(a), IpAddr::V6(b)] => {
                    maps.conns_v6().learn(&with(&key, [a.octets(), b.octets()]), &conn, replace)
                }
                _ => continue, // no socket has such ends
            };
            match entered {
                Ok(entered) => self.running.imported += u64::from(entered),
                // Judged as the hooks meet it.
                Err(error) => tracing::warn!(error = error_chain(&error), "a connection is not imported"),
            }
        }
    }
}

fn with<A>(key: &ConnKey<IpAddr>, addresses: [A; 2]) -> ConnKey<A> {
    let ConnKey { ports_be, protocol, pad, .. } = *key;
    ConnKey { addresses, ports_be, protocol, pad }
}
