//! The actions, and their names for OpenNebula, in lock files and in the journal.

use std::fmt;

/// What a process does: an action of OpenNebula, or work that the driver started by itself.
///
/// Prints the name that starts every message of the action. The lock file of a VM and the journal have the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// Starts a VM.
    Deploy,
    /// Asks a guest to power off, and frees its VFs.
    Shutdown,
    /// Ends a VM at once.
    Cancel,
    /// Saves a VM into a file.
    Save,
    /// Copies the file of a save to Ceph.
    SaveCeph,
    /// Starts a VM from the file of its save.
    Restore,
    /// Fetches the file of a save from Ceph.
    RestoreCeph,
    /// Moves a running VM to another host.
    Migrate,
    /// As [`Action::Migrate`], started on the front-end.
    MigrateLocal,
    /// Gives a running VM a NIC.
    AttachNic,
    /// Takes a NIC away from a running VM.
    DetachNic,
    /// Gives a running VM a disk.
    AttachDisk,
    /// Takes a disk away from a running VM.
    DetachDisk,
    /// Makes the disk of a running VM larger.
    ResizeDisk,
    /// Takes a snapshot of a VM and its disks.
    SnapshotCreate,
    /// Returns a VM to a snapshot.
    SnapshotRevert,
    /// Deletes a snapshot.
    SnapshotDelete,
    /// Changes the memory and the number of CPUs of a running VM.
    Resize,
    /// Empties the drive of a VM's context before it is written anew.
    Prereconfigure,
    /// Puts the new context into the drive.
    Reconfigure,
    /// Runs a command in a guest.
    Exec,
    /// Ends a command in a guest.
    ExecCancel,
    /// Asks a guest to restart.
    Reboot,
    /// Resets a VM.
    Reset,
    /// Measures a VM for OpenNebula's monitoring, up to version 5.10.
    Poll,
    /// Checks that a host can give a VM its networks.
    NetworkPre,
    /// Serves another host that migrates a VM to or from this one.
    Agent,
    /// Repairs every VM of a host, on the request of a person or a program.
    Reconcile,
    /// Repairs every VM of a host, started by OpenNebula's monitoring.
    Probe,
    /// Plugs back a VF that a guest releases after its action stopped waiting.
    Watcher,
    /// Sets the clock of a guest.
    Clock,
}

impl Action {
    /// The name, such as `attach_nic`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::Shutdown => "shutdown",
            Self::Cancel => "cancel",
            Self::Save => "save",
            Self::SaveCeph => "save.ceph",
            Self::Restore => "restore",
            Self::RestoreCeph => "restore.ceph",
            Self::Migrate => "migrate",
            Self::MigrateLocal => "migrate_local",
            Self::AttachNic => "attach_nic",
            Self::DetachNic => "detach_nic",
            Self::AttachDisk => "attach_disk",
            Self::DetachDisk => "detach_disk",
            Self::ResizeDisk => "resize_disk",
            Self::SnapshotCreate => "snapshot_create",
            Self::SnapshotRevert => "snapshot_revert",
            Self::SnapshotDelete => "snapshot_delete",
            Self::Resize => "resize",
            Self::Prereconfigure => "prereconfigure",
            Self::Reconfigure => "reconfigure",
            Self::Exec => "exec",
            Self::ExecCancel => "exec_cancel",
            Self::Reboot => "reboot",
            Self::Reset => "reset",
            Self::Poll => "poll",
            Self::NetworkPre => "vnm pre",
            Self::Agent => "sriov_agent",
            Self::Reconcile => "reconcile",
            Self::Probe => "sriov_probe",
            Self::Watcher => "watcher",
            Self::Clock => "sriov_clock",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
