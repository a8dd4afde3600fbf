//! Whether the node has been restarted since its state was written: then no pod of before is left, whatever interface has
//! the number, or even the name, of one.

use std::{fs, io, path::Path};

use crate::private::write_atomically;

/// Of the running kernel (`random(4)`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const FILE: &str = "boot-id";

/// State of unknown age is taken for this boot's: interfaces that are gone are found anyway.
pub fn is_another(state: &Path) -> bool {
    let written = fs::read_to_string(state.join(FILE));
    written.is_ok_and(|written| fs::read_to_string(BOOT_ID).is_ok_and(|now| now.trim() != written.trim()))
}

pub fn remember(state: &Path) -> io::Result<()> {
    write_atomically(&state.join(FILE), fs::read_to_string(BOOT_ID)?.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_of_another_boot_is_told_from_ours_and_from_that_of_unknown_age() {
        let state = tempfile::tempdir().expect("tempdir");
        assert!(!is_another(state.path()));
        remember(state.path()).expect("written");
        assert!(!is_another(state.path()));
        fs::write(state.path().join(FILE), "8c5e2b9a-0000-4000-8000-000000000000\n").expect("written");
        assert!(is_another(state.path()));
    }
}
