//! Connections that were there before bulkhead, as the entries that the programs would have made of them.
//!
//! An entry says who began, and nothing of a verdict: each end is judged at the next packet, in the connection's own
//! direction, under the rules in force then.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use bulkhead_ebpf::abi::{
    CONN_COUNTER, CONN_FIN, CONN_OPENER, CONN_REPLIED, CONN_STRANGER, CONN_TRANSLATED, Conn, ConnKey,
};

use crate::endpoint::{
    sockets::{Conversation, Side},
    translations::Tracked,
};

/// A connection's key, of either family.
pub type Key = ConnKey<IpAddr>;

/// What is known when connections are imported.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Interface index of every endpoint's addresses.
    pub endpoints: BTreeMap<IpAddr, u32>,
    /// Those of them that are being adopted.
    pub adopted: BTreeSet<u32>,
    /// Addresses of this node itself.
    pub node: BTreeSet<IpAddr>,
    /// What is translated here; `None`: the kernel does not say.
    pub tracked: Option<Vec<Tracked>>,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub now: u64,
}

/// One connection by what it is between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Opening {
    opener: SocketAddr,
    asked: SocketAddr,
    protocol: u8,
    answered: bool,
    opener_closed: bool,
    asked_closed: bool,
}

impl Known {
    /// Entries for the conversations of adopted pods (by interface index), in the order of their keys.
    pub fn entries(&self, conversations: &[(u32, Conversation)]) -> BTreeMap<Key, Conn> {
        let own = |ifindex: u32, address: IpAddr| self.endpoints.get(&address) == Some(&ifindex);
        let conversations: Vec<&Conversation> = conversations
            .iter()
            .filter(|(ifindex, c)| own(*ifindex, c.local.ip()) && !own(*ifindex, c.remote.ip()))
            .map(|(_, conversation)| conversation)
            .collect();
        // Both ends of a connection may be here: what its opener sees has not been translated on the way.
        let direct: BTreeSet<Key> = conversations
            .iter()
            .filter(|c| c.began == Side::Local)
            .map(|c| key(c.local, c.remote, c.protocol).0)
            .collect();
        let mut entries: BTreeMap<Key, Conn> = BTreeMap::new();
        // The asked end is surer of who began: it listens.
        let (asked, began) = conversations.into_iter().partition::<Vec<_>, _>(|c| c.began == Side::Remote);
        for conversation in asked.into_iter().chain(began) {
            let opening = Opening::of(conversation);
            let key = key(opening.opener, opening.asked, opening.protocol).0;
            entries.entry(key).or_insert_with(|| self.entry(&opening, direct.contains(&key)));
        }
        for opening in self.datagrams() {
            let key = key(opening.opener, opening.asked, opening.protocol).0;
            entries.entry(key).or_insert_with(|| self.entry(&opening, direct.contains(&key)));
        }
        entries
    }

    /// UDP conversations of endpoints: their sockets do not tell, as a rule.
    fn datagrams(&self) -> impl Iterator<Item = Opening> {
        let udp = self.tracked.iter().flatten().filter(|tracked| tracked.protocol == UDP);
        let sides = udp.flat_map(|tracked| {
            let at = |opener, asked| Opening {
                opener,
                asked,
                protocol: UDP,
                answered: true,
                opener_closed: false,
                asked_closed: false,
            };
            let [client, server] = [tracked.client, tracked.server].map(|end| {
                self.endpoints.get(&end.ip()).is_some_and(|ifindex| self.adopted.contains(ifindex))
            });
            let asks = client.then(|| at(tracked.client, tracked.asked));
            asks.into_iter().chain(server.then(|| at(tracked.seen_as, tracked.server)))
        });
        sides.filter(|opening| opening.opener.ip() != opening.asked.ip())
    }

    fn entry(&self, opening: &Opening, direct: bool) -> Conn {
        let (_, opener) = key(opening.opener, opening.asked, opening.protocol);
        let asks = self.endpoints.get(&opening.opener.ip()).copied();
        let asked = self.endpoints.get(&opening.asked.ip()).copied();
        let (behind, kind) = match asked {
            Some(_) if !direct => self.behind(opening),
            _ => (asks, Origin::Plain),
        };
        let counter = match (kind, behind) {
            (Origin::Plain, Some(_)) => opener,
            _ => opener ^ 1,
        };
        let on = |set: bool, bit: u8| if set { bit } else { 0 };
        let fin = |set: bool, side: usize| on(set, CONN_FIN << side);
        Conn {
            started: self.now,
            last_seen: super::sweep::tick(self.now),
            sides: on(opener == 1, CONN_OPENER)
                | on(counter == 1, CONN_COUNTER)
                | on(self.is_nobody_known(kind, behind), CONN_STRANGER),
            state: on(opening.answered, CONN_REPLIED)
                | on(kind == Origin::Translated, CONN_TRANSLATED)
                | fin(opening.opener_closed, opener)
                | fin(opening.asked_closed, opener ^ 1),
            origin: low_half(behind.or(asked).unwrap_or_default()),
            ..Conn::default()
        }
    }

    /// Who stands behind the opener of a connection that came to an endpoint, and what its entry has to say of it.
    fn behind(&self, opening: &Opening) -> (Option<u32>, Origin) {
        let opener = opening.opener.ip();
        if let Some(ifindex) = self.endpoints.get(&opener) {
            // Its own end of the connection is another one: it went to a Service.
            return (Some(*ifindex), Origin::Translated);
        }
        if !self.node.contains(&opener) {
            return (None, Origin::Plain);
        }
        let Some(tracked) = &self.tracked else { return (None, Origin::Stranger) };
        if tracked.is_empty() {
            return (None, Origin::Plain); // nothing is tracked, so nobody is masqueraded
        }
        let this = |tracked: &&Tracked| {
            (tracked.server, tracked.seen_as, tracked.protocol)
                == (opening.asked, opening.opener, opening.protocol)
        };
        match tracked.iter().find(this).map(|tracked| tracked.client.ip()) {
            Some(client) if self.node.contains(&client) => (None, Origin::Plain),
            Some(client) => match self.endpoints.get(&client) {
                Some(ifindex) => (Some(*ifindex), Origin::Translated),
                None => (None, Origin::Stranger),
            },
            None => (None, Origin::Stranger),
        }
    }

    /// An entry has room for the low half of an interface index only: of two endpoints that share it, neither is meant.
    fn is_nobody_known(&self, kind: Origin, behind: Option<u32>) -> bool {
        let shares = |ifindex: u32| {
            let mut others = self.endpoints.values().filter(|other| **other != ifindex);
            others.any(|other| low_half(*other) == low_half(ifindex))
        };
        kind == Origin::Stranger || kind == Origin::Translated && behind.is_some_and(shares)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The opener is who its address says.
    Plain,
    /// An endpoint that went to a Service: its egress is judged at the asked end.
    Translated,
    /// Somebody from elsewhere under an address of this node.
    Stranger,
}

const UDP: u8 = 17;

impl Opening {
    fn of(c: &Conversation) -> Self {
        let (opener, asked) = if c.began == Side::Local { (c.local, c.remote) } else { (c.remote, c.local) };
        let local_began = c.began == Side::Local;
        let (opener_closed, asked_closed) =
            if local_began { (c.local_closed, c.remote_closed) } else { (c.remote_closed, c.local_closed) };
        Self { opener, asked, protocol: c.protocol, answered: c.answered, opener_closed, asked_closed }
    }
}

/// The key of a connection, and its side that `from` is. Addresses are of one family.
fn key(from: SocketAddr, to: SocketAddr, protocol: u8) -> (Key, usize) {
    let at = |address: SocketAddr| (address.ip(), address.port());
    let (sides, from) = if at(from) < at(to) { ([from, to], 0) } else { ([to, from], 1) };
    let key = ConnKey {
        addresses: sides.map(|side| side.ip()),
        ports_be: sides.map(|side| side.port().to_be_bytes()),
        protocol,
        pad: [0; 3],
    };
    (key, from)
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
fn low_half(ifindex: u32) -> u16 {
    ifindex as u16
}

#[cfg(test)]
mod tests;
