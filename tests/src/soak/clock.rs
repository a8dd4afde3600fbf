//! The agents' wall clock, which can be set without setting the machine's: a library that is loaded into them
//! (`examples/wall_clock.rs`) adds what a file says.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Names the file, for the library.
const VARIABLE: &str = "LAB_WALL_CLOCK";
const LIBRARY: &str = "libwall_clock.so";

/// Seconds from the machine's clock to the agents'.
pub fn set(file: &Path, seconds: i64) -> Result<()> {
    // In place: the library has mapped it.
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(file)?;
    Ok(file.write_all(&seconds.to_ne_bytes())?)
}

/// What a program must find in its environment.
pub fn environment(file: &Path) -> Result<Vec<(String, String)>> {
    let library = library()?.display().to_string();
    Ok(vec![("LD_PRELOAD".to_owned(), library), (VARIABLE.to_owned(), file.display().to_string())])
}

fn library() -> Result<PathBuf> {
    let here = env::current_exe()?;
    let examples = here.ancestors().skip(1).take(2).map(|dir| dir.join("examples").join(LIBRARY));
    let library = examples.into_iter().find(|path| path.is_file());
    library.with_context(|| format!("no {LIBRARY} near {}: cargo build -p lab --examples", here.display()))
}
