//! `<root>.conf`, beside the map of a root: how VMs get the VFs of the root.

use std::path::Path;

use super::KvmrcError;
use super::kvmrc::assignments::Assignments;
use crate::base::NicMode;

/// How VMs get the VFs of a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RootConf {
    /// MODE.
    pub mode: NicMode,
}

/// The name of the variable.
const MODE: &str = "MODE";

/// The modes of this version.
const MODES: &str = "hostdev or ethernet";

impl RootConf {
    /// Reads the file of a root. It has the form of a kvmrc. A file that does not exist sets nothing.
    ///
    /// Every line counts: a setting of isolation that was misspelt must not be ignored.
    ///
    /// # Errors
    /// The file can't be read, or a line is no setting of a root.
    pub(super) fn load(path: &Path) -> Result<Self, KvmrcError> {
        let mut assigned = Assignments::new(|_| true);
        assigned.read(path);
        let mut conf = Self::default();
        if !assigned.problems.is_empty() {
            return Err(assigned.problems.swap_remove(0));
        }
        for (name, setting) in assigned.values {
            let (path, line) = (setting.path, setting.line);
            if name != MODE {
                return Err(KvmrcError::Unknown { path, line, name, known: MODE });
            }
            conf.mode = match setting.value.parse() {
                Ok(mode @ (NicMode::Hostdev | NicMode::Ethernet)) => mode,
                _ => {
                    let found = setting.value.escape_debug().to_string();
                    return Err(KvmrcError::Value { path, line, variable: MODE, expected: MODES, found });
                }
            };
        }
        Ok(conf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn load(text: &str) -> Result<RootConf, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("eth0.conf");
        fs::write(&path, text).unwrap();
        RootConf::load(&path).map_err(|error| error.to_string().replace(&format!("{}/", dir.path().display()), ""))
    }

    #[test]
    fn a_root_without_a_file_has_the_defaults() {
        assert_eq!(RootConf::load("/does/not/exist.conf".as_ref()).unwrap(), RootConf::default());
        assert_eq!(load("").unwrap().mode, NicMode::Hostdev);
        assert_eq!(load("# a comment\n\nexport MODE='hostdev'\n").unwrap().mode, NicMode::Hostdev);
        assert_eq!(load("MODE=ethernet").unwrap().mode, NicMode::Ethernet);
    }

    #[test]
    fn every_line_counts() {
        for (text, message) in [
            ("MODE=ethernt\n", "eth0.conf, line 1: MODE: expected hostdev or ethernet, found \"ethernt\""),
            ("\nMODE=infiniband\n", "eth0.conf, line 2: MODE: expected hostdev or ethernet, found \"infiniband\""),
            ("MODE=\n", "eth0.conf, line 1: MODE: expected hostdev or ethernet, found \"\""),
            ("MODE=ethernet\nMOD=hostdev\n", "eth0.conf, line 2: MOD is no setting of a root: expected MODE"),
            ("TRUST=yes\n", "eth0.conf, line 1: TRUST is no setting of a root: expected MODE"),
        ] {
            assert_eq!(load(text).unwrap_err(), message);
        }
        for text in ["MODE=$(id)\n", "SOMETHING=`id`\n", "if true; then\n"] {
            let message = load(text).unwrap_err();
            assert!(message.starts_with("eth0.conf, line 1: expected "), "{message}");
        }
        assert!(RootConf::load("/".as_ref()).unwrap_err().to_string().starts_with("cannot read /: "));
    }
}
