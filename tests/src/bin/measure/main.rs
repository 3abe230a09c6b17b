//! Measures on hosts with QEMU: where the time of an action goes, and how long it takes in comparison with virsh.
//!
//! After `cargo build --locked --release`:
//!
//! ```sh
//! cargo run --locked --release -p kvm-sriov-tests --bin measure -- shares
//! cargo run --locked --release -p kvm-sriov-tests --bin measure -- light [--rounds N]
//! cargo run --locked --release -p kvm-sriov-tests --bin measure -- lab [--rounds N] [VFS...]
//! ```
//!
//! `shares` splits save, restore and migrate of a VM with 1, 2 and 3 VFs into their parts, in the lab. `light` compares
//! the actions of a VM without VFs with one call of virsh each, on the light hosts. `lab` compares save, restore and
//! migrate of a VM with VFs (1, 3 and 7) with the calls of virsh that do the same, in the lab. Each starts its hosts and
//! prints a table for docs/reference/measurements.md.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod against;
mod shares;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut rounds = None;
    if let Some(at) = args.iter().position(|arg| arg == "--rounds") {
        rounds = Some(args[at + 1].parse().unwrap());
        args.drain(at..=at + 1);
    }
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["shares"] => shares::table(),
        ["light"] => against::light(rounds.unwrap_or(11)),
        ["lab"] => against::lab(rounds.unwrap_or(3), &[1, 3, 7]),
        ["lab", ref vfs @ ..] => {
            against::lab(rounds.unwrap_or(3), &vfs.iter().map(|number| number.parse().unwrap()).collect::<Vec<_>>());
        }
        _ => {
            eprintln!("measure: expected shares, light or lab; its head says more");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
