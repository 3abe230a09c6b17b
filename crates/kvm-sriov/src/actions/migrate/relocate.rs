//! Moves a running VM to another datastore of its host. Its disks are copied while it runs, and it keeps its VFs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::base::Action;
use crate::base::program;
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::libvirt::{DomainRef, Hypervisor};
use crate::vm::storage::{Storage, VOLUMES, Volume, is_same, make_image};
use crate::vm::{self, block_job};
use crate::xml::{self, Disk, LiveDomain, Medium, Mention, ONE_NAMESPACE, VmData};

/// The prefix of OpenNebula's element in a domain.
const ONE_PREFIX: &str = "one";

/// Copies the VM's files to the directory that OpenNebula names, and switches the domain over to them. The old files
/// stay, because OpenNebula deletes them.
///
/// # Errors
/// The VM runs on from its old files, and the new ones are removed. Or the error's state says where each disk is.
///
/// # Source
/// OpenNebula's stock `migrate` (7.2): a block copy of each disk with a pivot, and new media for read-only drives.
pub(super) fn relocate(host: &Host, domain: &DomainRef, data: Option<&VmData>) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(Action::Migrate, cause);
    let relocation = Relocation::plan(host, domain, data).map_err(untouched)?;
    match relocation.copy() {
        Err(cause) => Err(relocation.undo(cause)),
        Ok(()) => relocation.switch(),
    }
}

struct Relocation<'a> {
    host: &'a Host,
    domain: &'a DomainRef,
    storage: Storage,
    /// The new logical volumes, in the order of [`Storage::volumes`].
    volumes: Vec<Volume>,
    to: PathBuf,
    /// Whether this move makes the new directory.
    makes_dir: bool,
}

/// Elements whose files are logs or sockets. QEMU keeps these open, so deleting the file takes away only its name.
const NAMES_ONLY: [&str; 8] = ["serial", "parallel", "console", "channel", "graphics", "redirdev", "smartcard", "rng"];

impl<'a> Relocation<'a> {
    fn plan(host: &'a Host, domain: &'a DomainRef, data: Option<&VmData>) -> Result<Self, Cause> {
        let vm_move = data.map(VmData::vm_move);
        let dirs = vm_move.and_then(|vm_move| vm_move.source_dir.as_deref().zip(vm_move.target_dir.as_deref()));
        let Some((from, to)) = dirs.filter(|(from, to)| !is_same(from, to)) else {
            return Err(Cause::NoMove { vm: domain.name.clone(), how: "to where it is".into() });
        };
        let storage = Storage::of(&domain.name, from, &vm::read_text(host, domain)?, host.sysfs())?;
        let (to, makes_dir) = (to.to_owned(), !to.exists());
        let mut relocation = Self { host, domain, storage, volumes: Vec::new(), to, makes_dir };
        relocation.check_use()?;
        let volumes = relocation.storage.volumes.iter();
        relocation.volumes =
            volumes.map(|(disk, volume)| relocation.moved_volume(disk, volume)).collect::<Result<_, _>>()?;
        relocation.end_earlier()?;
        Ok(relocation)
    }

    /// Refuses a VM that would lose more than a name when its old directory is deleted. Logs what else changes.
    fn check_use(&self) -> Result<(), Cause> {
        let (name, from) = (&self.domain.name, self.storage.dir.display());
        for Mention { element, value } in &self.storage.in_use {
            if element == "nvram" {
                log::warn!(
                    "{name}: UEFI variables that its guest writes from now on stay in {value} until its next start"
                );
            } else if NAMES_ONLY.contains(&element.as_str()) {
                log::warn!("{name}: its {element} stays open at {value}, which goes with the old directory");
            } else {
                let how = format!("live: its {element} ({value}) is in use in {from}, and can't be copied");
                return Err(Cause::NoMove { vm: name.clone(), how });
            }
        }
        let readonly = self.storage.readonly.iter().map(|(disk, _)| disk);
        let readonly =
            readonly.chain(self.storage.volumes.iter().map(|(disk, _)| disk).filter(|disk| disk.is_readonly));
        for disk in readonly {
            // Only a drive can get a new medium, which libvirt takes by its path alone.
            if !disk.is_drive() || disk.is_encrypted || disk.is_slice {
                let why = "is read-only, which libvirt does not copy, and it is no drive whose medium could be changed";
                let how = format!("live: its disk {} {why}", disk.target);
                return Err(Cause::NoMove { vm: name.clone(), how });
            }
        }
        for (disk, link) in &self.storage.linked {
            log::warn!(
                "{name}: its disk {} stays where it is; until its next start the domain knows it by the old link {}",
                disk.target,
                link.display()
            );
        }
        Ok(())
    }

    /// The logical volume that a disk is copied to. OpenNebula's transfer driver has made it, with the old name, in the
    /// volume group of the new datastore.
    ///
    /// # Source
    /// OpenNebula `src/tm_mad/fs_lvm_ssh/premigrate`; its stock `migrate`: `/dev/vg-one-<datastore>/<name>`.
    fn moved_volume(&self, disk: &Disk, volume: &Volume) -> Result<Volume, Cause> {
        let no_move = |why: String| {
            let how =
                format!("live: its disk {} is the logical volume {}, and {why}", disk.target, volume.target.display());
            Err(Cause::NoMove { vm: self.domain.name.clone(), how })
        };
        let mut target = OsString::from(VOLUMES);
        target.push("-");
        target.push(self.to.parent().and_then(Path::file_name).unwrap_or_default());
        let target = PathBuf::from(target).join(volume.target.file_name().unwrap_or_default());
        let Some(device) = self.host.sysfs().block_device(&target) else {
            return no_move(format!("there is no {}, which the datastore's transfer driver makes", target.display()));
        };
        if device.name == volume.device.name {
            return no_move(format!("{} is the same one", target.display()));
        }
        if device.size < volume.device.size {
            let (has, needs) = (device.size, volume.device.size);
            return no_move(format!("{} has {has} bytes instead of {needs}", target.display()));
        }
        // This process copies a read-only volume, so it must be able to open both devices.
        if disk.is_readonly {
            File::open(&volume.device.node).map_err(Cause::file("read", &volume.target))?;
            File::options().write(true).open(&device.node).map_err(Cause::file("write", &target))?;
        }
        Ok(Volume { link: self.moved(&volume.link), target, device })
    }

    /// Ends the copies of an earlier, interrupted move. libvirt would still write them into the files that this move
    /// makes.
    fn end_earlier(&self) -> Result<(), Cause> {
        for (disk, medium) in self.copied() {
            if disk.mirror.as_ref().is_some_and(|mirror| is_same(mirror, &medium.path)) {
                log::info!("{}: ending an earlier copy of its disk {}", self.domain.name, disk.target);
                block_job::end(self.host, self.domain, &disk.target)?;
            }
        }
        Ok(())
    }

    fn hypervisor(&self) -> &dyn Hypervisor {
        self.host.hypervisor()
    }

    /// The path in the new directory of a file in the old one.
    fn moved(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.storage.dir).map_or_else(|_| path.to_owned(), |rest| self.to.join(rest))
    }

    /// The disks that libvirt copies, each with the target of the copy.
    fn copied(&self) -> impl Iterator<Item = (&Disk, Medium)> {
        let files = self.storage.written.iter();
        let files = files.map(|(disk, image)| (disk, Medium { path: self.moved(&image.path), is_block: false }));
        files.chain(self.on_volumes(false))
    }

    /// The drives whose media this process copies, each with its new medium.
    fn media(&self) -> impl Iterator<Item = (&Disk, Medium)> {
        let files = self.storage.readonly.iter();
        let files = files.map(|(disk, path)| (disk, Medium { path: self.moved(path), is_block: false }));
        files.chain(self.on_volumes(true))
    }

    /// The disks on logical volumes, read-only or not, each with its new volume.
    fn on_volumes(&self, readonly: bool) -> impl Iterator<Item = (&Disk, Medium)> {
        let pairs = self.storage.volumes.iter().zip(&self.volumes);
        let pairs = pairs.filter(move |((disk, _), _)| disk.is_readonly == readonly);
        pairs.map(|((disk, _), volume)| (disk, Medium { path: volume.link.clone(), is_block: true }))
    }

    /// Makes the new files, and has libvirt copy every disk until each copy equals its disk.
    fn copy(&self) -> Result<(), Cause> {
        fs::create_dir_all(&self.to).map_err(Cause::file("make", &self.to))?;
        let files = self.storage.files();
        if !files.is_empty() {
            let mut copy = Command::new("cp");
            copy.args(["--archive", "--sparse=auto", "--"]).args(files).arg(&self.to);
            program::run(&mut copy).map_err(Cause::file("make", &self.to))?;
        }
        for (path, target) in &self.storage.links {
            let link = self.moved(path);
            match self.volumes.iter().find(|volume| volume.link == link) {
                Some(volume) => replace_link(&volume.target, &link)?,
                None if !link.is_symlink() => {
                    symlink(target, &link).map_err(Cause::file("make", link))?;
                }
                None => {}
            }
        }
        for ((disk, old), new) in self.storage.volumes.iter().zip(&self.volumes) {
            if disk.is_readonly {
                copy_device(&old.device.node, &new.device.node).map_err(Cause::file("copy", &old.target))?;
            }
        }
        for (_, image) in &self.storage.written {
            make_image(image, &self.moved(&image.path))?;
        }
        for (disk, medium) in self.copied() {
            self.hypervisor()
                .block_copy(self.domain, &disk.target, &disk.copy_into(&medium), false)
                .map_err(|source| self.failed("copy", disk, source))?;
        }
        let targets: Vec<&str> = self.copied().map(|(disk, _)| disk.target.as_str()).collect();
        block_job::wait_until_ready(self.host, self.domain, &targets)
    }

    fn failed(&self, verb: &str, disk: &Disk, source: crate::libvirt::LibvirtError) -> Cause {
        Cause::Call { what: format!("{verb} disk {} of {}", disk.target, self.domain.name), source }
    }

    /// Switches the domain over to the new files. Media come first, because they can be switched back. A disk could be
    /// switched back only by another copy.
    fn switch(&self) -> Result<(), ActionError> {
        for (disk, medium) in self.media() {
            if let Err(cause) = self.change_medium(disk, &medium) {
                return Err(self.undo(cause));
            }
        }
        for (disk, _) in self.copied() {
            let Err(source) = self.hypervisor().finish_block_job(self.domain, &disk.target, true) else { continue };
            let cause = self.failed("switch", disk, source);
            // The call's error does not decide: the live XML tells.
            match self.switched() {
                Ok(there) if there.contains(&disk.target) => log::debug!("the disk is switched nevertheless: {cause}"),
                _ => return Err(self.undo(cause)),
            }
        }
        if let Err(cause) = self.note() {
            log::error!(
                "{cause}; {} still says that its files are in {}",
                self.domain.name,
                self.storage.dir.display()
            );
        }
        self.verify()?;
        log::info!("{} runs from {}", self.domain.name, self.to.display());
        Ok(())
    }

    /// Checks in the live XML that nothing of the old directory is in use, because OpenNebula deletes that directory.
    fn verify(&self) -> Result<(), ActionError> {
        let name = &self.domain.name;
        let still = self.host.patiently(|| {
            let now = vm::read_text(self.host, self.domain)?;
            let now = Storage::of(name, &self.storage.dir, &now, self.host.sysfs())?;
            let written = now.written.into_iter().map(|(disk, _)| disk.target);
            let volumes = now.volumes.into_iter().map(|(disk, _)| disk.target);
            let media = now.readonly.into_iter().map(|(disk, _)| disk.target);
            Ok(written.chain(volumes).chain(media).collect::<Vec<_>>())
        });
        let what = match still {
            Ok(still) if still.is_empty() => return Ok(()),
            // The domain ended by itself. All that its guest has written is in the new files.
            Err(Cause::Absent { .. }) => return Ok(()),
            Ok(still) => format!("it still has {} in {}", still.join(", "), self.storage.dir.display()),
            Err(cause) => format!("what it still has in {} is not known ({cause})", self.storage.dir.display()),
        };
        let both = format!("both {} and {} must stay", self.storage.dir.display(), self.to.display());
        Err(ActionError::new(Action::Migrate, Cause::NotAsAsked { name: name.clone(), what }, HostState::Left(both)))
    }

    /// Gives a drive this medium.
    fn change_medium(&self, disk: &Disk, medium: &Medium) -> Result<(), Cause> {
        let xml = disk
            .with_medium(Some(medium))
            .map_err(|source| Cause::Xml { what: format!("disk {} of {}", disk.target, self.domain.name), source })?;
        let Err(source) = self.hypervisor().change_medium(self.domain, &xml) else { return Ok(()) };
        // The call's error does not decide: the live XML tells.
        let is_in = |live: LiveDomain| {
            let path = live.disk(&disk.target).and_then(|now| now.path.clone());
            path.is_some_and(|path| is_same(&path, &medium.path))
        };
        let there = self.host.patiently(|| vm::read(self.host, self.domain)).map(is_in);
        if there.is_ok_and(|there| there) { Ok(()) } else { Err(self.failed("switch", disk, source)) }
    }

    /// Gives every drive its old medium back.
    fn media_back(&self) -> Result<(), Cause> {
        let live = self.host.patiently(|| vm::read(self.host, self.domain))?;
        for (disk, medium) in self.media() {
            let now = live.disk(&disk.target).and_then(|now| now.path.as_deref());
            if let (true, Some(path)) = (now.is_some_and(|now| is_same(now, &medium.path)), &disk.path) {
                let old = Medium { path: path.clone(), is_block: disk.kind == "block" };
                self.host.patiently(|| self.change_medium(disk, &old))?;
            }
        }
        Ok(())
    }

    /// Writes the new directory into OpenNebula's metadata of the domain. The domain is not defined: OpenNebula's
    /// domains are transient, and a definition would have the devices of the domain's start.
    fn note(&self) -> Result<(), Cause> {
        let Some(element) = self.hypervisor().metadata(self.domain, ONE_NAMESPACE)? else { return Ok(()) };
        let element = xml::with_system_datastore(&element, &self.to)
            .map_err(|source| Cause::Xml { what: format!("OpenNebula's metadata of {}", self.domain.name), source })?;
        Ok(self.hypervisor().set_metadata(self.domain, Some(&element), ONE_PREFIX, ONE_NAMESPACE)?)
    }

    /// The disks that the domain uses in the new directory.
    fn switched(&self) -> Result<Vec<String>, Cause> {
        let live = self.host.patiently(|| vm::read(self.host, self.domain))?;
        let is_there = |(disk, medium): &(&Disk, Medium)| {
            let now = live.disk(&disk.target).and_then(|now| now.path.as_deref());
            now.is_some_and(|path| is_same(path, &medium.path))
        };
        Ok(self.copied().filter(is_there).map(|(disk, _)| disk.target.clone()).collect())
    }

    fn end_copies(&self) -> Result<(), Cause> {
        self.copied().try_for_each(|(disk, _)| block_job::end(self.host, self.domain, &disk.target))
    }

    /// Ends the copies. If the domain uses only its old files, removes the new ones.
    fn undo(&self, cause: Cause) -> ActionError {
        let (name, from, to) = (&self.domain.name, self.storage.dir.display(), self.to.display());
        let left = |cause, text| ActionError::new(Action::Migrate, cause, HostState::Left(text));
        match self.end_copies().and_then(|()| self.switched()) {
            // A disk that is switched stays switched. Then media may be in either directory.
            Ok(there) if there.is_empty() => {
                if let Err(undo) = self.media_back() {
                    let text = format!(
                        "{name} runs on from {from}, but some of its drives have media in {to}; both must stay"
                    );
                    return left(cause.and_undo(undo), text);
                }
            }
            Ok(there) => {
                let there = there.join(", ");
                let text = format!(
                    "{name} runs on with {there} in {to} and its other disks in {from}; both directories must stay"
                );
                return left(cause, text);
            }
            Err(undo) => {
                let text = format!("whether {name} has its disks in {from} or in {to} is not known; both must stay");
                return ActionError::new(Action::Migrate, cause.and_undo(undo), HostState::InDoubt(text));
            }
        }
        if self.makes_dir && self.to.exists() {
            if let Err(error) = fs::remove_dir_all(&self.to) {
                return left(cause, format!("the domain runs on; {to} is left ({error})"));
            }
        }
        ActionError::new(Action::Migrate, cause, HostState::NothingMoved)
    }
}

/// Makes a link. Replaces an existing one.
fn replace_link(target: &Path, link: &Path) -> Result<(), Cause> {
    let made = match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(target, link),
    };
    made.map_err(Cause::file("make", link))
}

/// Copies the content of a device to another device that is at least as large.
fn copy_device(from: &Path, to: &Path) -> io::Result<()> {
    let mut to = File::options().write(true).open(to)?;
    io::copy(&mut File::open(from)?, &mut to)?;
    to.sync_all()
}
