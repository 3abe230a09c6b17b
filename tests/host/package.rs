//! The packages that `dist/package` makes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use kvm_sriov_tests::project;
use kvm_sriov_tests::remotes::Remotes;

/// The packages, in a temporary directory.
struct Packages(tempfile::TempDir);

impl Packages {
    /// The packages that most tests read. They are made once.
    fn made() -> &'static Self {
        static MADE: OnceLock<Packages> = OnceLock::new();
        MADE.get_or_init(Self::make)
    }

    fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new(project().join("dist/package"))
            .arg(dir.path())
            .env("CARGO_TARGET_DIR", kvm_sriov_tests::remotes::target())
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        Self(dir)
    }

    /// The only file whose name begins and ends with these texts.
    fn file(&self, begin: &str, end: &str) -> PathBuf {
        let found = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(begin) && name.ends_with(end)
        });
        let found: Vec<PathBuf> = found.collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    }
}

/// All files below a directory, with their contents.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn unpacked(program: &str, args: &[&str], package: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    assert!(Command::new(program).args(args).arg(package).arg(dir.path()).status().unwrap().success());
    dir
}

fn field(package: &Path, name: &str) -> String {
    let out = Command::new("dpkg-deb").arg("-f").arg(package).arg(name).output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_front_end_gets_what_the_installer_lays_out() {
    let packages = Packages::made();
    let front_end = packages.file("kvm-sriov_", ".deb");
    let dir = unpacked("dpkg-deb", &["-x"], &front_end);
    let installed = tempfile::tempdir().unwrap();
    assert!(Remotes::run_install(installed.path()).status.success());
    assert_eq!(files(&dir.path().join("var/lib/one/remotes")), files(installed.path()));
    assert_eq!(field(&front_end, "Version"), env!("CARGO_PKG_VERSION"));
    let sample = dir.path().join("usr/share/doc/kvm-sriov/oned.conf");
    assert_eq!(fs::read(sample).unwrap(), fs::read(project().join("dist/opennebula/oned.conf")).unwrap());
    let control = unpacked("dpkg-deb", &["-e"], &front_end);
    let kept = fs::read_to_string(control.path().join("conffiles")).unwrap();
    assert_eq!(kept, "/var/lib/one/remotes/etc/vmm/kvm-sriov/kvmrc\n", "an upgrade keeps the configuration");
}

#[test]
fn a_host_gets_the_command_and_the_rules() {
    let packages = Packages::made();
    let host = packages.file("kvm-sriov-node_", ".deb");
    let files = files(unpacked("dpkg-deb", &["-x"], &host).path());
    let read = |path: &str| &files[Path::new(path)];
    for (installed, source) in [
        ("lib/udev/rules.d/80-kvm-sriov-vfio.rules", "dist/udev/80-kvm-sriov-vfio.rules"),
        ("usr/lib/tmpfiles.d/kvm-sriov.conf", "dist/tmpfiles/kvm-sriov.conf"),
    ] {
        assert_eq!(*read(installed), fs::read(project().join(source)).unwrap(), "{installed}");
    }
    assert!(read("usr/bin/kvm-sriov").starts_with(b"\x7fELF"));
    for installed in ["usr/share/man/man1/kvm-sriov.1.gz", "usr/share/bash-completion/completions/kvm-sriov"] {
        assert!(!read(installed).is_empty(), "{installed}");
    }
    assert!(field(&host, "Depends").contains("libvirt0 (>= 7.0.0)"), "{}", field(&host, "Depends"));
}

/// On most distributions `/lib` is a link. The files are unpacked through it, and no directory changes its mode.
#[test]
fn the_tarball_is_laid_out_by_the_commands_of_the_document() {
    let document = fs::read_to_string(project().join("docs/howto/install.md")).unwrap();
    let commands = document.lines().map(str::trim).filter(|line| line.starts_with("tar "));
    let commands: Vec<&str> = commands.collect();
    assert_eq!(commands.len(), 2, "{commands:?}");
    let packages = Packages::made();
    for (command, installed) in commands
        .iter()
        .zip(["usr/lib/udev/rules.d/80-kvm-sriov-vfio.rules", "var/lib/one/remotes/vmm/kvm-sriov/deploy"])
    {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("usr/lib")).unwrap();
        fs::create_dir_all(root.path().join("var/lib/one")).unwrap();
        symlink("usr/lib", root.path().join("lib")).unwrap();
        let rights = fs::Permissions::from_mode(0o750);
        fs::set_permissions(root.path().join("var/lib/one"), rights.clone()).unwrap();
        let command = command.replace(" -C / ", &format!(" -C {} ", root.path().display()));
        let ran = Command::new("sh").args(["-c", &command]).current_dir(packages.0.path()).status().unwrap();
        assert!(ran.success(), "{command}");
        assert!(root.path().join(installed).is_file(), "{command}");
        assert!(root.path().join("lib").is_symlink(), "{command}");
        let kept = fs::metadata(root.path().join("var/lib/one")).unwrap().permissions();
        assert_eq!(kept.mode() & 0o777, rights.mode(), "{command}");
    }
}

#[test]
fn the_tarball_has_the_files_of_both_and_the_same_input_gives_the_same_bytes() {
    let (first, second) = (Packages::made(), &Packages::make());
    assert_eq!(files(first.0.path()), files(second.0.path()));
    let dir = tempfile::tempdir().unwrap();
    let tarball = first.file("kvm-sriov-", ".tar.gz");
    let unpacked = Command::new("tar").arg("-xzf").arg(&tarball).arg("-C").arg(dir.path()).status().unwrap();
    assert!(unpacked.success());
    let all = files(dir.path());
    for (package, part) in [("kvm-sriov_", "front-end"), ("kvm-sriov-node_", "host")] {
        let deb = files(self::unpacked("dpkg-deb", &["-x"], &first.file(package, ".deb")).path());
        for (path, bytes) in deb {
            let there = all.iter().find(|(found, _)| found.ends_with(Path::new(part).join(&path)));
            assert_eq!(there.map(|(_, bytes)| bytes), Some(&bytes), "{}", path.display());
        }
    }
}

#[test]
fn says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new(project().join("dist/package"))
        .arg(dir.path())
        .env("CARGO_TARGET_DIR", "/nonexistent")
        .output()
        .unwrap();
    let text = String::from_utf8(made.stderr).unwrap();
    assert!(
        !made.status.success() && text.contains("run cargo build --locked --release first; nothing was made"),
        "{text}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
