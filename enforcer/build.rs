//! Builds the TC programs and leaves the object at `$OUT_DIR/bulkhead-programs`, to be embedded.
//!
//! The one place that decides which toolchain builds eBPF: `$BULKHEAD_EBPF_TOOLCHAIN` if set, else the
//! rustup toolchain `bulkhead-ebpf` (a distribution's compiler with its library source, linked by
//! `deploy/toolchain.sh`), else `nightly`. Any of them needs rust-src, because core is built for BPF.

use std::{env, fs, path::Path, process::Command};

use anyhow::{Context, bail};
use aya_build::{Package, Toolchain, build_ebpf};

const HINT: &str = "run deploy/toolchain.sh, which installs what building eBPF needs";

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-env-changed=BULKHEAD_EBPF_TOOLCHAIN");
    if env::var_os("CARGO_CFG_FUZZING").is_some() {
        // Fuzz targets parse; they load no programs, and an empty object is no valid one.
        let out_dir = env::var("OUT_DIR").context("cargo sets OUT_DIR")?;
        return fs::write(Path::new(&out_dir).join("bulkhead-programs"), []).context("the empty object");
    }
    if Command::new("bpf-linker").arg("--version").output().is_err() {
        bail!("bpf-linker is not installed: {HINT}");
    }
    let toolchain = toolchain()?;
    // Debian's compiler is a stable release; building core needs its unstable flags.
    // SAFETY: a build script starts with one thread, and none has been started.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    let package = Package {
        name: "bulkhead-ebpf",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../enforcer-ebpf"),
        no_default_features: true,
        features: &["program"],
    };
    build_ebpf([package], Toolchain::Custom(&toolchain)).context(HINT)
}

fn toolchain() -> anyhow::Result<String> {
    if let Ok(name) = env::var("BULKHEAD_EBPF_TOOLCHAIN") {
        return Ok(name);
    }
    for name in ["bulkhead-ebpf", "nightly"] {
        let sysroot = Command::new("rustup").args(["run", name, "rustc", "--print", "sysroot"]).output();
        let Ok(sysroot) = sysroot.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()) else {
            continue;
        };
        if !sysroot.is_empty() && Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir() {
            return Ok(name.to_owned());
        }
    }
    bail!("no toolchain with rust-src: {HINT}")
}
