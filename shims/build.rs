//! Links the programs without unwind tables, and so that they also start with an older glibc.
fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{dir}/small.ld");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        println!("cargo::rustc-link-arg-bins={dir}/../dist/glibc/x86_64.s");
        println!("cargo::rustc-link-arg-bins=-Wl,--defsym=posix_spawn_file_actions_addchdir_np=0");
        // Before glibc 2.34 threads are in libpthread. A program that does not link libvirt would not load it.
        println!("cargo::rustc-link-arg-bins=-Wl,--no-as-needed,-l:libpthread.so.0,-l:libdl.so.2,--as-needed");
    }
}
