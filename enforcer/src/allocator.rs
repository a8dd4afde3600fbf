//! The system's allocator, told what this process is like: a large state that one thread owns, and short work on
//! others' behalf. On glibc alone; others need not be told, or cannot be.
#![cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "the C allocator's settings"))]

/// One arena for all threads: what is read on one thread and kept on another would leave holes in several. To be
/// called before threads start.
pub fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it sets a parameter of the allocator, which checks it, and touches nothing of ours.
        let _ = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1) };
    }
}

/// Gives back what was freed; worth its time after a large piece of work.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it unmaps pages of which the allocator itself knows that they are free.
        let _ = unsafe { nix::libc::malloc_trim(0) };
    }
}
