//! Brings the eBPF object that `cargo xtask build` made into this crate, as
//! `$OUT_DIR/conntracer.bpf.o`. Built without xtask (a bare `cargo test`), the file is empty: the
//! crate compiles with stable Rust alone, and refuses to trace.

use std::{env, fs, path::PathBuf};

fn main() {
    const OBJECT: &str = "CONNTRACER_EBPF_OBJECT";
    println!("cargo::rerun-if-env-changed={OBJECT}");
    println!("cargo::rerun-if-changed=build.rs");
    let out_dir = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    let embedded = PathBuf::from(out_dir).join("conntracer.bpf.o");
    let object = match env::var_os(OBJECT) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            fs::read(&path).unwrap_or_else(|error| panic!("reading {}: {error}", path.display()))
        }
        None => Vec::new(),
    };
    fs::write(&embedded, object)
        .unwrap_or_else(|error| panic!("writing {}: {error}", embedded.display()));
}
