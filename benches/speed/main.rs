//! What an action costs: against one call of virsh, against the programs that OpenNebula's stock driver starts, and on
//! hosts with many VMs.
//!
//! ```sh
//! cargo build --locked --release
//! cargo bench --locked -p kvm-sriov-tests --bench speed -- [actions] [start] [growth] [size] [--rounds N] [--plot FILE] [--before DIR]
//! ```
//!
//! Without a part it measures all four. `--before DIR` also measures the driver in the remotes directory DIR, such as an
//! older version's, in the same run. `--plot` writes the growth as an SVG. All programs run on this machine's libvirtd,
//! started for this run, with libvirt's test driver: a call costs its round trip, and no QEMU takes part. Everything that
//! is compared runs in turn, so that what else the machine does slows down all of it.
//!
//! Root is needed, and virsh, xmllint, ruby with REXML, cc and strace.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::expect_used)]

mod cost;
mod host;
mod plot;
mod proxy;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use cost::{Cost, Program, alternate};
use host::{BenchHost, Driver};
use proxy::Proxy;

/// How many domains run on the hosts whose growth is measured.
const SIZES: [u32; 4] = [1, 16, 64, 256];

struct Options {
    parts: Vec<String>,
    rounds: usize,
    plot: Option<PathBuf>,
    before: Option<PathBuf>,
}

fn main() {
    if !Path::new("/sys/class/net").join(host::BRIDGE).exists() {
        return host::alone();
    }
    let mut options = Options { parts: Vec::new(), rounds: 21, plot: None, before: None };
    let mut args = env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("a value");
        match arg.as_str() {
            "--peak" => return cost::peak(&args.collect::<Vec<_>>()),
            "--rounds" => options.rounds = value().parse().unwrap(),
            "--plot" => options.plot = Some(value().into()),
            "--before" => options.before = Some(value().into()),
            part => options.parts.push(part.to_owned()),
        }
    }
    let wants = |part: &str| options.parts.is_empty() || options.parts.iter().any(|wanted| wanted == part);
    let mut host = BenchHost::new(options.before.as_deref());
    if wants("size") {
        size(&host);
    }
    if wants("start") {
        start(&host, options.rounds);
    }
    if wants("actions") {
        actions(&host, options.rounds);
    }
    if wants("growth") {
        growth(&mut host, options.rounds, options.plot.as_deref());
    }
}

/// The bytes of a driver's directory, which OpenNebula copies to every host.
fn size(host: &BenchHost) {
    println!("\n| driver | files | bytes |\n|---|---|---|");
    for driver in host.drivers() {
        let files = fs::read_dir(host.dir(driver)).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
        let sizes: Vec<u64> = files.filter(fs::Metadata::is_file).map(|file| file.len()).collect();
        println!("| {driver} | {} | {} |", sizes.len(), sizes.iter().sum::<u64>());
    }
}

/// From the start of a program to its first call that is not part of opening the connection.
fn start(host: &BenchHost, rounds: usize) {
    let proxy = Proxy::before(&host.socket());
    let uri = format!("test+unix:///default?socket={}", proxy.socket().display());
    let direct = host.uri();
    let smallest = host.smallest_client();
    let mut programs = vec![
        Program::new("smallest client", move |uri: &str| {
            let mut command = std::process::Command::new(&smallest);
            command.arg(uri);
            command
        }),
        Program::new("virsh list", |uri: &str| host::virsh(uri, &["list"])),
    ];
    for driver in host.drivers() {
        programs.push(host.action(driver, "reboot", &["test"], ""));
    }
    host.configure(&uri);
    let mut first = vec![Vec::new(); programs.len()];
    for _ in 0..rounds {
        for (program, first) in programs.iter().zip(&mut first) {
            proxy.begin();
            program.run(&uri);
            first.extend(proxy.seen().first_ms());
        }
    }
    host.configure(&direct);
    println!("\n| program | first own call after (ms) | more than the smallest client |\n|---|---|---|");
    let least = cost::median(&mut first[0]);
    for (program, times) in programs.iter().zip(&mut first) {
        let time = cost::median(times);
        println!("| {} | {time:.1} | {:+.1} |", program.name, time - least);
    }
}

/// Every action that libvirt's test driver can do, against its call of virsh and against the stock driver's programs.
fn actions(host: &BenchHost, rounds: usize) {
    let proxy = Proxy::before(&host.socket());
    let proxied = format!("test+unix:///default?socket={}", proxy.socket().display());
    println!(
        "\n| action | program | wall ms | of virsh | CPU ms | memory MiB | processes | calls |\n|---|---|---|---|---|---|---|---|"
    );
    for case in host.cases() {
        let mut costs = alternate(&case.programs, &host.uri(), rounds);
        let mut base = 0.0;
        for (program, cost) in case.programs.iter().zip(&mut costs) {
            let Some(cost) = cost else {
                println!("| {} | {} | - | the test driver can't | | | | |", case.action, program.name);
                continue;
            };
            let Cost { wall, cpu } = cost;
            let (wall, cpu) = (cost::median(wall), cost::median(cpu));
            if base == 0.0 {
                base = wall;
            }
            host.configure(&proxied);
            proxy.begin();
            program.run(&proxied);
            let calls = proxy.seen().calls;
            host.configure(&host.uri());
            let (memory, processes) = (program.memory(&host.uri()), program.processes(&host.uri()));
            println!(
                "| {} | {} | {wall:.1} | {:.2} | {cpu:.1} | {memory:.1} | {processes} | {calls} |",
                case.action,
                program.name,
                wall / base
            );
        }
    }
}

/// What looks at all VMs of a host, and what starts one more.
fn growth(host: &mut BenchHost, rounds: usize, plot: Option<&Path>) {
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for size in SIZES {
        host.grow(size);
        let mut programs = vec![Program::new("virsh list", |uri: &str| host::virsh(uri, &["list"]))];
        for driver in host.drivers() {
            programs.extend(host.whole(driver));
        }
        let costs = alternate(&programs, &host.uri(), rounds);
        if lines.is_empty() {
            lines = programs.iter().map(|program| (program.name.clone(), Vec::new())).collect();
        }
        for (line, cost) in lines.iter_mut().zip(costs) {
            line.1.push((size.into(), cost::median(&mut cost.expect("it works").wall)));
        }
    }
    let header: String = SIZES.iter().map(|size| format!(" {size} |")).collect();
    println!("\n| ms with this number of domains |{header}\n|---|{}", "---|".repeat(SIZES.len()));
    for (name, points) in &lines {
        let cells: String = points.iter().map(|(_, ms)| format!(" {ms:.1} |")).collect();
        println!("| {name} |{cells}");
    }
    if let Some(file) = plot {
        fs::write(file, plot::svg(&lines)).unwrap();
    }
}

/// A driver by its name below the remotes' `vmm`.
impl std::fmt::Display for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Now => "now",
            Self::Before => "before",
        })
    }
}
