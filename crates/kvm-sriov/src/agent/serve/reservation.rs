//! What is claimed and made on this host for a VM that is to come.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::ACTION;
use super::witness::Witness;
use crate::agent::IncomingVm;
use crate::base::{DomainId, DomainName, NicMode, Owner, Position, WantedVf};
use crate::claims::{ClaimError, ClaimRequest, ClaimStore, VmLock};
use crate::config::{VfMap, mode_of};
use crate::error::Cause;
use crate::host::Host;
use crate::host::sudo::Sudo;
use crate::os::{self, Side};
use crate::vm::gone;
use crate::vm::storage::{DiskImage, make_image};
use crate::xml::{Wanted, WantedNic};

/// A VM that is to come, and what this host holds for it.
pub(super) struct Reservation {
    pub(super) vm: IncomingVm,
    pub(super) witness: Witness,
    /// Whether the source may have asked libvirt to migrate the VM.
    pub(super) is_under_way: bool,
    /// The claims and the VM's lock; `None` for a VM without VFs, which needs neither.
    pub(super) held: Option<(ClaimStore, VmLock)>,
    /// The XML of each snapshot, and whether it is the current one.
    pub(super) snapshots: Vec<(String, bool)>,
    /// The VM's directory, if this reservation created it.
    made_dir: Option<PathBuf>,
}

impl Reservation {
    /// Checks and claims everything that the VM needs here. Returns the bridge of the dummies as well; `None` for a VM
    /// without VFs.
    ///
    /// # Errors
    /// The VM is here already, or the host lacks something that it needs. Nothing is claimed, and a directory that was
    /// created is removed.
    pub(super) fn make(host: &Host, vm: IncomingVm) -> Result<(Self, Option<String>), Cause> {
        // The watch begins before the first look, so no event is missed.
        let witness = Witness::new(host.hypervisor().watch_for(&vm.uuid)?);
        for id in [DomainId::Uuid(vm.uuid.clone()), DomainId::Name(vm.name.clone())] {
            if let Some(domain) = host.hypervisor().find(&id)? {
                return Err(Cause::Exists { name: domain.name });
            }
        }
        let wanted = vm.wanted.as_ref().filter(|wanted| !wanted.nics.is_empty());
        let needs = wanted.map(|wanted| Needs::check(host, wanted, &vm.lacking)).transpose()?;
        let mut reservation =
            Self { vm, witness, is_under_way: false, held: None, snapshots: Vec::new(), made_dir: None };
        // Before the lock and the claims: a file server may hang.
        reservation.make_dir(host)?;
        let bridge = needs.as_ref().and_then(|needs| needs.bridge.clone());
        if let Err(cause) = needs.map_or(Ok(()), |needs| reservation.claim(host, &needs)) {
            reservation.cancel(host)?;
            return Err(cause);
        }
        if host.settings().cleanup_memory_on_start {
            Sudo::ask().compact_memory();
        }
        Ok((reservation, bridge))
    }

    fn owner(&self) -> Owner {
        Owner { vm: self.vm.name.clone(), uuid: Some(self.vm.uuid.clone()) }
    }

    /// Whether OpenNebula has cancelled the VM while this reservation holds its lock.
    pub(super) fn is_cancelled(&self) -> bool {
        self.held.as_ref().is_some_and(|(_, lock)| lock.cancelled())
    }

    /// Whether the VM arrives paused and waits until its source is seen to have given it away. A VM without VFs does
    /// not: it migrates as with the stock driver (docs/decisions/0013-hand-over.md).
    pub(super) fn is_handed_over(&self) -> bool {
        self.vm.wanted.is_some()
    }

    /// Whether libvirt may still bring the VM although it has not been seen here.
    pub(super) fn may_come(&self) -> bool {
        self.is_under_way && !self.witness.came && !self.is_cancelled()
    }

    /// Takes the VM's lock and claims a VF for every NIC that has one on the source, or for none of them. Then claims a
    /// VF for each other NIC, as far as VFs are free.
    fn claim(&mut self, host: &Host, needs: &Needs) -> Result<(), Cause> {
        let store = host.claims()?;
        let lock = store.lock_vm(&self.vm.name, ACTION, host.settings().lock_timeout)?;
        self.held = Some((store, lock));
        let Some(wanted) = &self.vm.wanted else { return Ok(()) };
        let (lacking, needed): (Vec<_>, Vec<_>) =
            wanted.nics.iter().partition(|nic| self.vm.lacking.contains(&nic.position));
        self.claim_for(host, &needs.maps, &needed)?;
        for nic in lacking {
            let maps = host.maps_and_others(std::iter::once(&nic.root));
            if let Err(cause) = maps.and_then(|maps| self.claim_for(host, &maps, &[nic])) {
                log::warn!("{cause}; NIC {} of {} had no VF on the source and gets none here", nic.mac, self.vm.name);
            }
        }
        Ok(())
    }

    /// Claims a VF for each of these NICs, or for none of them.
    fn claim_for(&self, host: &Host, maps: &[VfMap], nics: &[&WantedNic]) -> Result<(), Cause> {
        let Some((store, lock)) = self.held.as_ref().filter(|_| !nics.is_empty()) else { return Ok(()) };
        let vfs: Vec<_> = nics.iter().map(|nic| nic.vf()).collect();
        let owner = self.owner();
        let sysfs = host.sysfs();
        let request = ClaimRequest { owner: &owner, lock, vfs: &vfs, maps, sysfs, refused: &[] };
        host.claim(store, &request, ACTION).map(drop).map_err(|cause| match cause {
            Cause::Claims(error) => too_few(error, &vfs, &owner.vm),
            other => other,
        })
    }

    fn make_dir(&mut self, host: &Host) -> Result<(), Cause> {
        let Some(dir) = self.vm.dir.clone() else { return Ok(()) };
        let made = dir.clone();
        let is_new = on_files("make", &dir, host.settings().call_timeout, move || {
            let is_new = !made.exists();
            if is_new {
                fs::create_dir_all(&made).map_err(Cause::file("make", &made))?;
            }
            Ok(is_new)
        })?;
        self.made_dir = is_new.then_some(dir);
        Ok(())
    }

    /// Refuses a path outside the VM's own directory.
    fn check_path(&self, path: &Path) -> Result<(), Cause> {
        let climbs = path.components().any(|part| part == Component::ParentDir);
        match &self.vm.dir {
            Some(dir) if path.starts_with(dir) && !climbs => Ok(()),
            _ => Err(Cause::NotInVmDir { path: path.to_owned() }),
        }
    }

    pub(super) fn make_image(&self, image: DiskImage, limit: Duration) -> Result<(), Cause> {
        self.check_path(&image.path)?;
        on_files("make", &image.path.clone(), limit, move || make_image(&image, &image.path))
    }

    pub(super) fn make_link(&self, path: PathBuf, target: PathBuf, limit: Duration) -> Result<(), Cause> {
        self.check_path(&path)?;
        on_files("make", &path.clone(), limit, move || {
            if path.is_symlink() {
                return Ok(());
            }
            std::os::unix::fs::symlink(target, &path).map_err(Cause::file("make", path))
        })
    }

    /// Releases the claims, and removes the VM's directory if this reservation created it.
    pub(super) fn cancel(&mut self, host: &Host) -> Result<(), Cause> {
        let owner = self.owner();
        if let Some((store, _)) = &self.held {
            gone::release(host, store, &owner, ACTION)?;
        }
        let Some(dir) = self.made_dir.take() else { return Ok(()) };
        on_files("remove", &dir.clone(), host.settings().call_timeout, move || {
            fs::remove_dir_all(&dir).map_err(Cause::file("remove", dir))
        })
    }
}

/// What a VM with VFs needs from a host besides the VFs.
struct Needs {
    /// The bridge of the dummies; `None` for a VM without dummies.
    bridge: Option<String>,
    maps: Vec<VfMap>,
}

impl Needs {
    /// * `lacking` - the NICs that have no VF on the source, so that they need none here
    fn check(host: &Host, wanted: &Wanted, lacking: &[Position]) -> Result<Self, Cause> {
        if let Some(nic) = wanted.nics.iter().find(|nic| !matches!(nic.mode, NicMode::Hostdev | NicMode::Ethernet)) {
            return Err(Cause::NoMode { mac: nic.mac, mode: nic.mode });
        }
        let bridge = if wanted.has_dummies() { Some(host.dummy_bridge()?.to_owned()) } else { None };
        let needed = || wanted.nics.iter().filter(|nic| !lacking.contains(&nic.position));
        let maps = host.maps_and_others(needed().map(|nic| &nic.root))?;
        for nic in needed() {
            if let Some(here) = mode_of(&maps, &nic.root).filter(|here| *here != nic.mode) {
                return Err(Cause::OtherMode { mac: nic.mac, mode: nic.mode, root: nic.root.clone(), here });
            }
        }
        Ok(Self { bridge, maps })
    }
}

/// The cause that a map has too few free VFs, as the source's action reports it.
fn too_few(error: ClaimError, vfs: &[WantedVf], vm: &DomainName) -> Cause {
    let ClaimError::Exhausted { root, total, mut users, no_vfs, .. } = error else { return error.into() };
    // The VFs that were chosen for this VM before the map ran out.
    users.remove(vm.as_str());
    let used: usize = users.values().sum();
    Cause::TooFew {
        free: total.saturating_sub(used),
        needed: vfs.iter().filter(|vf| vf.root == root).count(),
        root,
        users: counted(&users),
        no_vfs,
    }
}

fn counted(users: &BTreeMap<String, usize>) -> String {
    let all: Vec<String> = users.iter().map(|(user, count)| format!("{user}: {count}")).collect();
    if all.is_empty() { String::new() } else { format!(" ({})", all.join(", ")) }
}

/// Does work on files on a thread of its own, and leaves the thread behind when it has not finished within `limit`: a
/// file server may hang.
fn on_files<T: Send + 'static>(
    verb: &'static str,
    path: &Path,
    limit: Duration,
    work: impl FnOnce() -> Result<T, Cause> + Send + 'static,
) -> Result<T, Cause> {
    let (sender, receiver) = os::channel();
    let failed = Cause::file(verb, path);
    // Nobody receives a result that comes too late.
    let begun = os::spawn("files", Side::Process, move || drop(sender.send(work())));
    if let Err(error) = begun {
        return Err(failed(error));
    }
    receiver.recv_timeout(limit).unwrap_or_else(|_| {
        let text = format!("its file system has not answered for {} s", limit.as_secs());
        Err(failed(io::Error::new(io::ErrorKind::TimedOut, text)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_file_server_that_does_not_answer_is_left_behind() {
        let (release, held) = mpsc::channel::<()>();
        let limit = Duration::from_millis(50);
        let hangs = move || Ok(held.recv().is_ok());
        let error = on_files("make", "/vm/42".as_ref(), limit, hangs).unwrap_err();
        assert_eq!(error.to_string(), "cannot make /vm/42: its file system has not answered for 0 s");
        drop(release);
        assert_eq!(on_files("make", "/vm/42".as_ref(), Duration::from_secs(60), || Ok(7)).unwrap(), 7);
    }
}
