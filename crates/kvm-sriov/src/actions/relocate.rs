//! A running VM goes to another datastore of its host: its disks are copied while it runs, and its VFs stay.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use super::storage::{Image, Storage, is_same, make_image, run};
use crate::error::{ActionError, Cause, HostState};
use crate::host::{Host, POLL};
use crate::libvirt::{DomainRef, Hypervisor};
use crate::vm;
use crate::xml::{self, Disk, ONE, VmData};

/// The prefix of OpenNebula's element in a domain.
const ONE_PREFIX: &str = "one";

/// Moves the VM's files to the directory that OpenNebula wants them in, and the domain with them. The old ones stay: they are
/// OpenNebula's to delete.
///
/// # Errors
/// The VM runs on from the files it had, and what was made of the new ones is gone; or the error's state says which disks are
/// where.
///
/// # Source
/// OpenNebula's stock `migrate` (7.2): a block copy of each disk with a pivot, new media for what is read-only.
pub(super) fn relocate(host: &Host, domain: &DomainRef, data: Option<&VmData>) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched("migrate", cause);
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
    to: PathBuf,
    /// Whether the new directory is to be made here.
    makes_dir: bool,
}

impl<'a> Relocation<'a> {
    fn plan(host: &'a Host, domain: &'a DomainRef, data: Option<&VmData>) -> Result<Self, Cause> {
        let travel = data.map(VmData::travel);
        let dirs = travel.and_then(|travel| travel.source_dir.as_deref().zip(travel.target_dir.as_deref()));
        let Some((from, to)) = dirs.filter(|(from, to)| !is_same(from, to)) else {
            return Err(Cause::NoMove { vm: domain.name.clone(), how: "to where it is".into() });
        };
        let storage = Storage::of(&domain.name, from, &vm::read_text(host, domain)?)?;
        let relocation = Self { host, domain, storage, to: to.into(), makes_dir: !to.exists() };
        relocation.end_earlier()?;
        Ok(relocation)
    }

    /// Ends the copies of an earlier move that died: libvirt still writes them into the files that are about to be made.
    fn end_earlier(&self) -> Result<(), Cause> {
        for (disk, image) in &self.storage.written {
            if disk.mirror.as_ref().is_some_and(|mirror| is_same(mirror, &self.moved(&image.path))) {
                log::info!("{}: an earlier copy of its disk {} is ended", self.domain.name, disk.target);
                self.end_copy(disk)?;
            }
        }
        Ok(())
    }

    fn hypervisor(&self) -> &dyn Hypervisor {
        self.host.hypervisor()
    }

    /// Where a file of the old directory is in the new one.
    fn moved(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.storage.dir).map_or_else(|_| path.to_owned(), |rest| self.to.join(rest))
    }

    /// Makes the new files, and has libvirt copy every disk into its own until all are equal.
    fn copy(&self) -> Result<(), Cause> {
        fs::create_dir_all(&self.to).map_err(Cause::file("make", &self.to))?;
        let files = self.storage.files();
        if !files.is_empty() {
            run(Command::new("cp").args(["--archive", "--sparse=auto", "--"]).args(files).arg(&self.to), &self.to)?;
        }
        for (path, target) in &self.storage.links {
            let link = self.moved(path);
            if !link.is_symlink() {
                std::os::unix::fs::symlink(target, &link).map_err(Cause::file("make", link))?;
            }
        }
        for (_, image) in &self.storage.written {
            make_image(image, &self.moved(&image.path))?;
        }
        for (disk, image) in &self.storage.written {
            let xml = disk.copy_into(&self.moved(&image.path));
            self.hypervisor()
                .block_copy(self.domain, &disk.target, &xml, false)
                .map_err(|source| self.failed("copy", disk, source))?;
        }
        while !self.host.patiently(|| self.are_ready())? {
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn failed(&self, verb: &str, disk: &Disk, source: crate::libvirt::LibvirtError) -> Cause {
        Cause::Call { what: format!("{verb} disk {} of {}", disk.target, self.domain.name), source }
    }

    /// Whether every copy is equal to its disk; no event tells that.
    fn are_ready(&self) -> Result<bool, Cause> {
        for (disk, _) in &self.storage.written {
            match self.hypervisor().block_job(self.domain, &disk.target)? {
                Some(job) if job.is_ready() => {}
                Some(_) => return Ok(false),
                None => {
                    let what = format!("the copy of its disk {} has ended early (is the datastore full?)", disk.target);
                    return Err(Cause::NotAsAsked { name: self.domain.name.clone(), what });
                }
            }
        }
        Ok(true)
    }

    /// The domain goes on from the new files. What is switched can't be switched back without another copy.
    fn switch(&self) -> Result<(), ActionError> {
        for (disk, _) in &self.storage.written {
            let Err(source) = self.hypervisor().finish_block_job(self.domain, &disk.target, true) else { continue };
            let cause = self.failed("switch", disk, source);
            // Whatever the call said: only the live XML tells.
            match self.switched() {
                Ok(there) if there.contains(&disk.target) => log::debug!("it is switched all the same: {cause}"),
                _ => return Err(self.undo(cause)),
            }
        }
        for disk in &self.storage.readonly {
            if let Err(cause) = self.change_medium(disk) {
                log::error!("{cause}; {} still has it in {}", self.domain.name, self.storage.dir.display());
            }
        }
        if let Err(cause) = self.note() {
            log::error!(
                "{cause}; {} still says that its files are in {}",
                self.domain.name,
                self.storage.dir.display()
            );
        }
        log::info!("{} runs from {}", self.domain.name, self.to.display());
        Ok(())
    }

    fn change_medium(&self, disk: &Disk) -> Result<(), Cause> {
        let Some(file) = &disk.file else { return Ok(()) };
        let xml = disk
            .with_file(&self.moved(file))
            .map_err(|source| Cause::Xml { what: format!("disk {} of {}", disk.target, self.domain.name), source })?;
        self.hypervisor().change_medium(self.domain, &xml).map_err(|source| self.failed("switch", disk, source))
    }

    /// Tells in the domain where its files are. Never by defining it: OpenNebula's domains are transient, and a definition
    /// would have the devices of its start.
    fn note(&self) -> Result<(), Cause> {
        let Some(element) = self.hypervisor().metadata(self.domain, ONE)? else { return Ok(()) };
        let element = xml::with_system_datastore(&element, &self.to)
            .map_err(|source| Cause::Xml { what: format!("OpenNebula's metadata of {}", self.domain.name), source })?;
        Ok(self.hypervisor().set_metadata(self.domain, Some(&element), ONE_PREFIX, ONE)?)
    }

    /// The disks that the domain has in the new directory.
    fn switched(&self) -> Result<Vec<String>, Cause> {
        let live = self.host.patiently(|| vm::read(self.host, self.domain))?;
        let is_there = |(disk, image): &&(Disk, Image)| {
            let now = live.disks.iter().find(|now| now.target == disk.target).and_then(|now| now.file.as_ref());
            now.is_some_and(|file| is_same(file, &self.moved(&image.path)))
        };
        Ok(self.storage.written.iter().filter(is_there).map(|(disk, _)| disk.target.clone()).collect())
    }

    fn end_copies(&self) -> Result<(), Cause> {
        self.storage.written.iter().try_for_each(|(disk, _)| self.end_copy(disk))
    }

    /// Ends the copy of a disk, if there is one. When this returns there is none.
    fn end_copy(&self, disk: &Disk) -> Result<(), Cause> {
        let runs = || Ok::<_, Cause>(self.hypervisor().block_job(self.domain, &disk.target)?.is_some());
        self.host.patiently(|| {
            if !runs()? {
                return Ok(());
            }
            match self.hypervisor().finish_block_job(self.domain, &disk.target, false) {
                // It may have ended by itself just now.
                Err(source) if runs()? => Err(self.failed("end the copy of", disk, source)),
                _ => Ok(()),
            }
        })
    }

    /// The domain runs on from the files that it had, as far as that can be seen; then the new ones go.
    fn undo(&self, cause: Cause) -> ActionError {
        let (name, from, to) = (&self.domain.name, self.storage.dir.display(), self.to.display());
        let left = |cause, text| ActionError::new("migrate", cause, HostState::Left(text));
        match self.end_copies().and_then(|()| self.switched()) {
            Ok(there) if there.is_empty() => {}
            Ok(there) => {
                let there = there.join(", ");
                let text = format!(
                    "{name} runs on with {there} in {to} and its other disks in {from}; both directories must stay"
                );
                return left(cause, text);
            }
            Err(undo) => {
                let text = format!("whether {name} has its disks in {from} or in {to} is not known; both must stay");
                return left(Cause::Twice { cause: Box::new(cause), undo: Box::new(undo) }, text);
            }
        }
        if self.makes_dir && self.to.exists() {
            if let Err(error) = fs::remove_dir_all(&self.to) {
                return left(cause, format!("the domain runs on; {to} is left ({error})"));
            }
        }
        ActionError::new("migrate", cause, HostState::NothingMoved)
    }
}
