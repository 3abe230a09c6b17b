use super::*;

fn described(disk: &str) -> VmDisk {
    let text = format!(
        "<VMM_DRIVER_ACTION_DATA><VM><ID>7</ID><TEMPLATE><VCPU>4</VCPU><FEATURES><IOTHREADS>9</IOTHREADS></FEATURES>\
         <DISK><DISK_ID>0</DISK_ID></DISK><DISK><ATTACH><![CDATA[YES]]></ATTACH><DISK_ID>3</DISK_ID>{disk}</DISK>\
         </TEMPLATE></VM></VMM_DRIVER_ACTION_DATA>"
    );
    VmDisk::find(&text, None).unwrap().unwrap()
}

/// A kvmrc without defaults for disks.
fn plain<'a>(_: &str) -> Option<&'a str> {
    None
}

/// The element with a target that adds nothing else to it.
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
fn queues_come_from_the_disk_the_vm_or_kvmrc() {
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
fn every_type_of_disk_gives_this_element() {
    let file = "<source file='/ds/0/7/disk.3'/>";
    let block = "<source dev='/ds/0/7/disk.3'/>";
    let ceph = "<CEPH_HOST>mon1:6789 mon2</CEPH_HOST><CEPH_USER>libvirt</CEPH_USER><CEPH_SECRET>u1</CEPH_SECRET>";
    let rbd = |name: &str, rest: &str| format!("<source protocol='rbd' name='{name}'>{rest}</source>");
    let mons = "<host name='mon1' port='6789'/><host name='mon2'/>";
    let gluster = "<GLUSTER_HOST>g:24007</GLUSTER_HOST><GLUSTER_VOLUME>vol</GLUSTER_VOLUME>";
    let gluster_xml = |file: &str| {
        format!("<source protocol='gluster' name='vol/{file}'><host name='g' port='24007' transport='tcp'/></source>")
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
fn all_parts_of_a_disk_are_written_in_libvirts_order() {
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
fn kvmrc_has_the_defaults_of_a_disk() {
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
fn a_scsi_disk_has_the_number_in_its_target() {
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
        let address = number.map(|n| format!("<address type='drive' controller='0' bus='0' target='{n}' unit='0'/>"));
        assert_eq!(xml.contains("<address"), address.is_some());
        assert!(xml.contains(&address.unwrap_or_default()), "{xml}");
    }
}

#[test]
fn a_recorded_disk_gives_this_element() {
    let text = include_str!("../../../../../../tests/fixtures/wire/18-attach_disk-on-hostA/stdin");
    let disk = VmDisk::find(text, None).unwrap().unwrap();
    assert_eq!(disk.target(), Some("vdb"));
    assert_eq!(
        disk.to_xml(&disk.place("/var/lib/one//datastores/0/0/disk.2"), "vdb", &[], &plain),
        "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='default'/>\
         <source file='/var/lib/one//datastores/0/0/disk.2'/><target dev='vdb'/></disk>"
    );
    let text = include_str!("../../../../../../tests/fixtures/wire/19-resize_disk-on-hostA/stdin");
    assert_eq!(VmDisk::find(text, Some(0)).unwrap().unwrap().target(), Some("vda"));
    assert_eq!(VmDisk::find(text, Some(9)).unwrap(), None);
    assert_eq!(VmDisk::find(text, None).unwrap(), None);
    assert!(VmDisk::find("<VMM_DRIVER_ACTION_DATA/>", None).is_err());
}
