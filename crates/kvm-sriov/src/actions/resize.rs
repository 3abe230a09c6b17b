//! `resize`: changes the memory and the number of CPUs of a running VM.

use super::shared::device::{self, NewDevice};
use crate::base::{Action, DomainId};
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::host::sudo::Sudo;
use crate::libvirt::{DomainRef, LibvirtErrorKind};
use crate::reconcile;
use crate::vm;
use crate::xml::{Dimm, LiveDomain, Resize, Sizes, VmData};

const ACTION: Action = Action::Resize;

/// The largest page size that is an ordinary one on some architecture, in KiB. Larger pages are huge pages.
const ORDINARY_KIB: u64 = 64;

/// Gives a VM other sizes of memory and numbers of virtual CPUs. Success when the VM has them already. The VM keeps its
/// VFs.
///
/// All memory of a VM with VFs is pinned, so its balloon frees no memory of the host; the log says so. A DIMM is pinned
/// when it is plugged in, so the host must have that much free memory, in pages of the kind that the VM's memory has.
///
/// * `wanted` - the new sizes
/// * `data` - OpenNebula's description of the VM, for a domain that is adopted
///
/// # Errors
/// Nothing was changed: memory is changed back when the number of CPUs can't be changed. Or the error's state says
/// exactly what is left.
///
/// # Source
/// OpenNebula's stock `resize`.
pub fn resize(host: &Host, id: &DomainId, wanted: &Resize, data: Option<&VmData>) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(ACTION, cause);
    // The lock of a VM with VFs is held until this function returns, so its devices do not change meanwhile.
    let found = reconcile::open(host, ACTION, id, data).map_err(untouched)?;
    let domain = found.domain();
    let text = vm::read_text(host, domain).map_err(untouched)?;
    let of_domain = |source| untouched(Cause::Xml { what: format!("the live XML of {}", domain.name), source });
    let before = Sizes::parse(&text).map_err(of_domain)?;
    let is_pinned = LiveDomain::parse(&text).map_err(of_domain)?.vfs().next().is_some();
    let resizing = Resizing { host, domain, is_pinned };
    let vcpus = wanted.vcpus.filter(|number| *number != before.vcpus);
    if let Some(number) = vcpus.filter(|number| *number > before.most_vcpus || *number == 0) {
        let why = format!("it can have from 1 to {}, as it was started", before.most_vcpus);
        return Err(untouched(Cause::NoRoom { what: resizing.what_vcpus(number), why }));
    }
    if let Some(mib) = wanted.memory_mib {
        resizing.compacted(|| resizing.memory(&before, mib.saturating_mul(1024), wanted.by_dimm))?;
    }
    let Some(number) = vcpus else { return Ok(()) };
    let resized = resizing.vcpus(&before, number);
    resized.map_err(
        |error| if wanted.memory_mib.is_some() { resizing.undo(&before, wanted.by_dimm, error) } else { error },
    )
}

struct Resizing<'a> {
    host: &'a Host,
    domain: &'a DomainRef,
    /// Whether all memory of the VM is pinned, because the VM has VFs.
    is_pinned: bool,
}

impl Resizing<'_> {
    fn sizes(&self) -> Result<Sizes, Cause> {
        Sizes::parse(&vm::read_text(self.host, self.domain)?)
            .map_err(|source| Cause::Xml { what: format!("the live XML of {}", self.domain.name), source })
    }

    fn what_vcpus(&self, number: u32) -> String {
        format!("resize VCPU to {number} on {}", self.domain.name)
    }

    fn what_memory(&self, kib: u64) -> String {
        format!("resize memory to {} MiB on {}", kib / 1024, self.domain.name)
    }

    /// Runs `work` between the two memory cleanups that kvmrc may ask for.
    fn compacted<T>(&self, work: impl FnOnce() -> Result<T, ActionError>) -> Result<T, ActionError> {
        let settings = self.host.settings();
        if settings.cleanup_memory_on_start {
            Sudo::ask().compact_memory();
        }
        let done = work()?;
        if settings.cleanup_memory_on_stop {
            Sudo::ask().compact_memory();
        }
        Ok(done)
    }

    /// Gives the VM this much memory, by its balloon or by a DIMM.
    fn memory(&self, before: &Sizes, kib: u64, by_dimm: bool) -> Result<(), ActionError> {
        let untouched = |cause: Cause| ActionError::untouched(ACTION, cause);
        if !by_dimm {
            return self.balloon(before, kib);
        }
        if kib >= before.memory_kib {
            return self.plug(before, kib - before.memory_kib, self.is_pinned);
        }
        let less = before.memory_kib - kib;
        let dimm = before.dimms.iter().find(|dimm| dimm.kib == less);
        let alias = &dimm.ok_or_else(|| untouched(self.no_dimm(before, kib, less)))?.alias;
        device::unplug(self.host, ACTION, self.domain, format!("DIMM {alias}"), alias)
    }

    fn no_dimm(&self, before: &Sizes, kib: u64, less: u64) -> Cause {
        let sizes: Vec<String> = before.dimms.iter().map(|dimm| format!("{} MiB", dimm.kib / 1024)).collect();
        let has = if sizes.is_empty() { "it has none".to_owned() } else { format!("it has {}", sizes.join(", ")) };
        let why = format!("a DIMM of {} MiB would have to leave, and {has}", less / 1024);
        Cause::NoRoom { what: self.what_memory(kib), why }
    }

    fn balloon(&self, before: &Sizes, kib: u64) -> Result<(), ActionError> {
        if kib == before.balloon_kib {
            return Ok(());
        }
        if kib > before.memory_kib {
            let why = format!("it can have {} MiB at the most, as it was started", before.memory_kib / 1024);
            return Err(ActionError::untouched(ACTION, Cause::NoRoom { what: self.what_memory(kib), why }));
        }
        if self.is_pinned && kib < before.balloon_kib {
            log::warn!(
                "the balloon of {} takes memory from its guest, but frees no memory of the host: all memory of a VM with VFs \
                 is pinned",
                self.domain.name
            );
        }
        let Err(source) = self.host.hypervisor().set_memory(self.domain, kib) else { return Ok(()) };
        let cause = Cause::Call { what: self.what_memory(kib), source };
        // The size that the balloon has reached does not tell which size was requested, so the old size is requested
        // again.
        Err(self.undo(before, false, ActionError::untouched(ACTION, cause)))
    }

    /// Refuses a DIMM for which the host has too little memory, or too few pages of the right kind.
    fn check_free(&self, before: &Sizes, kib: u64) -> Result<(), Cause> {
        let sysfs = self.host.sysfs();
        let pages = before.huge_pages.as_ref();
        let size = pages.and_then(|pages| pages.kib.or_else(|| sysfs.huge_page_kib()));
        // libvirt's XML may also name the size of ordinary pages.
        if let Some((pages, size)) = pages.zip(size).filter(|(_, size)| *size > ORDINARY_KIB) {
            let needed = kib.div_ceil(size);
            let on = match pages.nodes.as_slice() {
                [] => String::new(),
                nodes => format!(" on NUMA node {}", nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
            };
            let free = sysfs.free_huge_pages(size, &pages.nodes).unwrap_or(0);
            if needed <= free {
                return Ok(());
            }
            let why = format!(
                "a DIMM of {} MiB needs {needed} huge pages of {size} KiB{on}, but only {free} are free \
                 (nr_hugepages in hugepages-{size}kB gives the host more)",
                kib / 1024
            );
            return Err(Cause::NoRoom { what: self.what_memory(before.memory_kib.saturating_add(kib)), why });
        }
        let free_kib = sysfs.available_memory_kib();
        if kib <= free_kib {
            return Ok(());
        }
        let text = format!("a DIMM of {kib} KiB would be plugged in");
        Err(Cause::NoMemory { text, guest_kib: before.memory_kib, limit_kib: before.limit_kib, free_kib })
    }

    /// Plugs in a DIMM of this size.
    fn plug(&self, before: &Sizes, kib: u64, pinned: bool) -> Result<(), ActionError> {
        if kib == 0 {
            return Ok(());
        }
        if pinned {
            self.check_free(before, kib).map_err(|cause| ActionError::untouched(ACTION, cause))?;
        }
        let xml = before.dimm_of(kib);
        let what = self.what_memory(before.memory_kib.saturating_add(kib));
        let is_in = || Ok(self.sizes()?.memory_kib > before.memory_kib);
        let device =
            NewDevice { xml: &xml, what: &what, undo: "a resize to the old size", memory_kib: kib, is_in: &is_in };
        device::plug(self.host, ACTION, self.domain, &device)
    }

    fn vcpus(&self, before: &Sizes, number: u32) -> Result<(), ActionError> {
        let set = |number| self.host.hypervisor().set_vcpus(self.domain, number);
        let now = || self.host.patiently(|| self.sizes()).map(|sizes| sizes.vcpus);
        let Err(source) = set(number) else { return Ok(()) };
        let may_leave = source.kind() == LibvirtErrorKind::UnplugInProgress;
        let cause = Cause::Call { what: self.what_vcpus(number), source };
        // The call's error does not decide: the live XML tells.
        match now() {
            Ok(there) if there == number => return Ok(()),
            // The guest may still release CPUs, and asking for the old number takes no request back.
            Ok(there) if may_leave => {
                let text = format!("{} has {there} VCPUs, and its guest may still release others", self.domain.name);
                return Err(ActionError::new(ACTION, cause, HostState::InDoubt(text)));
            }
            Ok(there) if there == before.vcpus && !cause.leaves_doubt() => {
                return Err(ActionError::untouched(ACTION, cause));
            }
            Ok(_) | Err(_) => {}
        }
        // CPUs may have been added or removed, or may still be. This request waits for the earlier one.
        let back = self.host.patiently(|| Ok(set(before.vcpus)?));
        match (back, now()) {
            (Ok(()), Ok(there)) if there == before.vcpus => Err(ActionError::untouched(ACTION, cause)),
            (_, there) => {
                let number = there.map_or_else(|_| "an unknown number of".to_owned(), |number| number.to_string());
                let text = format!("{} has {number} VCPUs, and may still get others", self.domain.name);
                Err(ActionError::new(ACTION, cause, HostState::InDoubt(text)))
            }
        }
    }

    /// Changes memory back after `error`. Returns `error`, or an error that also says why memory could not be changed
    /// back.
    fn undo(&self, before: &Sizes, by_dimm: bool, error: ActionError) -> ActionError {
        let undone = if by_dimm {
            self.undo_dimm(before).map_err(ActionError::into_cause)
        } else {
            self.host.patiently(|| Ok(self.host.hypervisor().set_memory(self.domain, before.balloon_kib)?))
        };
        let Err(undo) = undone else { return error };
        let left = match error.state() {
            HostState::Left(text) | HostState::InDoubt(text) => format!("{text}; its memory may have its new size"),
            _ => format!("the memory of {} may have its new size", self.domain.name),
        };
        let cause = error.into_cause().and_undo(undo);
        ActionError::new(ACTION, cause, HostState::InDoubt(left))
    }

    /// Unplugs the DIMM that was added, or plugs in a DIMM of the size of the removed one.
    fn undo_dimm(&self, before: &Sizes) -> Result<(), ActionError> {
        let now = self.host.patiently(|| self.sizes()).map_err(|cause| ActionError::untouched(ACTION, cause))?;
        if let Some(less) = before.memory_kib.checked_sub(now.memory_kib) {
            return self.plug(&now, less, false);
        }
        let is_new = |dimm: &&Dimm| before.dimms.iter().all(|old| old.alias != dimm.alias);
        match now.dimms.iter().find(is_new) {
            Some(Dimm { alias, .. }) => device::unplug(self.host, ACTION, self.domain, format!("DIMM {alias}"), alias),
            None => Ok(()),
        }
    }
}
