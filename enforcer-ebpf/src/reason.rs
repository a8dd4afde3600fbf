//! Why a packet was let through or dropped: one counter each, and the word in the flow log.

/// Codes are part of the ABI: passes below [`FIRST_DROP`], drops from it up, never renumbered.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The connection is tracked and this end allowed it.
    Tracked = 1,
    /// A rule allows this new connection.
    Allowed = 2,
    /// An ICMP error about a connection that this end allowed.
    Related = 3,
    /// A pod talking to its own address.
    OwnAddress = 4,
    /// ARP or IPv6 neighbour discovery that tells the truth.
    Neighbour = 5,
    /// A later fragment of an allowed datagram.
    Fragment = 6,
    /// On its way to another node, and not a pod's of this node.
    Foreign = 7,
    /// The interface has no endpoint record: not yet, or no longer, a pod.
    NoEndpoint = 64,
    /// The frame ends inside a header.
    Truncated = 65,
    /// A header contradicts itself: version, header length or total length.
    InvalidHeader = 66,
    /// Neither IPv4, IPv6 nor ARP.
    UnsupportedEtherType = 67,
    /// A VLAN-tagged frame.
    Vlan = 68,
    /// IPv6 extension headers that cannot be parsed, or too many.
    ExtensionHeaders = 69,
    /// A pod sent from a MAC address that is not its own.
    SourceMac = 70,
    /// A pod sent from an IP address that is not its own.
    SourceIp = 71,
    /// A pod claimed an address by ARP that is not its own, or malformed ARP.
    ArpClaim = 72,
    /// A pod claimed an address by neighbour discovery that is not its own.
    NeighbourClaim = 73,
    /// A pod sent a router advertisement or a redirect.
    ForbiddenIcmp6 = 74,
    /// The packet is addressed to somebody else.
    WrongDestination = 75,
    /// Multicast or broadcast other than neighbour discovery.
    Multicast = 76,
    /// A packet from the middle of a connection that is not tracked.
    NotTracked = 77,
    /// A later fragment whose first fragment was not allowed or not seen.
    FragmentNotTracked = 78,
    /// An ICMP error that quotes no tracked connection of this pod.
    ErrorNotTracked = 79,
    /// A pod sent to the overlay's tunnel port, or a tunnel of its own, to where no pod is known to be.
    Tunnel = 80,
    /// Policies isolate the pod in this direction and no rule allows.
    PolicyDenied = 81,
    /// The other end belongs to another tenant.
    TenantBoundary = 82,
    /// What a bridge floods to everybody: discovery, ARP or membership that is about somebody else, by which pods that
    /// may not talk could talk; and frames to another's MAC. Counted but not logged: nobody has done anything.
    Overheard = 83,
    /// A pod sent to an address that is no other host's: unspecified, loopback, link-local IPv6, IPv4 inside IPv6.
    NobodysAddress = 84,
    /// A pod spoke as a DHCP server.
    DhcpServer = 85,
    /// Allowed, but the pod has begun (or been asked for) more than its budget of table entries.
    OverBudget = 86,
}

pub const FIRST_DROP: u8 = 64;
/// Entries of the counter map: one past the highest code.
pub const REASONS: u32 = 87;

impl Reason {
    pub const ALL: [Self; 30] = [
        Self::Tracked,
        Self::Allowed,
        Self::Related,
        Self::OwnAddress,
        Self::Neighbour,
        Self::Fragment,
        Self::Foreign,
        Self::NoEndpoint,
        Self::Truncated,
        Self::InvalidHeader,
        Self::UnsupportedEtherType,
        Self::Vlan,
        Self::ExtensionHeaders,
        Self::SourceMac,
        Self::SourceIp,
        Self::ArpClaim,
        Self::NeighbourClaim,
        Self::ForbiddenIcmp6,
        Self::WrongDestination,
        Self::Multicast,
        Self::NotTracked,
        Self::FragmentNotTracked,
        Self::ErrorNotTracked,
        Self::Tunnel,
        Self::PolicyDenied,
        Self::TenantBoundary,
        Self::Overheard,
        Self::NobodysAddress,
        Self::DhcpServer,
        Self::OverBudget,
    ];

    /// The reason of a code that was made from one.
    ///
    /// Of any other code it makes a drop.
    #[inline(always)]
    pub const fn of(code: u8) -> Self {
        const FIRST: u8 = Reason::Tracked as u8;
        const LAST: u8 = Reason::Foreign as u8;
        const LAST_DROP: u8 = (REASONS - 1) as u8;
        match code {
            // SAFETY: codes have no gaps in either range (asserted below).
            FIRST..=LAST | FIRST_DROP..=LAST_DROP => unsafe { core::mem::transmute::<u8, Self>(code) },
            _ => Self::InvalidHeader,
        }
    }

    pub const fn is_drop(self) -> bool {
        self as u8 >= FIRST_DROP
    }

    /// Stable lower-case word for logs, metrics and status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tracked => "tracked",
            Self::Allowed => "allowed",
            Self::Related => "related",
            Self::OwnAddress => "own-address",
            Self::Neighbour => "neighbour",
            Self::Fragment => "fragment",
            Self::Foreign => "foreign",
            Self::NoEndpoint => "no-endpoint",
            Self::Truncated => "truncated",
            Self::InvalidHeader => "invalid-header",
            Self::UnsupportedEtherType => "unsupported-ether-type",
            Self::Vlan => "vlan",
            Self::ExtensionHeaders => "extension-headers",
            Self::SourceMac => "source-mac",
            Self::SourceIp => "source-ip",
            Self::ArpClaim => "arp-claim",
            Self::NeighbourClaim => "neighbour-claim",
            Self::ForbiddenIcmp6 => "forbidden-icmp6",
            Self::WrongDestination => "wrong-destination",
            Self::Multicast => "multicast",
            Self::NotTracked => "not-tracked",
            Self::FragmentNotTracked => "fragment-not-tracked",
            Self::ErrorNotTracked => "error-not-tracked",
            Self::Tunnel => "tunnel",
            Self::PolicyDenied => "policy-denied",
            Self::TenantBoundary => "tenant-boundary",
            Self::Overheard => "overheard",
            Self::NobodysAddress => "nobodys-address",
            Self::DhcpServer => "dhcp-server",
            Self::OverBudget => "over-budget",
        }
    }
}

const _: () = {
    let passes = Reason::Foreign as usize;
    let mut index = 0;
    while index < Reason::ALL.len() {
        let want = if index < passes { index + 1 } else { index - passes + FIRST_DROP as usize };
        assert!(Reason::ALL[index] as usize == want);
        index += 1;
    }
    assert!(Reason::ALL.len() - passes + FIRST_DROP as usize == REASONS as usize);
};

/// The code that no reason has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownReason(pub u8);

impl TryFrom<u8> for Reason {
    type Error = UnknownReason;

    fn try_from(code: u8) -> Result<Self, UnknownReason> {
        Self::ALL.into_iter().find(|r| *r as u8 == code).ok_or(UnknownReason(code))
    }
}
