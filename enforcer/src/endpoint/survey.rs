//! What runs on this node besides the endpoints that we know: asked of the runtime's cache, the pods' network namespaces
//! and the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    net::IpAddr,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use bulkhead_cni::{protocol::AttachmentId, sandbox::Wiring};
use futures::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    link::LinkAttribute,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};
use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns},
};

use super::{
    adoption::{Bridges, Found, Sighting},
    cache::{Cache, Remembered},
};

/// Everything that may be adopted, and what contradicts it.
#[derive(Debug, Default)]
pub struct Survey {
    /// Attachments that the runtime remembers, and whose files we have not known.
    pub remembered: BTreeSet<AttachmentId>,
    /// What is to be seen of them, except those that need not be looked at.
    pub sightings: Vec<Sighting>,
    pub bridges: Bridges,
    /// Files of the cache that cannot be read, one line each.
    pub unreadable: Vec<String>,
}

impl Survey {
    /// Blocks for about a millisecond per unknown pod; not to be called from an asynchronous task. `known`: names of
    /// the cache's files for our endpoints.
    pub fn take(
        cache: &Path,
        known: &BTreeSet<String>,
        departed: &BTreeSet<AttachmentId>,
    ) -> io::Result<Self> {
        let cache = Cache::read(cache, |name| known.contains(name))?;
        let remembered = cache.remembered.iter().map(|entry| entry.attachment.clone()).collect();
        let unreadable = cache.unreadable.iter().map(|(path, error)| format!("{}: {error}", path.display()));
        let unreadable = unreadable.collect();
        let unknown: Vec<Remembered> =
            cache.remembered.into_iter().filter(|entry| !departed.contains(&entry.attachment)).collect();
        if unknown.is_empty() {
            return Ok(Self { remembered, unreadable, ..Self::default() });
        }
        let mut namespaces = None;
        let sightings = unknown.into_iter().map(|remembered| {
            let found = look(&remembered, &mut namespaces);
            Sighting { remembered, found }
        });
        Ok(Self { remembered, sightings: sightings.collect(), bridges: bridges()?, unreadable })
    }
}

/// Where the pod's interface is now. The file that the runtime remembers may be gone or out of our sight, so that the
/// namespace is looked for by what must be in it.
fn look(remembered: &Remembered, namespaces: &mut Option<Vec<PathBuf>>) -> Result<Found, String> {
    let ifname = &remembered.attachment.ifname;
    match remembered.netns.as_deref().filter(|netns| netns.exists()) {
        Some(netns) => found(netns, ifname),
        None => namespaces
            .get_or_insert_with(self::namespaces)
            .iter()
            .filter_map(|netns| found(netns, ifname).ok())
            .find(|found| {
                found.inside == remembered.addresses
                    && remembered.mac.is_none_or(|mac| mac == found.wiring.mac)
            })
            .ok_or_else(|| "its network namespace is not to be found".to_owned()),
    }
}

fn found(netns: &Path, ifname: &str) -> Result<Found, String> {
    let wiring = Wiring::observe(netns, ifname).map_err(|error| error.with_causes())?;
    let inside =
        addresses(netns, ifname).map_err(|error| format!("its addresses cannot be read: {error}"))?;
    Ok(Found { netns: netns.to_owned(), wiring, inside })
}

/// Of the interface in that namespace, without link-local ones.
fn addresses(netns: &Path, ifname: &str) -> io::Result<BTreeSet<IpAddr>> {
    let own = || {
        let own = getifaddrs()?.filter(|interface| interface.interface_name == ifname);
        let addresses = own.filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or(address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        });
        let addresses = addresses.filter(|address| match address {
            IpAddr::V4(address) => !address.is_link_local(),
            IpAddr::V6(address) => !address.is_unicast_link_local(),
        });
        Ok(addresses.collect())
    };
    inside(netns, own)?
}

/// Does something inside a namespace, on a thread of its own that ends there: nothing can forget to come home.
pub fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = File::open(netns)?;
    let result = thread::scope(|scope| {
        scope
            .spawn(move || {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })
            .join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// One path for each network namespace that has a name or a process.
fn namespaces() -> Vec<PathBuf> {
    let listed = |directory: &str| {
        std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
    };
    let of_processes = listed("/proc").map(|process| process.join("ns/net"));
    let mut by_inode = BTreeMap::new();
    for path in listed("/run/netns").chain(listed("/var/run/netns")).chain(of_processes) {
        if let Ok(namespace) = std::fs::metadata(&path) {
            by_inode.entry(namespace.ino()).or_insert(path);
        }
    }
    by_inode.into_values().collect()
}

fn bridges() -> io::Result<Bridges> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let bridges = ask(&handle).await.map_err(io::Error::other);
        connection.abort();
        bridges
    })
}

async fn ask(handle: &rtnetlink::Handle) -> Result<Bridges, rtnetlink::Error> {
    let mut bridges = Bridges::default();
    let links = handle.link().get().execute().try_collect::<Vec<_>>().await?;
    for link in links {
        let controller = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Controller(bridge) => Some(*bridge),
            _ => None,
        });
        bridges.ports.extend(controller.map(|bridge| (link.header.index, bridge)));
    }
    for family in [AddressFamily::Bridge, AddressFamily::Inet, AddressFamily::Inet6] {
        let neighbours = handle.neighbours().get().set_address_family(family).execute();
        for neighbour in neighbours.try_collect::<Vec<_>>().await? {
            learn(&mut bridges, &neighbour);
        }
    }
    Ok(bridges)
}

fn learn(bridges: &mut Bridges, neighbour: &NeighbourMessage) {
    let mac = neighbour.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
        _ => None,
    });
    let Some(mac) = mac else { return };
    let header = &neighbour.header;
    if header.family == AddressFamily::Bridge {
        // Permanent entries are the ports' own addresses.
        if header.state != NeighbourState::Permanent {
            bridges.learned.entry(mac).or_default().insert(header.ifindex);
        }
        return;
    }
    // Anything older may be of another pod that had the address.
    if header.state != NeighbourState::Reachable {
        return;
    }
    let address = neighbour.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some((*v4).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    });
    bridges.neighbours.extend(address.map(|address: IpAddr| (address, mac)));
}
