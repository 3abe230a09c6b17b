//! `save`: a VM goes into a file, for suspend, stop and cold migration.

use std::path::Path;
use std::time::Instant;

use crate::base::{Action, DeployId};
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::host::sudo::Sudo;
use crate::libvirt::DomainRef;
use crate::reconcile;
use crate::vm::block_job;
use crate::vm::checkpoint::{Checkpoint, is_complete, make_empty};
use crate::vm::gone;
use crate::vm::{self, Found, Vm};
use crate::xml::{OperationKind, VmData};

/// Saves the domain into `checkpoint` and ends it. VFs are unplugged before, and free afterwards.
///
/// The image has its name only when it is complete; an older checkpoint is kept as `<checkpoint>.<seconds since 1970>`.
///
/// * `data` - OpenNebula's description of the VM, for a domain that is adopted
///
/// # Errors
/// Nothing was saved, and the domain runs on with its VFs. A guest that did not release a VF in time may do so later: the
/// VF is then plugged back, and the error says so.
///
/// # Source
/// OpenNebula's stock `save`.
pub fn save(host: &Host, id: &DeployId, checkpoint: &Path, data: Option<&VmData>) -> Result<(), ActionError> {
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

/// A VM without VFs is saved as the stock driver does it.
fn plain(host: &Host, domain: &DomainRef, checkpoint: &Path) -> Result<(), ActionError> {
    let failed = |cause, state| Err(ActionError::new(Action::Save, cause, state));
    if let Err(cause) = prepare_plain(checkpoint) {
        return failed(cause, HostState::NothingSaved);
    }
    let Err(cause) = write(host, domain, checkpoint) else { return Ok(()) };
    // Whatever the call said: only a domain that is gone and an image that is complete are a save.
    let state = match host.patiently(|| gone::is_gone(host, domain)) {
        Ok(true) if is_complete(checkpoint).unwrap_or(false) => return Ok(()),
        Ok(true) => HostState::Left("nothing was saved, the domain is gone".into()),
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

/// Names what libvirt refused.
fn while_saving(domain: &DomainRef, checkpoint: &Path, cause: Cause) -> Cause {
    match cause {
        Cause::Libvirt(source) => {
            Cause::Call { what: format!("save {} to {}", domain.name, checkpoint.display()), source }
        }
        other => other,
    }
}

/// Saves, and waits for block jobs of the domain's disks.
fn write(host: &Host, domain: &DomainRef, file: &Path) -> Result<(), Cause> {
    Ok(block_job::wait_out(&domain.name, || host.hypervisor().save(domain, file))?)
}

fn with_vfs(mut vm: Vm<'_>, checkpoint: &Path) -> Result<(), ActionError> {
    vm.check_can_leave("saved").map_err(|cause| ActionError::untouched(Action::Save, cause))?;
    let image = Checkpoint::at(checkpoint);
    let saved = go_out(&mut vm, &image).and_then(|()| into(&vm, &image));
    match saved {
        Ok(()) => {
            // The image is there: nothing may fail any more.
            if let Err(error) = gone::release(vm.host, &vm.store, &vm.owner(), Action::Save) {
                log::warn!("{error}; {} is saved, its VFs are freed by the next action that looks", vm.domain.name);
            }
            Ok(())
        }
        Err(cause) => Err(undo(vm, &image, cause)),
    }
}

/// Everything that must leave the domain before it can be saved.
fn go_out(vm: &mut Vm<'_>, image: &Checkpoint) -> Result<(), Cause> {
    let path = image.prepare()?;
    vm.begin(OperationKind::Save, Some(&path))?;
    let devices = vm.plugged();
    vm.unplug(&devices)
}

/// Writes the image and gives it its name.
///
/// # Errors
/// The domain was not saved. [`Cause::Twice`] when libvirt still works on it.
fn into(vm: &Vm<'_>, image: &Checkpoint) -> Result<(), Cause> {
    let (host, domain) = (vm.host, &vm.domain);
    // Whatever the call said: only a domain that is gone and an image that is complete are a save.
    if let Err(cause) = write(host, domain, &image.unfinished()) {
        // Devices can't be changed while libvirt still works on a save that broke.
        let ended = vm::abort_save(host, domain, Instant::now() + host.settings().call_timeout);
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

/// Puts everything back as it was, or says exactly what is left.
fn undo(mut vm: Vm<'_>, image: &Checkpoint, cause: Cause) -> ActionError {
    if matches!(cause, Cause::Twice { .. }) {
        // libvirt writes into the image, and devices can't be changed.
        return ActionError::new(Action::Save, cause, HostState::InDoubt(left(&vm)));
    }
    let gone = vm.host.patiently(|| gone::is_gone(vm.host, &vm.domain));
    match gone {
        Ok(false) => {}
        // An image that could not get its name stays what it is: the only copy of the VM's memory.
        Ok(true) if image.is_written() => {
            let path = image.unfinished();
            let text =
                format!("the domain is saved in {}; kvm-sriov reconcile starts it again from there", path.display());
            return ActionError::new(Action::Save, cause, HostState::Left(text));
        }
        Ok(true) => {
            let released = gone::release(vm.host, &vm.store, &vm.owner(), Action::Save).map_err(Cause::from);
            return match released.and_then(|()| image.discard()) {
                Ok(()) => ActionError::new(
                    Action::Save,
                    cause,
                    HostState::Left("nothing was saved, the domain is gone".into()),
                ),
                Err(undo) => failed_twice(cause, undo, "nothing was saved, the domain is gone".into()),
            };
        }
        Err(undo) => return failed_twice(cause, undo, left(&vm)),
    }
    let undone = image.discard().and_then(|()| vm.plug_back(&cause));
    match undone {
        Ok(()) => {
            let pending = vm::pending_text(&cause).map(|text| HostState::Left(format!("nothing was saved; {text}")));
            let state = pending.unwrap_or(HostState::NothingSaved);
            ActionError::new(Action::Save, cause, state)
        }
        Err(undo) => failed_twice(cause, undo, left(&vm)),
    }
}

fn left(vm: &Vm<'_>) -> String {
    format!(
        "nothing was saved, and {} may lack VFs; kvm-sriov reconcile, or its next action, plugs them back",
        vm.domain.name
    )
}

fn failed_twice(cause: Cause, undo: Cause, left: String) -> ActionError {
    let cause = cause.and_undo(undo);
    ActionError::new(Action::Save, cause, HostState::InDoubt(left))
}
