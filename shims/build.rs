//! Links the programs without tables for unwinding, and so that they start on older systems, too.
fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{dir}/small.ld");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        println!("cargo::rustc-link-arg-bins={dir}/../dist/glibc/x86_64.s");
        println!("cargo::rustc-link-arg-bins=-Wl,--defsym=posix_spawn_file_actions_addchdir_np=0");
    }
}
