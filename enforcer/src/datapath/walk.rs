//! Reading a whole hash map in few system calls, while others write to it.
//!
//! Key by key it would take two calls per entry, and begin again at the start whenever the kernel has just evicted the
//! entry that was read last.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    ptr,
};

use aya::maps::MapData;
use nix::libc;

/// Entries per call: many times what one bucket of the kernel's hash may hold, which a call has to have room for.
const BATCH: usize = 4096;
/// Of `enum bpf_cmd` in `linux/bpf.h`.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// The part of `union bpf_attr` that the batch commands use; `in_batch` and `out_batch` there are `from` and `until`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    from: u64,
    until: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Hands over all entries, some at a time, as they are while others come and go: one may be missed or seen twice.
///
/// `map` must be a hash of keys `K` and values `V`; anything else is an error.
pub fn walk<K, V>(map: &MapData, mut each: impl FnMut(&[K], &[V])) -> io::Result<()>
where
    K: aya::Pod + Default,
    V: aya::Pod + Default,
{
    let info = map.info().map_err(io::Error::other)?;
    if (info.key_size() as usize, info.value_size() as usize) != (size_of::<K>(), size_of::<V>()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "entries of another size"));
    }
    let map_fd = u32::try_from(map.fd().as_fd().as_raw_fd()).expect("an open file's number is not negative");
    let (mut keys, mut values) = (vec![K::default(); BATCH], vec![V::default(); BATCH]);
    // A bucket's number: where the last call has stopped, and where this one does.
    let (mut place, mut next, mut first) = (0_u32, 0_u32, true);
    loop {
        let mut batch = Batch {
            from: if first { 0 } else { address(ptr::from_mut(&mut place)) },
            until: address(ptr::from_mut(&mut next)),
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count: u32::try_from(BATCH).expect("small"),
            map_fd,
            ..Batch::default()
        };
        // SAFETY: the kernel writes at most `count` entries of the sizes checked above into the two vectors, which hold
        // as many and of which any bytes are values, and four bytes to each place; it keeps none of the pointers.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, ptr::from_mut(&mut batch), size_of::<Batch>())
        };
        let error = if result < 0 { Some(io::Error::last_os_error()) } else { None };
        let is_last = error.as_ref().is_some_and(|error| error.kind() == io::ErrorKind::NotFound);
        if let Some(error) = error.filter(|_| !is_last) {
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        let count = (batch.count as usize).min(BATCH);
        each(&keys[..count], &values[..count]);
        if is_last {
            return Ok(());
        }
        (place, first) = (next, false);
    }
}

fn address<T>(pointer: *mut T) -> u64 {
    pointer.expose_provenance() as u64
}
