//! Frames that open a connection, as a pod's stack would send them: what the kernel engine and the benches
//! show to the programs.

use std::net::IpAddr;

/// First packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    /// Of one family.
    pub source: IpAddr,
    pub destination: IpAddr,
    /// IANA number: TCP (SYN), UDP, SCTP (INIT) or an echo request of the addresses' family.
    pub protocol: u8,
    /// Echo identifier for ICMP.
    pub source_port: u16,
    /// Ignored for ICMP.
    pub destination_port: u16,
}

impl Opening {
    /// The whole Ethernet frame. Transport checksums are left zero: no program reads them.
    pub fn frame(&self) -> Vec<u8> {
        let segment = self.segment();
        let length = u16::try_from(segment.len()).expect("a segment is small");
        let mut frame = Vec::from(self.destination_mac);
        frame.extend(self.source_mac);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00, 0x45, 0]);
                frame.extend((length + 20).to_be_bytes());
                frame.extend([0, 1, 0x40, 0, 64, self.protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(length.to_be_bytes());
                frame.extend([self.protocol, 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            _ => unreachable!("both addresses are of one family"),
        }
        frame.extend(segment);
        frame
    }

    fn segment(&self) -> Vec<u8> {
        let [s0, s1] = self.source_port.to_be_bytes();
        let [d0, d1] = self.destination_port.to_be_bytes();
        match self.protocol {
            1 => vec![8, 0, 0, 0, s0, s1, 0, 1],
            58 => vec![128, 0, 0, 0, s0, s1, 0, 1],
            6 => vec![s0, s1, d0, d1, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0],
            17 => vec![s0, s1, d0, d1, 0, 8, 0, 0],
            // SCTP common header and an INIT chunk (RFC 9260 section 3.3.2).
            _ => {
                let mut init = vec![s0, s1, d0, d1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20];
                init.extend([0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
                init
            }
        }
    }
}
