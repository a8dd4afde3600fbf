//! A whole hash table of the kernel in few system calls (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), which aya has no call for.
//! Key by key, a full connection table is half a million calls, and begins anew whenever its last key went meanwhile.

#![expect(unsafe_code, reason = "a system call that no crate we have makes")]

use std::{
    io, iter,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use aya::{Pod, maps::MapData};
use nix::libc;

use super::DatapathError;

/// Entries in one call; a bucket that holds more doubles it.
const BATCH: usize = 4096;

/// Of `linux/bpf.h`: the command, and its part of `union bpf_attr`.
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
#[repr(C)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// What is there all the while comes exactly once; what comes or goes meanwhile, at most once. Ends with the first error.
pub(super) fn entries<K: Pod, V: Pod>(
    map: &MapData,
) -> impl Iterator<Item = Result<(K, V), DatapathError>> + use<'_, K, V> {
    let mut walk = Walk { map: map.fd().as_fd(), bucket: None, room: BATCH, over: false };
    iter::from_fn(move || walk.next_batch().transpose()).flat_map(|batch| {
        let (entries, error) = match batch {
            Ok(entries) => (entries, None),
            Err(source) => (Vec::new(), Some(Err(DatapathError::Walk(source)))),
        };
        entries.into_iter().map(Ok).chain(error)
    })
}

struct Walk<'a> {
    map: BorrowedFd<'a>,
    /// Where the next batch begins, in the kernel's terms.
    bucket: Option<u32>,
    room: usize,
    over: bool,
}

impl Walk<'_> {
    fn next_batch<K: Pod, V: Pod>(&mut self) -> io::Result<Option<Vec<(K, V)>>> {
        while !self.over {
            let mut keys = Box::<[K]>::new_uninit_slice(self.room);
            let mut values = Box::<[V]>::new_uninit_slice(self.room);
            let read = match self.look(&mut keys, &mut values) {
                // The bucket does not fit in.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    self.room *= 2;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.over = true;
                    return Err(error);
                }
                Ok(read) => read,
            };
            let pairs = keys.iter().zip(&values).take(read);
            // SAFETY: the kernel has written that many keys and values, and any bytes are a `Pod`.
            return Ok(Some(
                pairs
                    .map(|(key, value)| unsafe { (key.assume_init_read(), value.assume_init_read()) })
                    .collect(),
            ));
        }
        Ok(None)
    }

    /// One call; gives how many entries it has written.
    fn look<K: Pod, V: Pod>(
        &mut self,
        keys: &mut [MaybeUninit<K>],
        values: &mut [MaybeUninit<V>],
    ) -> io::Result<usize> {
        let mut next = 0_u32;
        let address = |pointer: *const u8| pointer.expose_provenance() as u64;
        let mut attributes = Attributes {
            in_batch: self.bucket.as_ref().map_or(0, |bucket| address((&raw const *bucket).cast())),
            out_batch: address((&raw mut next).cast_const().cast()),
            keys: address(keys.as_mut_ptr().cast_const().cast()),
            values: address(values.as_mut_ptr().cast_const().cast()),
            count: u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX),
            map_fd: self.map.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes are as the kernel has them for this command; it writes no more than `count` keys and
        // values into the slices, whose elements have the sizes that aya has checked against the map's, a word of
        // four bytes at `out_batch`, and the attributes themselves.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attributes, size_of::<Attributes>())
        };
        if result < 0 {
            let error = io::Error::last_os_error();
            // The table's last batch.
            if error.raw_os_error() != Some(libc::ENOENT) {
                return Err(error);
            }
            self.over = true;
        }
        self.bucket = Some(next);
        Ok(attributes.count as usize)
    }
}
