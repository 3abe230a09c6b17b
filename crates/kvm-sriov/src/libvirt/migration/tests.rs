//! The words of virsh, and what libvirt gets.

use super::*;
use proptest::prelude::*;

fn parameters(text: &str) -> (Vec<(&'static str, Value)>, u32) {
    let options = MigrationOptions::parse(text).unwrap();
    let named = options.parameters.iter().map(|(name, value)| (name.to_str().unwrap(), value.clone()));
    (named.collect(), options.flags)
}

fn text(text: &str) -> Value {
    Value::Text(CString::new(text).unwrap())
}

#[test]
fn virshs_words_become_flags_and_parameters() {
    for (words, expected) in [
        ("--live --verbose", vec![]),
        ("  --unsafe\t--auto-converge --auto-converge-initial 20", vec![("auto_converge.initial", Value::Int(20))]),
        ("--bandwidth=100", vec![("bandwidth", Value::Unsigned(100))]),
        ("--bandwidth 18446744073709551615", vec![("bandwidth", Value::Unsigned(u64::MAX))]),
        ("--migrateuri tcp://10.0.0.2", vec![("migrate_uri", text("tcp://10.0.0.2"))]),
        ("--graphicsuri=spice://h:1?tlsPort=2", vec![("graphics_uri", text("spice://h:1?tlsPort=2"))]),
        ("--migrate-disks vda,vdb", vec![("migrate_disks", text("vda")), ("migrate_disks", text("vdb"))]),
        (
            "--compressed --comp-methods mt,xbzrle --comp-mt-level 9 --comp-xbzrle-cache 4096",
            vec![
                ("compression", text("mt")),
                ("compression", text("xbzrle")),
                ("compression.mt.level", Value::Int(9)),
                ("compression.xbzrle.cache", Value::Unsigned(4096)),
            ],
        ),
        ("--parallel --parallel-connections 4", vec![("parallel.connections", Value::Int(4))]),
        ("--tls --tls-destination h2", vec![("tls.destination", text("h2"))]),
        (
            "--listen-address :: --disks-port 49152",
            vec![("listen_address", text("::")), ("disks_port", Value::Int(49152))],
        ),
    ] {
        assert_eq!(parameters(words).0, expected, "{words}");
    }
    let flags = |words| parameters(words).1;
    assert_eq!(flags(""), 0);
    assert_eq!(flags("--unsafe --persistent --undefinesource"), 512 | 8 | 16);
    assert_eq!(flags("--copy-storage-all --copy-storage-synchronous-writes"), 64 | 262_144);
    assert_eq!(flags("--tls --parallel --zerocopy --change-protection"), 65_536 | 131_072 | 1_048_576 | 256);
    assert_eq!(flags("--abort-on-error --rdma-pin-all --compressed --auto-converge"), 4096 | 16_384 | 2048 | 8192);
    let options = MigrationOptions::parse("--timeout 60 --timeout-suspend").unwrap();
    assert_eq!(options.suspend_after(), Some(Duration::from_secs(60)));
}

#[test]
fn what_cannot_be_is_an_error_that_names_the_word() {
    for (words, error) in [
        ("--unsave", "expected an option of virsh migrate, found \"--unsave\""),
        ("--unsafe one-42", "expected an option of virsh migrate, found \"one-42\""),
        ("unsafe", "expected an option of virsh migrate, found \"unsafe\""),
        ("-- --unsafe", "expected an option of virsh migrate, found \"--\""),
        ("--bandwidth", "expected an option with its value, found \"--bandwidth\""),
        ("--bandwidth --unsafe", "expected an option with its value, found \"--bandwidth\""),
        ("--bandwidth fast", "expected a number, found \"--bandwidth fast\""),
        ("--disks-port=-1", "expected a number, found \"--disks-port -1\""),
        ("--timeout 0", "expected seconds, at least 1, found \"--timeout 0\""),
        ("--unsafe=yes", "expected an option without a value, found \"--unsafe yes\""),
        ("--unsafe --unsafe", "expected each option once, found \"--unsafe\""),
        ("--auto-converge-initial 5", "expected --auto-converge beside it, found \"--auto-converge-initial\""),
        ("--zerocopy", "expected --parallel beside it, found \"--zerocopy\""),
        ("--timeout-suspend", "expected --timeout beside it, found \"--timeout-suspend\""),
        ("--copy-storage-all --copy-storage-inc", "expected either --copy-storage-all or --copy-storage-inc"),
        ("--p2p", "expected no option that has libvirtd connect to the destination"),
        ("--p2p --tunnelled", "found \"--p2p\""),
        ("--postcopy --postcopy-resume", "expected no option that only goes on with a move that failed"),
        ("--postcopy-after-precopy", "expected --postcopy beside it, found \"--postcopy-after-precopy\""),
        ("--postcopy --timeout-postcopy", "expected --timeout beside it, found \"--timeout-postcopy\""),
        ("--timeout 5 --timeout-postcopy", "expected --postcopy beside it, found \"--timeout-postcopy\""),
        (
            "--postcopy --timeout 5 --timeout-postcopy --timeout-suspend",
            "expected either --timeout-suspend or --timeout-postcopy",
        ),
        ("--postcopy-bandwidth fast", "expected a number, found \"--postcopy-bandwidth fast\""),
        ("--dname x", "expected no other name for the domain"),
        ("--xml /tmp/x", "expected no XML of one domain"),
        ("--offline --persistent", "expected no option for domains that do not run"),
        ("--suspend", "expected no option that leaves the VM paused"),
    ] {
        let found = MigrationOptions::parse(words).unwrap_err().to_string();
        assert!(found.contains(error), "{words}: {found}");
    }
}

#[test]
fn post_copy_is_virshs_and_not_for_a_vm_with_vfs() {
    let read = |text: &str| MigrationOptions::parse(text).unwrap();
    let options = read("--postcopy --postcopy-after-precopy --postcopy-bandwidth 100");
    assert_eq!((options.flags, options.suspend_after()), (32_768, None));
    assert_eq!(options.parameters, [(c"bandwidth.postcopy", Value::Unsigned(100))]);
    assert_eq!(options.postcopy(), Some(Postcopy { after: None, after_first_pass: true }));
    let error = options.check_hand_over().unwrap_err().to_string();
    assert!(error.contains("no post-copy for a VM with VFs") && error.ends_with("found \"--postcopy\""), "{error}");
    let options = read("--postcopy --timeout 9 --timeout-postcopy");
    let after = Some(Duration::from_secs(9));
    assert_eq!(options.postcopy(), Some(Postcopy { after, after_first_pass: false }));
    assert_eq!((options.suspend_after(), read("--postcopy").postcopy()), (None, None));
    let options = read("--unsafe --timeout 9");
    assert_eq!((options.suspend_after(), options.check_hand_over()), (after, Ok(())));
}

#[test]
fn every_word_that_is_refused_is_told() {
    let (_, problems) = MigrationOptions::read("--unsave --p2p --unsafe --suspend --bandwidth fast x");
    let found: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 5, "{found:?}");
    for (problem, word) in found.iter().zip(["--unsave", "--p2p", "--suspend", "--bandwidth fast", "x"]) {
        assert!(problem.ends_with(&format!("found \"{word}\"")), "{problem}");
    }
}

#[test]
fn features_of_the_vm_win() {
    let mut options = MigrationOptions::parse("--auto-converge --auto-converge-increment=5").unwrap();
    options.add_features(Some("30"), true).unwrap();
    assert_eq!(options.parameters, [(c"auto_converge.initial", Value::Int(30))]);
    assert_eq!(options.flags, 8192 | 2048);
    options.add_features(Some("20,10"), false).unwrap();
    assert_eq!(
        options.parameters,
        [(c"auto_converge.initial", Value::Int(20)), (c"auto_converge.increment", Value::Int(10))]
    );
    options.add_features(Some(""), false).unwrap();
    assert!(options.parameters.is_empty());
    for odd in ["0", "100", "20,", "20,10,5", "fast", ",10"] {
        let before = options.clone();
        assert!(options.add_features(Some(odd), true).is_err(), "{odd}");
        assert_eq!(options, before);
    }
}

#[test]
fn a_move_is_live_and_copies_the_disks_it_names() {
    let options = MigrationOptions::parse("--migrate-disks vda").unwrap();
    let migration = Migration { copied_disks: vec!["vda".into(), "vdb".into()], options, ..Migration::default() };
    let (parameters, flags) = migration.parameters().unwrap();
    assert_eq!(parameters, [(c"migrate_disks", text("vda")), (c"migrate_disks", text("vdb"))]);
    assert_eq!(flags, sys::VIR_MIGRATE_LIVE | sys::VIR_MIGRATE_NON_SHARED_DISK);
    let options = MigrationOptions::parse("--copy-storage-inc").unwrap();
    let migration = Migration { copied_disks: vec!["vda".into()], paused: true, options, ..Migration::default() };
    assert_eq!(
        migration.parameters().unwrap().1,
        sys::VIR_MIGRATE_LIVE | sys::VIR_MIGRATE_NON_SHARED_INC | sys::VIR_MIGRATE_PAUSED
    );
    let migration = Migration { xml: Some("a\0b".into()), ..Migration::default() };
    assert!(migration.parameters().is_err());
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*", percent in "[0-9, \\-a]{0,8}") {
        if let Ok(mut options) = MigrationOptions::parse(&text) {
            drop(options.add_features(Some(&percent), true));
        }
    }

    #[test]
    fn no_mix_of_words_makes_it_panic(
        words in prop::collection::vec(
            prop_oneof![
                "--(bandwidth|timeout|migrate-disks|comp-methods|disks-port|unsafe|p2p|parallel)(=[a-z0-9,\0]{0,4})?",
                "[0-9a-z,=-]{0,6}",
            ],
            0..8,
        ),
    ) {
        let text = words.join(" ");
        if let Err(error) = MigrationOptions::parse(&text) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}
