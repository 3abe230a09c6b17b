//! The files of a VM that moves to a place without them: to another host with its own storage, or to another datastore.

use std::fs::{self, File};
use std::io::{self, Read};
use std::iter;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::base::DomainName;
use crate::base::{ascending, program};
use crate::error::Cause;
use crate::sysfs::{BlockDevice, Sysfs};
use crate::xml::{self, Disk, Mention};

/// The beginning of the paths of logical volumes that OpenNebula's transfer drivers create for the disks of a VM. They
/// remove the volumes when the VM's directory leaves the datastore.
///
/// # Source
/// OpenNebula `src/tm_mad/fs_lvm_ssh/{premigrate,postmigrate}`, which read the links `disk.*` in the directory.
pub(crate) const VOLUMES: &str = "/dev/vg-one";

/// The largest number of links that lead to one file.
///
/// # Source
/// path_resolution(7).
const MOST_LINKS: usize = 40;

/// The files of a VM, sorted by what is done with them when the VM moves.
///
/// Only the files in the VM's directory move, and the logical volumes that links in it name. Disks elsewhere are in
/// datastores that both sides see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storage {
    /// The VM's directory.
    pub(crate) dir: PathBuf,
    /// Disks that the guest writes to. libvirt copies them.
    pub(crate) written: Vec<(Disk, DiskImage)>,
    /// Disks on logical volumes.
    pub(crate) volumes: Vec<(Disk, Volume)>,
    /// Disks that the guest only reads, and their paths below the directory.
    pub(crate) readonly: Vec<(Disk, PathBuf)>,
    /// Disks that stay where they are, and the links in the directory by which the domain knows them.
    pub(crate) linked: Vec<(Disk, PathBuf)>,
    /// Links in the directory, and their targets as written.
    pub(crate) links: Vec<(PathBuf, PathBuf)>,
    /// All other files and directories that OpenNebula and QEMU need.
    pub(crate) others: Vec<PathBuf>,
    /// Other paths in the directory that the running domain uses.
    pub(crate) in_use: Vec<Mention>,
}

/// An image that a guest writes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskImage {
    /// Its path.
    pub(crate) path: PathBuf,
    /// Its format.
    pub(crate) format: String,
    /// Its size as the guest sees it, in bytes.
    pub(crate) size: u64,
}

/// A logical volume that a link in the VM's directory names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    /// The link.
    pub(crate) link: PathBuf,
    /// The link's target, such as `/dev/vg-one-0/lv-one-42-0`.
    pub(crate) target: PathBuf,
    /// The device.
    pub(crate) device: BlockDevice,
}

/// Where a path of the domain leads.
enum DiskPlace {
    /// Into the VM's directory: the path below it, without links.
    Within(PathBuf),
    /// To a logical volume that a link in the directory names.
    Volume(Volume),
    /// To another place, by a link in the directory.
    Linked(PathBuf),
    /// To another place.
    Elsewhere,
}

impl Storage {
    /// Reads the VM's directory and the domain's XML. Every disk is copied, or lies elsewhere, or is an error.
    ///
    /// # Errors
    /// A file can't be read; a disk in the directory has a kind or format that can't be copied while it is in use, or
    /// has internal snapshots, which the copy of a running disk loses. Nothing was changed.
    ///
    /// # Source
    /// OpenNebula's stock `migrate` loses internal snapshots as well, and copies the file over the one that the guest
    /// at the destination already has open.
    pub(crate) fn of(vm: &DomainName, dir: &Path, domain: &str, sysfs: &Sysfs) -> Result<Self, Cause> {
        let odd = |source| Cause::Xml { what: format!("the live XML of {vm}"), source };
        let mut storage = Self {
            dir: dir.into(),
            written: vec![],
            volumes: vec![],
            readonly: vec![],
            linked: vec![],
            links: vec![],
            others: vec![],
            in_use: vec![],
        };
        storage.read_dir()?;
        for disk in Disk::all(domain).map_err(odd)? {
            storage.take(vm, disk, sysfs)?;
        }
        let (named, real) = (dir.display().to_string(), storage.real_dir()?.display().to_string());
        for mention in xml::mentions(domain, &[&named, &real]).map_err(odd)? {
            storage.note(mention, sysfs)?;
        }
        Ok(storage)
    }

    fn real_dir(&self) -> Result<PathBuf, Cause> {
        fs::canonicalize(&self.dir).map_err(Cause::file("find", &self.dir))
    }

    /// Adds a disk, sorted by its place.
    fn take(&mut self, vm: &DomainName, disk: Disk, sysfs: &Sysfs) -> Result<(), Cause> {
        let no_move =
            |why: String| Cause::NoMove { vm: vm.clone(), how: format!("live: its disk {} {why}", disk.target) };
        if disk.kind == "volume" {
            return Err(no_move("is a volume of a storage pool, and libvirt does not show where that is".into()));
        }
        let place = disk.path.as_deref().map_or(Ok(DiskPlace::Elsewhere), |path| self.place(path, sysfs))?;
        let is_copied = !disk.is_readonly && matches!(place, DiskPlace::Within(_) | DiskPlace::Volume(_));
        if !is_copied {
            for path in &disk.inner {
                if matches!(self.place(path, sysfs)?, DiskPlace::Within(_) | DiskPlace::Volume(_)) {
                    return Err(no_move(format!("needs {}, which can't be copied with it", path.display())));
                }
            }
        }
        if is_copied && (disk.is_encrypted || disk.is_slice) {
            let what = if disk.is_encrypted { "is encrypted" } else { "is a part of an image" };
            return Err(no_move(format!("{what}, and a copy of it would not be")));
        }
        match place {
            DiskPlace::Elsewhere => {}
            DiskPlace::Linked(link) => self.linked.push((disk, link)),
            DiskPlace::Within(path) if disk.kind != "file" || !path.is_file() => {
                let why = format!("is {}, of the kind {} and no image that could be copied", path.display(), disk.kind);
                return Err(no_move(why));
            }
            DiskPlace::Within(path) if disk.is_readonly => self.readonly.push((disk, path)),
            DiskPlace::Within(path) => {
                let image = DiskImage::read(vm, &disk, path)?;
                self.written.push((disk, image));
            }
            DiskPlace::Volume(volume) if disk.format != "raw" || disk.device == "lun" => {
                let what = if disk.device == "lun" { "a lun" } else { disk.format.as_str() };
                let why = format!(
                    "is {what} on {}, and only raw disks are copied to another device",
                    volume.target.display()
                );
                return Err(no_move(why));
            }
            DiskPlace::Volume(volume) => self.volumes.push((disk, volume)),
        }
        Ok(())
    }

    /// Where a path of the domain leads.
    fn place(&self, path: &Path, sysfs: &Sysfs) -> Result<DiskPlace, Cause> {
        let hops: Vec<PathBuf> = hops(path).collect();
        let real_dir = self.real_dir()?;
        let is_below = |path: &Path| path.starts_with(&self.dir) || path.starts_with(&real_dir);
        let device = hops.iter().find_map(|hop| sysfs.block_device(hop));
        let is_volume = |hops: &[PathBuf]| hops.iter().any(|hop| hop.to_string_lossy().starts_with(VOLUMES));
        if let Some(device) = device {
            let link = self.links.iter().find(|(link, _)| {
                self::hops(link).any(|hop| sysfs.block_device(&hop).is_some_and(|other| other.name == device.name))
            });
            return Ok(match link {
                Some((link, target)) if is_volume(&self::hops(link).collect::<Vec<_>>()) => {
                    DiskPlace::Volume(Volume { link: link.clone(), target: target.clone(), device })
                }
                _ if is_below(path) => DiskPlace::Linked(path.into()),
                _ => DiskPlace::Elsewhere,
            });
        }
        if is_below(path) && is_volume(&hops) {
            let gone = io::Error::other("it leads to no block device of this host");
            return Err(Cause::file("find", path)(gone));
        }
        match fs::canonicalize(path) {
            Ok(real) => Ok(match real.strip_prefix(&real_dir) {
                Ok(rest) => DiskPlace::Within(self.dir.join(rest)),
                Err(_) if is_below(path) => DiskPlace::Linked(path.into()),
                Err(_) => DiskPlace::Elsewhere,
            }),
            Err(error) if is_below(path) => Err(Cause::file("find", path)(error)),
            Err(error) => {
                log::debug!("{}: {error}", path.display());
                Ok(DiskPlace::Elsewhere)
            }
        }
    }

    fn read_dir(&mut self) -> Result<(), Cause> {
        let failed = || Cause::file("read", self.dir.clone());
        let paths =
            fs::read_dir(&self.dir).and_then(|entries| entries.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>());
        for path in ascending(paths.map_err(failed())?, PathBuf::cmp) {
            let kind = path.symlink_metadata().map_err(failed())?;
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_kept = if kind.is_dir() {
                // `tpm` holds the state of the TPM when the VM last ended.
                name.ends_with(".snap") || name == "tpm"
            } else {
                name.ends_with(".xml") || name.ends_with("_VARS.fd")
            };
            if kind.is_symlink() {
                let target = fs::read_link(&path).map_err(failed())?;
                self.links.push((path, target));
            } else if is_kept {
                self.others.push(path);
            }
        }
        Ok(())
    }

    /// Adds a path that is not a disk: files that the domain needs at its start are copied, and all others are in use.
    fn note(&mut self, mention: Mention, sysfs: &Sysfs) -> Result<(), Cause> {
        let path = Path::new(&mention.value);
        if !path.is_absolute() {
            self.in_use.push(mention);
            return Ok(());
        }
        let place = match self.place(path, sysfs) {
            // A socket, or a log that was removed: nothing is lost.
            Err(Cause::File { .. }) => return Ok(()),
            place => place?,
        };
        let is_of_start = matches!(mention.element.as_str(), "kernel" | "initrd" | "dtb" | "loader" | "nvram");
        match place {
            DiskPlace::Within(path) if is_of_start && path.is_file() => {
                if !self.others.contains(&path) {
                    self.others.push(path);
                }
                if mention.element == "nvram" {
                    self.in_use.push(mention);
                }
            }
            DiskPlace::Within(_) | DiskPlace::Volume(_) => self.in_use.push(mention),
            DiskPlace::Linked(_) | DiskPlace::Elsewhere => {}
        }
        Ok(())
    }

    /// The files that are copied while the guest runs, because nobody writes to them. Of a file in a subdirectory, the
    /// whole subdirectory is copied.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for path in self.others.iter().chain(self.readonly.iter().map(|(_, path)| path)) {
            let first = path.strip_prefix(&self.dir).ok().and_then(|rest| rest.components().next());
            let top = first.map_or_else(|| path.clone(), |first| self.dir.join(first));
            if !files.contains(&top) {
                files.push(top);
            }
        }
        files
    }
}

/// A path, its target when it is a link, and so on.
fn hops(path: &Path) -> impl Iterator<Item = PathBuf> {
    let next = |path: &PathBuf| {
        let target = fs::read_link(path).ok()?;
        Some(path.parent().unwrap_or(Path::new("/")).join(target))
    };
    iter::successors(Some(path.to_owned()), next).take(MOST_LINKS)
}

/// Whether two paths are the same, however many slashes are in them.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    one.components().eq(other.components())
}

impl DiskImage {
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

/// The header of a qcow2 image.
///
/// # Source
/// QEMU `docs/interop/qcow2.txt`: big-endian, the size at byte 24, the number of snapshots at byte 60.
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

/// Creates an empty image of the same format and size as another one.
pub(crate) fn make_image(like: &DiskImage, path: &Path) -> Result<(), Cause> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Cause::file("make", dir))?;
    }
    if like.format == "raw" {
        return File::create(path).and_then(|file| file.set_len(like.size)).map_err(Cause::file("make", path));
    }
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", &like.format, "--"]).arg(path).arg(like.size.to_string());
    program::run(&mut command).map_err(Cause::file("make", path))
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
            disk(&at("disk.1"), "raw", "<readonly/>").replace("<disk ", "<disk device='cdrom' "),
            disk(&at("disk.2.snap/0"), "qcow2", ""),
            disk(&elsewhere, "raw", ""),
        ];
        let doubled = PathBuf::from(format!("{}//0/42", datastores.path().display()));
        let domain = format!("<domain><devices>{}</devices></domain>", disks.concat());
        let storage = Storage::of(&"one-42".parse().unwrap(), &doubled, &domain, &Sysfs::default()).unwrap();
        let written: Vec<_> =
            storage.written.iter().map(|(disk, image)| (disk.target.as_str(), image.clone())).collect();
        let image =
            |path: &str, format: &str, size| DiskImage { path: doubled.join(path), format: format.into(), size };
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
            Storage::of(&vm, dir.path(), &domain, &Sysfs::default()).unwrap_err().to_string()
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
