//! Why an action failed.

use std::io;
use std::path::PathBuf;

use super::{AgentError, Doubt, Obstacle, UnplugOutcome};
use crate::base::{DomainName, HostName, MacAddress, NicMode, ParseError, PciAddress, Position, RootName};
use crate::claims::ClaimError;
use crate::config::{KvmrcError, VfMapError};
use crate::libvirt::LibvirtError;
use crate::sysfs::NoVf;
use crate::xml::XmlError;

/// Why an action failed.
///
/// Prints as one line that contains the text of every error it is made of, so
/// [`source`](std::error::Error::source) returns `None`: a report that walks the chain repeats nothing. The variants
/// give the errors themselves, such as the [`LibvirtError`] of [`Cause::Call`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Cause {
    /// An argument is missing or has the wrong form.
    Argument {
        /// The argument's name.
        name: &'static str,
        /// What was expected and what was found.
        problem: String,
    },
    /// Standard input can't be read, or is not text.
    Stdin {
        /// Why not.
        why: String,
    },
    /// A document is malformed, or lacks what the action needs.
    Xml {
        /// Which document.
        what: String,
        /// The place in the document, and what is wrong there.
        source: XmlError,
    },
    /// A value in the VM's description or in kvmrc has the wrong form.
    Value {
        /// What has this value, such as "the MAC of the NIC".
        what: String,
        /// What was expected.
        source: ParseError,
    },
    /// kvmrc has a line that can't be read.
    Kvmrc(KvmrcError),
    /// A setting that this action needs is not set.
    NotSet {
        /// Its variable in kvmrc.
        variable: &'static str,
        /// What it is needed for.
        why: &'static str,
    },
    /// The bridge of the dummies is no bridge of this host.
    NoBridge {
        /// Its name.
        bridge: String,
    },
    /// A NIC is in a network of OpenNebula's network driver `sriov`, but the network's bridge names no root.
    NotSriov {
        /// The MAC of the NIC.
        mac: MacAddress,
        /// The bridge; empty when the network has none.
        bridge: String,
    },
    /// A VF map is missing, or has a line that can't be read.
    Map(VfMapError),
    /// The claims can't be read or written, or there is no free VF.
    Claims(ClaimError),
    /// A call to libvirt failed. The action read something, or [`Cause::Call`] names the call.
    Libvirt(LibvirtError),
    /// A call to libvirt failed. `what` has the words that OpenNebula's stock driver uses for it.
    Call {
        /// For example "create domain from /var/lib/one//datastores/0/42/deployment.0".
        what: String,
        /// What libvirt said.
        source: LibvirtError,
    },
    /// A file can't be read or written.
    File {
        /// "read", "write" ...
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A domain with this name runs already.
    Exists {
        /// Its name.
        name: DomainName,
    },
    /// There is no such domain, or it has ended.
    Absent {
        /// The name, UUID or number of the domain.
        id: String,
    },
    /// The domain was asked to shut down and did not end in time.
    ShutdownTimeout {
        /// The domain.
        id: String,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// The domain was destroyed, but libvirt still shows it.
    StillThere {
        /// The domain.
        id: String,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// The host does not allow QEMU to open the vfio device of a VF.
    VfioDenied {
        /// The device file.
        device: String,
        /// libvirt's text.
        text: String,
        /// What to do.
        advice: &'static str,
    },
    /// The host could not lock the guest's memory, which a VF needs.
    NoMemory {
        /// libvirt's text.
        text: String,
        /// The memory of the guest, in KiB.
        guest_kib: u64,
        /// `<hard_limit>` of the domain, in KiB.
        limit_kib: Option<u64>,
        /// The memory that is available on the host, in KiB (`MemAvailable` of `/proc/meminfo`).
        free_kib: u64,
    },
    /// libvirt refused every VF that was free.
    AllRefused {
        /// Why there is no other VF.
        exhausted: Box<ClaimError>,
        /// Each VF and why libvirt refused it.
        reasons: String,
    },
    /// The live XML of the domain is not as requested.
    NotAsAsked {
        /// The domain.
        name: DomainName,
        /// The difference.
        what: String,
    },
    /// The guest did not release VFs.
    NotReleased {
        /// The domain.
        vm: DomainName,
        /// How long it was waited for, in seconds.
        seconds: u64,
        /// Each VF that stayed: the NIC's position, the VF, and why it stayed.
        kept: Vec<(Position, PciAddress, UnplugOutcome)>,
    },
    /// The guest did not release a device that is not a VF.
    DeviceNotReleased {
        /// The domain.
        vm: DomainName,
        /// Which device.
        device: String,
        /// How long it was waited for, in seconds.
        seconds: u64,
        /// Why it stayed.
        outcome: UnplugOutcome,
    },
    /// The domain has no metadata of OpenNebula that name the VM's directory.
    NoVmDir {
        /// The domain.
        vm: DomainName,
    },
    /// The domain already has another NIC with this MAC.
    OtherNic {
        /// The domain.
        vm: DomainName,
        /// The MAC.
        mac: MacAddress,
        /// What it is.
        what: String,
    },
    /// Several NICs of the domain have the MAC that the action was given.
    SeveralNics {
        /// The domain.
        vm: DomainName,
        /// The MAC.
        mac: MacAddress,
        /// Each of them, and where it is.
        nics: String,
    },
    /// The domain has no disk with this target.
    NoDisk {
        /// The domain.
        vm: DomainName,
        /// Its target, such as `vdb`.
        target: String,
        /// For example "detach vdb from one-42".
        what: String,
    },
    /// The domain has another disk, or another medium, at this target.
    OtherDisk {
        /// The domain.
        vm: DomainName,
        /// For example "attach /var/lib/one//datastores/0/42/disk.2 (vdb) to one-42".
        what: String,
        /// What is there.
        found: String,
    },
    /// OpenNebula's message does not name the object of the action.
    NotNamed {
        /// "disk to attach" ...
        what: String,
    },
    /// The guest agent refused a command, or its answer is not of its protocol.
    GuestAgent {
        /// The domain.
        vm: DomainName,
        /// Its answer.
        text: String,
    },
    /// A program that the driver ran failed.
    Program {
        /// For example "import the checkpoint into one/one-sys-42-checkpoint".
        what: String,
        /// What the program wrote.
        why: String,
    },
    /// The domain can't grow, or shrink, as requested.
    NoRoom {
        /// For example "resize VCPU to 8 on one-42".
        what: String,
        /// Why not.
        why: String,
    },
    /// The domain has the largest number of SR-IOV NICs that a VM can have.
    TooMany {
        /// The domain.
        vm: DomainName,
    },
    /// The domain has a host device that is not one of the driver's VFs, and that can't leave its host.
    ForeignDevice {
        /// The domain.
        vm: DomainName,
        /// The device: its PCI address on the host, or its kind.
        device: String,
        /// "saved", "migrated" ...
        what: &'static str,
    },
    /// The domain is paused, so its guest can't release a device.
    NotRunning {
        /// The domain.
        vm: DomainName,
        /// "paused" ...
        how: &'static str,
    },
    /// A domain uses a VF that no map lists, so the VF can't be claimed.
    Unmapped {
        /// The domain.
        vm: DomainName,
        /// The VF.
        vf: PciAddress,
        /// The root whose map listed it.
        root: RootName,
    },
    /// The VM is in doubt: an earlier operation was interrupted, and only a person can say on which host the VM runs.
    Unresolved {
        /// The domain.
        vm: DomainName,
        /// Why.
        doubt: Doubt,
    },
    /// An earlier operation of the VM is open, and this action can't finish it.
    OpenOperation {
        /// The domain.
        vm: DomainName,
        /// The operation.
        operation: String,
        /// Why the operation stays open.
        why: Obstacle,
    },
    /// A job of libvirt runs on the domain. Until it ends, libvirt changes no device.
    JobRuns {
        /// The domain.
        vm: DomainName,
        /// The job, such as "its save".
        what: &'static str,
    },
    /// The agent on another host failed, refused, or can't be reached.
    Agent(AgentError),
    /// Another host was asked for a migration, and it failed there.
    Elsewhere {
        /// The host.
        host: HostName,
        /// The cause that the other host reports.
        text: String,
    },
    /// The agent was asked to continue with a VM that nobody announced to it.
    NothingPrepared,
    /// A map has fewer free VFs than an incoming VM needs.
    TooFew {
        /// The root.
        root: RootName,
        /// How many VFs are free.
        free: usize,
        /// How many the VM needs.
        needed: usize,
        /// The VMs that use the others, in brackets after a space; or empty.
        users: String,
        /// What the map also lists: addresses that are not VFs of this host.
        no_vfs: Vec<(PciAddress, NoVf)>,
    },
    /// A map lists fewer VFs of this host than a VM needs.
    FewVfs {
        /// The root.
        root: RootName,
        /// How many lines of the map are VFs of this host.
        vfs: usize,
        /// How many the VM needs.
        needed: usize,
        /// What the map also lists: addresses that are not VFs of this host.
        no_vfs: Vec<(PciAddress, NoVf)>,
    },
    /// A NIC has a mode that this version does not support.
    NoMode {
        /// The NIC.
        mac: MacAddress,
        /// Its mode.
        mode: NicMode,
    },
    /// The NIC of an incoming VM has another mode than its root has on this host.
    OtherMode {
        /// The NIC.
        mac: MacAddress,
        /// Its mode.
        mode: NicMode,
        /// The root.
        root: RootName,
        /// The mode of the root on this host.
        here: NicMode,
    },
    /// A NIC whose VF is in mode ethernet asks for what only an interface on a bridge can do.
    NeedsBridge {
        /// The NIC.
        mac: MacAddress,
        /// What it asks for.
        what: &'static str,
    },
    /// It is not known which VLAN a NIC in mode ethernet is in.
    NoVlanKnown {
        /// The NIC.
        mac: MacAddress,
    },
    /// A path is outside the VM's directory.
    NotInVmDir {
        /// The path.
        path: PathBuf,
    },
    /// The VM can't be migrated live.
    NoMove {
        /// The domain.
        vm: DomainName,
        /// Where to, and why not: "to node2: it has a disk in memory".
        how: String,
    },
    /// A migration failed, and it is not known whether the domain runs on the destination.
    UnknownThere {
        /// Why the migration failed.
        cause: Box<Cause>,
        /// The domain.
        vm: DomainName,
        /// The destination.
        to: HostName,
    },
    /// The host's [`Stop`](crate::Stop) was set, and the action ended early.
    Stopped {
        /// The VFs that the guest was asked to release and has not released yet; empty when there are none.
        kept: Vec<(Position, PciAddress, UnplugOutcome)>,
    },
    /// OpenNebula cancelled the VM while the action ran.
    Cancelled {
        /// The domain.
        name: DomainName,
    },
    /// A file is not a complete save image of libvirt.
    BadImage {
        /// The file.
        path: PathBuf,
    },
    /// The process, run as root, can't become the driver's user.
    Identity {
        /// The driver's directory.
        path: PathBuf,
        /// The user that owns the directory.
        uid: u32,
        /// Why not.
        source: io::Error,
    },
    /// The action failed, and its undo failed too.
    Twice {
        /// Why the action failed.
        cause: Box<Cause>,
        /// Why the undo failed.
        undo: Box<Cause>,
    },
}

impl std::error::Error for Cause {}

impl From<KvmrcError> for Cause {
    fn from(error: KvmrcError) -> Self {
        Self::Kvmrc(error)
    }
}

impl From<VfMapError> for Cause {
    fn from(error: VfMapError) -> Self {
        Self::Map(error)
    }
}

impl From<ClaimError> for Cause {
    fn from(error: ClaimError) -> Self {
        Self::Claims(error)
    }
}

impl From<LibvirtError> for Cause {
    fn from(error: LibvirtError) -> Self {
        Self::Libvirt(error)
    }
}

impl From<AgentError> for Cause {
    fn from(error: AgentError) -> Self {
        Self::Agent(error)
    }
}

impl Cause {
    /// For `map_err`: a failure to `verb` the file at `path`.
    pub(crate) fn file(verb: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { verb, path, source }
    }

    /// The same failure, after which the undo failed as well.
    #[must_use]
    pub(crate) fn and_undo(self, undo: impl Into<Self>) -> Self {
        Self::Twice { cause: Box::new(self), undo: Box::new(undo.into()) }
    }
}
