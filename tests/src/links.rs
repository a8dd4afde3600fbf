//! Links of programs, as somebody else on the node may treat them.

use std::{
    ffi::CString,
    io,
    os::fd::FromRawFd,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use anyhow::Result;
use nix::libc;

/// Commands of `bpf(2)` (`linux/bpf.h`).
const OBJ_GET: libc::c_long = 7;
const LINK_DETACH: libc::c_long = 34;

/// `bpftool link detach pinned`: the link stays, and holds nothing any more.
pub fn detach(pin: &Path) -> Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    // The beginning of `union bpf_attr` for `BPF_OBJ_GET`: the address of the path.
    let mut get = [0_u64; 3];
    get[0] = path.as_ptr().addr() as u64;
    let fd = bpf(OBJ_GET, &get)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let link = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) };
    // For `BPF_LINK_DETACH`: a 32-bit descriptor, then nothing.
    let mut detach = [0_u64; 3];
    let mut first = [0; 8];
    first[..4].copy_from_slice(&link.as_raw_fd().to_ne_bytes());
    detach[0] = u64::from_ne_bytes(first);
    bpf(LINK_DETACH, &detach)?;
    Ok(())
}

fn bpf(command: libc::c_long, attributes: &[u64; 3]) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are as long as told, and what they point to lives until the call is over.
    match unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) } {
        -1 => Err(io::Error::last_os_error()),
        answer => Ok(answer),
    }
}
