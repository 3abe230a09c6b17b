//! The files of a VM that moves to where they are not: another host with storage of its own, or another datastore.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::DomainName;
use crate::error::Cause;
use crate::order::ascending;
use crate::xml::Disk;

/// What is to be done with the files of a VM.
///
/// Only what lies in the VM's directory moves: disks elsewhere are in datastores that both sides see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storage {
    /// The VM's directory.
    pub(crate) dir: PathBuf,
    /// Disks that the guest writes to: libvirt copies them.
    pub(crate) written: Vec<(Disk, Image)>,
    /// Disks that it only reads.
    pub(crate) readonly: Vec<Disk>,
    /// Links in the directory and what they point to, as it is written there.
    pub(crate) links: Vec<(PathBuf, PathBuf)>,
    /// All other files and directories that OpenNebula and QEMU will look for.
    pub(crate) others: Vec<PathBuf>,
}

/// An image that a guest writes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its format.
    pub(crate) format: String,
    /// How large the guest sees it, in bytes.
    pub(crate) size: u64,
}

impl Storage {
    /// Reads what is in the VM's directory.
    ///
    /// # Errors
    /// A file can't be read; a disk has a format that is not known here, or internal snapshots, which no copy of a running
    /// disk takes along. Nothing was changed.
    ///
    /// # Source
    /// OpenNebula's stock `migrate`, which leaves internal snapshots behind, too, and copies the file over the one that the
    /// guest at the destination has open already.
    pub(crate) fn of(vm: &DomainName, dir: &Path, domain: &str) -> Result<Self, Cause> {
        let disks = Disk::all(domain).map_err(|source| Cause::Xml { what: format!("the live XML of {vm}"), source })?;
        let mut storage = Self { dir: dir.into(), written: vec![], readonly: vec![], links: vec![], others: vec![] };
        for disk in disks {
            let Some(file) = &disk.file else { continue };
            // A link of the directory, or a link in it to a place elsewhere: the image is what counts.
            let path = fs::canonicalize(file).map_err(Cause::file("find", file))?;
            let Some(path) = storage.within(&path)? else { continue };
            if disk.is_readonly {
                storage.readonly.push(disk);
            } else {
                let image = Image::read(vm, &disk, path)?;
                storage.written.push((disk, image));
            }
        }
        storage.read_dir()?;
        Ok(storage)
    }

    /// The path as one below the VM's directory; `None` for one that lies elsewhere.
    fn within(&self, path: &Path) -> Result<Option<PathBuf>, Cause> {
        let dir = fs::canonicalize(&self.dir).map_err(Cause::file("find", &self.dir))?;
        Ok(path.strip_prefix(&dir).ok().map(|rest| self.dir.join(rest)))
    }

    fn read_dir(&mut self) -> Result<(), Cause> {
        let failed = || Cause::file("read", self.dir.clone());
        let paths =
            fs::read_dir(&self.dir).and_then(|entries| entries.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>());
        for path in ascending(paths.map_err(failed())?, PathBuf::cmp) {
            let kind = path.symlink_metadata().map_err(failed())?;
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if kind.is_symlink() {
                let target = fs::read_link(&path).map_err(failed())?;
                self.links.push((path, target));
            } else if name.ends_with(".xml") || name.ends_with("_VARS.fd") || (kind.is_dir() && name.ends_with(".snap"))
            {
                self.others.push(path);
            }
        }
        Ok(())
    }

    /// Everything that is copied while the guest runs, because nobody writes to it.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let readonly = self.readonly.iter().filter_map(|disk| disk.file.clone());
        let top =
            readonly.filter(|file| !file.is_symlink() && file.parent().is_some_and(|dir| is_same(dir, &self.dir)));
        self.others.iter().cloned().chain(top).collect()
    }
}

/// Whether both are one path, however many slashes are in it.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    one.components().eq(other.components())
}

impl Image {
    fn read(vm: &DomainName, disk: &Disk, path: PathBuf) -> Result<Self, Cause> {
        let no_move =
            |why: &str| Cause::NoMove { vm: vm.clone(), how: format!("live: its disk {} {why}", disk.target) };
        let format = disk.format.clone();
        let size = match format.as_str() {
            "raw" => path.metadata().map_err(Cause::file("read", &path))?.len(),
            "qcow2" => {
                let header = Qcow2::read(&path).map_err(Cause::file("read", &path))?;
                if header.snapshots > 0 {
                    return Err(no_move("has snapshots inside of its image, which a copy of it would not have"));
                }
                header.size
            }
            _ => return Err(no_move(&format!("has the format {format}, which is not known here"))),
        };
        Ok(Self { path, format, size })
    }
}

/// What the header of a qcow2 image says.
///
/// # Source
/// QEMU `docs/interop/qcow2.txt`: big-endian; the size is at byte 24, the number of snapshots at byte 60.
struct Qcow2 {
    size: u64,
    snapshots: u32,
}

impl Qcow2 {
    fn read(path: &Path) -> io::Result<Self> {
        let (mut magic, mut head, mut size, mut middle, mut snapshots) = ([0; 4], [0; 20], [0; 8], [0; 28], [0; 4]);
        let mut file = File::open(path)?;
        for part in [&mut magic[..], &mut head, &mut size, &mut middle, &mut snapshots] {
            file.read_exact(part)?;
        }
        if magic != *b"QFI\xfb" {
            return Err(io::Error::other("it is no qcow2 image"));
        }
        Ok(Self { size: u64::from_be_bytes(size), snapshots: u32::from_be_bytes(snapshots) })
    }
}

/// An empty image like another one.
pub(crate) fn make_image(like: &Image, path: &Path) -> Result<(), Cause> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Cause::file("make", dir))?;
    }
    if like.format == "raw" {
        return File::create(path).and_then(|file| file.set_len(like.size)).map_err(Cause::file("make", path));
    }
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", &like.format, "--"]).arg(path).arg(like.size.to_string());
    run(&mut command, path)
}

/// Runs a program that makes files at `path`; what it says when it fails is the reason.
pub(super) fn run(command: &mut Command, path: &Path) -> Result<(), Cause> {
    let failed = Cause::file("make", path);
    match command.stdin(Stdio::null()).output() {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stderr);
            Err(failed(std::io::Error::other(said.lines().map(str::trim).collect::<Vec<_>>().join(" "))))
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn qcow2(size: u64, snapshots: u32) -> Vec<u8> {
        let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
        header.resize(24, 0);
        header.extend(size.to_be_bytes());
        header.resize(60, 0);
        header.extend(snapshots.to_be_bytes());
        header.resize(512, 0);
        header
    }

    fn disk(file: &Path, format: &str, extra: &str) -> String {
        format!(
            "<disk type='file'><driver type='{format}'/><source file='{}'/><target dev='{}'/>{extra}</disk>",
            file.display(),
            file.file_name().unwrap().to_str().unwrap()
        )
    }

    #[test]
    fn what_lies_in_the_vms_directory_moves() {
        let datastores = tempfile::tempdir().unwrap();
        let dir = datastores.path().join("0/42");
        let at = |name: &str| dir.join(name);
        fs::create_dir_all(at("disk.2.snap")).unwrap();
        let elsewhere = datastores.path().join("image");
        fs::write(&elsewhere, "shared").unwrap();
        fs::write(at("disk.0"), "raw image").unwrap();
        fs::write(at("disk.1"), "context").unwrap();
        fs::write(at("disk.2.snap/0"), qcow2(1 << 30, 0)).unwrap();
        symlink("disk.2.snap/0", at("disk.2")).unwrap();
        symlink(&elsewhere, at("disk.3")).unwrap();
        for name in ["vm.xml", "one_VARS.fd", "deployment.0"] {
            fs::write(at(name), "").unwrap();
        }
        let disks = [
            disk(&at("disk.0"), "raw", ""),
            disk(&at("disk.1"), "raw", "<readonly/>"),
            disk(&at("disk.2.snap/0"), "qcow2", ""),
            disk(&elsewhere, "raw", ""),
        ];
        let doubled = PathBuf::from(format!("{}//0/42", datastores.path().display()));
        let domain = format!("<domain><devices>{}</devices></domain>", disks.concat());
        let storage = Storage::of(&"one-42".parse().unwrap(), &doubled, &domain).unwrap();
        let written: Vec<_> =
            storage.written.iter().map(|(disk, image)| (disk.target.as_str(), image.clone())).collect();
        let image = |path: &str, format: &str, size| Image { path: doubled.join(path), format: format.into(), size };
        assert_eq!(written, [("disk.0", image("disk.0", "raw", 9)), ("0", image("disk.2.snap/0", "qcow2", 1 << 30))]);
        assert_eq!(storage.links.len(), 2);
        let files: Vec<_> = storage.files().iter().map(|f| f.file_name().unwrap().to_owned()).collect();
        assert_eq!(files, ["disk.2.snap", "one_VARS.fd", "vm.xml", "disk.1"]);
    }

    #[test]
    fn what_a_copy_would_lose_does_not_move() {
        let dir = tempfile::tempdir().unwrap();
        let vm = "one-42".parse().unwrap();
        let file = dir.path().join("disk.0");
        let refused = |format: &str, bytes: Vec<u8>| {
            fs::write(&file, bytes).unwrap();
            let domain = format!("<domain><devices>{}</devices></domain>", disk(&file, format, ""));
            Storage::of(&vm, dir.path(), &domain).unwrap_err().to_string()
        };
        let error = refused("qcow2", qcow2(1 << 20, 2));
        assert!(error.starts_with("one-42 can't be moved live: its disk disk.0 has snapshots inside"), "{error}");
        let error = refused("vmdk", Vec::new());
        assert!(error.contains("has the format vmdk"), "{error}");
        let error =
            refused("qcow2", b"no image, and not short either, as a header is 64 bytes long at the least".to_vec());
        assert!(error.contains("it is no qcow2 image"), "{error}");
    }
}
