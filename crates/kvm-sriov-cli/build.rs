//! Links the command so that it starts on older systems, too.
fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        println!("cargo::rustc-link-arg-bins={dir}/../../dist/glibc/x86_64.s");
        println!("cargo::rustc-link-arg-bins=-Wl,--defsym=posix_spawn_file_actions_addchdir_np=0");
        // Before glibc 2.34 threads are in a library of their own, which a program without libvirt would lack.
        println!("cargo::rustc-link-arg-bins=-Wl,--no-as-needed,-l:libpthread.so.0,-l:libdl.so.2,--as-needed");
    }
}
