//! How long actions wait for each other when many of them claim VFs at once. Several processes recover, claim, commit
//! and release in every round, on a disk that another process flushes all the time.
//!
//! ```sh
//! cargo bench --locked -p kvm-sriov-tests --bench claims -- [--rounds N] [DIRECTORY [PROCESSES...]]
//! ```
//!
//! `DIRECTORY` is on the measured disk (default: the system's directory for temporary files); `/dev/shm` is memory,
//! which nobody flushes. Prints milliseconds for each call. A call that fails, such as a wait for the claims' lock that
//! takes too long, ends the bench.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvm_sriov::claims::{Backing, ClaimRequest, ClaimStore};
use kvm_sriov::config::VfMap;
use kvm_sriov::sysfs::Sysfs;
use kvm_sriov::{Action, NicKey, Owner, PciAddress, Position, RootName, WantedVf};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

/// The calls of a process in one round, in order.
const CALLS: [&str; 4] = ["recover", "claim", "commit", "release"];

fn main() {
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--process", dir, number, all] => process(Path::new(dir), number.parse().unwrap(), all.parse().unwrap()),
        ["--flush", file] => flush(Path::new(file)),
        ["--rounds", number, ..] => measure(number.parse().unwrap(), &args[2..]),
        _ => measure(20, &args),
    }
}

/// * `count` - how many times each number of processes is measured
fn measure(count: usize, args: &[String]) {
    let place = args.first().map_or_else(env::temp_dir, PathBuf::from);
    let mut numbers: Vec<usize> = args.iter().skip(1).map(|number| number.parse().unwrap()).collect();
    if numbers.is_empty() {
        numbers = vec![1, 15, 64, 256];
    }
    // A flush of memory returns at once: it would only keep a processor busy.
    let is_flushed = statfs(&place).unwrap().filesystem_type() != TMPFS_MAGIC;
    println!("| processes | call | p50 | p99 | max |\n|---|---|---|---|---|");
    for number in numbers {
        let dir = tempfile::Builder::new().prefix("claims-").tempdir_in(&place).unwrap();
        let _flusher = is_flushed.then(|| Flusher(start(&["--flush", dir.path().join("flushed").to_str().unwrap()])));
        for (call, mut times) in CALLS.iter().zip(rounds(dir.path(), number, count)) {
            times.sort();
            let at = |part: f64| 1000.0 * times[((times.len() - 1) as f64 * part) as usize].as_secs_f64();
            println!("| {number} | {call} | {:.1} | {:.1} | {:.1} |", at(0.5), at(0.99), at(1.0));
        }
    }
}

/// The process that flushes the disk. It ends with the measurement, also with one that fails.
struct Flusher(Child);

impl Drop for Flusher {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

/// This program again.
fn start(args: &[&str]) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// Lets processes claim at once, this many times. Returns the times of each call.
fn rounds(dir: &Path, number: usize, count: usize) -> [Vec<Duration>; 4] {
    let all = number.to_string();
    let mut processes: Vec<_> = (0..number)
        .map(|n| start(&["--process", dir.to_str().unwrap(), &n.to_string(), &all]))
        .map(|mut child| (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()), child))
        .collect();
    let mut times: [Vec<Duration>; 4] = Default::default();
    // The first round includes their start.
    for round in 0..=count {
        for (input, ..) in &mut processes {
            input.write_all(b"go\n").unwrap();
        }
        for (_, output, _) in &mut processes {
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            let taken: Vec<u64> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
            assert_eq!(taken.len(), CALLS.len(), "a process failed");
            for (times, taken) in times.iter_mut().zip(taken).filter(|_| round > 0) {
                times.push(Duration::from_micros(taken));
            }
        }
    }
    for (input, _, mut child) in processes {
        drop(input);
        assert!(child.wait().unwrap().success());
    }
    times
}

/// One of the processes: a VM with one VF, on a host with one VF for each process.
fn process(dir: &Path, number: usize, all: usize) {
    let root: RootName = "ib0".parse().unwrap();
    let vf = |n: usize| PciAddress::new(0, 7 + (n / 256) as u8, (n / 8 % 32) as u8, (n % 8) as u8).unwrap();
    let lines: String = (0..all).map(|n| vf(n).to_map_line() + "\n").collect();
    let maps = [VfMap::parse(root.clone(), Path::new("ib0"), lines.as_bytes()).unwrap()];
    for n in 0..all {
        fs::create_dir_all(dir.join(format!("sys/bus/pci/devices/{}/physfn", vf(n)))).unwrap();
    }
    let sysfs = Sysfs::at(dir.into());
    let store = ClaimStore::create(&dir.join("state")).unwrap();
    let nic = NicKey { position: Position::new(0).unwrap(), mac: "02:00:0a:00:00:01".parse().unwrap() };
    let owner = |n: usize| Owner { vm: format!("one-{n}").parse().unwrap(), uuid: None };
    let backing = Backing { wanting: (0..all).map(|n| (owner(n), nic)).collect(), ..Backing::default() };
    let (owner, vfs) = (owner(number), [WantedVf { root, nic }]);
    let lock = store.lock_vm(&owner.vm, Action::Deploy, Duration::ZERO).unwrap();
    let request = ClaimRequest { owner: &owner, lock: &lock, vfs: &vfs, maps: &maps, sysfs: &sysfs, refused: &[] };
    for line in io::stdin().lines() {
        assert_eq!(line.unwrap(), "go");
        let mut last = Instant::now();
        let mut taken = Vec::new();
        let mut done = || {
            taken.push(last.elapsed().as_micros().to_string());
            last = Instant::now();
        };
        let seen = store.entries().unwrap();
        store.recover(&seen, &backing, &maps).unwrap();
        done();
        let claims = store.claim_all(&request, &backing).unwrap();
        done();
        store.commit(&claims, &maps).unwrap();
        done();
        store.release(&claims).unwrap();
        done();
        println!("{}", taken.join(" "));
    }
}

/// The load of other programs on the disk: some data and a flush, again and again.
fn flush(path: &Path) {
    let mut file = File::create(path).unwrap();
    loop {
        file.write_all(&[0x5a; 64 * 1024]).unwrap();
        file.sync_all().unwrap();
        if file.metadata().unwrap().len() > 64 * 1024 * 1024 {
            file.set_len(0).unwrap();
        }
    }
}
