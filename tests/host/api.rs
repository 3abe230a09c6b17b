//! The public API of the published crates, as rustdoc shows it: tests/fixtures/public-api. Every change of the API is a
//! change of these files. Run with KVM_SRIOV_API=write to write them again, and note what has changed in CHANGELOG.md.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::path::Path;
use std::{env, fs};

use kvm_sriov_tests::project;
use kvm_sriov_tests::remotes::target;

/// The text of a piece of rustdoc's HTML, in one line and with one form of spaces.
fn text(html: &str) -> String {
    let mut text = String::new();
    for part in html.replace("</div>", " ").split('<') {
        text.push_str(part.split_once('>').map_or(part, |(_, after)| after));
    }
    for (entity, character) in [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")] {
        text = text.replace(entity, character);
    }
    let line = text.replace('\u{a0}', " ").split_whitespace().collect::<Vec<_>>().join(" ");
    // Versions of rustdoc differ in these.
    let forms = [("( ", "("), (", )", ")"), (", }", " }"), ("(_: ", "("), (", _: ", ", ")];
    forms.into_iter().fold(line, |line, (one, other)| line.replace(one, other))
}

/// The texts between `begin` and `end` in a page.
fn all_between<'a>(page: &'a str, begin: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    page.split(begin).skip(1).filter_map(move |rest| Some(rest.split_once(end)?.0))
}

/// A declaration in lines: one for each field, variant or method.
fn lines_of(declaration: &str) -> Vec<String> {
    let (mut lines, mut line, mut braces, mut others) = (Vec::new(), String::new(), 0, 0);
    for character in declaration.chars() {
        match character {
            '{' => braces += 1,
            '}' => braces -= 1,
            '(' | '[' => others += 1,
            ')' | ']' => others -= 1,
            _ => {}
        }
        line.push(character);
        if braces == 1 && others == 0 && matches!(character, '{' | ',' | ';') {
            lines.push(std::mem::take(&mut line).trim().to_owned());
        }
    }
    // Without the brace at the end, so that a new last line changes no other one.
    let last = if lines.is_empty() { line.trim() } else { line.trim().trim_end_matches('}').trim_end() };
    if !last.is_empty() {
        lines.push(last.to_owned());
    }
    lines
}

/// The public items of a crate: declarations, methods and the traits that are implemented, with the paths of the items.
fn items(name: &str) -> String {
    let docs = target().join("doc").join(name);
    let read = |page: &Path| {
        let text = fs::read_to_string(page);
        text.unwrap_or_else(|error| {
            panic!("{}: {error}: run cargo doc --locked --workspace --no-deps first", page.display())
        })
    };
    let list = read(&docs.join("all.html"));
    let mut found = String::new();
    let pages: BTreeSet<(&str, &str)> = all_between(&list, "<li><a href=\"", "</a>")
        .filter_map(|link| link.split_once("\">"))
        .filter(|(page, _)| page.ends_with(".html"))
        .map(|(page, path)| (path, page))
        .collect();
    assert!(pages.len() > 5, "{name}: {pages:?}");
    for (path, page) in pages {
        let page = read(&docs.join(page));
        let mut add = |line: &str| found += &format!("{name}::{path}: {line}\n");
        let declaration = all_between(&page, "<pre class=\"rust item-decl\"><code>", "</code></pre>").next().unwrap();
        lines_of(&text(declaration)).iter().for_each(|line| add(line));
        // Methods of the item itself; those of traits have one more class.
        for kind in ["method", "associatedconstant"] {
            let own = format!("\" class=\"{kind}\">");
            let mut methods: Vec<String> = all_between(&page, &format!("<section id=\"{kind}."), "</section>")
                .filter(|section| section.split_once('>').is_some_and(|(tag, _)| format!("{tag}>").ends_with(&own)))
                .filter_map(|section| Some(text(section.split_once("<h4 class=\"code-header\">")?.1)))
                .collect();
            methods.sort();
            methods.iter().for_each(|method| add(method));
        }
        // Before the list of what the compiler implements by itself.
        let own = all_between(&page, "<div id=\"trait-implementations-list\">", "<h2 ").next().unwrap_or_default();
        let mut traits: Vec<String> = all_between(own, "<h3 class=\"code-header\">", "</h3>").map(text).collect();
        traits.sort();
        traits.iter().for_each(|line| add(line));
    }
    found
}

#[test]
fn the_public_api_is_the_recorded_one() {
    for (name, file) in [("kvm_sriov", "kvm-sriov.txt"), ("kvm_sriov_model", "kvm-sriov-model.txt")] {
        let file = project().join("tests/fixtures/public-api").join(file);
        let now = items(name);
        if env::var_os("KVM_SRIOV_API").is_some_and(|value| value == "write") {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, &now).unwrap();
            continue;
        }
        let before = fs::read_to_string(&file).unwrap_or_default();
        let only = |mark: char, these: &str, those: &str| -> String {
            let those: BTreeSet<&str> = those.lines().collect();
            these.lines().filter(|line| !those.contains(line)).map(|line| format!("{mark} {line}\n")).collect()
        };
        let changed = only('-', &before, &now) + &only('+', &now, &before);
        assert!(changed.is_empty(), "the public API of {name} has changed ({}):\n{changed}", file.display());
    }
}
