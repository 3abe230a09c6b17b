//! The core crate is built in storeys: a module imports only from modules below it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};

use kvm_sriov_tests::project;

/// The modules of the crate from the top down, as the documentation of the crate lists them.
fn storeys() -> Vec<String> {
    let text = fs::read_to_string(source().join("lib.rs")).unwrap();
    let (_, list) = text.split_once("//! # Storeys").unwrap();
    let names = list.lines().filter_map(|line| line.strip_prefix("//! * `")?.split_once('`'));
    names.map(|(name, _)| name.to_owned()).collect()
}

fn source() -> PathBuf {
    project().join("crates/kvm-sriov/src")
}

/// All Rust files of the crate except lib.rs, as paths below `src`.
fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("lib.rs") {
            found.push(path.strip_prefix(source()).unwrap().to_owned());
        }
    }
}

/// The top module of a file.
fn room(file: &Path) -> String {
    file.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The modules that a file names by `crate::`, with the lines. Links in documentation are not imports.
fn imports(text: &str) -> Vec<(usize, String)> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    let named = |(number, line): (usize, &str)| {
        let found = line
            .match_indices("crate::")
            .filter(|(at, _)| !line[..*at].ends_with(|before: char| before.is_alphanumeric() || before == '_'));
        let name = |(at, path): (usize, &str)| {
            let rest = &line[at + path.len()..];
            (number + 1, rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned())
        };
        found.map(name).collect::<Vec<_>>()
    };
    lines.flat_map(named).collect()
}

#[test]
fn the_documentation_lists_every_module() {
    let text = fs::read_to_string(source().join("lib.rs")).unwrap();
    let declared = text.lines().filter_map(|line| line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod "));
    let mut declared: Vec<String> = declared.map(|name| name.trim_end_matches(';').to_owned()).collect();
    let mut listed = storeys();
    declared.sort();
    listed.sort();
    assert_eq!(listed, declared);
}

#[test]
fn no_import_runs_upwards() {
    let storeys = storeys();
    let height = |name: &str| storeys.iter().rev().position(|storey| storey == name);
    let (mut all, mut read, mut wrong) = (Vec::new(), 0, Vec::new());
    files(&source(), &mut all);
    for file in &all {
        let text = fs::read_to_string(source().join(file)).unwrap();
        let own = room(file);
        for (line, name) in imports(&text) {
            read += 1;
            match (height(&own), height(&name)) {
                (Some(here), Some(there)) if there <= here => {}
                (_, None) => wrong.push(format!("{}:{line}: crate::{name} is no module of the list", file.display())),
                _ => wrong.push(format!("{}:{line}: {own} imports {name}, which is above it", file.display())),
            }
        }
        // The check above reads only full paths, so a file must not leave its top module with `super::`.
        let depth = file.components().count() - usize::from(file.ends_with("mod.rs"));
        let climbs = "super::".repeat(depth);
        let is_test = |at: usize| text[..at].contains("#[cfg(test)]");
        if let Some(at) = text.find(&climbs).filter(|at| !is_test(*at)) {
            let line = text[..at].lines().count();
            wrong.push(format!("{}:{line}: {climbs} leaves the module {own}: write crate::", file.display()));
        }
    }
    assert!(all.len() > 80 && read > 300, "{} files, {read} imports", all.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A room that reads a clock, sleeps or starts a thread by itself can't be simulated. `libvirt` is not: a simulation has
/// a test double in its place.
#[test]
fn time_and_threads_come_from_the_room_os() {
    // Each file with the reason why it may. The first words of a line are enough to know the call.
    let known = [
        ("base/span.rs", "measures what really passes"),
        ("claims/recover.rs", "compares with the time of a file, which is real"),
        ("agent/ssh.rs", "ssh is not simulated: a simulation has its own way to other hosts"),
        ("reconcile/pass.rs", "threads that end before the function returns; a simulation has none"),
        ("vm/job.rs", "a thread that ends before the function returns; only for an observed host"),
        ("xml/parse.rs", "a thread with a deep stack, which only computes"),
    ];
    let own = ["Instant::now", "SystemTime::now", "thread::sleep", "thread::Builder", "thread::spawn"];
    let (mut all, mut found, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    files(&source(), &mut all);
    for file in all.iter().filter(|file| !matches!(&*room(file), "libvirt" | "os")) {
        let text = fs::read_to_string(source().join(file)).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        if file.ends_with("tests.rs") || !own.iter().any(|call| code.contains(call)) {
            continue;
        }
        match known.iter().find(|(known, _)| Path::new(known) == file) {
            Some((known, _)) => found.push(*known),
            None => wrong.push(format!("{} has a clock or a thread of its own: use crate::os", file.display())),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(found.len(), known.len(), "a reason whose file has no such call any more; found: {found:?}");
}
