use super::names::used_names;
use super::*;

fn read(texts: &[&str]) -> Kvmrc {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<PathBuf> = texts
        .iter()
        .enumerate()
        .map(|(number, text)| {
            let path = dir.path().join(format!("kvmrc.{number}"));
            std::fs::write(&path, text).unwrap();
            path
        })
        .collect();
    Kvmrc::load(&files)
}

#[test]
fn later_files_win() {
    let kvmrc = read(&["export FORCE_DESTROY=yes\nDUMMY_BRIDGE=a\n", "DUMMY_BRIDGE=\"b\" # mine\n"]);
    assert!(kvmrc.settings().force_destroy);
    assert_eq!(kvmrc.settings().dummy_bridge.as_deref(), Some("b"));
    assert!(kvmrc.problems().is_empty(), "{:?}", kvmrc.problems());
}

#[test]
fn a_wrong_value_is_a_problem_and_the_default_applies() {
    for (text, message) in [
        ("SHUTDOWN_TIMEOUT=abc", "SHUTDOWN_TIMEOUT: expected seconds, from 1 to 86400, found \"abc\""),
        ("SRIOV_LOCK_TIMEOUT=0", "line 1: SRIOV_LOCK_TIMEOUT: "),
        ("DUMMY_MAC_PREFIX=ab\\\n", "line 1: "),
        ("\nDUMMY_MAC_PREFIX=ab", "line 2: DUMMY_MAC_PREFIX: expected two hexadecimal digits"),
        ("VF_STATE_DIR=relative", "VF_STATE_DIR: expected an absolute path"),
        ("DUMMY_BRIDGE='a b'", "DUMMY_BRIDGE: expected the name of a bridge"),
    ] {
        let kvmrc = read(&[text]);
        let error = kvmrc.strict().unwrap_err().to_string();
        assert!(error.contains(message), "{message:?} is not in {error:?}");
    }
    let kvmrc = read(&["SHUTDOWN_TIMEOUT=abc\nVF_STATE_DIR=x\n"]);
    assert_eq!(kvmrc.problems().len(), 2);
    assert_eq!(kvmrc.settings().shutdown_timeout, Duration::from_secs(180));
    assert_eq!(kvmrc.settings().state_dir, Path::new("/tmp/vf_interfaces"));
    assert_eq!(read(&["SHUTDOWN_TIMEOUT="]).settings().shutdown_timeout, Duration::from_secs(120));
}

#[test]
fn an_unreadable_line_that_sets_only_unused_variables_is_a_warning() {
    let kvmrc = read(&["VIRTIOFSD_BINARY_PATH=$(cat /x)\nDUMMY_BRIDGE=a\n"]);
    assert!(kvmrc.problems().is_empty(), "{:?}", kvmrc.problems());
    assert_eq!(kvmrc.warnings().len(), 1);
    assert_eq!(kvmrc.settings().dummy_bridge.as_deref(), Some("a"));
    assert_eq!(read(&["DUMMY_BRIDGE=$X\n"]).problems().len(), 1);
    assert_eq!(read(&["source /etc/other\n"]).problems().len(), 1);
    assert_eq!(read(&["DEFAULT_ATTACH_IO=$X\n"]).problems().len(), 1);
}

#[test]
fn a_switch_is_yes_or_no() {
    for name in ["FORCE_DESTROY", "CANCEL_NO_ACPI", "CLEANUP_MEMORY_ON_START", "CLEANUP_MEMORY_ON_STOP", "SYNC_TIME"] {
        for value in ["yes", "no", "", "\"yes\""] {
            assert!(read(&[&format!("{name}={value}\n")]).problems().is_empty(), "{name}={value}");
        }
        for value in ["YES", "true", "1", "ye", "'yes '"] {
            let error = read(&[&format!("# switches\nexport {name}={value}\n")]).strict().unwrap_err().to_string();
            assert!(error.contains(&format!("kvmrc.0, line 2: {name}: expected yes or no, found \"")), "{error}");
        }
    }
    assert!(!read(&["FORCE_DESTROY=true\n"]).settings().force_destroy, "the default applies");
}

#[test]
fn a_misspelt_name_is_reported_with_the_likely_one() {
    for (written, meant) in [
        ("DUMY_BRIDGE", "DUMMY_BRIDGE"),
        ("DUMMY_BRIGDE", "DUMMY_BRIDGE"),
        ("dummy_mac_prefix", "DUMMY_MAC_PREFIX"),
        ("VF_MAP_PATH", "VF_MAPS_PATH"),
        ("VFSTATE_DIR", "VF_STATE_DIR"),
        ("SRIOV_UNPLUG_TIMEOUTS", "SRIOV_UNPLUG_TIMEOUT"),
        ("DEFAULT_ATTACH_CAHCE", "DEFAULT_ATTACH_CACHE"),
        ("DEFAULT_ATACH_READ_IOPS_SEC_MAX", "DEFAULT_ATTACH_READ_IOPS_SEC_MAX"),
    ] {
        let kvmrc = read(&["LANG=C\n", &format!("\n{written}=a\n")]);
        let [error] = kvmrc.misspelt() else { panic!("{written}: {:?}", kvmrc.misspelt()) };
        let said = format!("kvmrc.1, line 2: {written} sets nothing; is {meant} meant?");
        assert!(error.to_string().ends_with(&said), "{error}");
        assert!(kvmrc.problems().is_empty(), "a misspelt name is not a problem");
    }
    // Variables of OpenNebula and of the driver of 2013.
    for other in [
        "LANG",
        "LIBVIRT_MD_URI",
        "LIBVIRT_MD_KEY",
        "VIRSH_TIMEOUT",
        "VIRSH_TRIES",
        "VIRTIOFSD_BINARY_PATH",
        "HPC_MODE",
        "DRIVER_MODE",
        "CPU_PASSTHROUGH_THRESHOLD",
        "SM_HOST",
        "DATASTORE_PATH",
    ] {
        assert!(read(&[&format!("{other}=a\n")]).misspelt().is_empty(), "{other}");
    }
    for name in used_names() {
        assert!(read(&[&format!("{name}=\n")]).misspelt().is_empty(), "{name}");
    }
}

#[test]
fn defaults_of_disks_have_the_names_of_opennebulas_attributes() {
    let kvmrc = read(&["DEFAULT_ATTACH_CACHE=none\nDEFAULT_ATTACH_IO=\nDEFAULT_ATTACH_READ_IOPS_SEC=\"100\"\n"]);
    let values = ["CACHE", "IO", "READ_IOPS_SEC", "DISCARD"].map(|name| kvmrc.settings().disk_default(name));
    assert_eq!(values, [Some("none"), None, Some("100"), None]);
}

#[test]
fn a_missing_file_sets_nothing_and_an_unreadable_one_is_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Kvmrc::load(&[dir.path().join("none"), "/dev/null/none".into()]).problems().is_empty());
    let kvmrc = Kvmrc::load(&[dir.path().into()]);
    assert!(matches!(kvmrc.problems(), [KvmrcError::Unreadable { .. }]), "{:?}", kvmrc.problems());
}

#[test]
fn the_example_is_read_without_problems() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kvmrc.example");
    let kvmrc = Kvmrc::load(&[example]);
    assert!(kvmrc.problems().is_empty() && kvmrc.warnings().is_empty(), "{kvmrc:?}");
}

#[test]
fn the_hosts_own_file_comes_last() {
    let places = Kvmrc::places(Path::new("/var/tmp/one/vmm/kvm-sriov"));
    let places: Vec<_> = places.iter().map(|p| p.to_str().unwrap()).collect();
    assert_eq!(
        places,
        [
            "/var/tmp/one/etc/vmm/kvm/kvmrc",
            "/var/tmp/one/etc/vmm/kvm-sriov/kvmrc",
            "/var/tmp/one/vmm/kvm-sriov/kvmrc",
            "/etc/kvm-sriov/kvmrc"
        ]
    );
}
