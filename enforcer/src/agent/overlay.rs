//! The interfaces by which this node reaches other nodes' pods: flannel's overlay devices, or an uplink. There what a
//! pod sends through a Service is judged by the backend that it got.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use futures::TryStreamExt;
use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily,
    link::{LinkAttribute, LinkLayerType},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
use rtnetlink::Handle;

use super::node::{Node, error_chain};
use crate::datapath::programs::Role;

/// This network namespace's main routing tables and the interfaces of their next hops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Interface indices of each route's next hops.
    pub routes: BTreeMap<IpNetwork, BTreeSet<u32>>,
    pub interfaces: BTreeMap<u32, Interface>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    /// Frames on it begin with an Ethernet header. (`WireGuard` packets have none.)
    pub ethernet: bool,
}

impl Links {
    /// Interfaces that lead to any of these networks.
    fn towards<'n>(&self, networks: impl Iterator<Item = &'n IpNetwork>) -> BTreeSet<u32> {
        networks.filter_map(|network| self.route(*network)).flatten().copied().collect()
    }

    /// Next hops of the longest route that holds the network.
    fn route(&self, network: IpNetwork) -> Option<&BTreeSet<u32>> {
        let wider = |length| IpNetwork::new(network.network(), length).ok();
        let masked = |net: IpNetwork| IpNetwork::new(net.network(), net.prefix()).ok();
        (0..=network.prefix()).rev().find_map(|length| self.routes.get(&masked(wider(length)?)?))
    }
}

/// A conversation with the kernel, in the network namespace in which it began.
#[derive(Clone)]
pub struct Netlink(Handle);

impl Netlink {
    /// Must be called inside a tokio runtime.
    pub fn connect() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    pub async fn links(&self) -> Result<Links, rtnetlink::Error> {
        let mut links = Links::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let routes = self.0.route().get(message).execute().try_collect::<Vec<_>>().await?;
            for (network, hops) in routes.iter().filter_map(|route| next_hops(route, family)) {
                links.routes.entry(network).or_default().extend(hops);
            }
        }
        // One by one: all of them are as many as there are pods.
        let hops: BTreeSet<u32> = links.routes.values().flatten().copied().collect();
        for index in hops {
            if let Some(interface) = self.interface(index).await? {
                links.interfaces.insert(index, interface);
            }
        }
        Ok(links)
    }

    /// `None`: there is none of this index.
    async fn interface(&self, index: u32) -> Result<Option<Interface>, rtnetlink::Error> {
        let link = match self.0.link().get().match_index(index).execute().try_next().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ENODEV => None,
            other => other?,
        };
        Ok(link.and_then(|link| {
            let ethernet = link.header.link_layer_type == LinkLayerType::Ether;
            let name = link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })?;
            Some(Interface { name, ethernet })
        }))
    }
}

/// Destination and interfaces of a unicast route of the main table.
fn next_hops(route: &RouteMessage, family: AddressFamily) -> Option<(IpNetwork, BTreeSet<u32>)> {
    if route.header.table != RouteHeader::RT_TABLE_MAIN || route.header.kind != RouteType::Unicast {
        return None;
    }
    let any = match family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        _ => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some((*address).into()),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    });
    let network = IpNetwork::new(destination.unwrap_or(any), route.header.destination_prefix_length).ok()?;
    let hops = route.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    });
    Some((network, hops.collect()))
}

/// A way to other nodes, as status shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Way {
    pub interface: String,
    /// Why what leaves here cannot be judged; empty: it is judged.
    pub error: String,
}

impl Node {
    /// Takes in routes and interfaces; the kernel follows at once if they change what must hold.
    pub fn follow_links(&mut self, links: Links) {
        self.links = links;
        if self.guard_ways() {
            self.enforce();
        }
    }

    /// Puts `to_overlay` where packets leave for other nodes' pods. While that cannot be done everywhere, a Service is
    /// open only to those who may reach every backend elsewhere (fail closed). Tells whether that has changed.
    pub(super) fn guard_ways(&mut self) -> bool {
        let own = self.index.node_name();
        let others = self.index.nodes().filter(|node| Some(node.name.as_str()) != own);
        let networks: BTreeSet<&IpNetwork> = others.flat_map(|node| &node.pod_cidrs).collect();
        let interfaces: Vec<(u32, Interface)> = self
            .links
            .towards(networks.into_iter())
            .into_iter()
            .filter_map(|index| Some((index, self.links.interfaces.get(&index)?.clone())))
            .collect();
        self.ways = interfaces
            .into_iter()
            .map(|(index, interface)| Way {
                error: self.guard_way(index, &interface).err().unwrap_or_default(),
                interface: interface.name,
            })
            .collect();
        let all = self.ways.iter().all(|way| way.error.is_empty());
        let changed = self.compiler.judge_backends_elsewhere(all);
        if changed {
            tracing::warn!(ways = ?self.ways, all, "egress through Services to other nodes is judged otherwise");
        }
        changed
    }

    fn guard_way(&mut self, index: u32, interface: &Interface) -> Result<(), String> {
        if !interface.ethernet {
            return Err("frames on it have no Ethernet header".to_owned());
        }
        if self.is_succeeding() {
            return Ok(()); // by a predecessor as it saw fit
        }
        // One that an agent before us has put there is ours only with its link.
        if self.programs.keeps(Role::Overlay, index) && !self.bare.contains(&index) {
            return Ok(());
        }
        let again = self.ways.iter().any(|way| way.interface == interface.name && way.error.is_empty());
        tracing::info!(interface = interface.name, again, "a way to other nodes");
        self.programs.attach(Role::Overlay, &interface.name, index).map_err(|error| error_chain(&error))?;
        self.bare.remove(&index);
        if again {
            self.meters.repaired();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().expect("a network")
    }

    #[test]
    fn a_network_is_reached_by_its_longest_route() {
        let routes = [
            ("0.0.0.0/0", vec![2]),
            ("10.244.1.0/24", vec![5]),
            ("10.244.2.0/24", vec![7]),
            ("10.244.0.0/16", vec![2, 3]),
            ("fd00:2::/64", vec![9]),
        ];
        let routes = routes.map(|(network, hops)| (net(network), hops.into_iter().collect()));
        let links = Links { routes: routes.into(), ..Links::default() };
        for (case, networks, want) in [
            ("its own route", vec!["10.244.2.0/24"], vec![7]),
            ("part of one", vec!["10.244.2.128/25"], vec![7]),
            ("a wider one with two next hops", vec!["10.244.9.0/24"], vec![2, 3]),
            ("the default route", vec!["172.16.0.0/16"], vec![2]),
            ("no route", vec!["fd00:3::/64"], vec![]),
            ("several", vec!["10.244.2.0/24", "fd00:2::/64"], vec![7, 9]),
        ] {
            let networks: Vec<_> = networks.into_iter().map(net).collect();
            assert_eq!(links.towards(networks.iter()), want.into_iter().collect(), "{case}");
        }
    }

    #[tokio::test]
    async fn the_kernel_tells_interfaces() {
        let netlink = Netlink::connect().expect("netlink");
        // Its frames have a header, but the kernel calls it loopback.
        let loopback = Interface { name: "lo".to_owned(), ethernet: false };
        assert_eq!(netlink.interface(1).await.expect("asked"), Some(loopback));
        assert_eq!(netlink.interface(i32::MAX.unsigned_abs()).await.expect("asked"), None);
        let links = netlink.links().await.expect("links");
        let hops: BTreeSet<u32> = links.routes.values().flatten().copied().collect();
        assert_eq!(links.interfaces.into_keys().collect::<BTreeSet<_>>(), hops);
    }
}
