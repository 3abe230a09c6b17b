//! `kvm-sriov check`: whether this host is ready for VMs with VFs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kvm_sriov::claims::ClaimStore;
use kvm_sriov::config::Kvmrc;
use kvm_sriov::config::MapDirs;
use kvm_sriov::libvirt::{DomainCalls, Libvirt, MigrationOptions};
use kvm_sriov::sysfs::{NoVf, Sysfs};
use kvm_sriov::{Host, NicMode, PciAddress, become_drivers_user};
use serde::Serialize;

use crate::{CommandError, view};

/// One result of a check.
#[derive(Serialize)]
struct Finding {
    check: &'static str,
    result: Severity,
    text: String,
}

#[derive(Serialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Ok,
    /// It may be intended. A person must judge.
    Warn,
    Fail,
}

impl Finding {
    fn of<E: std::fmt::Display>(check: &'static str, checked: Result<String, E>) -> Self {
        match checked {
            Ok(text) => Self { check, result: Severity::Ok, text },
            Err(error) => Self { check, result: Severity::Fail, text: error.to_string() },
        }
    }
}

pub(crate) fn check(driver: &Path, json: bool, colours: bool, out: &mut impl Write) -> Result<ExitCode, CommandError> {
    let findings = check_all(driver);
    let ready = findings.iter().all(|finding| finding.result != Severity::Fail);
    if json {
        view::json(&findings, out)?;
    } else {
        for finding in &findings {
            let (mark, colour) = match finding.result {
                Severity::Ok => ("ok  ", "32"),
                Severity::Warn => ("warn", "33"),
                Severity::Fail => ("FAIL", "31"),
            };
            let mark = if colours { format!("\x1b[{colour}m{mark}\x1b[0m") } else { mark.to_owned() };
            writeln!(out, "{mark}  {:<8}  {}", finding.check, view::plain(&finding.text))?;
        }
        let result = if ready { "this host is ready for VMs with VFs" } else { "this host is not ready" };
        writeln!(out, "{result}")?;
    }
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check_all(driver: &Path) -> Vec<Finding> {
    let sysfs = Sysfs::default();
    let user = become_drivers_user(driver);
    let is_user = user.is_ok();
    let mut findings = vec![Finding::of("driver", user.map(|()| driver.display().to_string()))];
    let places = Kvmrc::places(driver);
    let kvmrc = Kvmrc::load(&places);
    findings.extend(check_kvmrc(&kvmrc, &places));
    let maps = MapDirs::new(Host::map_dirs(&kvmrc, driver));
    findings.push(Finding::of("dummy", dummy(&kvmrc, &sysfs, needs_dummies(&maps))));
    findings.extend(migrate_options(&kvmrc));
    findings.extend(check_maps(&maps, &sysfs));
    findings.push(vfio(&sysfs));
    findings.push(Finding::of("libvirt", libvirt(&kvmrc)));
    // The state directory must belong to the driver's user, so it can be checked only as that user.
    if is_user {
        findings.push(Finding::of("state", state(&kvmrc)));
    }
    findings
}

/// Every value that can't be read, and every line that is probably a mistake.
fn check_kvmrc(kvmrc: &Kvmrc, places: &[PathBuf]) -> Vec<Finding> {
    let finding = |result, text| Finding { check: "kvmrc", result, text };
    let problems = kvmrc.problems().iter().map(|problem| finding(Severity::Fail, problem.to_string()));
    let misspelt = kvmrc.misspelt().iter().map(|misspelt| finding(Severity::Warn, misspelt.to_string()));
    let warnings =
        kvmrc.warnings().iter().map(|line| finding(Severity::Warn, format!("{line}; this line has no effect")));
    let mut findings: Vec<Finding> = problems.chain(misspelt).chain(warnings).collect();
    if kvmrc.problems().is_empty() {
        findings.insert(0, finding(Severity::Ok, read_files(places)));
    }
    findings
}

fn read_files(places: &[PathBuf]) -> String {
    let read: Vec<String> = places.iter().filter(|p| p.exists()).map(|p| p.display().to_string()).collect();
    if read.is_empty() { "no file found, defaults apply".into() } else { read.join(", ") }
}

/// Every option that a migration would refuse.
fn migrate_options(kvmrc: &Kvmrc) -> Vec<Finding> {
    let text = &kvmrc.settings().migrate_options;
    let (options, problems) = MigrationOptions::read(text);
    let finding = |result, text| Finding { check: "migrate", result, text };
    let wrong = |problem: &dyn std::fmt::Display| format!("MIGRATE_OPTIONS: {problem}");
    if !problems.is_empty() {
        return problems.iter().map(|problem| finding(Severity::Fail, wrong(problem))).collect();
    }
    vec![match options.check_hand_over() {
        Ok(()) if text.is_empty() => finding(Severity::Ok, "no MIGRATE_OPTIONS".into()),
        Ok(()) => finding(Severity::Ok, format!("MIGRATE_OPTIONS {text}")),
        Err(problem) => finding(Severity::Warn, wrong(&problem)),
    }]
}

/// Whether a root needs dummies. One that can't be read may need them.
fn needs_dummies(maps: &MapDirs) -> bool {
    let roots = maps.roots().unwrap_or_default();
    let is_ethernet = |root| maps.load(root).is_ok_and(|map| map.mode() == NicMode::Ethernet);
    roots.is_empty() || !roots.iter().all(is_ethernet)
}

fn dummy(kvmrc: &Kvmrc, sysfs: &Sysfs, is_needed: bool) -> Result<String, String> {
    if !is_needed && kvmrc.settings().dummy_bridge.is_none() {
        return Ok("no root needs dummies".into());
    }
    let bridge = kvmrc
        .settings()
        .dummy_bridge
        .as_deref()
        .ok_or("DUMMY_BRIDGE is not set: name a bridge of this host in kvmrc")?;
    let prefix = kvmrc.settings().dummy_mac_prefix.ok_or("DUMMY_MAC_PREFIX is not set: for example aa")?;
    if sysfs.is_bridge(bridge) {
        Ok(format!("bridge {bridge}, MAC prefix {prefix}"))
    } else {
        Err(format!(
            "DUMMY_BRIDGE {bridge} is not a bridge of this host: create it (ip link add {bridge} type bridge; ip link set {bridge} up)"
        ))
    }
}

fn check_maps(maps: &MapDirs, sysfs: &Sysfs) -> Vec<Finding> {
    let roots = match maps.roots() {
        Ok(roots) => roots,
        Err(error) => return vec![Finding::of("map", Err(error))],
    };
    if roots.is_empty() {
        let dirs: Vec<String> = maps.dirs().iter().map(|dir| dir.display().to_string()).collect();
        let dirs = dirs.join(", ");
        let missing = format!("no VF map in {dirs}: write one (docs/reference/configuration.md, VF maps)");
        return vec![Finding::of("map", Err(missing))];
    }
    let check = |root| {
        let map = maps.load(root).map_err(|error| error.to_string())?;
        let wrong: Vec<String> = map.vfs().iter().filter_map(|vf| wrong_vf(sysfs, *vf, map.mode())).collect();
        let at = format!("{} ({})", root, map.path().display());
        if wrong.is_empty() {
            Ok(format!("{at}: {} VFs in mode {}", map.vfs().len(), map.mode()))
        } else {
            Err(format!("{at}: {}", wrong.join("; ")))
        }
    };
    roots.iter().map(|root| Finding::of("map", check(root))).collect()
}

fn wrong_vf(sysfs: &Sysfs, vf: PciAddress, mode: NicMode) -> Option<String> {
    match sysfs.check_vf(vf) {
        Err(NoVf::Missing) => Some(format!("{vf} is missing: are the VFs created (sriov_numvfs)?")),
        Err(why) => Some(format!("{vf} is {why}")),
        Ok(()) if sysfs.iommu_group(vf).is_none() => Some(format!(
            "{vf} has no IOMMU group: switch on VT-d or AMD-Vi in the firmware, and boot with intel_iommu=on (Intel) or iommu=pt (AMD)"
        )),
        Ok(()) if mode == NicMode::Ethernet && !sysfs.has_network_adapter(vf) => {
            Some(format!("the adapter of {vf} has no network device, which MODE=ethernet needs: is its driver loaded?"))
        }
        Ok(()) => None,
    }
}

/// With `dynamic_ownership = 1` libvirt needs no udev rule. Only root can read that from qemu.conf, so a missing rule
/// is a warning.
fn vfio(sysfs: &Sysfs) -> Finding {
    let (result, text) = if sysfs.has_vfio_rule() {
        (Severity::Ok, "a udev rule sets who may open vfio devices".into())
    } else {
        (Severity::Warn, format!("{}; not needed with dynamic_ownership = 1 in qemu.conf", sysfs.vfio_advice()))
    };
    Finding { check: "vfio", result, text }
}

fn libvirt(kvmrc: &Kvmrc) -> Result<String, kvm_sriov::libvirt::LibvirtError> {
    let libvirt = Libvirt::open(&kvmrc.settings().libvirt_uri, kvmrc.settings().call_timeout)?;
    Ok(format!("{}, {} running domains", kvmrc.settings().libvirt_uri, libvirt.domains()?.len()))
}

fn state(kvmrc: &Kvmrc) -> Result<String, kvm_sriov::claims::ClaimError> {
    let dir = kvmrc.settings().state_dir.display();
    Ok(match ClaimStore::open(&kvmrc.settings().state_dir)? {
        Some(store) => format!("{dir}, {} claims", store.entries()?.len()),
        None => {
            ClaimStore::check_place(&kvmrc.settings().state_dir)?;
            format!("{dir} does not exist yet; the first deploy creates it")
        }
    })
}
