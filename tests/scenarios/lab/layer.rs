//! The unit tests of the libvirt layer that need root and a libvirtd of their own.

use std::path::PathBuf;
use std::process::Command;

use kvm_sriov_tests::project;
use kvm_sriov_tests::rig_host::{RigHost, Said};

/// The directory of the tests on the host.
const TESTS: &str = "/var/tmp/unit-tests";

/// Builds the library's unit tests. Returns their program.
fn unit_tests() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["test", "--quiet", "-p", "kvm-sriov", "--lib", "--no-run", "--message-format=json"])
        .current_dir(project())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let program = lines.lines().find_map(|line| {
        let artifact: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(artifact["executable"].as_str()?))
    });
    program.unwrap()
}

pub(super) fn the_libvirt_layer_on_a_libvirtd_of_its_own(host: RigHost) {
    host.write_bytes(TESTS, &std::fs::read(unit_tests()).unwrap());
    let listed = host.root(&format!("chmod 755 {TESTS} && {TESTS} --ignored --list ::daemon::")).ok();
    let names: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    // Only one libvirtd of a host can use libvirt's QEMU driver at a time.
    host.kill_libvirtd();
    // Each test runs in a process of its own, because it counts what is left in it.
    let run = |name: &str| host.root(&format!("{TESTS} --ignored --exact {name}"));
    let outcomes: Vec<(&str, Said)> = names.into_iter().map(|name| (name, run(name))).collect();
    host.start_libvirtd();
    host.root(&format!("rm {TESTS}")).ok();
    assert_eq!(outcomes.len(), 4, "{outcomes:?}");
    for (name, said) in outcomes {
        assert!(said.code == 0 && said.out.contains("1 passed"), "{name}: {}{}", said.out, said.err);
    }
}
