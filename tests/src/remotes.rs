//! OpenNebula's remotes directory with the built driver in it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, fs};

use tempfile::TempDir;

use crate::caller::Version;
use crate::project;
use crate::rig_host::Said;

/// A remotes directory that `shims/install` filled.
pub struct Remotes {
    dir: TempDir,
}

impl Default for Remotes {
    fn default() -> Self {
        Self::install("7.4.0")
    }
}

impl Remotes {
    /// The remotes of this version of OpenNebula, such as "7.4.0".
    pub fn install(version: &str) -> Self {
        let mut numbers = version.split('.').map(|number| number.parse().unwrap());
        Self::of(Version(numbers.next().unwrap(), numbers.next().unwrap()))
    }

    /// The remotes of this version of OpenNebula. Up to 4.2 they have no version file.
    pub fn of(version: Version) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let out = Self::run_install(dir.path());
        assert!(out.status.success(), "shims/install: {}", String::from_utf8_lossy(&out.stderr));
        let remotes = Self { dir };
        remotes.become_those_of(version);
        remotes
    }

    /// Turns them into those of another version, as an upgrade of the front-end does.
    pub fn become_those_of(&self, version: Version) {
        let place = self.dir.path().join("VERSION");
        if version >= Version(4, 4) {
            fs::write(place, format!("{version}.0\n")).unwrap();
        } else if place.exists() {
            fs::remove_file(place).unwrap();
        }
        let [begin, end] = Version::ERROR_BLOCK;
        let block = format!("error_message() {{\n    echo \"{begin}\" 1>&2\n    echo \"{end}\" 1>&2\n}}\n");
        let common =
            if version.has_error_block() { block } else { "error_message() {\n    echo \"$1\" 1>&2\n}\n".into() };
        fs::write(self.dir.path().join("scripts_common.sh"), common).unwrap();
    }

    /// Runs `shims/install` on a directory.
    pub fn run_install(dir: &Path) -> Output {
        Command::new(project().join("shims/install")).arg(dir).env("CARGO_TARGET_DIR", target()).output().unwrap()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// An action of the driver with these arguments and the two that OpenNebula appends.
    pub fn program(&self, action: &str, args: &[&str]) -> Command {
        let mut program = Command::new(self.driver().join(action));
        program.args(args).args(["42", "node1"]);
        program
    }

    /// The driver's directory in it.
    pub fn driver(&self) -> PathBuf {
        self.path().join("vmm/kvm-sriov")
    }
}

/// The steps of a network driver that OpenNebula runs on a host.
pub const HOST_STEPS: [&str; 5] = ["pre", "post", "clean", "update_sg", "update_nic"];

/// The steps that it runs on the front-end.
pub const FRONT_END_STEPS: [&str; 2] = ["vnet_create", "vnet_delete"];

/// The names of all programs and scripts, sorted: the actions, the steps of the network driver as `vnm/sriov/<step>`,
/// and the programs that the driver itself starts.
pub fn programs() -> Vec<String> {
    let sources =
        ["shims/src/programs", "shims/remotes/vnm/sriov"].map(|dir| fs::read_dir(project().join(dir)).unwrap());
    let name = |file: PathBuf| match file.extension() {
        Some(_) => file.file_stem().unwrap().to_str().unwrap().replace("_ceph", ".ceph").replace("vnm_", "vnm/sriov/"),
        None => format!("vnm/sriov/{}", file.file_name().unwrap().to_str().unwrap()),
    };
    let mut names: Vec<String> = sources.into_iter().flatten().map(|file| name(file.unwrap().path())).collect();
    names.sort();
    names
}

/// Runs a program with this standard input.
pub fn run(program: &mut Command, stdin: &str) -> Said {
    let piped = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // A program that does not read its input is no failure.
    drop(child.stdin.take().unwrap().write_all(stdin.as_bytes()));
    child.wait_with_output().unwrap().into()
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| project().join("target"), PathBuf::from)
}
