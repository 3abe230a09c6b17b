//! Why an action failed.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::{AgentError, Doubt, Obstacle, UnplugOutcome};
use crate::base::{DomainName, HostName, MacAddress, ParseError, PciAddress, Position, RootName};
use crate::claims::ClaimError;
use crate::config::{AlsoListed, KvmrcError, VfMapError};
use crate::libvirt::{LibvirtError, LibvirtErrorKind};
use crate::sysfs::NoVf;
use crate::xml::{NicMode, XmlError};

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// An argument is missing or has the wrong form.
    #[error("{name}: {problem}")]
    Argument {
        /// Which one.
        name: &'static str,
        /// What was expected and what was found.
        problem: String,
    },
    /// Standard input is no text.
    #[error("cannot read the XML from standard input: {why}")]
    Stdin {
        /// Why not.
        why: String,
    },
    /// XML that is malformed or lacks what is needed.
    #[error("{what}: {source}")]
    Xml {
        /// Which document.
        what: String,
        /// Where and why.
        source: XmlError,
    },
    /// A value in the VM's description or in kvmrc does not fit.
    #[error("{what}: {source}")]
    Value {
        /// Whose value.
        what: String,
        /// What was expected.
        source: ParseError,
    },
    /// kvmrc can't be read as far as this action needs it.
    #[error(transparent)]
    Kvmrc(#[from] KvmrcError),
    /// A variable of kvmrc that this action needs is not set.
    #[error(
        "{variable} is not set: {why}; set it in /etc/kvm-sriov/kvmrc on this host or in etc/vmm/kvm-sriov/kvmrc of the front-end"
    )]
    NotSet {
        /// The variable.
        variable: &'static str,
        /// What it is needed for.
        why: &'static str,
    },
    /// The dummies' bridge is not there.
    #[error(
        "DUMMY_BRIDGE {bridge} is not a bridge of this host: make it (ip link add {bridge} type bridge; ip link set {bridge} up), it needs no uplink"
    )]
    NoBridge {
        /// Its name.
        bridge: String,
    },
    /// A network of the companion network driver has a bridge that asks for no VF.
    #[error("NIC {mac} is in a network with VN_MAD sriov, whose bridge must be sriov_<root>; found \"{bridge}\"")]
    NotSriov {
        /// The NIC's.
        mac: crate::base::MacAddress,
        /// The bridge; empty when the network has none.
        bridge: String,
    },
    /// A VF map is missing or wrong.
    #[error(transparent)]
    Map(#[from] VfMapError),
    /// The claims can't be read or written, or there is no free VF.
    #[error(transparent)]
    Claims(#[from] ClaimError),
    /// A call to libvirt failed.
    #[error(transparent)]
    Libvirt(#[from] LibvirtError),
    /// What a user of OpenNebula knows from the stock driver, and libvirt's reason.
    #[error("could not {what}: {source}")]
    Call {
        /// For example "create domain from /var/lib/one//datastores/0/42/deployment.0".
        what: String,
        /// Libvirt's reason.
        source: LibvirtError,
    },
    /// A file can't be read or written.
    #[error("cannot {verb} {path}: {source}")]
    File {
        /// "read", "write" ...
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The domain is already there.
    #[error("{name} is already on this host")]
    Exists {
        /// Its name.
        name: DomainName,
    },
    /// There is no such domain.
    #[error("there is no domain {id} on this host")]
    Absent {
        /// What was asked for.
        id: String,
    },
    /// The domain did not end in time.
    #[error("timed out shutting down {id} after {seconds} s (does the guest answer its power button?)")]
    ShutdownTimeout {
        /// The domain.
        id: String,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// The domain did not go although it was destroyed.
    #[error("could not destroy {id}: it is still there after {seconds} s")]
    StillThere {
        /// The domain.
        id: String,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// QEMU may not open the VF's vfio group.
    #[error("QEMU may not open {device} ({text}): {advice}")]
    VfioDenied {
        /// The device file.
        device: String,
        /// libvirt's text.
        text: String,
        /// What to do.
        advice: &'static str,
    },
    /// The guest's memory could not be pinned.
    #[error(
        "the host can't lock the guest's memory for a VF ({text}): guest memory {guest_kib} KiB, its hard_limit {}, free on the host {free_kib} KiB; free memory on the host or raise the domain's hard_limit",
        .limit_kib.map_or_else(|| "not set".to_owned(), |kib| format!("{kib} KiB"))
    )]
    NoMemory {
        /// libvirt's text.
        text: String,
        /// From the deployment XML, in KiB.
        guest_kib: u64,
        /// `<hard_limit>` of the domain, in KiB.
        limit_kib: Option<u64>,
        /// MemAvailable, in KiB.
        free_kib: u64,
    },
    /// Every VF that was free was refused by libvirt.
    #[error("{exhausted}; refused by libvirt: {reasons}")]
    AllRefused {
        /// The error of the map.
        exhausted: Box<ClaimError>,
        /// Each VF with its reason.
        reasons: String,
    },
    /// The running domain is not what was asked for.
    #[error("{name} does not show what was asked for: {what}")]
    NotAsAsked {
        /// The domain.
        name: DomainName,
        /// The difference.
        what: String,
    },
    /// The guest did not release VFs.
    #[error("{vm} did not release {}", KeptVfs(kept, *seconds))]
    NotReleased {
        /// The domain.
        vm: DomainName,
        /// How long it was waited for, in seconds.
        seconds: u64,
        /// What stayed: the NIC's position, its VF, and why.
        kept: Vec<(Position, PciAddress, UnplugOutcome)>,
    },
    /// The guest did not release a device that is no VF of ours.
    #[error("{vm} did not release {device}{}", WhyKept(outcome, *seconds))]
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
    /// OpenNebula's note of the VM's directory is missing.
    #[error("cannot read 'system_datastore' from domain {vm}")]
    NoVmDir {
        /// The domain.
        vm: DomainName,
    },
    /// The domain has a NIC with this MAC that is another one.
    #[error("{vm} already has a NIC {mac}: {what}")]
    OtherNic {
        /// The domain.
        vm: DomainName,
        /// The MAC.
        mac: MacAddress,
        /// What it is.
        what: String,
    },
    /// Several NICs of the domain have the MAC that an action is about.
    #[error("{vm} has several NICs with MAC {mac} ({nics}), and OpenNebula does not say which one is meant")]
    SeveralNics {
        /// The domain.
        vm: DomainName,
        /// The MAC.
        mac: MacAddress,
        /// Which they are.
        nics: String,
    },
    /// The domain has no disk with this target.
    #[error("could not {what}: {vm} has no disk {target}")]
    NoDisk {
        /// The domain.
        vm: DomainName,
        /// Its target, such as `vdb`.
        target: String,
        /// For example "detach vdb from one-42".
        what: String,
    },
    /// The domain has another disk, or another medium, at this target.
    #[error("could not {what}: {vm} has {found} there")]
    OtherDisk {
        /// The domain.
        vm: DomainName,
        /// For example "attach /var/lib/one//datastores/0/42/disk.2 (vdb) to one-42".
        what: String,
        /// What is there.
        found: String,
    },
    /// OpenNebula's message does not say what the action is about.
    #[error("OpenNebula's message names no {what}")]
    NotNamed {
        /// "disk that is to be attached" ...
        what: String,
    },
    /// The agent in a guest refused, or said what its protocol has not.
    #[error("the guest agent of {vm} answered \"{text}\"")]
    GuestAgent {
        /// The domain.
        vm: DomainName,
        /// What it said.
        text: String,
    },
    /// Another program failed.
    #[error("could not {what}: {why}")]
    Program {
        /// For example "import the checkpoint into one/one-sys-42-checkpoint".
        what: String,
        /// What it said.
        why: String,
    },
    /// The domain has no room for what is asked for.
    #[error("could not {what}: {why}")]
    NoRoom {
        /// For example "resize VCPU to 8 on one-42".
        what: String,
        /// Why not.
        why: String,
    },
    /// There is no position left for an SR-IOV NIC.
    #[error("{vm} already has 16 SR-IOV NICs, and a 17th can't be told from them")]
    TooMany {
        /// The domain.
        vm: DomainName,
    },
    /// The domain has a host device that is not ours and stays with its host.
    #[error("{vm} also has host device {device}, which can't be {what}")]
    ForeignDevice {
        /// The domain.
        vm: DomainName,
        /// The device: its PCI address on the host, or what it is.
        device: String,
        /// "saved", "migrated" ...
        what: &'static str,
    },
    /// The domain's CPUs do not run, so its guest can't answer.
    #[error("{vm} is {how}, so its guest can't release a device; resume it first")]
    NotRunning {
        /// The domain.
        vm: DomainName,
        /// "paused" ...
        how: &'static str,
    },
    /// A VF is in use and in no map, so it can't be claimed.
    #[error("VF {vf} of {vm} is not in the map {root} any more: write it back, the VM has it")]
    Unmapped {
        /// The domain.
        vm: DomainName,
        /// The VF.
        vf: PciAddress,
        /// The root that it came from.
        root: RootName,
    },
    /// An earlier operation was cut off, and only a person can say where the VM lives.
    #[error("{vm} is in doubt: {doubt}; see kvm-sriov resolve {vm}")]
    Unresolved {
        /// The domain.
        vm: DomainName,
        /// Why.
        doubt: Doubt,
    },
    /// An operation is open that this action can't go on from.
    #[error("{vm} has an open operation ({operation}): {why}")]
    OpenOperation {
        /// The domain.
        vm: DomainName,
        /// Which one.
        operation: String,
        /// Why it stays open.
        why: Obstacle,
    },
    /// libvirt works on the domain.
    #[error("a job of libvirt runs on {vm} ({what}), during which its devices can't be changed")]
    JobRuns {
        /// The domain.
        vm: DomainName,
        /// What it does.
        what: &'static str,
    },
    /// The agent on another host failed, refused or was lost.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A move that another host was asked for failed there.
    #[error("{host}: {text}")]
    Elsewhere {
        /// The host.
        host: HostName,
        /// Its cause.
        text: String,
    },
    /// The agent was asked to go on with a VM that it knows nothing of.
    #[error("no VM was announced to this agent")]
    NothingPrepared,
    /// A map has not as many free VFs as a VM that is to come needs.
    #[error("{free} free VF on {root}, {needed} needed{users}{}", AlsoListed(no_vfs))]
    TooFew {
        /// The root.
        root: RootName,
        /// How many VFs are free.
        free: usize,
        /// How many the VM needs.
        needed: usize,
        /// Who has the others, in brackets after a blank; or nothing.
        users: String,
        /// What its map lists besides VFs of this host.
        no_vfs: Vec<(PciAddress, NoVf)>,
    },
    /// A map lists fewer VFs of this host than a VM needs.
    #[error(
        "{root} has {vfs} VF here, {needed} needed{} (is the adapter's driver loaded, and are its VFs made?)",
        AlsoListed(no_vfs)
    )]
    FewVfs {
        /// The root.
        root: RootName,
        /// How many lines of its map are VFs of this host.
        vfs: usize,
        /// How many the VM needs.
        needed: usize,
        /// What else its map lists.
        no_vfs: Vec<(PciAddress, NoVf)>,
    },
    /// A NIC's mode is one that this version has not.
    #[error("NIC {mac} is in mode {mode}, in which this host can't plug a VF")]
    NoMode {
        /// The NIC.
        mac: MacAddress,
        /// Its mode.
        mode: NicMode,
    },
    /// A path is outside of the directory that a VM may write to.
    #[error("{path} is not in the directory of the VM")]
    NotInVmDir {
        /// The path.
        path: PathBuf,
    },
    /// A move that can't be done live.
    #[error("{vm} can't be moved {how}")]
    NoMove {
        /// The domain.
        vm: DomainName,
        /// Where, and why not.
        how: String,
    },
    /// Whether a domain runs at the destination of its move is not known.
    #[error("{cause}; whether {vm} runs on {to} is not known")]
    UnknownThere {
        /// Why the move failed.
        cause: Box<Cause>,
        /// The domain.
        vm: DomainName,
        /// The destination.
        to: HostName,
    },
    /// OpenNebula cancelled the VM meanwhile.
    #[error("{name} was cancelled meanwhile")]
    Cancelled {
        /// The domain.
        name: DomainName,
    },
    /// What libvirt wrote is no save image that is complete.
    #[error("{path} is not a complete save image of libvirt")]
    BadImage {
        /// The file.
        path: PathBuf,
    },
    /// The process can't become OpenNebula's user.
    #[error("cannot become the owner of {path} (uid {uid}): {source}")]
    Identity {
        /// The driver's directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Why not.
        source: io::Error,
    },
    /// The action failed and so did undoing it.
    #[error("{cause}; undoing it failed too: {undo}")]
    Twice {
        /// Why the action failed.
        cause: Box<Cause>,
        /// Why the undo failed.
        undo: Box<Cause>,
    },
}

impl Cause {
    /// Whether it is only that libvirtd went away for a moment.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Libvirt(source) | Self::Call { source, .. } => source.is_passing(),
            _ => false,
        }
    }

    /// Whether a guest keeps what it was to release.
    pub(super) fn is_not_released(&self) -> bool {
        match self {
            Self::NotReleased { .. } | Self::DeviceNotReleased { .. } | Self::NotRunning { .. } => true,
            Self::Twice { cause, .. } => cause.is_not_released(),
            _ => false,
        }
    }

    /// Whether it is not known if what failed took effect, or still will.
    pub(crate) fn leaves_doubt(&self) -> bool {
        match self {
            Self::Libvirt(source) | Self::Call { source, .. } => {
                matches!(source.kind(), LibvirtErrorKind::NoAnswer | LibvirtErrorKind::Disconnected)
            }
            _ => false,
        }
    }

    /// For `map_err`: a failure to `verb` the file at `path`.
    pub(crate) fn file(verb: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { verb, path, source }
    }
}

/// What stayed, for a person.
struct KeptVfs<'a>(&'a [(Position, PciAddress, UnplugOutcome)], u64);

/// Why a device stayed, as the end of a sentence.
struct WhyKept<'a>(&'a UnplugOutcome, u64);

impl fmt::Display for WhyKept<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(UnplugOutcome::Pending, seconds) => write!(f, " in {seconds} s"),
            Self(outcome, _) => write!(f, " ({outcome})"),
        }
    }
}

impl fmt::Display for KeptVfs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(kept, seconds) = self;
        for (number, (_, vf, outcome)) in kept.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}VF {vf}{}", WhyKept(outcome, *seconds))?;
        }
        Ok(())
    }
}
