//! Links the command so that it starts on older systems, too: what is built in the project's tree is installed
//! elsewhere.
use std::path::Path;

fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let symbols = Path::new(&dir).join("../../dist/glibc/x86_64.s");
    // The published package does not have the file, and is built where it is used.
    if symbols.is_file() && std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        println!("cargo::rustc-link-arg-bins={}", symbols.display());
        // Before glibc 2.34 threads are in a library of their own, which a program without libvirt would lack.
        println!("cargo::rustc-link-arg-bins=-Wl,--no-as-needed,-l:libpthread.so.0,-l:libdl.so.2,--as-needed");
    }
}
