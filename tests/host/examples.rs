//! The examples of the library run, print what their documentation promises, and stay short.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::process::Command;

use kvm_sriov_tests::project;
use kvm_sriov_tests::remotes::target;

/// All examples, by crate.
const EXAMPLES: [(&str, &str); 3] =
    [("kvm-sriov", "list_vfs"), ("kvm-sriov-model", "evacuate"), ("kvm-sriov-model", "device_manager")];

/// What an example prints.
fn output(name: &str) -> String {
    let program = target().join("debug/examples").join(name);
    let done = Command::new(&program).output();
    let done = done.unwrap_or_else(|error| {
        panic!(
            "{}: {error}: run cargo build --locked -p kvm-sriov -p kvm-sriov-model --examples first",
            program.display()
        )
    });
    assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

#[test]
fn each_example_has_fewer_than_40_lines() {
    let mut known = Vec::new();
    for package in ["kvm-sriov", "kvm-sriov-model"] {
        let dir = project().join("crates").join(package).join("examples");
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            assert!(lines < 40, "{} has {lines} lines", path.display());
            known.push((package, path.file_stem().unwrap().to_str().unwrap().to_owned()));
        }
    }
    known.sort();
    let mut listed = EXAMPLES.map(|(package, name)| (package, name.to_owned()));
    listed.sort();
    assert_eq!(known, listed);
}

#[test]
fn vfs_are_listed() {
    let text = output("list_vfs");
    assert_eq!(text, "ib0 0 0000:07:00.1: missing\nib0 1 0000:07:00.2: missing\n");
}

#[test]
fn a_host_is_emptied_as_far_as_the_other_has_room() {
    let text = output("evacuate");
    assert_eq!((count(&text, " runs on host2"), count(&text, " stays: ")), (2, 1), "{text}");
    assert_eq!((count(&text, "is used by"), count(&text, "is free")), (2, 2), "{text}");
}

#[test]
fn a_vf_that_was_detached_comes_back() {
    let text = output("device_manager");
    assert_eq!(count(&text, "vm-1: plug a VF"), 2, "{text}");
    assert_eq!((count(&text, "vm-1 has VF 0000:07:00.1"), count(&text, "vm-2 has VF 0000:07:00.2")), (3, 3), "{text}");
}

#[test]
fn the_document_shows_parts_of_the_examples() {
    let mut examples = String::new();
    for (package, name) in EXAMPLES {
        examples += &fs::read_to_string(
            project().join("crates").join(package).join("examples").join(name).with_extension("rs"),
        )
        .unwrap();
    }
    let text = fs::read_to_string(project().join("docs/howto/embed.md")).unwrap();
    let samples: Vec<&str> = text.split("```rust\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(samples.len() >= 2);
    for sample in samples {
        assert!(examples.contains(sample), "no example has:\n{sample}");
    }
}
