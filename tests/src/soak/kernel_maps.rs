//! How many entries the kernel's own maps have, counted there and not in an agent's mirror.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use anyhow::{Context, Result};
use bulkhead_ebpf::abi::ABI_VERSION;
use nix::libc;

/// Commands and map types of `linux/bpf.h`.
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const HASH: u32 = 1;
const LRU_HASH: u32 = 9;
const LPM_TRIE: u32 = 11;
/// More are not counted: other ends of a connection table that changes may never end the walk.
const MOST: usize = 1 << 20;

/// By name; arrays and ring buffers, which are always full, are left out.
pub fn entries(bpffs: &Path) -> Result<BTreeMap<String, usize>> {
    let directory = bpffs.join(format!("v{ABI_VERSION}/maps"));
    let mut counts = BTreeMap::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("no {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(count) = count(&path).with_context(|| format!("cannot count {}", path.display()))? {
            counts.insert(name, count);
        }
    }
    Ok(counts)
}

/// `None`: of a type that has no number of entries.
fn count(pin: &Path) -> Result<Option<usize>> {
    let map = get(pin)?;
    let (kind, key_size) = info(&map)?;
    if ![HASH, LRU_HASH, LPM_TRIE].contains(&kind) {
        return Ok(None);
    }
    let (mut key, mut next) = (vec![0_u8; key_size], vec![0_u8; key_size]);
    let mut count = 0;
    while count < MOST {
        let from = if count == 0 { 0 } else { key.as_ptr().addr() as u64 };
        // `map_fd`, `key`, `next_key` of `union bpf_attr`.
        let attributes = [descriptor(&map), from, next.as_mut_ptr().addr() as u64];
        match bpf(MAP_GET_NEXT_KEY, &attributes) {
            Ok(_) => count += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) => return Err(error.into()),
        }
        std::mem::swap(&mut key, &mut next);
    }
    Ok(Some(count))
}

fn get(pin: &Path) -> Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let fd = bpf(OBJ_GET, &[path.as_ptr().addr() as u64, 0, 0])?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}

/// Type and size of keys: the first and third word of `struct bpf_map_info`.
fn info(map: &OwnedFd) -> Result<(u32, usize)> {
    let mut info = [0_u32; 4];
    // `bpf_fd` and `info_len` in one word, then `info`.
    let length = u64::try_from(size_of_val(&info))?;
    let attributes = [descriptor(map) | length << 32, info.as_mut_ptr().addr() as u64, 0];
    bpf(OBJ_GET_INFO_BY_FD, &attributes)?;
    Ok((info[0], info[2] as usize))
}

/// As the first 32 bits of a word, on a machine that is little endian as all that bulkhead supports.
fn descriptor(fd: &OwnedFd) -> u64 {
    u64::try_from(fd.as_raw_fd()).expect("an open descriptor is not negative")
}

fn bpf(command: libc::c_long, attributes: &[u64; 3]) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are as long as told; keys and names that they point to live until the call is over, and are
    // as long as the kernel reads and writes (`info` was asked for the size of keys).
    match unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) } {
        -1 => Err(io::Error::last_os_error()),
        answer => Ok(answer),
    }
}
