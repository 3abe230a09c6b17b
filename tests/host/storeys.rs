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
