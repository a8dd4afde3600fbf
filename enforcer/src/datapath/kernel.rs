//! The kernel's maps behind one small trait: all that the agent may read from or write to them.

mod lookup;

use std::{collections::BTreeMap, net::IpAddr, path::Path, time::Duration};

use aya::{
    Ebpf,
    maps::{
        Array, HashMap, IterableMap, LpmTrie, MapData, MapError, PerCpuArray, RingBuf,
        lpm_trie::Key as LpmKey,
    },
};
use bulkhead_ebpf::{
    abi::{
        self, Config, Conn, ConnKey4, ConnKey6, DropCount, DropKey, Endpoint, Limits, Peer, Purses, RuleKey,
        ServiceKey, ServiceKey4, ServiceKey6, names,
    },
    reason::{REASONS, Reason},
};
use ipnetwork::IpNetwork;

use super::{
    DatapathError, batch,
    connections::ConnTable,
    image::{Image, Op, Rule, ServiceAddress},
    sizes::Sizes,
};

/// The policy maps. Tests put a model in its place.
pub trait Kernel {
    fn snapshot(&self) -> Result<Image, DatapathError>;
    /// How many entries each map can hold.
    fn capacity(&self) -> Result<Sizes, DatapathError>;
    fn apply(&mut self, op: &Op) -> Result<(), DatapathError>;
}

/// Handles of every map of one set of programs.
pub struct Maps {
    endpoints: Array<MapData, Endpoint>,
    endpoints_spill: HashMap<MapData, u32, Endpoint>,
    peers_v4: HashMap<MapData, [u8; 4], Peer>,
    peers_v6: HashMap<MapData, [u8; 16], Peer>,
    prefixes_v4: LpmTrie<MapData, [u8; 4], Peer>,
    prefixes_v6: LpmTrie<MapData, [u8; 16], Peer>,
    services_v4: HashMap<MapData, ServiceKey4, u32>,
    services_v6: HashMap<MapData, ServiceKey6, u32>,
    origins: Array<MapData, u32>,
    rules: LpmTrie<MapData, RuleKey, u32>,
    conns_v4: HashMap<MapData, ConnKey4, Conn>,
    conns_v6: HashMap<MapData, ConnKey6, Conn>,
    drops: HashMap<MapData, DropKey, DropCount>,
    config: Array<MapData, Config>,
    counters: PerCpuArray<MapData, u64>,
    lost: PerCpuArray<MapData, u64>,
    purses: Array<MapData, Purses>,
    limits: Array<MapData, Limits>,
}

/// What the programs count besides packets, over all CPUs, since the maps were created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events that found the ring full.
    pub lost_events: u64,
    /// Connections that found no entry.
    pub lost_connections: u64,
    /// Drops that were counted with others, because their endpoint may send no more events.
    pub lost_detail: u64,
    /// Connections entered into the table of IPv4, and of IPv6.
    pub entered: [u64; 2],
}

impl Maps {
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let mut map = |name: &'static str| ebpf.take_map(name).ok_or(DatapathError::NoSuchMap(name));
        Ok(Self {
            endpoints: map(names::ENDPOINTS)?.try_into()?,
            endpoints_spill: map(names::ENDPOINTS_SPILL)?.try_into()?,
            peers_v4: map(names::PEERS_V4)?.try_into()?,
            peers_v6: map(names::PEERS_V6)?.try_into()?,
            prefixes_v4: map(names::PREFIXES_V4)?.try_into()?,
            prefixes_v6: map(names::PREFIXES_V6)?.try_into()?,
            services_v4: map(names::SERVICES_V4)?.try_into()?,
            services_v6: map(names::SERVICES_V6)?.try_into()?,
            origins: map(names::ORIGINS)?.try_into()?,
            rules: map(names::RULES)?.try_into()?,
            conns_v4: map(names::CONNS_V4)?.try_into()?,
            conns_v6: map(names::CONNS_V6)?.try_into()?,
            drops: map(names::DROPS)?.try_into()?,
            config: map(names::CONFIG)?.try_into()?,
            counters: map(names::COUNTERS)?.try_into()?,
            lost: map(names::LOST)?.try_into()?,
            purses: map(names::PURSES)?.try_into()?,
            limits: map(names::LIMITS)?.try_into()?,
        })
    }

    pub fn configure(&mut self, config: Config) -> Result<(), DatapathError> {
        Ok(self.config.set(0, config, 0)?)
    }

    /// Packets by reason, over all CPUs, since the maps were created.
    pub fn counters(&self) -> Result<BTreeMap<Reason, u64>, DatapathError> {
        debug_assert!(REASONS >= self.counters.len());
        Reason::ALL
            .into_iter()
            .map(|reason| Ok((reason, self.counters.get(&u32::from(reason as u8), 0)?.iter().sum())))
            .collect()
    }

    /// Each pod may begin this many connections per second, and save up as many as in `savings`; 0: any number.
    pub fn limit(&mut self, per_second: u32, savings: Duration) -> Result<(), DatapathError> {
        let entry_cost = NANOS_PER_SECOND.checked_div(per_second.into()).unwrap_or_default();
        let savings = u64::try_from(savings.as_nanos()).unwrap_or(u64::MAX);
        Ok(self.limits.set(0, Limits { entry_cost, savings }, 0)?)
    }

    /// Packets of what the endpoint with this mark was to begin or was asked, dropped because it was too much.
    pub fn refused(&self, mark: u16) -> Result<u64, DatapathError> {
        Ok(self.purses.get(&mark.into(), 0)?.refused)
    }

    pub fn tally(&self) -> Result<Tally, DatapathError> {
        let sum = |index| Ok::<_, MapError>(self.lost.get(&index, 0)?.iter().sum());
        Ok(Tally {
            lost_events: sum(abi::LOST_EVENTS)?,
            lost_connections: sum(abi::LOST_CONNS)?,
            lost_detail: sum(abi::LOST_DETAIL)?,
            entered: [sum(abi::ENTERED_V4)?, sum(abi::ENTERED_V6)?],
        })
    }

    pub fn conns_v4(&mut self) -> ConnTable<'_, [u8; 4]> {
        ConnTable::of(&mut self.conns_v4)
    }

    pub fn conns_v6(&mut self) -> ConnTable<'_, [u8; 16]> {
        ConnTable::of(&mut self.conns_v6)
    }

    pub fn drops(&mut self) -> &mut HashMap<MapData, DropKey, DropCount> {
        &mut self.drops
    }

    /// As [`ConnTable::entries`].
    pub fn drop_counts(&self) -> impl Iterator<Item = Result<(DropKey, DropCount), DatapathError>> {
        batch::entries(self.drops.map())
    }

    /// A record that admits nothing, for an endpoint that is to keep this mark; one that has a record keeps it.
    pub fn keep_mark(&mut self, of: &Endpoint) -> Result<(), DatapathError> {
        let slot = self.endpoints.get(&(of.ifindex % abi::ENDPOINT_SLOTS), 0)?;
        if slot.ifindex != of.ifindex && self.endpoints_spill.get(&of.ifindex, 0).is_err() {
            let Endpoint { ifindex, id, mark, .. } = *of;
            self.set_endpoint(&Endpoint { ifindex, id, mark, ..Endpoint::default() })?;
        }
        Ok(())
    }

    /// The way back from its mark first: once the record is there, packets may bear it.
    fn set_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), MapError> {
        if endpoint.mark != 0 {
            self.origins.set(endpoint.mark.into(), endpoint.ifindex, 0)?;
        }
        let slot = endpoint.ifindex % abi::ENDPOINT_SLOTS;
        let holder = self.endpoints.get(&slot, 0)?.ifindex;
        if holder != endpoint.ifindex && self.endpoints_spill.get(&endpoint.ifindex, 0).is_err() {
            // What another pod with this mark has used up is not this one's.
            self.purses.set(endpoint.mark.into(), Purses::default(), 0)?;
        }
        if holder == 0 || holder == endpoint.ifindex {
            self.endpoints.set(slot, endpoint, 0)
        } else {
            self.endpoints_spill.insert(endpoint.ifindex, endpoint, 0)
        }
    }

    fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), MapError> {
        let slot = ifindex % abi::ENDPOINT_SLOTS;
        if self.endpoints.get(&slot, 0)?.ifindex == ifindex {
            return self.endpoints.set(slot, Endpoint::default(), 0);
        }
        absent_is_gone(self.endpoints_spill.remove(&ifindex))
    }
}

impl Kernel for Maps {
    fn snapshot(&self) -> Result<Image, DatapathError> {
        let mut image = Image::default();
        for entry in &self.peers_v4 {
            let (address, peer) = entry?;
            image.peers.insert(IpAddr::from(address), peer);
        }
        for entry in &self.peers_v6 {
            let (address, peer) = entry?;
            image.peers.insert(IpAddr::from(address), peer);
        }
        for entry in &self.prefixes_v4 {
            let (key, peer) = entry?;
            image.prefixes.insert(prefix(IpAddr::from(key.data()), key.prefix_len()), peer);
        }
        for entry in &self.prefixes_v6 {
            let (key, peer) = entry?;
            image.prefixes.insert(prefix(IpAddr::from(key.data()), key.prefix_len()), peer);
        }
        for entry in &self.services_v4 {
            let (key, identity) = entry?;
            image.services.insert(service_address(key), identity);
        }
        for entry in &self.services_v6 {
            let (key, identity) = entry?;
            image.services.insert(service_address(key), identity);
        }
        for entry in &self.rules {
            let (key, grant) = entry?;
            image.rules.insert(Rule { key: key.data(), bits: key.prefix_len() }, grant);
        }
        for endpoint in self.endpoints.iter() {
            let endpoint = endpoint?;
            if endpoint.ifindex != 0 {
                image.endpoints.insert(endpoint.ifindex, endpoint);
            }
        }
        for entry in &self.endpoints_spill {
            let (ifindex, endpoint) = entry?;
            image.endpoints.insert(ifindex, endpoint);
        }
        Ok(image)
    }

    fn capacity(&self) -> Result<Sizes, DatapathError> {
        Ok(Sizes {
            peers_v4: max_entries(self.peers_v4.map())?,
            peers_v6: max_entries(self.peers_v6.map())?,
            prefixes_v4: max_entries(self.prefixes_v4.map())?,
            prefixes_v6: max_entries(self.prefixes_v6.map())?,
            services_v4: max_entries(self.services_v4.map())?,
            services_v6: max_entries(self.services_v6.map())?,
            rules: max_entries(self.rules.map())?,
        })
    }

    fn apply(&mut self, op: &Op) -> Result<(), DatapathError> {
        match op {
            Op::SetRule(Rule { key, bits }, grant) => self.rules.insert(&LpmKey::new(*bits, *key), grant, 0),
            Op::RemoveRule(Rule { key, bits }) => {
                absent_is_gone(self.rules.remove(&LpmKey::new(*bits, *key)))
            }
            Op::SetPeer(IpAddr::V4(a), peer) => self.peers_v4.insert(a.octets(), peer, 0),
            Op::SetPeer(IpAddr::V6(a), peer) => self.peers_v6.insert(a.octets(), peer, 0),
            Op::RemovePeer(IpAddr::V4(a)) => absent_is_gone(self.peers_v4.remove(&a.octets())),
            Op::RemovePeer(IpAddr::V6(a)) => absent_is_gone(self.peers_v6.remove(&a.octets())),
            Op::SetPrefix(net, peer) => match net.network() {
                IpAddr::V4(a) => {
                    self.prefixes_v4.insert(&LpmKey::new(net.prefix().into(), a.octets()), peer, 0)
                }
                IpAddr::V6(a) => {
                    self.prefixes_v6.insert(&LpmKey::new(net.prefix().into(), a.octets()), peer, 0)
                }
            },
            Op::RemovePrefix(net) => absent_is_gone(match net.network() {
                IpAddr::V4(a) => self.prefixes_v4.remove(&LpmKey::new(net.prefix().into(), a.octets())),
                IpAddr::V6(a) => self.prefixes_v6.remove(&LpmKey::new(net.prefix().into(), a.octets())),
            }),
            Op::SetService(service, identity) => match service.address {
                IpAddr::V4(a) => self.services_v4.insert(service_key(a.octets(), service), identity, 0),
                IpAddr::V6(a) => self.services_v6.insert(service_key(a.octets(), service), identity, 0),
            },
            Op::RemoveService(service) => absent_is_gone(match service.address {
                IpAddr::V4(a) => self.services_v4.remove(&service_key(a.octets(), service)),
                IpAddr::V6(a) => self.services_v6.remove(&service_key(a.octets(), service)),
            }),
            Op::SetEndpoint(endpoint) => self.set_endpoint(endpoint),
            Op::RemoveEndpoint(ifindex) => self.remove_endpoint(*ifindex),
        }
        .map_err(|source| DatapathError::Write { op: format!("{op:?}"), source })
    }
}

/// As the kernel has it: a pinned map may be of another build.
pub(super) fn max_entries(map: &MapData) -> Result<usize, MapError> {
    Ok(usize::try_from(map.info()?.max_entries()).expect("32 bits fit"))
}

pub(super) fn absent_is_gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(e)) if e.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn service_key<A>(address: A, of: &ServiceAddress) -> ServiceKey<A> {
    ServiceKey { address, port_be: of.port.to_be_bytes(), protocol: of.protocol, pad: 0 }
}

fn service_address<A: Into<IpAddr>>(key: ServiceKey<A>) -> ServiceAddress {
    ServiceAddress {
        address: key.address.into(),
        port: u16::from_be_bytes(key.port_be),
        protocol: key.protocol,
    }
}

fn prefix(address: IpAddr, bits: u32) -> IpNetwork {
    let bits = u8::try_from(bits).expect("the kernel refuses prefixes longer than the key");
    IpNetwork::new(address, bits).expect("the kernel refuses prefixes longer than the key")
}

/// The ring buffer, taken separately because the flow task owns it.
pub fn take_ring(ebpf: &mut Ebpf) -> Result<RingBuf<MapData>, DatapathError> {
    let ring = ebpf.take_map(names::EVENTS).ok_or(DatapathError::NoSuchMap(names::EVENTS))?;
    Ok(ring.try_into()?)
}

/// Names of all maps, as pinned.
pub const MAP_NAMES: [&str; 20] = [
    names::ENDPOINTS,
    names::ENDPOINTS_SPILL,
    names::PEERS_V4,
    names::PEERS_V6,
    names::PREFIXES_V4,
    names::PREFIXES_V6,
    names::SERVICES_V4,
    names::SERVICES_V6,
    names::ORIGINS,
    names::RULES,
    names::CONNS_V4,
    names::CONNS_V6,
    names::FRAGMENTS,
    names::DROPS,
    names::CONFIG,
    names::EVENTS,
    names::COUNTERS,
    names::LOST,
    names::PURSES,
    names::LIMITS,
];

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Where a map of this name is pinned.
pub fn map_pin(directory: &Path, name: &str) -> std::path::PathBuf {
    directory.join("maps").join(name)
}
