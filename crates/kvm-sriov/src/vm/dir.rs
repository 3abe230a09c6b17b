//! The VM's directory on the host: the deployment file, and what OpenNebula keeps beside it.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::base::SnapshotName;
use crate::base::{ascending, program};
use crate::error::Cause;
use crate::libvirt::{DomainRef, Hypervisor};
use crate::xml::{self, LiveDomain, Nvram, VmData};

/// The first bytes of a qcow2 image.
const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";

/// The directory of a VM below a system datastore.
#[derive(Debug, Clone)]
pub(crate) struct VmDir {
    path: PathBuf,
}

impl VmDir {
    /// The directory of a deployment file. Creates the directory when it is missing.
    pub(crate) fn of(deployment: &Path) -> Result<Self, Cause> {
        let path = deployment.parent().unwrap_or(Path::new(".")).to_owned();
        fs::create_dir_all(&path).map_err(|source| Cause::File { verb: "make", path: path.clone(), source })?;
        Ok(Self { path })
    }

    /// The directory that OpenNebula wrote into the domain (5.8 and later).
    pub(crate) fn of_domain(live: &LiveDomain) -> Option<Self> {
        live.vm_dir.clone().map(|path| Self { path })
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// OpenNebula's description of the VM (6.0 and later).
    pub(crate) fn vm_xml(&self) -> PathBuf {
        self.path.join("vm.xml")
    }

    /// OpenNebula's description of the VM; `None` when it is missing or can't be read. Only a VF in mode ethernet
    /// needs what only this file has: its VLAN.
    pub(crate) fn vm_data(&self) -> Option<VmData> {
        let path = self.vm_xml();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                log::warn!("cannot read {}: {error}; VLANs and NIC ids stay unknown", path.display());
                return None;
            }
        };
        VmData::parse(&text)
            .inspect_err(|error| log::warn!("{}: {error}; VLANs and NIC ids stay unknown", path.display()))
            .ok()
    }

    /// Unpacks the TPM state of the VM's template, unless the VM has a TPM state already, which holds the guest's
    /// secrets. The state gets its name only when it is complete.
    pub(crate) fn provide_tpm(&self) -> Result<(), Cause> {
        let (tpm, vm_xml) = (self.path.join("tpm"), self.vm_xml());
        if tpm.exists() || !vm_xml.exists() {
            return Ok(());
        }
        let text = fs::read_to_string(&vm_xml).map_err(Cause::file("read", &vm_xml))?;
        let state =
            xml::tpm_state(&text).map_err(|source| Cause::Xml { what: vm_xml.display().to_string(), source })?;
        let Some(state) = state else { return Ok(()) };
        let odd = || Cause::file("unpack", &tpm)(io::Error::other("TPM_STATE is not base64"));
        let archive = crate::base::base64(&state).ok_or_else(odd)?;
        let unfinished = tempfile::tempdir_in(&self.path).map_err(Cause::file("make", &tpm))?;
        unpack(&archive, unfinished.path()).map_err(Cause::file("unpack", &tpm))?;
        // The archive may contain the directory, or only its files.
        let inner = unfinished.path().join("tpm");
        let complete = if inner.is_dir() { inner } else { unfinished.path().to_owned() };
        fs::rename(complete, &tpm).map_err(Cause::file("make", &tpm))
    }

    /// Gives a domain the snapshots that the VM had before it was powered off. A snapshot that libvirt refuses is
    /// logged: the domain runs, and OpenNebula still lists the snapshot.
    pub(crate) fn redefine_snapshots(&self, hypervisor: &dyn Hypervisor, domain: &DomainRef) {
        for file in self.snapshot_files() {
            let defined = fs::read_to_string(&file)
                .map_err(|source| Cause::File { verb: "read", path: file.clone(), source })
                .and_then(|text: String| {
                    xml::snapshot_of(&text, &domain.uuid)
                        .map_err(|source| Cause::Xml { what: file.display().to_string(), source })
                })
                .and_then(|text| Ok(hypervisor.redefine_snapshot(domain, &text, false)?));
            if let Err(cause) = defined {
                log::warn!("snapshot {} of {} is not known to libvirt: {cause}", file.display(), domain.name);
            }
        }
    }

    /// Makes a snapshot of the VM known to libvirt again. A migration that was killed has removed the snapshot from
    /// libvirt; the disks still have it.
    ///
    /// * returns whether libvirt may know more snapshots than before
    pub(crate) fn recall_snapshot(&self, hypervisor: &dyn Hypervisor, domain: &DomainRef, name: &SnapshotName) -> bool {
        let is_kept = self.snapshot_file(name).exists();
        if is_kept {
            self.redefine_snapshots(hypervisor, domain);
        }
        is_kept
    }

    /// Keeps the XML of a snapshot, so that the VM has the snapshot again after it was powered off. The XML holds
    /// passwords, so no other user may read the file.
    pub(crate) fn keep_snapshot(
        &self,
        hypervisor: &dyn Hypervisor,
        domain: &DomainRef,
        name: &SnapshotName,
    ) -> Result<(), Cause> {
        let text = hypervisor.snapshot_xml(domain, name.as_str())?;
        let path = self.snapshot_file(name);
        let file = tempfile::NamedTempFile::new_in(&self.path).map_err(Cause::file("write", &path))?;
        fs::write(file.path(), text).map_err(Cause::file("write", &path))?;
        file.persist(&path).map_err(|error| Cause::file("write", &path)(error.error))?;
        Ok(())
    }

    /// Removes the XML of a snapshot that was deleted.
    pub(crate) fn forget_snapshot(&self, name: &SnapshotName) -> Result<(), Cause> {
        let path = self.snapshot_file(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Cause::file("remove", path)(error)),
            _ => Ok(()),
        }
    }

    fn snapshot_file(&self, name: &SnapshotName) -> PathBuf {
        self.path.join(format!("{name}.xml"))
    }

    /// The files `snap-<n>.xml` in the order of their numbers, because libvirt takes a parent before its child.
    fn snapshot_files(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Vec::new() };
        let files: Vec<(u64, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let number = name.to_str()?.strip_prefix("snap-")?.strip_suffix(".xml")?.parse().ok()?;
                Some((number, entry.path()))
            })
            .collect();
        ascending(files, Ord::cmp).into_iter().map(|(_, path)| path).collect()
    }
}

/// Writes a deployment file.
pub(crate) fn store(path: &Path, text: &str) -> Result<(), Cause> {
    fs::write(path, text).map_err(|source| Cause::File { verb: "write", path: path.to_owned(), source })
}

/// The disks that are links, each with its target. libvirt must lock and label the image, not the link.
pub(crate) fn linked_disks(disks: Vec<PathBuf>) -> Vec<(PathBuf, PathBuf)> {
    disks
        .into_iter()
        .filter_map(|disk| {
            let target = fs::read_link(&disk).ok()?;
            let target = disk.parent().unwrap_or(Path::new("/")).join(target);
            target.exists().then_some((disk, target))
        })
        .collect()
}

/// Gives a UEFI VM its variables from the template, unless it has them: they hold what the guest wrote. When the
/// template can't be read, libvirt makes the variables from the template of the VM's loader. Newer OVMF packages only
/// have templates for images of 4 MiB.
///
/// # Source
/// libvirt `src/qemu/qemu_process.c`, qemuPrepareNVRAM: missing variables are made from the template that `nvram` of
/// qemu.conf or a firmware descriptor names for the loader. Without a template libvirt refuses the domain. OpenNebula's
/// stock `deploy` goes on as well.
pub(crate) fn provide_nvram(nvram: &Nvram, template: &Path) -> Result<(), Cause> {
    if nvram.path.exists() {
        return Ok(());
    }
    let failed = |verb, path: &Path| {
        let path = path.to_owned();
        move |source| Cause::File { verb, path, source }
    };
    if let Some(dir) = nvram.path.parent() {
        fs::create_dir_all(dir).map_err(failed("make", dir))?;
    }
    let found = match image_format(template) {
        Ok(found) => found,
        Err(error) => {
            log::warn!(
                "cannot read OVMF_NVRAM ({}): {error}; libvirt takes the template that belongs to the loader",
                template.display()
            );
            return Ok(());
        }
    };
    // The variables get their name only when they are complete.
    let unfinished = nvram.path.with_extension("kvm-sriov-new");
    if found == nvram.format {
        fs::copy(template, &unfinished).map_err(failed("write", &unfinished))?;
    } else {
        convert(template, found, &unfinished, &nvram.format)
            .map_err(failed("convert the UEFI variables to", &unfinished))?;
    }
    fs::rename(&unfinished, &nvram.path).map_err(failed("write", &nvram.path))
}

/// Unpacks a compressed archive. tar refuses paths outside the directory.
fn unpack(archive: &[u8], dir: &Path) -> io::Result<()> {
    let mut child = Command::new("tar")
        .args(["-xzf", "-", "--no-same-owner", "-C"])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let written = child.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(archive));
    program::check(&child.wait_with_output()?)?;
    written
}

fn image_format(path: &Path) -> io::Result<&'static str> {
    let mut magic = Vec::new();
    fs::File::open(path)?.take(QCOW2_MAGIC.len() as u64).read_to_end(&mut magic)?;
    Ok(if magic == QCOW2_MAGIC { "qcow2" } else { "raw" })
}

fn convert(from: &Path, format: &str, to: &Path, wanted: &str) -> io::Result<()> {
    program::run(Command::new("qemu-img").args(["convert", "-f", format, "-O", wanted]).args([from, to]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linked_disk_is_replaced_by_what_it_points_to() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("image"), "").unwrap();
        std::os::unix::fs::symlink("image", at("disk.0")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("disk.1")).unwrap();
        fs::write(at("disk.2"), "").unwrap();
        let disks = linked_disks(vec![at("disk.0"), at("disk.1"), at("disk.2"), at("disk.3")]);
        assert_eq!(disks, vec![(at("disk.0"), at("image"))]);
    }

    #[test]
    fn uefi_variables_are_copied_once() {
        let dir = tempfile::tempdir().unwrap();
        let template = dir.path().join("VARS.fd");
        let nvram = Nvram { path: dir.path().join("vm/one_VARS.fd"), format: "raw".into() };
        fs::write(&template, "new").unwrap();
        provide_nvram(&nvram, &template).unwrap();
        fs::write(&template, "newer").unwrap();
        provide_nvram(&nvram, &template).unwrap();
        assert_eq!(fs::read_to_string(&nvram.path).unwrap(), "new");
        // Made by libvirt.
        let absent = Nvram { path: dir.path().join("new/VARS.fd"), format: "qcow2".into() };
        provide_nvram(&absent, Path::new("/nonexistent/VARS.fd")).unwrap();
        assert!(!absent.path.exists() && dir.path().join("new").is_dir());
    }

    #[test]
    fn a_tpm_that_the_template_brings_is_unpacked_once() {
        // tar -cz tpm, with "sealed" in tpm/tpm2-00.permall
        let state = include_str!("../../tests/fixtures/tpm_state.base64");
        let dir = tempfile::tempdir().unwrap();
        let vm_dir = VmDir { path: dir.path().into() };
        vm_dir.provide_tpm().unwrap();
        let describe = |state: &str| {
            let text = format!("<VM><USER_TEMPLATE><TPM_STATE><![CDATA[{state}]]></TPM_STATE></USER_TEMPLATE></VM>");
            fs::write(vm_dir.vm_xml(), text).unwrap();
        };
        for odd in ["no base64", "aGVsbG8="] {
            describe(odd);
            assert!(vm_dir.provide_tpm().is_err(), "{odd}");
            assert!(!dir.path().join("tpm").exists());
        }
        describe(state);
        vm_dir.provide_tpm().unwrap();
        let file = dir.path().join("tpm/tpm2-00.permall");
        assert_eq!(fs::read_to_string(&file).unwrap(), "sealed");
        fs::write(&file, "newer").unwrap();
        vm_dir.provide_tpm().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "newer");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left over");
    }

    #[test]
    fn snapshots_come_in_the_order_of_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["snap-10.xml", "snap-2.xml", "snap-x.xml", "snap-1.xml.old"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let files = VmDir { path: dir.path().into() }.snapshot_files();
        let names: Vec<_> = files.iter().filter_map(|f| f.file_name()?.to_str()).collect();
        assert_eq!(names, ["snap-2.xml", "snap-10.xml"]);
    }
}
