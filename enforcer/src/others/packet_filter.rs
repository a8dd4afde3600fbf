//! Names of this network namespace's nftables tables and chains, asked of the kernel itself: an image with nothing but
//! bulkhead has no `nft`. iptables-nft's chains are among them.
//!
//! Written here because no crate reads these messages without libnftnl; the layouts are those of
//! linux/netlink.h, linux/netfilter/nfnetlink.h and `linux/netfilter/nf_tables.h`.

use std::{collections::BTreeSet, io};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN`
const GET_CHAIN: u16 = 10 << 8 | 4;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWCHAIN`
const NEW_CHAIN: u16 = 10 << 8 | 3;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const REQUEST_DUMP: u16 = 0x1 | 0x300;
const HEADER: usize = 16;
/// `struct nfgenmsg`
const GENERIC: usize = 4;
const TABLE: u16 = 1;
const NAME: u16 = 3;
/// Type bits of an attribute, without "nested" and "network byte order".
const TYPE: u16 = 0x3fff;
/// A dump with more messages than this is not what we asked for.
const MOST_READS: usize = 10_000;

pub fn chains() -> io::Result<BTreeSet<String>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send_to(&request(), &SocketAddr::new(0, 0), 0)?;
    let mut names = BTreeSet::new();
    for _ in 0..MOST_READS {
        let (answer, _) = socket.recv_from_full()?;
        if take(&answer, &mut names)? {
            return Ok(names);
        }
    }
    Err(io::Error::other("the kernel does not end its list of chains"))
}

fn request() -> Vec<u8> {
    let length = u32::try_from(HEADER + GENERIC).expect("20");
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(GET_CHAIN.to_ne_bytes());
    message.extend(REQUEST_DUMP.to_ne_bytes());
    message.extend([0; 8]); // sequence, port
    message.extend([0; GENERIC]); // every family
    message
}

/// Adds the names in a datagram; true: it was the last.
pub(super) fn take(mut datagram: &[u8], names: &mut BTreeSet<String>) -> io::Result<bool> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "a message is cut off");
    while !datagram.is_empty() {
        let header = datagram.first_chunk::<HEADER>().ok_or_else(cut)?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::try_from(length).map_err(|_| cut())?;
        let body = datagram.get(HEADER..length).ok_or_else(cut)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            DONE => return Ok(true),
            ERROR => {
                let code = body.first_chunk::<4>().map(|code| i32::from_ne_bytes(*code)).ok_or_else(cut)?;
                return Err(io::Error::from_raw_os_error(-code));
            }
            NEW_CHAIN => {
                let attributes = Attributes(body.get(GENERIC..).ok_or_else(cut)?);
                let wanted = attributes.filter(|(kind, _)| [TABLE, NAME].contains(kind));
                names.extend(wanted.map(|(_, value)| text(value)));
            }
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

/// Type and value of each; ends where the rest is too short.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}
