//! `save`: saves a VM into a file and ends it, for suspend, stop and cold migration.

use std::path::Path;

use super::shared::undo::{lacks_vfs, undo_failed};
use crate::base::{Action, DomainId};
use crate::error::{ActionError, Cause, HostState};
use crate::host::sudo::Sudo;
use crate::host::{Host, Progress};
use crate::libvirt::DomainRef;
use crate::os;
use crate::reconcile;
use crate::vm::block_job;
use crate::vm::checkpoint::{Checkpoint, is_complete, make_empty};
use crate::vm::gone;
use crate::vm::{self, Found, Vm};
use crate::xml::{OperationKind, VmData};

/// The state after a failed save whose domain has ended without an image.
const GONE: &str = "nothing was saved, the domain is gone";

/// Saves the domain into `checkpoint` and ends it. VFs are unplugged first, and free afterwards.
///
/// The image of a VM with VFs gets its name only when it is complete; a VM without VFs is saved as by the stock driver.
/// An older checkpoint is kept as `<checkpoint>.<seconds since 1970>`.
///
/// * `data` - OpenNebula's description of the VM, for a domain that is adopted
///
/// # Errors
/// Nothing was saved, and the domain runs on with its VFs. A guest that did not release a VF in time may release it
/// later. Then that VF is plugged back, and the error's state says so.
///
/// # Source
/// OpenNebula's stock `save`.
pub fn save(host: &Host, id: &DomainId, checkpoint: &Path, data: Option<&VmData>) -> Result<(), ActionError> {
    match reconcile::open_to_unplug(host, Action::Save, id, data)
        .map_err(|cause| ActionError::untouched(Action::Save, cause))?
    {
        Found::Plain(domain, _) => plain(host, &domain, checkpoint)?,
        Found::WithVfs(vm) => with_vfs(*vm, checkpoint)?,
    }
    if host.settings().cleanup_memory_on_stop {
        Sudo::ask().compact_memory();
    }
    Ok(())
}

/// Saves a VM without VFs as the stock driver does.
fn plain(host: &Host, domain: &DomainRef, checkpoint: &Path) -> Result<(), ActionError> {
    let failed = |cause, state| Err(ActionError::new(Action::Save, cause, state));
    if let Err(cause) = prepare_plain(checkpoint) {
        return failed(cause, HostState::NothingSaved);
    }
    let Err(cause) = write(host, domain, checkpoint) else { return Ok(()) };
    // The call's error does not decide: the domain is saved if it is gone and the image is complete.
    let state = match host.patiently(|| gone::is_gone(host, domain)) {
        Ok(true) if is_complete(checkpoint).unwrap_or(false) => return Ok(()),
        Ok(true) => HostState::Left(GONE.into()),
        Ok(false) if !cause.leaves_doubt() => HostState::NothingSaved,
        Ok(false) | Err(_) => {
            HostState::InDoubt(format!("whether {} is saved, or still will be, is not known", domain.name))
        }
    };
    failed(while_saving(domain, checkpoint, cause), state)
}

/// Keeps an older checkpoint, and makes the file that libvirt writes into.
fn prepare_plain(checkpoint: &Path) -> Result<(), Cause> {
    Checkpoint::at(checkpoint).keep_older()?;
    make_empty(checkpoint)
}

/// Adds to libvirt's error what was saved, and where.
fn while_saving(domain: &DomainRef, checkpoint: &Path, cause: Cause) -> Cause {
    match cause {
        Cause::Libvirt(source) => {
            Cause::Call { what: format!("save {} to {}", domain.name, checkpoint.display()), source }
        }
        other => other,
    }
}

/// Saves the domain. Waits for block jobs on its disks.
fn write(host: &Host, domain: &DomainRef, file: &Path) -> Result<(), Cause> {
    let step = |done, all| Progress::Saving { done, all };
    vm::watched(host, domain, step, || block_job::wait_out(&domain.name, || host.hypervisor().save(domain, file)))
}

fn with_vfs(mut vm: Vm<'_>, checkpoint: &Path) -> Result<(), ActionError> {
    vm.check_can_leave("saved").map_err(|cause| ActionError::untouched(Action::Save, cause))?;
    let image = Checkpoint::at(checkpoint);
    let saved = unplug_all(&mut vm, &image).and_then(|()| write_image(&vm, &image));
    match saved {
        Ok(()) => {
            // The domain is saved, so the action succeeds.
            if let Err(error) = gone::release(vm.host, &vm.store, &vm.owner(), Action::Save) {
                log::warn!("{error}; {} is saved, the next reconciliation frees its VFs", vm.domain.name);
            }
            Ok(())
        }
        Err(cause) => Err(undo(vm, &image, cause)),
    }
}

/// Unplugs the VFs, which libvirt can't save.
fn unplug_all(vm: &mut Vm<'_>, image: &Checkpoint) -> Result<(), Cause> {
    let path = image.prepare()?;
    vm.begin(OperationKind::Save, Some(&path))?;
    let devices = vm.plugged();
    vm.unplug(&devices)
}

/// Writes the image and gives it its name.
///
/// # Errors
/// The domain was not saved. [`Cause::Twice`] when libvirt is still working on it.
fn write_image(vm: &Vm<'_>, image: &Checkpoint) -> Result<(), Cause> {
    let (host, domain) = (vm.host, &vm.domain);
    // The call's error does not decide: the domain is saved if it is gone and the image is complete.
    if let Err(cause) = write(host, domain, &image.unfinished()) {
        // Devices can't be changed while libvirt is still working on the failed save.
        let ended = vm::abort_save(host, domain, os::now() + host.settings().call_timeout);
        let is_saved = host.patiently(|| gone::is_gone(host, domain))? && image.is_written();
        if !is_saved {
            let cause = while_saving(domain, image.checkpoint(), cause);
            return Err(match ended {
                Ok(()) => cause,
                Err(undo) => cause.and_undo(undo),
            });
        }
    }
    image.commit()
}

/// Undoes everything, or says exactly what is left.
fn undo(mut vm: Vm<'_>, image: &Checkpoint, cause: Cause) -> ActionError {
    if matches!(cause, Cause::Twice { .. }) {
        // libvirt is still writing the image, so devices can't be changed.
        return ActionError::new(Action::Save, cause, HostState::InDoubt(left(&vm)));
    }
    let gone = vm.host.patiently(|| gone::is_gone(vm.host, &vm.domain));
    match gone {
        Ok(false) => {}
        // The image could not get its name. It stays, because it is the only copy of the VM's memory.
        Ok(true) if image.is_written() => {
            let path = image.unfinished();
            let text =
                format!("the domain is saved in {}; kvm-sriov reconcile starts it again from there", path.display());
            return ActionError::new(Action::Save, cause, HostState::Left(text));
        }
        Ok(true) => {
            let released = gone::release(vm.host, &vm.store, &vm.owner(), Action::Save).map_err(Cause::from);
            return match released.and_then(|()| image.discard()) {
                Ok(()) => ActionError::new(Action::Save, cause, HostState::Left(GONE.into())),
                Err(undo) => undo_failed(Action::Save, cause, undo, GONE.into()),
            };
        }
        Err(undo) => return undo_failed(Action::Save, cause, undo, left(&vm)),
    }
    let undone = image.discard().and_then(|()| vm.plug_back(&cause));
    match undone {
        Ok(()) => {
            let pending = vm::pending_text(&cause).map(|text| HostState::Left(format!("nothing was saved; {text}")));
            let state = pending.unwrap_or(HostState::NothingSaved);
            ActionError::new(Action::Save, cause, state)
        }
        Err(undo) => undo_failed(Action::Save, cause, undo, left(&vm)),
    }
}

fn left(vm: &Vm<'_>) -> String {
    format!("nothing was saved, and {}", lacks_vfs(&vm.domain.name))
}
