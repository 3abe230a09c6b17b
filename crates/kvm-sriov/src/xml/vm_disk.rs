//! A disk as OpenNebula describes it, and the `<disk>` that is plugged in for it.

use std::collections::BTreeMap;

use roxmltree::Node;

use super::{Escaped, XmlError, child, children, content, decimal, parse, root};

/// A disk of a VM, as OpenNebula describes it. Texts are as they stand there, not checked: libvirt has the last word on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDisk {
    values: BTreeMap<String, String>,
    vm: String,
    vcpus: u32,
    /// The queues of every disk of the VM that does not say.
    queues: Option<String>,
}

impl VmDisk {
    /// The disk that an action is about: the one with `ATTACH=YES` or, with `id`, the one with this `DISK_ID`. `None` when there
    /// is none.
    ///
    /// # Errors
    /// The text is not XML, or has no `<VM>`.
    ///
    /// # Source
    /// OpenNebula's `VMM_DRIVER_ACTION_DATA`.
    pub fn find(text: &str, id: Option<u32>) -> Result<Option<Self>, XmlError> {
        let document = parse(text)?;
        let action = root(&document, "VMM_DRIVER_ACTION_DATA")?;
        let vm = child(action, "VM").ok_or_else(|| XmlError::at(action, "expected <VM> in it, found none"))?;
        let template = || children(vm, "TEMPLATE");
        let values = |disk: Node<'_, '_>| -> BTreeMap<String, String> {
            let named = disk.children().filter(Node::is_element);
            let texts = named.map(|node| (node.tag_name().name().to_owned(), content(node).trim().to_owned()));
            texts.filter(|(_, text)| !text.is_empty()).collect()
        };
        let meant = |values: &BTreeMap<String, String>| match id {
            Some(id) => values.get("DISK_ID").is_some_and(|text| decimal(text) == Ok(id)),
            None => values.get("ATTACH").is_some_and(|text| text == "YES"),
        };
        let found = template().flat_map(|template| children(template, "DISK")).map(values).find(meant);
        let number = |node: Option<Node<'_, '_>>| node.and_then(|node| decimal(content(node).trim()).ok());
        let features = || template().find_map(|template| child(template, "FEATURES"));
        Ok(found.map(|values| Self {
            values,
            vm: child(vm, "ID").map(content).unwrap_or_default(),
            vcpus: number(template().find_map(|template| child(template, "VCPU"))).unwrap_or(1),
            queues: features()
                .and_then(|features| child(features, "VIRTIO_BLK_QUEUES"))
                .map(|queues| content(queues).trim().to_owned())
                .filter(|queues| !queues.is_empty()),
        }))
    }

    /// Its target in the domain, such as `vda`.
    pub fn target(&self) -> Option<&str> {
        self.get("TARGET")
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    fn is_yes(&self, name: &str) -> bool {
        self.get(name).is_some_and(|text| text.eq_ignore_ascii_case("yes"))
    }

    fn id(&self) -> &str {
        self.get("DISK_ID").unwrap_or("0")
    }

    /// Its place on the host.
    ///
    /// * `path` - the image in the VM's directory, for what is a file or a device
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
            // Also fs and swap, which are made where the system datastore is.
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

    /// The image in a store of blocks: a clone has the numbers of VM and disk at its end.
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

    /// `<auth>`; only with both, user and secret.
    fn auth(&self, kind: &str, by: &str, [user, secret]: [&str; 2]) -> Option<String> {
        let (user, secret) = (Escaped(self.get(user)?), Escaped(self.get(secret)?));
        Some(format!("<auth username='{user}'><secret type='{kind}' {by}='{secret}'/></auth>"))
    }

    /// The `<disk>` that OpenNebula's stock driver plugs in.
    ///
    /// * `iothreads` - the I/O threads that the running domain has, by their ids: OpenNebula's message may know nothing of them, or
    ///   what they are to be after the next start
    /// * `default` - the value of kvmrc for `DEFAULT_ATTACH_<name>`
    ///
    /// # Source
    /// OpenNebula's stock `attach_disk` and, for what it lacks, `LibVirtDriverKVM.cc`.
    pub fn to_xml<'a>(
        &'a self,
        place: &DiskPlace,
        target: &str,
        iothreads: &[u32],
        default: &dyn Fn(&str) -> Option<&'a str>,
    ) -> String {
        let value = |name: &str| self.get(name).or_else(|| default(name));
        let device = if place.is_cdrom { "cdrom" } else { "disk" };
        let mut xml = format!("<disk type='{}' device='{device}'>", place.source.kind());
        let is_virtio = target.starts_with("vd") && !place.is_cdrom;
        let iothread = self.iothread(value("VIRTIO_BLK_IOTHREAD"), iothreads).filter(|_| is_virtio);
        let queues = self.queues(default("VIRTIO_BLK_QUEUES")).filter(|_| is_virtio);
        xml += &self.driver(place.is_cdrom, iothread, queues, &value);
        xml += &place.source.to_xml();
        xml += &format!("<target dev='{}'/>", Escaped(target));
        if let Some(order) = self.get("ORDER") {
            xml += &format!("<boot order='{}'/>", Escaped(order));
        }
        for (name, element) in [("READONLY", "<readonly/>"), ("SHAREABLE", "<shareable/>")] {
            if self.is_yes(name) {
                xml += element;
            }
        }
        if let Some(secret) = self.get("LUKS_SECRET") {
            let secret = Escaped(secret);
            xml += &format!("<encryption format='luks'><secret type='passphrase' uuid='{secret}'/></encryption>");
        }
        xml += &limits(&value);
        if let Some(number) = scsi_target(target) {
            xml += &format!("<address type='drive' controller='0' bus='0' target='{number}' unit='0'/>");
        }
        let is_serial = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let serial: String = self.get("SERIAL").unwrap_or_default().chars().filter(is_serial).collect();
        if !serial.is_empty() {
            xml += &format!("<serial>{serial}</serial>");
        }
        xml + "</disk>"
    }

    fn driver<'a>(
        &'a self,
        is_cdrom: bool,
        iothread: Option<u32>,
        queues: Option<String>,
        value: &dyn Fn(&str) -> Option<&'a str>,
    ) -> String {
        let format = if is_cdrom { "raw" } else { self.get("DRIVER").unwrap_or("raw") };
        let cache = value("CACHE").unwrap_or("default");
        let mut xml = format!("<driver name='qemu' type='{}' cache='{}'", Escaped(format), Escaped(cache));
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                xml += &format!(" {name}='{}'", Escaped(&value));
            }
        };
        add("io", value("IO").map(str::to_owned));
        add("discard", value("DISCARD").map(str::to_owned));
        add("iothread", iothread.map(|id| id.to_string()));
        add("queues", queues);
        xml + "/>"
    }

    /// The queues that it gets: its own, those of all disks of the VM, or kvmrc's. What is no number is left out, as it is when a VM
    /// starts.
    fn queues(&self, default: Option<&str>) -> Option<String> {
        match self.get("VIRTIO_BLK_QUEUES").or(self.queues.as_deref()).or(default)? {
            text if text.eq_ignore_ascii_case("auto") => Some(self.vcpus.to_string()),
            text => decimal::<u32>(text).ok().map(|number| number.to_string()),
        }
    }

    /// The one of the domain's I/O threads that it gets; without a wish they take turns, and a wish beyond the last one is the
    /// last one.
    fn iothread(&self, default: Option<&str>, threads: &[u32]) -> Option<u32> {
        let wish: Option<usize> = self.get("IOTHREAD").or(default).and_then(|text| decimal(text).ok());
        let turn = || decimal::<usize>(self.id()).unwrap_or(0).checked_rem(threads.len());
        let place = wish.and_then(|number| number.checked_sub(1)).or_else(turn)?;
        threads.get(place).or(threads.last()).copied()
    }
}

/// Where a disk is, and what the guest sees of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlace {
    source: Source,
    /// Whether it is a CD.
    pub is_cdrom: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
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
    /// The image, as libvirt shows it: a file, a device, or a name in a store.
    pub fn source(&self) -> &str {
        match &self.source {
            Source::File(path) | Source::Block(path) => path,
            Source::Network { name, .. } => name,
        }
    }

    /// The file, when it is one.
    pub fn file(&self) -> Option<&str> {
        match &self.source {
            Source::File(path) => Some(path),
            Source::Block(_) | Source::Network { .. } => None,
        }
    }

    /// The same with another file: libvirt must lock and label the image, not a link to it.
    #[must_use]
    pub fn with_file(self, path: String) -> Self {
        Self { source: Source::File(path), ..self }
    }
}

impl Source {
    fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Block(_) => "block",
            Self::Network { .. } => "network",
        }
    }

    /// `<source>`, and `<auth>` after it.
    fn to_xml(&self) -> String {
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

/// `<host>` elements from names parted by blanks, each with a port or not.
fn hosts(list: Option<&str>, transport: &str) -> String {
    let mut xml = String::new();
    for host in list.unwrap_or_default().split_whitespace() {
        // An IPv6 address is in brackets when a port follows.
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

/// `<iotune>`: a total excludes limits of one direction, and a peak counts only above its base.
fn limits<'a>(value: &dyn Fn(&str) -> Option<&'a str>) -> String {
    let mut xml = String::new();
    for kind in ["BYTES_SEC", "IOPS_SEC"] {
        let has_total = value(&format!("TOTAL_{kind}")).or_else(|| value(&format!("TOTAL_{kind}_MAX"))).is_some();
        let directions: &[&str] = if has_total { &["TOTAL"] } else { &["READ", "WRITE"] };
        for direction in directions {
            xml += &limit(&format!("{direction}_{kind}"), value);
        }
    }
    let has_iops = ["TOTAL", "READ", "WRITE"].iter().any(|direction| value(&format!("{direction}_IOPS_SEC")).is_some());
    if let Some(size) = value("SIZE_IOPS_SEC").filter(|_| has_iops) {
        xml += &format!("<size_iops_sec>{}</size_iops_sec>", Escaped(size));
    }
    if xml.is_empty() { xml } else { format!("<iotune>{xml}</iotune>") }
}

fn limit<'a>(name: &str, value: &dyn Fn(&str) -> Option<&'a str>) -> String {
    let element = name.to_ascii_lowercase();
    let (base, peak) = (value(name), value(&format!("{name}_MAX")));
    let number = |text: Option<&str>| text.and_then(|text| decimal::<u64>(text).ok()).unwrap_or(0);
    let mut xml = String::new();
    let mut add = |end: &str, text: &str| xml += &format!("<{element}{end}>{}</{element}{end}>", Escaped(text));
    if let Some(base) = base {
        add("", base);
    }
    if let Some(peak) = peak.filter(|peak| number(Some(peak)) > number(base)) {
        add("_max", peak);
        if let Some(length) = value(&format!("{name}_MAX_LENGTH")) {
            add("_max_length", length);
        }
    }
    xml
}

/// The number on the SCSI bus that a target such as `sda` has: letters count as in a spreadsheet, from 0. `None` for what is
/// no such target, or has no room on the bus.
fn scsi_target(target: &str) -> Option<u32> {
    let letters = target.strip_prefix("sd").filter(|letters| !letters.is_empty())?;
    let mut number = 0_u32;
    for letter in letters.bytes() {
        let digit = letter.is_ascii_lowercase().then(|| u32::from(letter - b'a' + 1))?;
        number = number.checked_mul(26)?.checked_add(digit)?;
    }
    number.checked_sub(1).filter(|number| *number < 256)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(disk: &str) -> VmDisk {
        let text = format!(
            "<VMM_DRIVER_ACTION_DATA><VM><ID>7</ID><TEMPLATE><VCPU>4</VCPU><FEATURES><IOTHREADS>9</IOTHREADS></FEATURES>\
             <DISK><DISK_ID>0</DISK_ID></DISK><DISK><ATTACH><![CDATA[YES]]></ATTACH><DISK_ID>3</DISK_ID>{disk}</DISK>\
             </TEMPLATE></VM></VMM_DRIVER_ACTION_DATA>"
        );
        VmDisk::find(&text, None).unwrap().unwrap()
    }

    /// A kvmrc that says nothing.
    fn plain<'a>(_: &str) -> Option<&'a str> {
        None
    }

    /// The element, for a target that needs nothing else.
    fn at_hdb(disk: &str) -> String {
        let disk = described(disk);
        disk.to_xml(&disk.place("/ds/0/7/disk.3"), "hdb", &[1, 2], &plain)
    }

    #[test]
    fn iothreads_are_those_of_the_running_domain() {
        for (disk, threads, expected) in [
            ("", &[1, 2][..], Some(2)),
            ("<IOTHREAD>1</IOTHREAD>", &[1, 2], Some(1)),
            ("<IOTHREAD>7</IOTHREAD>", &[1, 2], Some(2)),
            ("<IOTHREAD>0</IOTHREAD>", &[1, 2], Some(2)),
            ("<IOTHREAD>x</IOTHREAD>", &[4, 6, 8], Some(4)),
            ("<IOTHREAD>2</IOTHREAD>", &[], None),
            ("", &[], None),
        ] {
            let disk = described(disk);
            let xml = disk.to_xml(&disk.place("/d"), "vdb", threads, &plain);
            let shown = expected.map(|id: u32| format!(" iothread='{id}'"));
            assert!(shown.as_deref().map_or(!xml.contains("iothread"), |shown| xml.contains(shown)), "{xml}");
            assert!(!disk.to_xml(&disk.place("/d"), "sdb", threads, &plain).contains("iothread"));
        }
    }

    #[test]
    fn queues_are_the_disks_the_vms_or_kvmrcs() {
        let queues = |disk: &str, vm: &str, default: Option<&'static str>| {
            let text = format!(
                "<VMM_DRIVER_ACTION_DATA><VM><TEMPLATE><VCPU>3</VCPU><FEATURES><VIRTIO_BLK_QUEUES>{vm}</VIRTIO_BLK_QUEUES>\
                 </FEATURES><DISK><ATTACH>YES</ATTACH>{disk}</DISK></TEMPLATE></VM></VMM_DRIVER_ACTION_DATA>"
            );
            let disk = VmDisk::find(&text, None).unwrap().unwrap();
            let default = move |name: &str| default.filter(|_| name == "VIRTIO_BLK_QUEUES");
            let xml = disk.to_xml(&disk.place("/d"), "vdb", &[], &default);
            assert!(!disk.to_xml(&disk.place("/d"), "hdb", &[], &default).contains("queues"));
            xml.split_once(" queues='").map(|(_, rest)| rest.split('\'').next().unwrap().to_owned())
        };
        let own = "<VIRTIO_BLK_QUEUES>2</VIRTIO_BLK_QUEUES>";
        assert_eq!(queues("", "4", None).as_deref(), Some("4"));
        assert_eq!(queues(own, "4", Some("8")).as_deref(), Some("2"));
        assert_eq!(queues("", "4", Some("8")).as_deref(), Some("4"));
        assert_eq!(queues("", "", Some("8")).as_deref(), Some("8"));
        assert_eq!(queues("", "AUTO", None).as_deref(), Some("3"));
        assert_eq!(queues("", "many", None), None);
        assert_eq!(queues("", "", None), None);
    }

    const RAW: &str = "<driver name='qemu' type='raw' cache='default'/>";
    const AUTH: &str = "<auth username='libvirt'><secret type='ceph' uuid='u1'/></auth>";

    #[test]
    fn every_type_becomes_exactly_this() {
        let file = "<source file='/ds/0/7/disk.3'/>";
        let block = "<source dev='/ds/0/7/disk.3'/>";
        let ceph = "<CEPH_HOST>mon1:6789 mon2</CEPH_HOST><CEPH_USER>libvirt</CEPH_USER><CEPH_SECRET>u1</CEPH_SECRET>";
        let rbd = |name: &str, rest: &str| format!("<source protocol='rbd' name='{name}'>{rest}</source>");
        let mons = "<host name='mon1' port='6789'/><host name='mon2'/>";
        let gluster = "<GLUSTER_HOST>g:24007</GLUSTER_HOST><GLUSTER_VOLUME>vol</GLUSTER_VOLUME>";
        let gluster_xml = |file: &str| {
            format!(
                "<source protocol='gluster' name='vol/{file}'><host name='g' port='24007' transport='tcp'/></source>"
            )
        };
        let sheep = "<SHEEPDOG_HOST>s:7000</SHEEPDOG_HOST><SOURCE>img</SOURCE>";
        let sheep_xml = |name: &str| {
            format!("<source protocol='sheepdog' name='{name}'><host name='s' port='7000' transport='tcp'/></source>")
        };
        for (disk, kind, device, source) in [
            ("<TYPE>FILE</TYPE>".to_owned(), "file", "disk", file.to_owned()),
            (String::new(), "file", "disk", file.to_owned()),
            ("<TYPE>fs</TYPE><DISK_TYPE>FILE</DISK_TYPE>".into(), "file", "disk", file.to_owned()),
            ("<TYPE>swap</TYPE><DISK_TYPE>BLOCK</DISK_TYPE>".into(), "block", "disk", block.to_owned()),
            ("<TYPE>BLOCK</TYPE>".into(), "block", "disk", block.to_owned()),
            ("<TYPE>BLOCK_CDROM</TYPE>".into(), "block", "cdrom", block.to_owned()),
            ("<TYPE>CDROM</TYPE>".into(), "file", "cdrom", file.to_owned()),
            ("<TYPE>CDROM</TYPE><DISK_TYPE>BLOCK</DISK_TYPE>".into(), "block", "cdrom", block.to_owned()),
            (
                "<TYPE>ISCSI</TYPE><SOURCE>iqn.2</SOURCE><ISCSI_HOST>h:3260</ISCSI_HOST><ISCSI_USER>me</ISCSI_USER>\
                 <ISCSI_USAGE>it</ISCSI_USAGE>"
                    .into(),
                "network",
                "disk",
                "<source protocol='iscsi' name='iqn.2'><host name='h' port='3260'/></source>\
                 <auth username='me'><secret type='iscsi' usage='it'/></auth>"
                    .into(),
            ),
            (
                "<TYPE>ISCSI</TYPE><SOURCE>iqn.2</SOURCE><ISCSI_IQN>iqn.1/1</ISCSI_IQN><ISCSI_USER>me</ISCSI_USER>"
                    .into(),
                "network",
                "disk",
                "<source protocol='iscsi' name='iqn.1/1'></source>".into(),
            ),
            (
                format!("<TYPE>RBD</TYPE><SOURCE>one/one-12</SOURCE><CLONE>NO</CLONE>{ceph}"),
                "network",
                "disk",
                rbd("one/one-12", mons) + AUTH,
            ),
            (
                format!("<TYPE>RBD</TYPE><SOURCE>one/one-12</SOURCE><CLONE>YES</CLONE>{ceph}"),
                "network",
                "disk",
                rbd("one/one-12-7-3", mons) + AUTH,
            ),
            ("<TYPE>RBD_CDROM</TYPE><SOURCE>one/iso</SOURCE>".into(), "network", "cdrom", rbd("one/iso", "")),
            ("<TYPE>RBD</TYPE>".into(), "network", "disk", rbd("one/one-sys-7-3", "")),
            (
                "<TYPE>RBD</TYPE><POOL_NAME>fast</POOL_NAME>".into(),
                "network",
                "disk",
                rbd("fast/one-sys-7-3", ""),
            ),
            (
                "<TYPE>fs</TYPE><DISK_TYPE>RBD</DISK_TYPE><POOL_NAME>fast</POOL_NAME><CEPH_HOST>[fe80::1]:1 fe80::2</CEPH_HOST>"
                    .into(),
                "network",
                "disk",
                rbd("fast/one-sys-7-3", "<host name='fe80::1' port='1'/><host name='fe80::2'/>"),
            ),
            (
                format!("<TYPE>GLUSTER</TYPE><CLONE>YES</CLONE><SOURCE>/a/b</SOURCE>{gluster}"),
                "network",
                "disk",
                gluster_xml("7/disk.3"),
            ),
            (
                format!("<TYPE>GLUSTER_CDROM</TYPE><CLONE>NO</CLONE><SOURCE>/a/b</SOURCE>{gluster}"),
                "network",
                "cdrom",
                gluster_xml("b"),
            ),
            (format!("<TYPE>fs</TYPE><DISK_TYPE>GLUSTER</DISK_TYPE>{gluster}"), "network", "disk", gluster_xml("7/disk.3")),
            (format!("<TYPE>SHEEPDOG</TYPE>{sheep}"), "network", "disk", sheep_xml("img")),
            (format!("<TYPE>SHEEPDOG_CDROM</TYPE>{sheep}"), "network", "cdrom", sheep_xml("img")),
            (
                format!("<TYPE>fs</TYPE><DISK_TYPE>SHEEPDOG</DISK_TYPE><CLONE>YES</CLONE>{sheep}"),
                "network",
                "disk",
                sheep_xml("img-7-3"),
            ),
        ] {
            let expected = format!("<disk type='{kind}' device='{device}'>{RAW}{source}<target dev='hdb'/></disk>");
            assert_eq!(at_hdb(&disk), expected, "{disk}");
        }
    }

    #[test]
    fn all_that_can_be_said_of_a_disk_stands_in_its_order() {
        let disk = described(
            "<DRIVER>qcow2</DRIVER><CACHE>none</CACHE><IO>native</IO><DISCARD>unmap</DISCARD><ORDER>2</ORDER>\
             <READONLY>YES</READONLY><SHAREABLE>yes</SHAREABLE><LUKS_SECRET>s</LUKS_SECRET><SERIAL>a b/c.1-_é</SERIAL>\
             <VIRTIO_BLK_QUEUES>auto</VIRTIO_BLK_QUEUES><TOTAL_BYTES_SEC>100</TOTAL_BYTES_SEC>\
             <TOTAL_BYTES_SEC_MAX>200</TOTAL_BYTES_SEC_MAX><TOTAL_BYTES_SEC_MAX_LENGTH>5</TOTAL_BYTES_SEC_MAX_LENGTH>\
             <READ_BYTES_SEC>1</READ_BYTES_SEC><READ_IOPS_SEC>10</READ_IOPS_SEC><READ_IOPS_SEC_MAX>10</READ_IOPS_SEC_MAX>\
             <WRITE_IOPS_SEC_MAX>7</WRITE_IOPS_SEC_MAX><SIZE_IOPS_SEC>4096</SIZE_IOPS_SEC>",
        );
        let place = disk.place("/it's").with_file("/a&b".into());
        assert_eq!(
            disk.to_xml(&place, "vdc", &[1, 2], &plain),
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap' \
             iothread='2' queues='4'/><source file='/a&amp;b'/><target dev='vdc'/><boot order='2'/><readonly/><shareable/>\
             <encryption format='luks'><secret type='passphrase' uuid='s'/></encryption>\
             <iotune><total_bytes_sec>100</total_bytes_sec><total_bytes_sec_max>200</total_bytes_sec_max>\
             <total_bytes_sec_max_length>5</total_bytes_sec_max_length><read_iops_sec>10</read_iops_sec>\
             <write_iops_sec_max>7</write_iops_sec_max><size_iops_sec>4096</size_iops_sec></iotune>\
             <serial>abc.1-_</serial></disk>"
        );
    }

    #[test]
    fn kvmrc_says_what_a_disk_does_not() {
        fn default<'a>(name: &str) -> Option<&'a str> {
            match name {
                "CACHE" => Some("none"),
                "DISCARD" => Some("unmap"),
                "IO" => Some("threads"),
                "VIRTIO_BLK_QUEUES" => Some("3"),
                "VIRTIO_BLK_IOTHREAD" => Some("9"),
                "WRITE_BYTES_SEC" => Some("5"),
                _ => None,
            }
        }
        let disk = described("<DISCARD>ignore</DISCARD>");
        assert_eq!(
            disk.to_xml(&disk.place("/d"), "vda", &[1, 2], &default),
            "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' io='threads' discard='ignore' \
             iothread='2' queues='3'/><source file='/d'/><target dev='vda'/>\
             <iotune><write_bytes_sec>5</write_bytes_sec></iotune></disk>"
        );
    }

    #[test]
    fn a_scsi_disk_has_the_number_of_its_letters() {
        for (target, number) in [
            ("sda", Some(0)),
            ("sdz", Some(25)),
            ("sdaa", Some(26)),
            ("sdiv", Some(255)),
            ("sdiw", None),
            ("sd", None),
            ("sd1", None),
            ("sdzzzzzzzzzz", None),
            ("vda", None),
        ] {
            assert_eq!(scsi_target(target), number, "{target}");
            let disk = described("");
            let xml = disk.to_xml(&disk.place("/d"), target, &[1, 2], &plain);
            let address =
                number.map(|n| format!("<address type='drive' controller='0' bus='0' target='{n}' unit='0'/>"));
            assert_eq!(xml.contains("<address"), address.is_some());
            assert!(xml.contains(&address.unwrap_or_default()), "{xml}");
        }
    }

    #[test]
    fn a_recorded_disk_becomes_exactly_this() {
        let text = include_str!("../../../../tests/fixtures/wire/18-attach_disk-on-hostA/stdin");
        let disk = VmDisk::find(text, None).unwrap().unwrap();
        assert_eq!(disk.target(), Some("vdb"));
        assert_eq!(
            disk.to_xml(&disk.place("/var/lib/one//datastores/0/0/disk.2"), "vdb", &[], &plain),
            "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='default'/>\
             <source file='/var/lib/one//datastores/0/0/disk.2'/><target dev='vdb'/></disk>"
        );
        let text = include_str!("../../../../tests/fixtures/wire/19-resize_disk-on-hostA/stdin");
        assert_eq!(VmDisk::find(text, Some(0)).unwrap().unwrap().target(), Some("vda"));
        assert_eq!(VmDisk::find(text, Some(9)).unwrap(), None);
        assert_eq!(VmDisk::find(text, None).unwrap(), None);
        assert!(VmDisk::find("<VMM_DRIVER_ACTION_DATA/>", None).is_err());
    }
}
