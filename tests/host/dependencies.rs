//! Every crate that the project is built from: where it comes from, its licence, and known faults of its version. It is
//! what cargo-deny would check, from what cargo itself says.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::process::Command;

use kvm_sriov_tests::project;
use serde_json::Value;

/// Licences under which everybody may use and change a crate, also as a part of something else.
const FREE: [&str; 7] =
    ["Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSL-1.0", "MIT", "Unicode-3.0", "Unlicense"];

/// Crates under the licence of libvirt itself. Whoever gets the programs must be able to build them with another version
/// of these crates: the sources and Cargo.lock are public.
const OF_LIBVIRT: (&str, [&str; 2]) = ("LGPL-2.1", ["virt", "virt-sys"]);

/// Crates of which two versions are built in, each with the reason.
const TWICE: [&str; 0] = [];

/// Crates that open connections, start a runtime of their own, or build C code. None of them has a place here.
const BANNED: [&str; 10] =
    ["tokio", "async-std", "hyper", "reqwest", "openssl-sys", "ring", "cc", "bindgen", "libgit2-sys", "zbus"];

/// Crates that only tests are built with: what needs a banned one is no part of what is shipped.
const FOR_TESTS: [&str; 2] = ["generator", "libfuzzer-sys"];

/// Whether only crates for tests need this one.
fn is_for_tests(name: &str) -> bool {
    let lock = fs::read_to_string(project().join("Cargo.lock")).unwrap();
    let needs = format!("\n \"{name}\",\n");
    let mut needing = lock.split("[[package]]").filter(|entry| entry.contains(&needs));
    needing.all(|entry| FOR_TESTS.iter().any(|known| entry.contains(&format!("\nname = \"{known}\"\n"))))
}

/// The crates that are built for this machine, as cargo reports them. Those for other systems are left out.
fn crates() -> Vec<Value> {
    let host = String::from_utf8(Command::new("rustc").arg("-vV").output().unwrap().stdout).unwrap();
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned();
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", &host]);
    let out = cargo.current_dir(project()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let all: Value = serde_json::from_slice(&out.stdout).unwrap();
    let nodes = all["resolve"]["nodes"].as_array().unwrap();
    let built: BTreeSet<&str> = nodes.iter().map(|node| node["id"].as_str().unwrap()).collect();
    let packages = all["packages"].as_array().unwrap().iter();
    let found: Vec<Value> = packages.filter(|p| built.contains(p["id"].as_str().unwrap())).cloned().collect();
    assert!(found.len() > 40, "{}", found.len());
    found
}

/// Whether one of the licences that a crate may be used under is free; for `AND`, all of them.
fn is_free(expression: &str) -> bool {
    let expression = expression.replace(['(', ')'], "").replace('/', " OR ");
    let is_one = |licence: &str| FREE.contains(&licence.trim());
    expression.split(" AND ").all(|part| part.split(" OR ").any(is_one))
}

#[test]
fn every_licence_is_one_that_may_be_used() {
    assert!(is_free("MIT/Apache-2.0") && is_free("(MIT OR GPL-3.0) AND Unicode-3.0"));
    assert!(!is_free("GPL-3.0") && !is_free("MIT AND GPL-3.0") && !is_free(""));
    let (licence, names) = OF_LIBVIRT;
    for package in crates() {
        let (name, said) = (package["name"].as_str().unwrap(), package["license"].as_str().unwrap_or_default());
        assert!(is_free(said) || (said == licence && names.contains(&name)), "{name}: {said:?}");
    }
}

#[test]
fn every_crate_comes_from_the_registry_in_one_version() {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in crates() {
        let (name, version) = (package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        match package["source"].as_str() {
            Some(source) => assert!(source.starts_with("registry+"), "{name}: {source}"),
            // A crate of the project.
            None => assert!(name.starts_with("kvm-sriov"), "{name}"),
        }
        assert!(!BANNED.contains(&name) || is_for_tests(name), "{name}");
        versions.entry(name.into()).or_default().push(version.into());
    }
    let twice = versions.into_iter().filter(|(_, all)| all.len() > 1).map(|(name, _)| name);
    assert_eq!(twice.collect::<Vec<_>>(), TWICE);
}

#[test]
fn no_crate_has_a_fault_that_is_known_and_mended() {
    let advisories = fs::read_to_string(project().join("tests/fixtures/advisories.txt")).unwrap();
    let number = |version: &str| -> Vec<u64> {
        version.split(['.', '-', '+']).take(3).map(|part| part.parse().unwrap()).collect()
    };
    let lock = fs::read_to_string(project().join("Cargo.lock")).unwrap();
    let mut concerned = 0;
    for line in advisories.lines().filter(|line| !line.starts_with('#')) {
        let [name, id, mended] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        for entry in lock.split("[[package]]").filter(|entry| entry.contains(&format!("\nname = \"{name}\"\n"))) {
            let version = entry.lines().find_map(|line| line.strip_prefix("version = ")).unwrap().trim_matches('"');
            assert!(number(version) >= number(mended), "{name} {version}: {id}, mended in {mended}");
            concerned += 1;
        }
    }
    assert!(concerned >= 10, "the advisories are about other crates: {concerned}");
}
