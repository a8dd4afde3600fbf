//! The tables of tracked connections, as the agent reads and changes them while the programs do the same.

use std::io;

use aya::maps::{HashMap, IterableMap, MapData, MapError};
use bulkhead_ebpf::abi::{CONN_COUNTER, CONN_TRANSLATED, Conn, ConnKey};

use super::{
    DatapathError, batch,
    kernel::{absent_is_gone, max_entries},
};

/// One family's connection table.
pub struct ConnTable<'a, A>(&'a mut HashMap<MapData, ConnKey<A>, Conn>)
where
    ConnKey<A>: aya::Pod;

impl<'a, A> ConnTable<'a, A>
where
    ConnKey<A>: aya::Pod,
{
    pub(super) fn of(map: &'a mut HashMap<MapData, ConnKey<A>, Conn>) -> Self {
        Self(map)
    }

    /// What is there all the while comes exactly once; what comes or goes meanwhile, at most once.
    pub fn entries(&self) -> impl Iterator<Item = Result<(ConnKey<A>, Conn), DatapathError>> {
        batch::entries(self.0.map())
    }

    /// Entries that it can hold.
    pub fn capacity(&self) -> Result<usize, DatapathError> {
        Ok(max_entries(self.0.map())?)
    }

    pub fn get(&self, key: &ConnKey<A>) -> Option<Conn> {
        self.0.get(key, 0).ok()
    }

    pub fn remove(&mut self, key: &ConnKey<A>) -> Result<(), DatapathError> {
        absent_is_gone(self.0.remove(key)).map_err(DatapathError::from)
    }

    /// Enters a connection that is known from elsewhere; tells whether it was news. An entry that is there stays, unless
    /// a hook has made it since `replace` (`CLOCK_MONOTONIC`, nanoseconds) and says otherwise who began.
    pub fn learn(
        &mut self,
        key: &ConnKey<A>,
        conn: &Conn,
        replace: Option<u64>,
    ) -> Result<bool, DatapathError> {
        let said = |conn: &Conn| (conn.sides & !CONN_COUNTER, conn.state & CONN_TRANSLATED);
        let flags = match self.get(key) {
            Some(known)
                if replace.is_none_or(|since| known.started < since) || said(&known) == said(conn) =>
            {
                return Ok(false);
            }
            Some(_) => BPF_ANY,
            None => BPF_NOEXIST,
        };
        match self.0.insert(key, conn, flags) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => {
                Ok(false)
            }
            result => Ok(result.map(|()| true)?),
        }
    }
}

/// Of `linux/bpf.h`: write in any case, or never overwrite.
const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;
