//! Faults at calls to libvirtd, and a record of the calls.

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use kvm_sriov::libvirt::{
    BlockJob, DeviceCalls, DiskCalls, DomainCalls, DomainRef, EventCalls, Events, GuestCalls, Hypervisor, Job,
    JobCalls, LibvirtError, LibvirtErrorKind, Migration, PowerCalls, RunState, SnapshotCalls, Snapshots, Usage,
};
use kvm_sriov::{DomainId, DomainUuid, os};

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails and has no effect.
    Fails(LibvirtErrorKind),
    /// It has its effect, and fails nevertheless.
    FailsAfter(LibvirtErrorKind),
    /// The calling process dies before it.
    Dies,
    /// The calling process dies while libvirtd works on the first call of this name. libvirtd goes on with the call.
    DiesDuring {
        /// The name of a call that takes long: `save` or `migrate`. It has no number, because the calls before it may
        /// vary.
        call: &'static str,
        /// Whether libvirtd finishes the call before the repair begins. Otherwise it works for ever.
        is_done: bool,
    },
    /// The calling process dies after its effect.
    DiesAfter,
    /// libvirtd restarts just before it. The test restarts it itself, through [`Faults::before`].
    Restart,
}

impl Fault {
    /// Whether the calling process dies.
    pub fn kills(self) -> bool {
        matches!(self, Self::Dies | Self::DiesDuring { .. } | Self::DiesAfter)
    }
}

/// The payload with which the threads of a dead process unwind.
pub struct Killed;

/// Any [`Hypervisor`] with a fault at one of its calls. Calls count from 1; their names are those of the traits'
/// methods.
pub struct Faults {
    inner: Arc<dyn Hypervisor>,
    book: Mutex<Book>,
}

/// The call that goes wrong.
#[derive(Clone, Copy)]
enum Which {
    Number(usize),
    First(&'static str),
}

#[derive(Default)]
struct Book {
    calls: Vec<&'static str>,
    limits: Vec<Duration>,
    armed: Option<(Which, Fault)>,
    fired: bool,
    dead: bool,
    at_death: Option<Box<dyn Fn() + Send>>,
    before: Vec<(usize, Box<dyn FnOnce() + Send>)>,
    /// How long each request to release a device takes before it fails.
    busy: Option<Duration>,
}

impl Book {
    /// The fault of the next call, which has this name.
    fn next(&self, name: &str) -> Option<Fault> {
        let (which, fault) = self.armed?;
        let is_it = match which {
            Which::Number(number) => number == self.calls.len() + 1,
            Which::First(first) => first == name && !self.calls.contains(&name),
        };
        is_it.then_some(fault)
    }
}

impl Faults {
    /// This hypervisor without a fault.
    pub fn around(inner: Arc<dyn Hypervisor>) -> Self {
        Self { inner, book: Mutex::default() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts from 1 again, as for a new process. Call `n`, or the call that the fault names, goes wrong.
    pub fn arm(&self, n: usize, fault: Fault) {
        let which = match fault {
            Fault::DiesDuring { call, .. } => Which::First(call),
            _ => Which::Number(n),
        };
        self.begin(Some((which, fault)));
    }

    /// Counts from 1 again, as for a new process. The first call of this name goes wrong.
    pub fn arm_first(&self, name: &'static str, fault: Fault) {
        self.begin(Some((Which::First(name), fault)));
    }

    /// Each request to release a device takes this long and then fails, because another job has the domain. The caller
    /// may give it up before.
    pub fn set_busy(&self, for_each: Duration) {
        self.book().busy = Some(for_each);
    }

    /// Counts from 1 again, as for a new process. No call goes wrong.
    pub fn disarm(&self) {
        self.begin(None);
    }

    fn begin(&self, armed: Option<(Which, Fault)>) {
        let mut book = self.book();
        *book = Book { armed, at_death: book.at_death.take(), ..Book::default() };
    }

    /// Calls `what` just before call `n`.
    pub fn before(&self, n: usize, what: impl FnOnce() + Send + 'static) {
        self.book().before.push((n, Box::new(what)));
    }

    /// Calls `what` at the moment of the process's death, before its threads unwind.
    pub fn on_death(&self, what: impl Fn() + Send + 'static) {
        self.book().at_death = Some(Box::new(what));
    }

    /// Whether the fault was hit.
    pub fn fired(&self) -> bool {
        self.book().fired
    }

    /// Whether the process has died.
    pub fn is_dead(&self) -> bool {
        self.book().dead
    }

    /// The names of the calls since counting began, in order.
    pub fn calls(&self) -> Vec<&'static str> {
        self.book().calls.clone()
    }

    /// The limits of the calls since counting began that pin memory: the start of a domain, and each host device that
    /// is plugged in.
    pub fn limits(&self) -> Vec<Duration> {
        self.book().limits.clone()
    }

    /// How many calls of this name were made since counting began.
    pub fn count(&self, name: &str) -> usize {
        self.book().calls.iter().filter(|call| **call == name).count()
    }

    /// Counts the call and returns its fault.
    fn enter(&self, name: &'static str) -> Result<Option<Fault>, LibvirtError> {
        os::step("call", name);
        let mut book = self.book();
        if book.dead {
            drop(book);
            return Self::unwind();
        }
        let fault = book.next(name);
        book.fired |= fault.is_some();
        book.calls.push(name);
        let number = book.calls.len();
        while let Some(at) = book.before.iter().position(|(n, _)| *n == number) {
            let (_, what) = book.before.remove(at);
            drop(book);
            what();
            book = self.book();
        }
        drop(book);
        if fault == Some(Fault::Dies) { self.die() } else { Ok(fault) }
    }

    /// Ends the process, as far as a thread can.
    fn die<T>(&self) -> Result<T, LibvirtError> {
        let mut book = self.book();
        if !book.dead {
            book.dead = true;
            if let Some(at_death) = &book.at_death {
                at_death();
            }
        }
        drop(book);
        Self::unwind()
    }

    /// Unwinds without a message, but not from a destructor that already runs because of it.
    fn unwind<T>() -> Result<T, LibvirtError> {
        if thread::panicking() {
            return Err(LibvirtError::new(LibvirtErrorKind::Unreachable, 0, "this process is dead"));
        }
        resume_unwind(Box::new(Killed))
    }

    fn injected(name: &str, kind: LibvirtErrorKind) -> LibvirtError {
        LibvirtError::new(kind, 0, format!("{name} was made to fail"))
    }

    fn call<T>(
        &self,
        name: &'static str,
        call: impl FnOnce(&dyn Hypervisor) -> Result<T, LibvirtError>,
    ) -> Result<T, LibvirtError> {
        let result = self.call_with_fault(name, call);
        os::step("return", name);
        result
    }

    fn call_with_fault<T>(
        &self,
        name: &'static str,
        call: impl FnOnce(&dyn Hypervisor) -> Result<T, LibvirtError>,
    ) -> Result<T, LibvirtError> {
        match self.enter(name)? {
            Some(Fault::Fails(kind)) => Err(Self::injected(name, kind)),
            Some(Fault::FailsAfter(kind)) => Err(call(self.inner.as_ref()).err().unwrap_or(Self::injected(name, kind))),
            Some(Fault::DiesAfter) => {
                let result = call(self.inner.as_ref());
                drop(result);
                self.die()
            }
            Some(Fault::Dies | Fault::DiesDuring { .. } | Fault::Restart) | None => call(self.inner.as_ref()),
        }
    }

    /// A call that takes long. The process may die while libvirtd works on it.
    fn long_call(
        &self,
        name: &'static str,
        domain: &DomainRef,
        call: impl FnOnce(&dyn Hypervisor) -> Result<(), LibvirtError> + Send + 'static,
    ) -> Result<(), LibvirtError> {
        let book = self.book();
        let during = matches!(book.next(name), Some(Fault::DiesDuring { .. })) && !book.dead;
        drop(book);
        if !during {
            return self.call(name, call);
        }
        self.enter(name)?;
        let inner = Arc::clone(&self.inner);
        let work = thread::spawn(move || call(inner.as_ref()));
        while !work.is_finished() && !matches!(self.inner.job(domain), Ok(Some(_))) {
            thread::sleep(Duration::from_millis(1));
        }
        self.die()
    }
}

impl DomainCalls for Faults {
    fn domains(&self) -> Result<Vec<DomainRef>, LibvirtError> {
        self.call("domains", |inner| inner.domains())
    }

    fn find(&self, id: &DomainId) -> Result<Option<DomainRef>, LibvirtError> {
        self.call("find", |inner| inner.find(id))
    }

    fn live_xml(&self, domain: &DomainRef) -> Result<Option<String>, LibvirtError> {
        self.call("live_xml", |inner| inner.live_xml(domain))
    }

    fn migratable_xml(&self, domain: &DomainRef) -> Result<String, LibvirtError> {
        self.call("migratable_xml", |inner| inner.migratable_xml(domain))
    }

    fn state(&self, domain: &DomainRef) -> Result<Option<RunState>, LibvirtError> {
        self.call("state", |inner| inner.state(domain))
    }

    fn metadata(&self, domain: &DomainRef, uri: &str) -> Result<Option<String>, LibvirtError> {
        self.call("metadata", |inner| inner.metadata(domain, uri))
    }

    fn set_metadata(&self, domain: &DomainRef, xml: Option<&str>, prefix: &str, uri: &str) -> Result<(), LibvirtError> {
        self.call("set_metadata", |inner| inner.set_metadata(domain, xml, prefix, uri))
    }

    fn usage(
        &self,
        domain: &DomainRef,
        interfaces: &[String],
        disks: &[String],
    ) -> Result<Option<Usage>, LibvirtError> {
        self.call("usage", |inner| inner.usage(domain, interfaces, disks))
    }
}

impl PowerCalls for Faults {
    fn create(&self, xml: &str, limit: Duration) -> Result<DomainRef, LibvirtError> {
        self.book().limits.push(limit);
        self.call("create", |inner| inner.create(xml, limit))
    }

    fn destroy(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.call("destroy", |inner| inner.destroy(domain))
    }

    fn shutdown(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.call("shutdown", |inner| inner.shutdown(domain))
    }

    fn reboot(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.call("reboot", |inner| inner.reboot(domain))
    }

    fn reset(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.call("reset", |inner| inner.reset(domain))
    }

    fn resume(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.call("resume", |inner| inner.resume(domain))
    }

    fn wake_up(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.call("wake_up", |inner| inner.wake_up(domain))
    }
}

impl DeviceCalls for Faults {
    fn attach(&self, domain: &DomainRef, device_xml: &str, limit: Duration) -> Result<(), LibvirtError> {
        if device_xml.contains("<hostdev") {
            self.book().limits.push(limit);
        }
        self.call("attach", |inner| inner.attach(domain, device_xml, limit))
    }

    fn detach_alias(&self, domain: &DomainRef, alias: &str, limit: Duration) -> Result<(), LibvirtError> {
        let busy = self.book().busy;
        self.call("detach_alias", |inner| match busy {
            None => inner.detach_alias(domain, alias, limit),
            Some(busy) => {
                thread::sleep(busy.min(limit));
                let kind = if busy < limit { LibvirtErrorKind::DomainBusy } else { LibvirtErrorKind::NoAnswer };
                Err(Self::injected("detach_alias", kind))
            }
        })
    }

    fn detach(&self, domain: &DomainRef, device_xml: &str) -> Result<(), LibvirtError> {
        self.call("detach", |inner| inner.detach(domain, device_xml))
    }

    fn change_medium(&self, domain: &DomainRef, disk_xml: &str) -> Result<(), LibvirtError> {
        self.call("change_medium", |inner| inner.change_medium(domain, disk_xml))
    }
}

impl JobCalls for Faults {
    fn job(&self, domain: &DomainRef) -> Result<Option<Job>, LibvirtError> {
        self.call("job", |inner| inner.job(domain))
    }

    fn completed_job(&self, domain: &DomainRef) -> Result<Option<Job>, LibvirtError> {
        self.call("completed_job", |inner| inner.completed_job(domain))
    }

    fn abort_job(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.call("abort_job", |inner| inner.abort_job(domain))
    }

    fn save(&self, domain: &DomainRef, file: &Path) -> Result<(), LibvirtError> {
        let (which, file) = (domain.clone(), file.to_owned());
        self.long_call("save", domain, move |inner| inner.save(&which, &file))
    }

    fn image_xml(&self, file: &Path) -> Result<String, LibvirtError> {
        self.call("image_xml", |inner| inner.image_xml(file))
    }

    fn restore(&self, file: &Path, xml: &str, paused: bool, limit: Duration) -> Result<(), LibvirtError> {
        self.call("restore", |inner| inner.restore(file, xml, paused, limit))
    }

    fn migrate(&self, domain: &DomainRef, migration: &Migration) -> Result<(), LibvirtError> {
        let (which, migration) = (domain.clone(), migration.clone());
        self.long_call("migrate", domain, move |inner| inner.migrate(&which, &migration))
    }
}

impl SnapshotCalls for Faults {
    fn snapshots(&self, domain: &DomainRef) -> Result<Snapshots, LibvirtError> {
        self.call("snapshots", |inner| inner.snapshots(domain))
    }

    fn create_snapshot(&self, domain: &DomainRef, xml: &str) -> Result<(), LibvirtError> {
        self.call("create_snapshot", |inner| inner.create_snapshot(domain, xml))
    }

    fn snapshot_xml(&self, domain: &DomainRef, name: &str) -> Result<String, LibvirtError> {
        self.call("snapshot_xml", |inner| inner.snapshot_xml(domain, name))
    }

    fn revert_snapshot(&self, domain: &DomainRef, name: &str) -> Result<(), LibvirtError> {
        self.call("revert_snapshot", |inner| inner.revert_snapshot(domain, name))
    }

    fn delete_snapshot(&self, domain: &DomainRef, name: &str, metadata_only: bool) -> Result<(), LibvirtError> {
        self.call("delete_snapshot", |inner| inner.delete_snapshot(domain, name, metadata_only))
    }

    fn redefine_snapshot(&self, domain: &DomainRef, xml: &str, current: bool) -> Result<(), LibvirtError> {
        self.call("redefine_snapshot", |inner| inner.redefine_snapshot(domain, xml, current))
    }
}

impl DiskCalls for Faults {
    fn block_copy(&self, domain: &DomainRef, disk: &str, target_xml: &str, shallow: bool) -> Result<(), LibvirtError> {
        self.call("block_copy", |inner| inner.block_copy(domain, disk, target_xml, shallow))
    }

    fn block_job(&self, domain: &DomainRef, disk: &str) -> Result<Option<BlockJob>, LibvirtError> {
        self.call("block_job", |inner| inner.block_job(domain, disk))
    }

    fn finish_block_job(&self, domain: &DomainRef, disk: &str, pivot: bool) -> Result<(), LibvirtError> {
        self.call("finish_block_job", |inner| inner.finish_block_job(domain, disk, pivot))
    }

    fn disk_capacity(&self, domain: &DomainRef, disk: &str) -> Result<u64, LibvirtError> {
        self.call("disk_capacity", |inner| inner.disk_capacity(domain, disk))
    }

    fn resize_disk(&self, domain: &DomainRef, disk: &str, bytes: u64) -> Result<(), LibvirtError> {
        self.call("resize_disk", |inner| inner.resize_disk(domain, disk, bytes))
    }
}

impl GuestCalls for Faults {
    fn set_memory(&self, domain: &DomainRef, kib: u64) -> Result<(), LibvirtError> {
        self.call("set_memory", |inner| inner.set_memory(domain, kib))
    }

    fn set_vcpus(&self, domain: &DomainRef, number: u32) -> Result<(), LibvirtError> {
        self.call("set_vcpus", |inner| inner.set_vcpus(domain, number))
    }

    fn ask_agent(&self, domain: &DomainRef, command: &str) -> Result<String, LibvirtError> {
        self.call("ask_agent", |inner| inner.ask_agent(domain, command))
    }

    fn sync_time(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.call("sync_time", |inner| inner.sync_time(domain))
    }
}

impl EventCalls for Faults {
    fn watch(&self, domain: &DomainRef) -> Result<Events, LibvirtError> {
        self.call("watch", |inner| inner.watch(domain))
    }

    fn watch_for(&self, uuid: &DomainUuid) -> Result<Events, LibvirtError> {
        self.call("watch_for", |inner| inner.watch_for(uuid))
    }
}
