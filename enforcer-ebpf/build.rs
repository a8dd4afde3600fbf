//! How the programs are linked: the linker generates the code, so these are the code generator's options.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Small fills and copies as plain stores, not as calls of a loop over bytes.
    println!("cargo::rustc-link-arg-bins=--disable-expand-memcpy-in-order");
}
