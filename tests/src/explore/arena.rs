//! The hosts of a run, the links between them, and the programs that run on them.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use kvm_sriov::agent::{self, Link, Reach};
use kvm_sriov::config::Settings;
use kvm_sriov::os::{self, Step};
use kvm_sriov::reconcile::{Consistency, Options, reconcile, watch};
use kvm_sriov::{AgentError, Host, HostName};
use kvm_sriov_model::host::{ModelHost, ROOTS};

use super::scheduler::{Strike, Surroundings, here};
use crate::vm::Vm;

/// Hosts with shared storage, and the network between them.
pub struct Arena {
    /// The hosts.
    pub hosts: Vec<ModelHost>,
    programs: PathBuf,
    network: Arc<AtomicBool>,
    /// What the programs of the run returned.
    pub outcomes: Mutex<Vec<String>>,
    /// What was in doubt when everything had settled.
    pub doubts: Mutex<Vec<String>>,
}

/// The limits of a real host. No time is lost by them: it is simulated.
const LIMITS: &str = "SHUTDOWN_TIMEOUT=60\nSRIOV_LOCK_TIMEOUT=30\nSRIOV_UNPLUG_TIMEOUT=10\nSRIOV_UNPLUG_GRACE=60\n\
                      SRIOV_CALL_TIMEOUT=120\n";

impl Arena {
    /// This many hosts, each with this many VFs on each root.
    pub fn new(hosts: usize, vfs: usize) -> Arc<Self> {
        let first = ModelHost::with_vfs(vfs);
        let mut all: Vec<ModelHost> = (1..hosts).map(|n| first.beside(&format!("host{}", n + 1), vfs)).collect();
        all.insert(0, first);
        let programs = all[0].run_dir().join("programs");
        fs::create_dir_all(&programs).unwrap();
        fs::write(programs.join("sriov_watcher"), "").unwrap();
        for host in &all {
            host.set_kvmrc(LIMITS);
        }
        let network = Arc::new(AtomicBool::new(true));
        Arc::new(Self { hosts: all, programs, network, outcomes: Mutex::default(), doubts: Mutex::default() })
    }

    /// A host as a program opens it that starts now.
    pub fn host(&self, number: usize) -> Host {
        let host = &self.hosts[number];
        let mut settings = host.settings();
        settings.arrival_grace = Settings::default().arrival_grace;
        host.builder().settings(settings).programs(&self.programs).journal(false).with_hypervisor(host.hypervisor())
    }

    /// The name of a host, as OpenNebula has it.
    pub fn name(&self, number: usize) -> HostName {
        format!("host{}", number + 1).parse().unwrap()
    }

    /// The claim files of a host: their contents.
    fn claims(&self, host: usize) -> Vec<String> {
        let state = self.hosts[host].state_dir();
        let files = ROOTS.iter().filter_map(|root| fs::read_dir(state.join(root)).ok()).flatten();
        files.filter_map(|file| fs::read_to_string(file.ok()?.path()).ok()).collect()
    }
}

/// The run's hosts, as the scheduler sees them.
pub(super) struct OnHosts(pub(super) Arc<Arena>);

impl Surroundings for OnHosts {
    fn strike(&self, what: Strike) {
        let hosts = &self.0.hosts;
        match what {
            Strike::PowerOff(host) => {
                hosts[host].model().power_off();
                // A file system in memory.
                drop(fs::remove_dir_all(hosts[host].run_dir().join("one")));
            }
            Strike::Restart(host) => hosts[host].model().restart_daemon(),
            Strike::Network(works) => {
                self.0.network.store(works, Ordering::Relaxed);
                hosts[0].model().set_network(works);
            }
        }
    }

    fn program(&self, host: usize, program: &Path, arg: Option<&str>) -> Option<Box<dyn FnOnce() + Send>> {
        let (arena, arg) = (Arc::clone(&self.0), arg.map(str::to_owned));
        match program.file_name()?.to_str()? {
            "sriov_watcher" => Some(Box::new(move || {
                let id = arg.unwrap().parse().unwrap();
                arena.says("watcher", watch(&arena.host(host), &id).map_err(|cause| cause.to_string()));
            })),
            _ => None,
        }
    }

    fn check(&self, step: Step) -> Result<(), String> {
        let changes = matches!(step.kind, "return" | "file" | "phase" | "woken");
        if !changes {
            return Ok(());
        }
        if let Some(violation) = self.0.hosts[0].model().violations().first() {
            return Err(violation.clone());
        }
        for (number, host) in self.0.hosts.iter().enumerate() {
            let devices = host.model().host_devices();
            let ours: Vec<_> = devices.iter().filter(|(_, alias, _)| alias.starts_with("ua-sriov-")).collect();
            for (at, (uuid, _, vf)) in devices.iter().enumerate() {
                if let Some((other, _, _)) = devices[..at].iter().find(|(_, _, other)| other == vf) {
                    return Err(format!("{vf} of host{} is in {uuid} and in {other}", number + 1));
                }
            }
            if ours.is_empty() || step.name == "live_xml" {
                continue;
            }
            let claims = self.0.claims(number);
            for (uuid, alias, vf) in ours {
                let is_its = |claim: &String| claim.contains(&vf.to_string()) && claim.contains(uuid.as_str());
                if !claims.iter().any(is_its) {
                    return Err(format!("{vf} of host{} is {alias} of {uuid} and has no claim of it", number + 1));
                }
            }
        }
        Ok(())
    }
}

impl Arena {
    /// Keeps what a program returned.
    pub(super) fn says(&self, program: &str, result: Result<(), String>) {
        let text = result.err().unwrap_or_else(|| "success".into());
        here().note(|| format!("{program}: {text}"));
        self.outcomes.lock().unwrap().push(format!("{program}: {text}"));
    }

    /// What the monitoring probe does on a host, every 30 s. Returns whether it found or did anything.
    pub(super) fn probe(&self, host: usize) -> bool {
        let report = match reconcile(&self.host(host), &Options::default()) {
            Ok(report) => report,
            Err(cause) => {
                self.says("probe", Err(cause.to_string()));
                return true;
            }
        };
        let done: Vec<String> = report.vms.iter().flat_map(|vm| vm.done.iter().map(ToString::to_string)).collect();
        here().note(|| {
            let left: Vec<_> = report.vms.iter().flat_map(|vm| vm.left.iter().map(ToString::to_string)).collect();
            let failures = report.vms.iter().flat_map(|vm| &vm.failures);
            let failures: Vec<_> = failures.map(|failure| format!("{}: {}", failure.repair, failure.cause)).collect();
            let problems: Vec<_> = report.problems.iter().map(ToString::to_string).collect();
            let claims = &report.claims;
            format!(
                "probe did {done:?}, left {left:?}, failed at {failures:?}, problems {problems:?}, claims {claims:?}"
            )
        });
        !done.is_empty() || !report.claims.is_empty() || report.consistency(false) != Consistency::Consistent
    }

    /// The devices of a VM that are not ours.
    pub(super) fn foreign(&self, vm: &Vm) -> Vec<String> {
        let uuid = vm.uuid();
        let all = self.hosts.iter().flat_map(|host| host.model().host_devices());
        all.filter(|(domain, alias, _)| domain.as_str() == uuid && !alias.starts_with("ua-sriov-"))
            .map(|(_, alias, vf)| format!("{alias} {vf}"))
            .collect()
    }
}

/// The way from one host to the others: a process of the agent on the other host, and two pipes.
pub struct Way {
    arena: Arc<Arena>,
    from: usize,
}

impl Way {
    /// From this host.
    pub fn from(arena: &Arc<Arena>, host: usize) -> Self {
        Self { arena: Arc::clone(arena), from: host }
    }
}

impl Reach for Way {
    fn start(&self, name: &HostName) -> Result<Link, AgentError> {
        os::step("line", "connect");
        let (arena, from) = (Arc::clone(&self.arena), self.from);
        let failed = |why: &str| AgentError::NotStarted { host: name.clone(), why: why.into() };
        let known = (0..arena.hosts.len()).find(|number| arena.name(*number) == *name);
        let there = known.ok_or_else(|| failed("no such host"))?;
        if !arena.network.load(Ordering::Relaxed) || !arena.hosts[there].model().is_up() {
            return Err(failed("no route to host"));
        }
        let (to_there, heard_there) = pipe(&arena.network);
        let (to_here, heard_here) = pipe(&arena.network);
        let serve = move || {
            let back = Self { arena: Arc::clone(&arena), from: there };
            agent::serve(|| Ok(arena.host(there)), &back, heard_there, to_here);
        };
        here().start(&format!("agent from host{}", from + 1), there, Box::new(serve));
        Ok(Link::new(heard_here, to_there))
    }

    fn copy(&self, _: &[PathBuf], _: &HostName, _: &Path) -> Result<(), AgentError> {
        Ok(())
    }
}

#[derive(Default)]
struct Bytes {
    queue: VecDeque<u8>,
    is_closed: bool,
}

/// One direction of a connection. While the network is broken nothing arrives, not even the end.
struct Sending(Arc<Mutex<Bytes>>);

struct Hearing(Arc<Mutex<Bytes>>, Arc<AtomicBool>);

fn pipe(network: &Arc<AtomicBool>) -> (Sending, Hearing) {
    let bytes = Arc::<Mutex<Bytes>>::default();
    (Sending(Arc::clone(&bytes)), Hearing(bytes, Arc::clone(network)))
}

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut there = self.0.lock().unwrap();
        if there.is_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        there.queue.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.lock().unwrap().is_closed = true;
    }
}

impl Read for Hearing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let os = os::simulated().unwrap();
        os::wait_until(&*os, None, || {
            let there = self.0.lock().unwrap();
            self.1.load(Ordering::Relaxed) && (there.is_closed || !there.queue.is_empty())
        });
        self.0.lock().unwrap().queue.read(buffer)
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        self.0.lock().unwrap().is_closed = true;
    }
}
