//! Lists the programs, and links them: without unwind tables, beside their shared object, and so that they also start with
//! an older glibc.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// The shared object. Its name is that of the library in Cargo.toml.
const SHARED: &str = "libkvm_sriov_programs.so";

/// Where a program finds the shared object: beside itself, and `vnm/sriov/pre` in the driver of the same remotes.
const PLACES: &str = "$ORIGIN:$ORIGIN/../../vmm/kvm-sriov";

fn main() -> io::Result<()> {
    let variable = |name| env::var_os(name).map(PathBuf::from).unwrap_or_default();
    let (dir, out) = (variable("CARGO_MANIFEST_DIR"), variable("OUT_DIR"));
    list(&dir.join("src/programs"), &out.join("programs.rs"))?;
    let place = stand_in(&out)?;
    let (dir, place) = (dir.display(), place.display());
    println!("cargo::rerun-if-changed=src/programs");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg=-Wl,-T,{dir}/small.ld");
    println!("cargo::rustc-link-arg-cdylib=-Wl,-soname,{SHARED}");
    // The library of C is named here, because Rust's standard library, which names it, is not in programs as shipped.
    println!("cargo::rustc-link-arg-bins={place}");
    println!("cargo::rustc-link-arg-bins=-lc");
    println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{PLACES}");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        println!("cargo::rustc-link-arg={dir}/../dist/glibc/x86_64.s");
        // Before glibc 2.34 threads are in libpthread. What does not link libvirt would not load it.
        println!("cargo::rustc-link-arg-cdylib=-Wl,--no-as-needed,-l:libpthread.so.0,-l:libdl.so.2,--as-needed");
    }
    Ok(())
}

/// Writes a module for each file in `programs`, and the function that finds one by the name of the installed program.
fn list(programs: &Path, place: &Path) -> io::Result<()> {
    let mut stems = Vec::new();
    for entry in fs::read_dir(programs)? {
        stems.extend(entry?.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    stems.sort();
    let (mut modules, mut arms) = (String::new(), String::new());
    for stem in stems {
        // As shims/install names it.
        let name = stem.strip_prefix("vnm_").unwrap_or(&stem).replace("_ceph", ".ceph");
        let file = programs.join(format!("{stem}.rs"));
        modules += &format!("#[path = {file:?}]\nmod {stem};\n");
        arms += &format!("        {name:?} => {stem}::main,\n");
    }
    let text = format!(
        "{modules}\nfn program(name: &str) -> Option<fn() -> u8> {{\n    Some(match name {{\n{arms}        _ => return None,\n    }})\n}}\n"
    );
    fs::write(place, text)
}

/// Makes a shared object that only has the name and the function of ours. Programs are linked with it, because cargo may
/// link them before it has linked ours.
fn stand_in(out: &Path) -> io::Result<PathBuf> {
    let (source, place) = (out.join("stand_in.c"), out.join(SHARED));
    fs::write(&source, "int kvm_sriov_main(void) { return 0; }\n")?;
    let linker = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let made = Command::new(linker)
        .args(["-shared", "-nostdlib", "-fPIC", &format!("-Wl,-soname,{SHARED}"), "-o"])
        .args([&place, &source])
        .status()?;
    if made.success() { Ok(place) } else { Err(io::Error::other("the C compiler can't make a shared object")) }
}
