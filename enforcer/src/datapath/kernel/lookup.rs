//! Single lookups in the pinned maps, each by one system call.

use std::net::IpAddr;

use aya::maps::{MapError, lpm_trie::Key as LpmKey};
use bulkhead_ebpf::abi::{self, Endpoint, Peer, RULE_BITS_PORT, RuleKey};

use super::{Maps, service_key};
use crate::datapath::{DatapathError, ServiceAddress, ruling::Lookup};

impl Lookup for Maps {
    fn endpoint(&self, ifindex: u32) -> Result<Option<Endpoint>, DatapathError> {
        let slot = self.endpoints.get(&(ifindex % abi::ENDPOINT_SLOTS), 0)?;
        if slot.ifindex == ifindex {
            return Ok(Some(slot));
        }
        found(self.endpoints_spill.get(&ifindex, 0))
    }

    fn peer(&self, address: IpAddr) -> Result<Option<Peer>, DatapathError> {
        let exact = match address {
            IpAddr::V4(a) => self.peers_v4.get(&a.octets(), 0),
            IpAddr::V6(a) => self.peers_v6.get(&a.octets(), 0),
        };
        if let Some(peer) = found(exact)? {
            return Ok(Some(peer));
        }
        found(match address {
            IpAddr::V4(a) => self.prefixes_v4.get(&LpmKey::new(32, a.octets()), 0),
            IpAddr::V6(a) => self.prefixes_v6.get(&LpmKey::new(128, a.octets()), 0),
        })
    }

    fn service(&self, at: &ServiceAddress) -> Result<Option<u32>, DatapathError> {
        found(match at.address {
            IpAddr::V4(a) => self.services_v4.get(&service_key(a.octets(), at), 0),
            IpAddr::V6(a) => self.services_v6.get(&service_key(a.octets(), at), 0),
        })
    }

    fn rule(&self, key: &RuleKey) -> Result<Option<u32>, DatapathError> {
        found(self.rules.get(&LpmKey::new(RULE_BITS_PORT, *key), 0))
    }
}

fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, DatapathError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(MapError::SyscallError(e)) if e.io_error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}
