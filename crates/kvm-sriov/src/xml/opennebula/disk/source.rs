//! The place of a disk: on the host or in a store.

use super::VmDisk;
use crate::xml::write::Escaped;

/// The place of a disk, and the kind of device that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlace {
    pub(super) source: Source,
    /// Whether the guest sees a CD-ROM.
    pub is_cdrom: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    File(String),
    Block(String),
    Network {
        protocol: &'static str,
        name: String,

        /// `<host>` elements.
        hosts: String,
        /// `<auth>`.
        auth: Option<String>,
    },
}

impl DiskPlace {
    /// The image in libvirt's form: a file, a device, or a name in a store.
    pub fn source(&self) -> &str {
        match &self.source {
            Source::File(path) | Source::Block(path) => path,
            Source::Network { name, .. } => name,
        }
    }

    /// The file, if the disk is in one.
    pub fn file(&self) -> Option<&str> {
        match &self.source {
            Source::File(path) => Some(path),
            Source::Block(_) | Source::Network { .. } => None,
        }
    }

    /// Replaces the place by a file. libvirt must lock and label the image, not a symbolic link to it.
    #[must_use]
    pub fn with_file(self, path: String) -> Self {
        Self { source: Source::File(path), ..self }
    }
}

impl Source {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Block(_) => "block",
            Self::Network { .. } => "network",
        }
    }

    /// The element `<source>`, followed by `<auth>`.
    pub(super) fn to_xml(&self) -> String {
        match self {
            Self::File(path) => format!("<source file='{}'/>", Escaped(path)),
            Self::Block(path) => format!("<source dev='{}'/>", Escaped(path)),
            Self::Network { protocol, name, hosts, auth } => {
                let auth = auth.as_deref().unwrap_or_default();
                format!("<source protocol='{protocol}' name='{}'>{hosts}</source>{auth}", Escaped(name))
            }
        }
    }
}

impl VmDisk {
    /// The place of the disk.
    ///
    /// * `path` - the image in the VM's directory, for a disk in a file or on a device
    pub fn place(&self, path: &str) -> DiskPlace {
        let kind = self.get("TYPE").unwrap_or("FILE").to_ascii_lowercase();
        let is = |protocol: &str| kind.starts_with(protocol);
        let by_storage = self.get("DISK_TYPE").unwrap_or_default().to_ascii_uppercase();
        let stored = |storage: &str| by_storage == storage;
        let is_cdrom = kind == "cdrom" || kind.ends_with("_cdrom");
        let source = match kind.as_str() {
            "block" | "block_cdrom" => Source::Block(path.to_owned()),
            "cdrom" if stored("BLOCK") => Source::Block(path.to_owned()),
            "cdrom" => Source::File(path.to_owned()),
            "iscsi" => self.iscsi(),
            _ if is("rbd") => self.rbd(self.image("one-sys")),
            _ if is("sheepdog") => self.sheepdog(),
            _ if is("gluster") => self.gluster(),
            // Also disks of type fs and swap, which OpenNebula creates in the system datastore.
            _ if stored("RBD") => self.rbd(format!("{}/one-sys-{}-{}", self.pool(), self.vm, self.id())),
            _ if stored("BLOCK") => Source::Block(path.to_owned()),
            _ if stored("SHEEPDOG") => self.sheepdog(),
            _ if stored("GLUSTER") => self.gluster(),
            _ => Source::File(path.to_owned()),
        };
        DiskPlace { source, is_cdrom }
    }

    fn pool(&self) -> &str {
        self.get("POOL_NAME").unwrap_or("one")
    }

    /// The name of the image in a store. The name of a clone ends with the numbers of the VM and the disk.
    fn image(&self, without: &str) -> String {
        let source = self.get("SOURCE").map_or_else(|| format!("{}/{without}", self.pool()), str::to_owned);
        if self.is_yes("CLONE") || self.get("SOURCE").is_none() {
            format!("{source}-{}-{}", self.vm, self.id())
        } else {
            source
        }
    }

    fn rbd(&self, name: String) -> Source {
        let auth = self.auth("ceph", "uuid", ["CEPH_USER", "CEPH_SECRET"]);
        Source::Network { protocol: "rbd", name, hosts: hosts(self.get("CEPH_HOST"), ""), auth }
    }

    fn iscsi(&self) -> Source {
        let name = self.get("ISCSI_IQN").or(self.get("SOURCE")).unwrap_or_default().to_owned();
        let auth = self.auth("iscsi", "usage", ["ISCSI_USER", "ISCSI_USAGE"]);
        Source::Network { protocol: "iscsi", name, hosts: hosts(self.get("ISCSI_HOST"), ""), auth }
    }

    fn sheepdog(&self) -> Source {
        let hosts = hosts(self.get("SHEEPDOG_HOST"), " transport='tcp'");
        Source::Network { protocol: "sheepdog", name: self.image("one-sys"), hosts, auth: None }
    }

    fn gluster(&self) -> Source {
        let file = if self.is_yes("CLONE") || self.get("SOURCE").is_none() {
            format!("{}/disk.{}", self.vm, self.id())
        } else {
            self.get("SOURCE").unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned()
        };
        let name = format!("{}/{file}", self.get("GLUSTER_VOLUME").unwrap_or_default());
        let hosts = hosts(self.get("GLUSTER_HOST"), " transport='tcp'");
        Source::Network { protocol: "gluster", name, hosts, auth: None }
    }

    /// The element `<auth>`, if both the user and the secret are known.
    fn auth(&self, kind: &str, by: &str, [user, secret]: [&str; 2]) -> Option<String> {
        let (user, secret) = (Escaped(self.get(user)?), Escaped(self.get(secret)?));
        Some(format!("<auth username='{user}'><secret type='{kind}' {by}='{secret}'/></auth>"))
    }
}

/// Elements `<host>` from names separated by blanks, each with or without a port.
fn hosts(list: Option<&str>, transport: &str) -> String {
    let mut xml = String::new();
    for host in list.unwrap_or_default().split_whitespace() {
        // An IPv6 address with a port is in brackets.
        let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((name, rest)) => (name, rest.strip_prefix(':')),
            None if host.matches(':').count() == 1 => host.split_once(':').map_or((host, None), |(n, p)| (n, Some(p))),
            None => (host, None),
        };
        let port = port.map(|port| format!(" port='{}'", Escaped(port))).unwrap_or_default();
        xml += &format!("<host name='{}'{port}{transport}/>", Escaped(name));
    }
    xml
}
