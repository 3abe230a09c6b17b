//! VF maps: the VFs of each root.
//!
//! A map is a file with the name of its root. Each line is one VF, `0xBUS 0xSLOT 0xFUNC` in hexadecimal, or four fields
//! when the PCI domain is not 0. The number of the line, from 0, is the VF's index: it names the file of the claim,
//! nothing else. Beside it may be `<root>.conf`, the settings of the root.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{KvmrcError, RootConf};
use crate::base::{NicMode, PciAddress, RootName, file};
use crate::sysfs::{NoVf, Sysfs};

/// The size limit of a map, in bytes: enough for more than 4000 VFs.
const LIMIT: u64 = 64 * 1024;

const EXPECTED: &str = "0xBUS 0xSLOT 0xFUNC";

/// The VFs of one root.
///
/// ```
/// use kvm_sriov::config::VfMap;
/// let map = VfMap::parse("ib0".parse()?, "vf_maps/ib0".as_ref(), b"0x07 0x00 0x01\n0x07 0x00 0x02\n")?;
/// assert_eq!(map.index_of("0000:07:00.2".parse()?), Some(1));
/// let error = VfMap::parse("ib0".parse()?, "vf_maps/ib0".as_ref(), b"0x07 0x00\n").unwrap_err();
/// assert_eq!(error.to_string(), "vf_maps/ib0, line 1: expected \"0xBUS 0xSLOT 0xFUNC\", found \"0x07 0x00\"");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfMap {
    root: RootName,
    path: PathBuf,
    vfs: Vec<PciAddress>,
    conf: RootConf,
}

/// The VFs that a map offers on one host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Supply {
    /// The VFs that the host has, in the order of the map. Some may be in use.
    pub vfs: Vec<PciAddress>,
    /// The other addresses of the map, and why they can't be given to a VM.
    pub no_vfs: Vec<(PciAddress, NoVf)>,
}

/// How many addresses that are not VFs one message names.
const NAMED: usize = 8;

/// Addresses that are not VFs, for a message: `0000:07:00.0 (not a VF), 0000:07:00.4 (missing)`.
pub(crate) struct NoVfs<'a>(pub(crate) &'a [(PciAddress, NoVf)]);

impl fmt::Display for NoVfs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (address, why)) in self.0.iter().take(NAMED).enumerate() {
            write!(f, "{}{address} ({why})", if number == 0 { "" } else { ", " })?;
        }
        match self.0.len().checked_sub(NAMED) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, " and {more} more"),
        }
    }
}

/// The addresses of a map that are not VFs, as the end of a message. Empty if there are none.
pub(crate) struct AlsoListed<'a>(pub(crate) &'a [(PciAddress, NoVf)]);

impl fmt::Display for AlsoListed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; its map also lists {}", NoVfs(self.0)) }
    }
}

/// A map that is missing or wrong. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfMapError {
    /// A line is not a VF.
    #[error("{}, line {line}: expected \"{expected}\", found \"{found}\"", path.display())]
    Line {
        /// The map.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The expected form.
        expected: String,
        /// The line, control characters escaped.
        found: String,
    },
    /// A VF is listed twice.
    #[error("{}, line {line}: {vf} is already on line {first}", path.display())]
    Duplicate {
        /// The map.
        path: PathBuf,
        /// The second line with it, from 1.
        line: usize,
        /// The first line with it, from 1.
        first: usize,
        /// The VF.
        vf: PciAddress,
    },
    /// There is no VF in the map.
    #[error("{}: there are no VFs: expected a line \"{EXPECTED}\" for each VF", path.display())]
    Empty {
        /// The map.
        path: PathBuf,
    },
    /// The file is too large to be a map.
    #[error("{}: it is longer than {LIMIT} bytes, so it is not a VF map", path.display())]
    TooLong {
        /// The map.
        path: PathBuf,
    },
    /// The settings of the root are wrong.
    #[error(transparent)]
    Conf(KvmrcError),
    /// The file or its directory can't be read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// The map or directory.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// No directory has a map of this name.
    #[error(
        "there is no VF map {root}: looked in {looked_in}; write one (one line \"{EXPECTED}\" for each VF), or correct the network's bridge sriov_{root}"
    )]
    Missing {
        /// The root.
        root: RootName,
        /// The directories, separated by commas.
        looked_in: String,
    },
}

/// The path of a map that was not read from a file.
const NO_FILE: &str = "(given by the program)";

impl VfMap {
    /// Creates a map without a file. The position of a VF in the list is its index.
    ///
    /// # Errors
    /// The list is empty, or has a VF twice.
    pub fn new(root: RootName, vfs: Vec<PciAddress>) -> Result<Self, VfMapError> {
        let path = PathBuf::from(NO_FILE);
        if vfs.is_empty() {
            return Err(VfMapError::Empty { path });
        }
        let mut map = Self { root, path, vfs: Vec::new(), conf: RootConf::default() };
        vfs.into_iter().try_for_each(|vf| map.add(vf))?;
        Ok(map)
    }

    /// Parses the map of `root`. `path` appears only in errors.
    ///
    /// # Errors
    /// [`VfMapError`] names the line.
    pub fn parse(root: RootName, path: &Path, bytes: &[u8]) -> Result<Self, VfMapError> {
        if bytes.is_empty() {
            return Err(VfMapError::Empty { path: path.into() });
        }
        let mut map = Self { root, path: path.into(), vfs: Vec::new(), conf: RootConf::default() };
        for (index, bytes) in bytes.strip_suffix(b"\n").unwrap_or(bytes).split(|byte| *byte == b'\n').enumerate() {
            let text = String::from_utf8_lossy(bytes);
            let vf = parse_line(&text).map_err(|expected| VfMapError::Line {
                path: path.into(),
                line: index + 1,
                expected,
                found: text.escape_debug().to_string(),
            })?;
            map.add(vf)?;
        }
        Ok(map)
    }

    /// Adds a VF as the next line.
    fn add(&mut self, vf: PciAddress) -> Result<(), VfMapError> {
        if let Some(first) = self.index_of(vf) {
            let (path, line) = (self.path.clone(), self.vfs.len() + 1);
            return Err(VfMapError::Duplicate { path, line, first: first + 1, vf });
        }
        self.vfs.push(vf);
        Ok(())
    }

    /// Reads the map of `root` from a file, and its settings from `<path>.conf`, if that file exists.
    ///
    /// # Errors
    /// [`VfMapError`] names the file, and the line if the file could be read.
    pub fn load(root: RootName, path: &Path) -> Result<Self, VfMapError> {
        let mut bytes = Vec::new();
        file::open(path)
            .and_then(|file| file.take(LIMIT + 1).read_to_end(&mut bytes))
            .map_err(|error| VfMapError::Unreadable { path: path.into(), error })?;
        if bytes.len() as u64 > LIMIT {
            return Err(VfMapError::TooLong { path: path.into() });
        }
        let mut map = Self::parse(root, path, &bytes)?;
        let mut conf = path.as_os_str().to_owned();
        conf.push(".conf");
        map.conf = RootConf::load(Path::new(&conf)).map_err(VfMapError::Conf)?;
        Ok(map)
    }

    /// Sets how VMs get the VFs of this map.
    #[must_use]
    pub fn with_mode(mut self, mode: NicMode) -> Self {
        self.conf.mode = mode;
        self
    }

    /// How VMs get the VFs of this map.
    pub fn mode(&self) -> NicMode {
        self.conf.mode
    }

    /// The root.
    pub fn root(&self) -> &RootName {
        &self.root
    }

    /// The file of the map.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The VFs. The position of a VF in the list is its index.
    pub fn vfs(&self) -> &[PciAddress] {
        &self.vfs
    }

    /// Divides the addresses of the map by what the kernel of the host calls them: VFs, and others.
    pub fn supply(&self, sysfs: &Sysfs) -> Supply {
        let mut supply = Supply::default();
        for vf in &self.vfs {
            match sysfs.check_vf(*vf) {
                Ok(()) => supply.vfs.push(*vf),
                Err(why) => supply.no_vfs.push((*vf, why)),
            }
        }
        supply
    }

    /// The index of a VF, `None` if the map does not list it.
    pub fn index_of(&self, vf: PciAddress) -> Option<usize> {
        self.vfs.iter().position(|listed| *listed == vf)
    }
}

/// How VMs get the VFs of a root; `None` if it is not among these maps.
pub(crate) fn mode_of(maps: &[VfMap], root: &RootName) -> Option<NicMode> {
    maps.iter().find(|map| map.root() == root).map(VfMap::mode)
}

/// Parses a line. The error is the expected form.
fn parse_line(line: &str) -> Result<PciAddress, String> {
    let fields: Vec<&str> = line.split(' ').collect();
    let (domain, rest) = match fields.as_slice() {
        [_, _, _] => ("0x0000", fields.as_slice()),
        [domain, rest @ ..] if rest.len() == 3 => (*domain, rest),
        _ => return Err(EXPECTED.into()),
    };
    let hexadecimal = |field: &&str, most: usize| {
        field
            .strip_prefix("0x")
            .is_some_and(|digits| (1..=most).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    match rest {
        [bus, slot, function] if hexadecimal(&domain, 8) && rest.iter().all(|field| hexadecimal(field, 2)) => {
            PciAddress::from_attributes(domain, bus, slot, function).map_err(|error| error.expected.into())
        }
        _ => Err(EXPECTED.into()),
    }
}

/// The directories with maps. If several have a map of a root, the first one counts.
#[derive(Debug, Clone)]
pub struct MapDirs {
    given: Vec<VfMap>,
    dirs: Vec<PathBuf>,
}

impl MapDirs {
    /// Searches these directories in this order. A directory that does not exist has no maps.
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self { given: Vec::new(), dirs }
    }

    /// Adds a map, which replaces any other of its root.
    #[must_use]
    pub fn with(mut self, map: VfMap) -> Self {
        self.given.retain(|known| known.root() != map.root());
        self.given.push(map);
        self
    }

    /// Adds a directory after the others.
    #[must_use]
    pub fn and(mut self, dir: PathBuf) -> Self {
        self.dirs.push(dir);
        self
    }

    /// The directories.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The map of a root.
    ///
    /// # Errors
    /// [`VfMapError::Missing`] names the directories that were searched; the other errors say what is wrong with the
    /// map.
    pub fn load(&self, root: &RootName) -> Result<VfMap, VfMapError> {
        if let Some(map) = self.given.iter().find(|map| map.root() == root) {
            return Ok(map.clone());
        }
        for dir in &self.dirs {
            let path = dir.join(root.as_str());
            match VfMap::load(root.clone(), &path) {
                Err(VfMapError::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
        }
        let looked_in: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        Err(VfMapError::Missing { root: root.clone(), looked_in: looked_in.join(", ") })
    }

    /// Every root that has a map, sorted. Files whose names are not root names (`*.conf`, `*~`, dot files) are ignored.
    ///
    /// # Errors
    /// [`VfMapError::Unreadable`] for a directory that exists, but can't be read.
    pub fn roots(&self) -> Result<Vec<RootName>, VfMapError> {
        let mut roots: BTreeSet<RootName> = self.given.iter().map(|map| map.root().clone()).collect();
        for dir in &self.dirs {
            let unreadable = |error| VfMapError::Unreadable { path: dir.clone(), error };
            let entries = match fs::read_dir(dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(unreadable(error)),
            };
            for entry in entries {
                let name = entry.map_err(unreadable)?.file_name();
                roots.extend(name.to_str().and_then(|name| name.parse().ok()));
            }
        }
        Ok(roots.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &[u8]) -> Result<VfMap, VfMapError> {
        VfMap::parse("ib0".parse().unwrap(), Path::new("vf_maps/ib0"), text)
    }

    #[test]
    fn every_deviation_names_its_line() {
        for (text, message) in [
            (&b""[..], "vf_maps/ib0: there are no VFs: expected a line \"0xBUS 0xSLOT 0xFUNC\" for each VF"),
            (b"\n", "line 1: expected \"0xBUS 0xSLOT 0xFUNC\", found \"\""),
            (b"0x07 0x00 0x01\n\n", "line 2: expected \"0xBUS 0xSLOT 0xFUNC\", found \"\""),
            (b"0x07 0x00 0x01\n\n0x07 0x00 0x02\n", "line 2: "),
            (b"0x07 0x00 0x01 \n", "line 1: "),
            (b" 0x07 0x00 0x01\n", "line 1: "),
            (b"0x07 0x00 0x01 # comment\n", "line 1: "),
            (b"0x07  0x00 0x01\n", "line 1: "),
            (b"0x07\t0x00 0x01\n", "found \"0x07\\t0x00 0x01\""),
            (b"0x07 0x00 0x01\r\n", "found \"0x07 0x00 0x01\\r\""),
            (b"07 00 01\n", "found \"07 00 01\""),
            (b"0x07 0x20 0x01\n", "expected \"a PCI slot of at most 0x1f\""),
            (b"0x07 0x00 0x08\n", "expected \"a PCI function of at most 7\""),
            (b"0x107 0x00 0x01\n", "line 1: "),
            (b"0x 0x00 0x01\n", "line 1: "),
            (b"0x07 0x00 -1\n", "line 1: "),
            (b"0x07 0x00 0x01\n0x7 0x0 0x1\n", "line 2: 0000:07:00.1 is already on line 1"),
            (b"\xff\xfe\n", "line 1: "),
            (b"0x07 0x00 0x01\0\n", "found \"0x07 0x00 0x01\\0\""),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with("vf_maps/ib0") && error.contains(message), "{message:?} is not in {error:?}");
        }
    }

    #[test]
    fn a_pci_domain_may_precede_and_the_last_newline_may_be_missing() {
        let map = parse(b"0x0001 0x07 0x1f 0x07\n0x07 0x00 0x01").unwrap();
        assert_eq!(map.vfs(), ["0001:07:1f.7".parse().unwrap(), "0000:07:00.1".parse().unwrap()]);
    }

    #[test]
    fn only_vfs_of_the_host_can_be_given_to_a_vm() {
        let dir = tempfile::tempdir().unwrap();
        let devices = dir.path().join("sys/bus/pci/devices");
        for vf in ["0000:07:00.1/physfn", "0000:07:00.3/physfn", "0000:07:00.0"] {
            fs::create_dir_all(devices.join(vf)).unwrap();
        }
        let map = parse(b"0x07 0x00 0x03\n0x07 0x00 0x02\n0x07 0x00 0x00\n0x07 0x00 0x01\n").unwrap();
        let supply = map.supply(&Sysfs::at(dir.path().into()));
        assert_eq!(supply.vfs, ["0000:07:00.3".parse().unwrap(), "0000:07:00.1".parse().unwrap()]);
        assert_eq!(NoVfs(&supply.no_vfs).to_string(), "0000:07:00.2 (missing), 0000:07:00.0 (not a VF)");
        let many: Vec<_> = (0..12).map(|n| (PciAddress::new(0, n, 0, 0).unwrap(), NoVf::Missing)).collect();
        assert!(NoVfs(&many).to_string().ends_with("0000:07:00.0 (missing) and 4 more"));
    }

    #[test]
    fn the_first_directory_with_a_map_counts() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
        fs::create_dir_all(&b).unwrap();
        fs::create_dir_all(&c).unwrap();
        fs::write(b.join("ib0"), "0x07 0x00 0x01\n").unwrap();
        fs::write(c.join("ib0"), "0x08 0x00 0x01\n").unwrap();
        for no_root in ["ib0.conf", "ib0_ofed", "ib0~", ".ib1"] {
            fs::write(c.join(no_root), "x").unwrap();
        }
        let dirs = MapDirs::new(vec![a, b.clone(), c]);
        assert_eq!(dirs.load(&"ib0".parse().unwrap()).unwrap().path(), b.join("ib0"));
        assert_eq!(dirs.roots().unwrap(), ["ib0".parse().unwrap()]);
        let missing = dirs.load(&"ib9".parse().unwrap()).unwrap_err().to_string();
        assert!(missing.contains("no VF map ib9") && missing.contains("/b, "), "{missing}");
        fs::create_dir(b.join("dir")).unwrap();
        assert!(matches!(dirs.load(&"dir".parse().unwrap()), Err(VfMapError::Unreadable { .. })));
    }

    proptest! {
        #[test]
        fn maps_survive_printing(addresses in proptest::collection::btree_set((any::<u32>(), any::<u8>(), 0u8..0x20, 0u8..8), 1..50)) {
            let vfs: Vec<PciAddress> = addresses.into_iter().map(|(d, b, s, f)| PciAddress::new(d, b, s, f).unwrap()).collect();
            let text: String = vfs.iter().map(|vf| vf.to_map_line() + "\n").collect();
            let map = parse(text.as_bytes()).unwrap();
            prop_assert_eq!(map.vfs(), &vfs);
        }

        #[test]
        fn parsing_never_panics(bytes: Vec<u8>) {
            if let Ok(map) = parse(&bytes) {
                prop_assert!(!map.vfs().is_empty());
            }
        }
    }
}
