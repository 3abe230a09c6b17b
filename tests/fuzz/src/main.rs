//! libFuzzer on one target, whose name is in KVM_SRIOV_FUZZ. `run` starts it.

#![no_main]
// The macro defines the C functions that libFuzzer calls.
#![allow(unsafe_code, missing_docs, clippy::unwrap_used, clippy::panic)]

use std::env;
use std::sync::OnceLock;

use kvm_sriov_fuzz::{Target, targets};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<Target> = OnceLock::new();

fn target() -> Target {
    let name = env::var("KVM_SRIOV_FUZZ").unwrap();
    targets().into_iter().find(|target| target.name == name).unwrap_or_else(|| panic!("there is no target {name}"))
}

fuzz_target!(|input: &[u8]| TARGET.get_or_init(target).run(input));
