//! Where a container interface hangs on the host, as the kernel sees it.
//!
//! prevResult may name the host end of the veth pair, or the wrong one, or none; the kernel knows. Both ends must name
//! each other, so that no other interface can be mistaken for the pod's.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    thread,
};

use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
    nsid::{NsidAttribute, NsidMessage},
};
use nix::sched::{CloneFlags, setns};
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
};
use tokio::runtime;

use crate::error::CniError;

/// A veth pair between host and container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wiring {
    pub host_ifname: String,
    pub host_ifindex: u32,
    /// MAC address of the container end.
    pub mac: [u8; 6],
}

/// What the kernel says about one interface, as far as we ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Link {
    index: u32,
    name: String,
    veth: bool,
    mac: Option<[u8; 6]>,
    /// The other end: its index, and (when it is elsewhere) the id of its namespace.
    peer: Option<u32>,
    peer_nsid: Option<i32>,
}

impl Wiring {
    /// Finds the wiring of `ifname` in the namespace at `netns`; the host is the namespace we run in.
    pub fn observe(netns: &Path, ifname: &str) -> Result<Self, CniError> {
        let place = Place { netns, ifname };
        let sandbox = File::open(netns).map_err(|error| CniError::Environment {
            name: "CNI_NETNS",
            why: format!("cannot open {}: {error}", netns.display()),
        })?;
        let inside = place.inside(&sandbox)?;
        let peer = match inside.peer {
            Some(peer) if inside.veth && inside.peer_nsid.is_some() => peer,
            _ => return Err(place.not_a_veth("is not one end of a veth pair to the host")),
        };
        let (outside, nsid) = block_on(async |handle| {
            let outside = link(&handle, Select::Index(peer)).await?;
            Ok((outside, nsid_of(handle, &sandbox).await?))
        })
        .map_err(CniError::io(format!("asking the kernel for the host's interface {peer}")))?;
        place.pair(&inside, outside, nsid)
    }
}

/// Which interface is looked at, for messages.
#[derive(Clone, Copy)]
struct Place<'a> {
    netns: &'a Path,
    ifname: &'a str,
}

impl Place<'_> {
    /// The container end. Entered on a thread of its own that ends in there: nothing can forget to come home.
    fn inside(self, sandbox: &File) -> Result<Link, CniError> {
        let look = || {
            setns(sandbox.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| CniError::Environment {
                name: "CNI_NETNS",
                why: format!("cannot enter {}: {}", self.netns.display(), errno.desc()),
            })?;
            block_on(async |handle| link(&handle, Select::Name(self.ifname)).await).map_err(CniError::io(
                format!("asking the kernel for {} in {}", self.ifname, self.netns.display()),
            ))
        };
        thread::scope(|scope| scope.spawn(look).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?
            .ok_or_else(|| self.not_a_veth("does not exist"))
    }

    /// Whether the two ends belong together. `nsid` is the container's namespace as the host numbers it.
    fn pair(self, inside: &Link, outside: Option<Link>, nsid: Option<i32>) -> Result<Wiring, CniError> {
        let outside = outside.ok_or_else(|| self.not_a_veth("its other end is not in this namespace"))?;
        let mutual = outside.veth
            && outside.peer == Some(inside.index)
            && outside.peer_nsid.is_some()
            && outside.peer_nsid == nsid;
        if !mutual {
            return Err(self.not_a_veth(&format!("the host's {} is not its other end", outside.name)));
        }
        let mac = inside.mac.ok_or_else(|| self.not_a_veth("has no MAC address"))?;
        Ok(Wiring { host_ifname: outside.name, host_ifindex: outside.index, mac })
    }

    fn not_a_veth(self, why: &str) -> CniError {
        CniError::NotAVeth {
            ifname: self.ifname.to_owned(),
            netns: PathBuf::from(self.netns).display().to_string(),
            why: why.to_owned(),
        }
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self { index: message.header.index, ..Self::default() };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
                LinkAttribute::Link(peer) => link.peer = Some(peer),
                LinkAttribute::LinkNetNsId(id) => link.peer_nsid = Some(id),
                LinkAttribute::LinkInfo(infos) => {
                    link.veth = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
                }
                _ => {}
            }
        }
        link
    }
}

enum Select<'a> {
    Name(&'a str),
    Index(u32),
}

/// Runs a netlink conversation in this thread's network namespace.
fn block_on<T>(talk: impl AsyncFnOnce(Handle) -> io::Result<T>) -> io::Result<T> {
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let result = talk(handle).await;
        connection.abort();
        result
    })
}

/// The selected interface; `None` when there is none.
async fn link(handle: &Handle, select: Select<'_>) -> io::Result<Option<Link>> {
    let request = match select {
        Select::Name(name) => handle.link().get().match_name(name.to_owned()),
        Select::Index(index) => handle.link().get().match_index(index),
    };
    match request.execute().try_next().await {
        Ok(message) => Ok(message.map(Link::from)),
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -nix::libc::ENODEV => Ok(None),
        Err(rtnetlink::Error::NetlinkError(message)) => Err(message.to_io()),
        Err(other) => Err(io::Error::other(other)),
    }
}

/// The number under which this namespace knows `sandbox`; `None` when it never met it.
async fn nsid_of(mut handle: Handle, sandbox: &File) -> io::Result<Option<i32>> {
    let fd = u32::try_from(sandbox.as_raw_fd()).expect("open descriptors are not negative");
    let mut question = NsidMessage::default();
    question.attributes.push(NsidAttribute::Fd(fd));
    let mut packet = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
    packet.header.flags = NLM_F_REQUEST;
    let mut answers = handle.request(packet).map_err(io::Error::other)?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) => {
                // The kernel says -1 for "no number".
                return Ok(answer.attributes.iter().find_map(|attribute| match attribute {
                    NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                    _ => None,
                }));
            }
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_end() -> Link {
        Link { index: 9, name: "veth1".into(), veth: true, mac: None, peer: Some(2), peer_nsid: Some(0) }
    }

    #[test]
    fn only_two_ends_that_name_each_other_are_a_pair() {
        let place = Place { netns: Path::new("/run/netns/x"), ifname: "eth0" };
        let inside = Link {
            index: 2,
            name: "eth0".into(),
            veth: true,
            mac: Some([2, 0, 0, 0, 0, 3]),
            peer: Some(9),
            peer_nsid: Some(0),
        };
        let pair =
            |outside: Option<Link>, nsid| place.pair(&inside, outside, nsid).map_err(|error| error.code());
        let wiring = Wiring { host_ifname: "veth1".into(), host_ifindex: 9, mac: [2, 0, 0, 0, 0, 3] };

        assert_eq!(pair(Some(host_end()), Some(0)), Ok(wiring));
        for (case, outside, nsid) in [
            ("no such interface on the host", None, Some(0)),
            ("an interface of another kind", Some(Link { veth: false, ..host_end() }), Some(0)),
            ("the end of another pair", Some(Link { peer: Some(3), ..host_end() }), Some(0)),
            ("the end of a pair into another namespace", Some(host_end()), Some(1)),
            ("a namespace the host never met", Some(Link { peer_nsid: None, ..host_end() }), None),
        ] {
            assert_eq!(pair(outside, nsid), Err(101), "{case}");
        }
    }
}
