//! Whether other hosts may have a directory mounted too. Hosts that share a state directory would free each other's
//! claims.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};
use nix::sys::statfs::statfs;

/// File systems that several hosts can have mounted, by their numbers of statfs(2).
///
/// # Source
/// Linux `include/uapi/linux/magic.h` and `fs/smb/client/cifsglob.h`; GNU coreutils `src/stat.c` for file systems
/// outside of the kernel.
const SHARED: [(u32, &str); 22] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB"),
    (0x00C3_6400, "CephFS"),
    (0x0BD0_0BD0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0x7461_636F, "OCFS2"),
    (0x0116_1970, "GFS2"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0102_1997, "9p"),
    (0x564C, "NCP"),
    (0xAAD7_AAEA, "PanFS"),
    (0xBEEF_DEAD, "StorNext"),
    (0x0131_11A8, "IBRIX"),
    (0x6163_6673, "ACFS"),
    (0x7C7C_6673, "a share of the hypervisor"),
    (0x786F_4256, "a share of the hypervisor"),
    (0xBACB_ACBC, "a share of the hypervisor"),
];

/// The number of all file systems in user space. Such a file system may be local or shared.
const FUSE: u32 = 0x6573_5546;

/// File systems in user space that several hosts can have mounted, by their names in mountinfo. Any other counts as
/// local.
const SHARED_FUSE: [&str; 17] = [
    "virtiofs",
    "fuse.glusterfs",
    "fuse.sshfs",
    "fuse.ceph",
    "fuse.ceph-fuse",
    "fuse.mfs",
    "fuse.moosefs",
    "fuse.lizardfs",
    "fuse.saunafs",
    "fuse.juicefs",
    "fuse.seaweedfs",
    "fuse.weed",
    "fuse.quobyte",
    "fuse.xtreemfs",
    "fuse.s3fs",
    "fuse.rclone",
    "fuse.nfs",
];

/// What the kernel reports of the file system of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileSystem {
    pub(super) magic: u32,
    /// The name in mountinfo; only for a file system in user space.
    pub(super) name: Option<String>,
}

impl FileSystem {
    /// The file system of a directory that exists.
    ///
    /// # Source
    /// statfs(2); proc(5) on mountinfo.
    pub(super) fn of(dir: &Path) -> io::Result<Self> {
        // The kernel's number has 32 bits. As a C long it may be negative.
        let magic = statfs(dir)?.filesystem_type().0 as u32;
        if magic != FUSE {
            return Ok(Self { magic, name: None });
        }
        let device = fs::metadata(dir)?.dev();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(Self { magic, name: mounted(&mounts, major(device), minor(device)) })
    }

    /// The name of the file system, if several hosts can have it mounted.
    pub(super) fn shared(&self) -> Option<&str> {
        let by_number = || SHARED.iter().find(|(magic, _)| *magic == self.magic).map(|(_, name)| *name);
        let by_name = || self.name.as_deref().filter(|name| SHARED_FUSE.contains(name));
        by_number().or_else(by_name)
    }
}

/// The name of the mounted file system with this device number.
fn mounted(mountinfo: &str, major: u64, minor: u64) -> Option<String> {
    let device = format!("{major}:{minor}");
    let line = mountinfo.lines().rfind(|line| line.split(' ').nth(2) == Some(&*device))?;
    let (_, rest) = line.split_once(" - ")?;
    rest.split(' ').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_that_hosts_share_are_told_from_others() {
        let of = |magic, name: Option<&str>| FileSystem { magic, name: name.map(str::to_owned) };
        for magic in [0x6969, 0x517B, 0xFF53_4D42, 0xFE53_4D42, 0x00C3_6400, 0x7461_636F, 0x0102_1997] {
            assert!(of(magic, None).shared().is_some(), "{magic:x}");
        }
        assert_eq!(of(FUSE, Some("fuse.glusterfs")).shared(), Some("fuse.glusterfs"));
        // ext4, XFS, btrfs, tmpfs, overlay and ZFS. Then unknown file systems in user space.
        for magic in [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x794C_7630, 0x2FC1_2FC1] {
            assert_eq!(of(magic, None).shared(), None, "{magic:x}");
        }
        for name in [None, Some("fuse.mergerfs"), Some("fuseblk")] {
            assert_eq!(of(FUSE, name).shared(), None);
        }
    }

    #[test]
    fn a_mount_is_found_by_its_device() {
        let mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                      40 22 0:51 / /var/lib/one rw,relatime shared:3 master:2 - fuse.glusterfs gfs:/one rw\n";
        assert_eq!(mounted(mounts, 0, 51).as_deref(), Some("fuse.glusterfs"));
        assert_eq!(mounted(mounts, 0, 52), None);
    }

    #[test]
    fn this_directory_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert!(FileSystem::of(dir.path()).is_ok());
        assert!(FileSystem::of(&dir.path().join("none")).is_err());
    }
}
