//! This node's own interfaces.

use std::{collections::BTreeSet, net::IpAddr};

use nix::{errno::Errno, ifaddrs::getifaddrs, net::if_::if_indextoname};

/// Addresses of the interfaces of this network namespace: all are "the node" to its pods (semantics 29).
/// Loopback and link-local addresses are left out: pods cannot see them as a source.
pub fn addresses() -> Result<BTreeSet<IpAddr>, Errno> {
    let addresses = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let v6 = address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
        v4.or(v6)
    });
    let own = addresses.filter(|a| match a {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    });
    Ok(own.collect())
}

/// Is there an interface of this index?
pub fn exists(ifindex: u32) -> bool {
    // nix 0.31 takes the null pointer of `if_indextoname(3)` for success, and the name is empty then.
    if_indextoname(ifindex).is_ok_and(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_does_not_exist() {
        assert!(exists(1), "the loopback device is the first of every network namespace");
        assert!(!exists(i32::MAX.unsigned_abs()));
    }
}
