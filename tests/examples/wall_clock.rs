//! Loaded into a program by `LD_PRELOAD`, gives it a wall clock that can be set: `CLOCK_REALTIME` plus the seconds (an
//! `i64`) at the beginning of the file that `LAB_WALL_CLOCK` names, as they are at the moment. Other clocks are left alone.

use std::{
    ffi::{c_int, c_void},
    ptr,
    sync::atomic::{AtomicI64, AtomicPtr, Ordering},
};

use nix::libc;

static NO_OFFSET: AtomicI64 = AtomicI64::new(0);
static OFFSET: AtomicPtr<AtomicI64> = AtomicPtr::new(ptr::null_mut());

/// Instead of libc's.
///
/// # Safety
/// As of `clock_gettime(2)`: `time` points to a `timespec` that may be written, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    // SAFETY: the caller's promise is the system call's demand; a bad pointer is answered with EFAULT.
    let answer = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    if answer == 0 && clock == libc::CLOCK_REALTIME && !time.is_null() {
        // SAFETY: the kernel has just written it.
        unsafe { (*time).tv_sec += offset().load(Ordering::Relaxed) };
    }
    c_int::from(answer != 0).wrapping_neg()
}

fn offset() -> &'static AtomicI64 {
    let known = OFFSET.load(Ordering::Acquire);
    let known = if known.is_null() { map() } else { known };
    OFFSET.store(known, Ordering::Release);
    // SAFETY: `map` gives pointers to memory that is never unmapped, of an integer's size and alignment.
    unsafe { &*known }
}

/// Of two threads that map it both keep what they have: it is the same file.
fn map() -> *mut AtomicI64 {
    let nothing = (&raw const NO_OFFSET).cast_mut();
    // SAFETY: the name is a C string, and the environment is not changed while a program runs that has this library.
    let file = unsafe { libc::getenv(c"LAB_WALL_CLOCK".as_ptr()) };
    if file.is_null() {
        return nothing;
    }
    // SAFETY: `getenv` gives a C string; no flag asks for more arguments.
    let file = unsafe { libc::open(file, libc::O_RDONLY | libc::O_CLOEXEC) };
    // SAFETY: a new mapping, wherever the kernel likes; a bad descriptor is an error.
    let memory: *mut c_void =
        unsafe { libc::mmap(ptr::null_mut(), size_of::<i64>(), libc::PROT_READ, libc::MAP_SHARED, file, 0) };
    if file >= 0 {
        // SAFETY: opened above, and nobody else's.
        unsafe { libc::close(file) };
    }
    if memory == libc::MAP_FAILED { nothing } else { memory.cast() }
}
