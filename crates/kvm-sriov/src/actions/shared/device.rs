//! Devices other than VFs of this driver: attached and detached as by the stock driver. The live XML decides whether
//! that succeeded.

use std::slice;

use crate::base::{Action, DomainId};
use crate::error::{ActionError, Cause, HostState, UnplugOutcome};
use crate::host::Host;
use crate::libvirt::DomainRef;
use crate::reconcile;
use crate::vm;
use crate::xml::{Medium, VmData};

/// A device that is to be plugged in.
pub(crate) struct NewDevice<'a> {
    /// The device's XML.
    pub(crate) xml: &'a str,
    /// The task in the stock driver's words, such as "attach ... to one-42".
    pub(crate) what: &'a str,
    /// The action that takes the device out again, for a message when it is not known whether it was plugged in.
    pub(crate) undo: &'static str,
    /// How much of the domain's memory QEMU touches or pins for the device, in KiB.
    pub(crate) memory_kib: u64,
    /// Whether the domain has the device.
    pub(crate) is_in: &'a dyn Fn() -> Result<bool, Cause>,
}

/// Plugs a device into a running domain.
///
/// # Errors
/// The device is not in the domain, or the error's state says that this is not known.
pub(crate) fn plug(host: &Host, action: Action, domain: &DomainRef, device: &NewDevice<'_>) -> Result<(), ActionError> {
    let plugged = host.hypervisor().attach(domain, device.xml, host.call_limit(device.memory_kib));
    // The call's error does not decide: the live XML tells.
    let there = host.patiently(device.is_in);
    let in_doubt = |cause| {
        let text = format!("whether it was plugged in is not known; {} takes it out", device.undo);
        ActionError::new(action, cause, HostState::InDoubt(text))
    };
    match (plugged, there) {
        (_, Ok(true)) => Ok(()),
        (Ok(()), Ok(false)) => {
            let what = "the new device is missing".into();
            Err(ActionError::untouched(action, Cause::NotAsAsked { name: domain.name.clone(), what }))
        }
        (Err(source), there) => {
            let cause = Cause::Call { what: device.what.to_owned(), source };
            let is_known = there.is_ok() && !cause.leaves_doubt();
            Err(if is_known { ActionError::untouched(action, cause) } else { in_doubt(cause) })
        }
        (Ok(()), Err(cause)) => Err(in_doubt(cause)),
    }
}

/// Asks the guest to release a device, and waits until it has. Success also when the domain ends meanwhile.
///
/// * `device` - the device's name in messages; `alias` - its alias in libvirt
///
/// # Errors
/// The device stays. A guest that did not answer in time may release it later, and the error's state says so.
pub(crate) fn unplug(
    host: &Host,
    action: Action,
    domain: &DomainRef,
    device: String,
    alias: &str,
) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(action, cause);
    vm::check_answers(host, domain).map_err(untouched)?;
    let alias = alias.to_owned();
    let outcomes = vm::for_action(host, domain, slice::from_ref(&alias), &|_| None, vm::Ends::Early)
        .map_err(|source| untouched(Cause::Xml { what: format!("the live XML of {}", domain.name), source }))?;
    match outcomes.into_iter().next() {
        None | Some(UnplugOutcome::Released | UnplugOutcome::DomainGone) => Ok(()),
        Some(outcome) => {
            let state = match outcome {
                UnplugOutcome::Pending | UnplugOutcome::DaemonGone => HostState::InDoubt(format!(
                    "{device} is still there, the request stays pending in the guest, which may release it later"
                )),
                _ => HostState::NothingChanged,
            };
            let (vm, seconds) = (domain.name.clone(), host.settings().unplug_timeout.as_secs());
            let cause = match host.check_stop() {
                Ok(()) => Cause::DeviceNotReleased { vm, device, seconds, outcome },
                Err(stopped) => stopped,
            };
            Err(ActionError::new(action, cause, state))
        }
    }
}

/// A change of the medium in a drive.
pub(crate) struct MediumChange<'a> {
    /// The drive's target.
    pub(crate) target: &'a str,
    /// The task in the stock driver's words, such as "eject ...".
    pub(crate) what: &'a str,
    /// The new medium; `None` empties the drive.
    pub(crate) medium: Option<&'a Medium>,
}

/// Empties a drive, or puts a medium into an empty drive. Success when that is done already.
///
/// # Errors
/// The drive is unchanged, or the error's state says that this is not known.
pub(crate) fn change_medium(
    host: &Host,
    action: Action,
    id: &DomainId,
    data: Option<&VmData>,
    change: &MediumChange<'_>,
) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(action, cause);
    let what = || change.what.to_owned();
    let wanted = change.medium.map(|medium| medium.path.display().to_string());
    // The lock of a VM with VFs is held until this function returns: a save must not run during the change.
    let found = reconcile::open(host, action, id, data).map_err(untouched)?;
    let domain = found.domain();
    let drive = || {
        let live = vm::read(host, domain)?;
        let (vm, target) = (domain.name.clone(), change.target.to_owned());
        live.disk(change.target).cloned().ok_or_else(|| Cause::NoDisk { vm, target, what: what() })
    };
    let before = drive().map_err(untouched)?;
    if before.source == wanted {
        return Ok(());
    }
    if let (Some(source), true) = (&before.source, wanted.is_some()) {
        let found = format!("{source} in {}", change.target);
        return Err(untouched(Cause::OtherDisk { vm: domain.name.clone(), what: what(), found }));
    }
    let xml = before.with_medium(change.medium);
    let xml =
        xml.map_err(|source| untouched(Cause::Xml { what: format!("the live XML of {}", domain.name), source }))?;
    let changed = host.hypervisor().change_medium(domain, &xml);
    // The call's error does not decide: the live XML tells.
    let now = host.patiently(drive).map(|drive| drive.source);
    let cause = match changed {
        _ if matches!(&now, Ok(source) if *source == wanted) => return Ok(()),
        Ok(()) => {
            let what = format!("{} has another medium than it was given", change.target);
            Cause::NotAsAsked { name: domain.name.clone(), what }
        }
        Err(source) => Cause::Call { what: what(), source },
    };
    if now.is_ok() && !cause.leaves_doubt() {
        return Err(untouched(cause));
    }
    let text = format!("what the drive {} holds is not known", change.target);
    Err(ActionError::new(action, cause, HostState::InDoubt(text)))
}
