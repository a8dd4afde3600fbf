//! Port ranges as prefixes of the 16-bit port number, so that a range costs entries by its shape and not
//! one per port (semantics 17).

use super::model::PortMatch;

impl PortMatch {
    /// The fewest matches that together are `first..=last` of `protocol`; none if the range is empty.
    pub fn range(protocol: u8, first: u16, last: u16) -> Vec<Self> {
        let mut matches = Vec::new();
        let (mut next, last) = (u32::from(first), u32::from(last));
        while next <= last {
            // The largest block that is aligned at `next` and ends by `last`.
            let aligned = next.trailing_zeros().min(16);
            let fits = (last - next + 1).ilog2();
            let free = aligned.min(fits);
            matches.push(Self::prefix(protocol, next, 16 - free));
            next += 1 << free;
        }
        matches
    }

    pub fn port(protocol: u8, port: u16) -> Self {
        Self::Prefix { protocol, port, bits: 16 }
    }

    pub fn holds(self, protocol: u8, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Protocol(own) => own == protocol,
            Self::Prefix { protocol: own, port: kept, bits } => {
                own == protocol && (kept ^ port).leading_zeros() >= u32::from(bits)
            }
        }
    }

    /// How fine it is: a match that is finer than another, and holds a port that the other holds, has more.
    pub fn bits(self) -> u32 {
        match self {
            Self::All => 0,
            Self::Protocol(_) => 8,
            Self::Prefix { bits, .. } => 8 + u32::from(bits),
        }
    }

    /// This match and every coarser one that holds it, finest first: the order of a longest-prefix lookup.
    pub fn widening(self) -> impl Iterator<Item = Self> {
        let (prefixes, protocol) = match self {
            Self::All => (None, None),
            Self::Protocol(protocol) => (None, Some(protocol)),
            Self::Prefix { protocol, port, bits } => (Some((protocol, port, bits)), Some(protocol)),
        };
        let prefixes = prefixes.into_iter().flat_map(|(protocol, port, bits)| {
            (1..=bits).rev().map(move |bits| {
                let kept = u16::MAX << (16 - bits);
                Self::Prefix { protocol, port: port & kept, bits }
            })
        });
        prefixes.chain(protocol.map(Self::Protocol)).chain([Self::All])
    }

    fn prefix(protocol: u8, port: u32, bits: u32) -> Self {
        match (u16::try_from(port), u8::try_from(bits)) {
            (Ok(port), Ok(bits)) if bits > 0 => Self::Prefix { protocol, port, bits },
            _ => Self::Protocol(protocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(matches: &[PortMatch], port: u16) -> bool {
        PortMatch::port(6, port).widening().any(|m| matches.contains(&m))
    }

    #[test]
    fn ranges_cost_the_fewest_prefixes() {
        for (first, last, want) in [
            (0, 65535, 1),
            (1, 65534, 30),
            (1024, 65535, 6),
            (30000, 32767, 5),
            (80, 80, 1),
            (65535, 65535, 1),
            (0, 0, 1),
            (9, 8, 0),
        ] {
            assert_eq!(PortMatch::range(6, first, last).len(), want, "{first}-{last}");
        }
        assert_eq!(PortMatch::range(6, 0, 65535), [PortMatch::Protocol(6)]);
        assert_eq!(PortMatch::range(6, 80, 80), [PortMatch::port(6, 80)]);
    }

    proptest::proptest! {
        #[test]
        fn what_holds_a_port_is_what_its_lookup_meets(port: u16, other: u16, bits in 1_u8..=16) {
            let kept = PortMatch::Prefix { protocol: 6, port: other & u16::MAX << (16 - bits), bits };
            for ports in [PortMatch::All, PortMatch::Protocol(6), PortMatch::Protocol(17), kept] {
                let met = PortMatch::port(6, port).widening().any(|m| m == ports);
                proptest::prop_assert_eq!(ports.holds(6, port), met, "{:?}", ports);
            }
            let widening: Vec<_> = PortMatch::port(6, port).widening().map(PortMatch::bits).collect();
            proptest::prop_assert!(widening.is_sorted_by(|a, b| a > b));
        }

        #[test]
        fn a_range_holds_exactly_its_ports(a: u16, b: u16, probe: u16) {
            let (first, last) = (a.min(b), a.max(b));
            let matches = PortMatch::range(6, first, last);
            for port in [probe, first, last, first.wrapping_sub(1), last.wrapping_add(1)] {
                proptest::prop_assert_eq!(covers(&matches, port), (first..=last).contains(&port));
            }
        }
    }
}
