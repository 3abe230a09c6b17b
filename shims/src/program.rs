//! Every installed program is a copy of this one. Its file's name says which program of the shared object it is.

#![no_main]
// As shipped, without Rust's standard library: it would be in every copy.
#![cfg_attr(panic = "abort", no_std)]
// The entry of a program that Rust does not start, and a call through C's interface.
#![allow(unsafe_code)]

use core::ffi::c_int;

// SAFETY: the function of this name in `lib.rs` has this signature, and nothing is required of its caller.
unsafe extern "C" {
    safe fn kvm_sriov_main() -> c_int;
}

/// What C's start-up code calls.
// SAFETY: no other function of this program has this name.
#[unsafe(no_mangle)]
pub extern "C" fn main() -> c_int {
    kvm_sriov_main()
}

/// The compiler wants one. Nothing here panics.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
