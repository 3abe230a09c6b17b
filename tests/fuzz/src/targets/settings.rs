//! What a site configures, what OpenNebula gives as arguments, names, and what a guest's agent answers.

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use kvm_sriov::actions::fuzz::guest_answer;
use kvm_sriov::config::{Kvmrc, OneVersion, VfMap, variables};
use kvm_sriov::libvirt::MigrationOptions;
use kvm_sriov::opennebula::fuzz::{decoded, nic_of};
use kvm_sriov::opennebula::{network, vm_of_checkpoint};
use kvm_sriov::xml::VmData;
use kvm_sriov::{
    Action, DomainId, DomainName, DomainUuid, DummyMacPrefix, HostName, MacAddress, PciAddress, RootName, SnapshotName,
    VfState,
};
use kvm_sriov_model::host::ModelHost;
use tempfile::TempDir;

use super::{Described, check_message, text};

pub(super) fn targets() -> Vec<Described> {
    vec![
        ("kvmrc", 4, kvmrc),
        ("vf_map", 1, vf_map),
        ("root_conf", 4, root_conf),
        ("version", 4, version),
        ("migrate_options", 1, migrate_options),
        ("names", 1, names),
        ("arguments", 4, arguments),
        ("network", 1, network_input),
        ("guest_answer", 1, guest_answer_of),
    ]
}

/// A directory of this thread, in memory.
fn with_dir<T>(work: impl FnOnce(&Path) -> T) -> T {
    thread_local!(static DIR: TempDir = tempfile::tempdir_in("/dev/shm").unwrap());
    DIR.with(|dir| work(dir.path()))
}

fn kvmrc(input: &[u8]) {
    with_dir(|dir| {
        let path = dir.join("kvmrc");
        fs::write(&path, input).unwrap();
        let kvmrc = Kvmrc::load(std::slice::from_ref(&path));
        for problem in kvmrc.problems().iter().chain(kvmrc.misspelt()) {
            check_message(&problem.to_string());
        }
        kvmrc.warnings().iter().for_each(|warning| check_message(warning));
        let settings = kvmrc.settings();
        for limit in [settings.shutdown_timeout, settings.lock_timeout, settings.call_timeout, settings.unplug_timeout]
        {
            assert!((1..=86_400).contains(&limit.as_secs()), "{limit:?}");
        }
        assert!(settings.state_dir.is_absolute() && kvmrc.vf_maps_path().is_none_or(Path::is_absolute));
        assert!(variables(&path).values().all(|value| !value.is_empty()));
    });
}

fn vf_map(input: &[u8]) {
    let parse = |bytes: &[u8]| VfMap::parse("ib0".parse().unwrap(), Path::new("ib0"), bytes);
    match parse(input) {
        Ok(map) => {
            let lines: String = map.vfs().iter().map(|vf| vf.to_map_line() + "\n").collect();
            assert_eq!(parse(lines.as_bytes()).unwrap(), map);
        }
        Err(error) => check_message(&error.to_string()),
    }
}

/// The settings of a root: what is read means the same when it is written again.
fn root_conf(input: &[u8]) {
    with_dir(|dir| {
        let (map, conf) = (dir.join("ib0"), dir.join("ib0.conf"));
        let load = || VfMap::load("ib0".parse().unwrap(), &map);
        fs::write(&map, "0x07 0x00 0x01\n").unwrap();
        fs::write(&conf, input).unwrap();
        match load() {
            Ok(read) => {
                fs::write(&conf, format!("MODE={}\n", read.mode())).unwrap();
                assert_eq!(load().unwrap(), read);
            }
            Err(error) => check_message(&error.to_string()),
        }
    });
}

/// `VERSION` and, after an empty line, `scripts_common.sh`.
fn version(input: &[u8]) {
    with_dir(|dir| {
        let text = text(input);
        let (version, common) = text.split_once("\n\n").unwrap_or((&text, ""));
        let driver = dir.join("vmm/kvm-sriov");
        fs::create_dir_all(&driver).unwrap();
        fs::write(dir.join("VERSION"), version).unwrap();
        fs::write(dir.join("scripts_common.sh"), common).unwrap();
        let version = OneVersion::detect(&driver);
        let failure = version.failure(&text);
        let lines = failure.strip_suffix('\n').unwrap().matches('\n').count();
        assert!(lines == 0 || (lines == 2 && failure.starts_with("ERROR MESSAGE")), "{failure:?}");
        assert!(version.reads_stdin(Action::Deploy) && version.stock_kvmrc().ends_with("kvmrc"));
        assert!(!version.deploys_by_uuid() || version.absent_is_shut_down(), "{version:?}");
    });
}

fn migrate_options(input: &[u8]) {
    let text = text(input);
    let (mut options, problems) = MigrationOptions::read(&text);
    problems.iter().for_each(|problem| check_message(&problem.to_string()));
    assert_eq!(MigrationOptions::parse(&text).is_ok(), problems.is_empty());
    if let Err(error) = options.check_hand_over() {
        check_message(&error.to_string());
    }
    if let Err(error) = options.add_features(Some(&text), true) {
        check_message(&error.to_string());
    }
}

/// What is read is printed as it was, and read again.
fn read<T: FromStr<Err: Display> + Display + PartialEq>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            let printed = value.to_string();
            assert!(printed.parse::<T>().is_ok_and(|again| again == value), "{text:?} became {printed:?}");
            Some(value)
        }
        Err(error) => {
            check_message(&error.to_string());
            None
        }
    }
}

fn names(input: &[u8]) {
    let text = text(input);
    let is_file = |name: &str| !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..";
    let is_word =
        |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) && !name.starts_with('-');
    assert!(read::<RootName>(&text).is_none_or(|root| is_file(root.as_str()) && is_word(root.as_str())));
    assert!(read::<DomainName>(&text).is_none_or(|name| is_file(name.as_str())));
    assert!(read::<HostName>(&text).is_none_or(|host| is_word(host.as_str())));
    assert!(read::<SnapshotName>(&text).is_none_or(|name| is_file(name.as_str()) && is_word(name.as_str())));
    let uuid = read::<DomainUuid>(&text);
    match read::<DomainId>(&text) {
        Some(DomainId::Uuid(id)) => assert_eq!(uuid, Some(id)),
        Some(DomainId::Id(_) | DomainId::Name(_)) => assert_eq!(uuid, None),
        None => assert!(uuid.is_none() && text.parse::<DomainName>().is_err()),
    }
    read::<MacAddress>(&text);
    read::<DummyMacPrefix>(&text);
    if let Some(vf) = read::<PciAddress>(&text) {
        assert!(vf.slot() <= 0x1f && vf.function() <= 7);
    }
    if let Some(Ok(root)) = RootName::from_bridge(&text) {
        assert_eq!(text, format!("sriov_{root}"));
    }
    assert!(vm_of_checkpoint(Path::new(&text)).is_none_or(|vm| vm.as_str().starts_with("one-")));
}

/// The arguments of `attach_nic`, one a line.
fn arguments(input: &[u8]) {
    let text = text(input);
    let args: Vec<&str> = text.split('\n').collect();
    match nic_of(&args) {
        Ok(nic) => assert_eq!(args[1].parse(), Ok(nic.mac)),
        Err(error) => check_message(&error.to_string()),
    }
}

/// The input of the network driver.
fn network_input(input: &[u8]) {
    let text = text(input);
    if let Some(bytes) = decoded(&text) {
        let digits = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).count();
        assert!(bytes.len() <= digits / 4 * 3 && bytes.len() + 2 >= digits / 4 * 3);
        check_network(&String::from_utf8_lossy(&bytes));
    }
}

/// The first step of the network driver claims nothing.
pub(super) fn check_network(text: &str) {
    thread_local!(static HOST: ModelHost = ModelHost::default());
    let Ok(data) = VmData::parse(text) else { return };
    HOST.with(|model| {
        let host = model.host();
        if let Err(error) = network::pre(&host, &data) {
            check_message(&error.to_string());
        }
        assert!(host.vfs().unwrap().iter().all(|vf| vf.state == VfState::Free));
    });
}

fn guest_answer_of(input: &[u8]) {
    let text = text(input);
    let (pid, ended) = guest_answer(&text);
    assert!((pid.is_none() && ended.is_none()) || text.contains("\"") && text.trim_start().starts_with('{'));
}
