//! Hubble's spellings and numbers (`api/v1/flow/flow.proto`) for what is ours.

use bulkhead_ebpf::reason::Reason;

/// Enum `DropReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropReason {
    pub name: &'static str,
    pub number: u32,
}

/// `None`: not a drop. Exact reasons that share a name there are told apart by `extensions.reason`.
pub const fn drop_reason(reason: Reason) -> Option<DropReason> {
    let (name, number) = match reason {
        Reason::Tracked
        | Reason::Allowed
        | Reason::Related
        | Reason::OwnAddress
        | Reason::Neighbour
        | Reason::Fragment
        | Reason::Foreign => return None,
        Reason::NoEndpoint => ("INVALID_IDENTITY", 171),
        Reason::ArpClaim
        | Reason::WrongDestination
        | Reason::Multicast
        | Reason::ErrorNotTracked
        | Reason::Overheard
        | Reason::NobodysAddress
        | Reason::DhcpServer => ("INVALID_PACKET_DROPPED", 134),
        Reason::Truncated | Reason::InvalidHeader => ("CT_TRUNCATED_OR_INVALID_HEADER", 135),
        Reason::UnsupportedEtherType => ("UNSUPPORTED_L3_PROTOCOL", 139),
        Reason::Vlan => ("VLAN_FILTERED", 182),
        Reason::ExtensionHeaders => ("INVALID_IPV6_EXTENSION_HEADER", 156),
        Reason::SourceMac => ("INVALID_SOURCE_MAC", 130),
        Reason::SourceIp => ("INVALID_SOURCE_IP", 132),
        Reason::NeighbourClaim | Reason::ForbiddenIcmp6 => ("FORBIDDEN_ICMPV6_MESSAGE", 176),
        Reason::NotTracked => ("CT_MISSING_TCP_ACK_FLAG", 136),
        Reason::FragmentNotTracked => ("FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND", 175),
        Reason::Tunnel => ("ENCAPSULATION_TRAFFIC_IS_PROHIBITED", 170),
        Reason::PolicyDenied => ("POLICY_DENIED", 133),
        Reason::TenantBoundary => ("POLICY_DENY", 181),
        Reason::OverBudget => ("CT_MAP_INSERTION_FAILED", 155),
    };
    Some(DropReason { name, number })
}

/// `event_type.type`: the monitor's message types.
pub const EVENT_DROP: u32 = 1;
pub const EVENT_TRACE: u32 = 4;
pub const EVENT_VERDICT: u32 = 5;

/// `policy_match_type`: how much of an allowing rule was about the peer and how much about the port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum PolicyMatch {
    /// Nothing allowed.
    #[default]
    None = 0,
    PeerOnly = 1,
    PeerAndPort = 2,
    PortOnly = 3,
    All = 4,
    PeerAndProtocol = 5,
    ProtocolOnly = 6,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names that `flow-schema.md` lists, with their numbers in `flow.proto`.
    const KNOWN: [(&str, u32); 19] = [
        ("POLICY_DENIED", 133),
        ("POLICY_DENY", 181),
        ("INVALID_SOURCE_IP", 132),
        ("INVALID_SOURCE_MAC", 130),
        ("INVALID_PACKET_DROPPED", 134),
        ("CT_TRUNCATED_OR_INVALID_HEADER", 135),
        ("CT_UNKNOWN_L4_PROTOCOL", 137),
        ("CT_MISSING_TCP_ACK_FLAG", 136),
        ("CT_MAP_INSERTION_FAILED", 155),
        ("UNSUPPORTED_L2_PROTOCOL", 166),
        ("UNSUPPORTED_L3_PROTOCOL", 139),
        ("UNKNOWN_L4_PROTOCOL", 142),
        ("INVALID_IPV6_EXTENSION_HEADER", 156),
        ("FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND", 175),
        ("FORBIDDEN_ICMPV6_MESSAGE", 176),
        ("ENCAPSULATION_TRAFFIC_IS_PROHIBITED", 170),
        ("VLAN_FILTERED", 182),
        ("SERVICE_BACKEND_NOT_FOUND", 158),
        ("INVALID_IDENTITY", 171),
    ];

    #[test]
    fn every_drop_and_nothing_else_has_a_reason_that_hubble_knows() {
        for reason in Reason::ALL {
            let told = drop_reason(reason);
            assert_eq!(told.is_some(), reason.is_drop(), "{reason:?}");
            if let Some(told) = told {
                assert!(KNOWN.contains(&(told.name, told.number)), "{reason:?} is told as {told:?}");
            }
        }
    }

    #[test]
    fn policy_and_tenant_drops_are_told_apart() {
        let name = |reason| drop_reason(reason).map(|told| told.name);
        assert_eq!(name(Reason::PolicyDenied), Some("POLICY_DENIED"));
        assert_eq!(name(Reason::TenantBoundary), Some("POLICY_DENY"));
    }
}
