//! Where the binaries under test are.

use std::{env, path::PathBuf};

use anyhow::{Context, Result};

/// The agent: `$BULKHEAD_BIN`, else beside this executable.
pub fn agent() -> Result<PathBuf> {
    find("BULKHEAD_BIN", "bulkhead")
}

/// The CNI plugin: `$BULKHEAD_CNI_BIN`, else beside this executable.
pub fn cni() -> Result<PathBuf> {
    find("BULKHEAD_CNI_BIN", "bulkhead-cni")
}

fn find(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Ok(path.into());
    }
    let here = env::current_exe()?;
    // A test's executable is one level deeper, in `deps`.
    here.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file()).with_context(
        || format!("no {name} beside {}: cargo build -p {name}, or set {variable}", here.display()),
    )
}
