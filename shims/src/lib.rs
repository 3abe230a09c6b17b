//! All programs of the driver in one shared object, which lies beside them.
//!
//! A program is a file in `programs`, of about ten lines. What is installed under its name is a copy of `program.rs`, which
//! calls [`kvm_sriov_main`]. So OpenNebula copies the driver once to each host, and not once for each action.

use std::env;
use std::ffi::c_int;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::process;

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::Mode;

// A module for each file in `programs`, and `program`, which finds the one with a name: see build.rs.
include!(concat!(env!("OUT_DIR"), "/programs.rs"));

/// Runs the program whose file has been started.
// SAFETY: no other function of this shared object has this name.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C" fn kvm_sriov_main() -> c_int {
    begin();
    let file = env::current_exe().unwrap_or_default();
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    // proc(5): this is after the name when the file was replaced meanwhile.
    let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
    let code = match program(name) {
        Some(main) => main(),
        None => no_program(name),
    };
    // This also writes what Rust has not yet written to standard output.
    process::exit(code.into())
}

fn no_program(name: &str) -> u8 {
    let name = name.escape_debug();
    // With a closed standard error only the exit code is left to tell.
    match writeln!(io::stderr(), "{name}: kvm-sriov has no program of this name; nothing was changed") {
        Ok(()) | Err(_) => 1,
    }
}

/// What Rust does before `main`: a write to a closed pipe is an error and does not end the program, and a standard stream
/// that the caller closed is none of the files that the program opens.
///
/// # Source
/// Rust's `library/std/src/sys/pal/unix/mod.rs`, `init`.
fn begin() {
    for stream in 0..=2 {
        // SAFETY: it is only asked whether this descriptor is open.
        #[allow(unsafe_code)]
        let descriptor = unsafe { BorrowedFd::borrow_raw(stream) };
        if fcntl(descriptor, FcntlArg::F_GETFD).is_err() {
            // It becomes the lowest number that is free: this one. It stays open.
            match open("/dev/null", OFlag::O_RDWR, Mode::empty()) {
                Ok(null) => std::mem::forget(null),
                // No log line can be written yet. As Rust does.
                Err(_) => process::abort(),
            }
        }
    }
    // SAFETY: no handler of ours is called.
    #[allow(unsafe_code)]
    let ignored = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    if ignored.is_err() {
        process::abort();
    }
}
