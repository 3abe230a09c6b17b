//! The disks of a running domain, and where OpenNebula's element says that the VM's files are.

use std::path::{Path, PathBuf};

use roxmltree::Node;

use super::splice::{Splice, apply};
use super::{Escaped, XmlError, child, child_attribute, devices, parse, root};

/// A disk or CD of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its name in the domain, such as `vda`.
    pub target: String,
    /// The name that libvirt knows the device by.
    pub alias: Option<String>,
    /// Whether it is a drive whose medium can be changed.
    pub is_cdrom: bool,
    /// Its file; `None` for what is no file, and for an empty drive.
    pub file: Option<PathBuf>,
    /// What it holds: a file, a device, or the name of an image elsewhere; `None` for an empty drive.
    pub source: Option<String>,
    /// The file that libvirt copies it into just now.
    pub mirror: Option<PathBuf>,
    /// The image's format, such as `qcow2`; libvirt shows one for every disk with a file.
    pub format: String,
    /// Whether the guest can't write to it.
    pub is_readonly: bool,
    /// The element as it stands.
    xml: String,
    /// Where in it the file's name stands.
    file_range: Option<std::ops::Range<usize>>,
}

impl Disk {
    /// All disks of a domain.
    ///
    /// # Errors
    /// The text is no XML of a domain.
    pub fn all(domain: &str) -> Result<Vec<Self>, XmlError> {
        let document = parse(domain)?;
        let disks = devices(root(&document, "domain")?).filter(|device| device.has_tag_name("disk"));
        Ok(disks.filter_map(Self::read).collect())
    }

    /// A disk, from libvirt's element; `None` for one without a target.
    pub(super) fn read(disk: Node<'_, '_>) -> Option<Self> {
        let begin = disk.range().start;
        let source = child(disk, "source");
        let file = source.and_then(|source| source.attribute_node("file"));
        let within = |at: usize| at.saturating_sub(begin);
        Some(Self {
            target: child_attribute(disk, "target", "dev")?,
            alias: child_attribute(disk, "alias", "name"),
            is_cdrom: disk.attribute("device") == Some("cdrom"),
            file: file.map(|file| file.value().into()),
            source: source.and_then(|source| {
                ["file", "dev", "name"].into_iter().find_map(|kind| source.attribute(kind)).map(str::to_owned)
            }),
            mirror: child(disk, "mirror")
                .and_then(|mirror| child_attribute(mirror, "source", "file"))
                .map(PathBuf::from),
            format: child_attribute(disk, "driver", "type").unwrap_or_else(|| "raw".into()),
            is_readonly: child(disk, "readonly").is_some(),
            xml: disk.document().input_text().get(disk.range())?.to_owned(),
            file_range: file.map(|file| within(file.range_value().start)..within(file.range_value().end)),
        })
    }

    /// The element with another file.
    ///
    /// # Errors
    /// It has no file.
    pub fn with_file(&self, file: &Path) -> Result<String, XmlError> {
        let range = self.file_range.clone().ok_or_else(|| {
            XmlError::in_text(&self.xml, 0, format_args!("expected a file for {}, found none", self.target))
        })?;
        apply(&self.xml, vec![Splice { range, text: Escaped(&file.display().to_string()).to_string() }])
    }

    /// The element with another medium, or with none. All else stays: libvirt changes nothing but the medium of a drive that
    /// runs.
    ///
    /// # Errors
    /// It is no element of a disk.
    pub fn with_medium(&self, medium: Option<&Medium>) -> Result<String, XmlError> {
        let document = parse(&self.xml)?;
        let disk = root(&document, "disk")?;
        let target = child(disk, "target").ok_or_else(|| XmlError::at(disk, "expected <target> in it, found none"))?;
        let old = disk.children().filter(|node| node.has_tag_name("source") || node.has_tag_name("backingStore"));
        let mut edits: Vec<Splice> = old.map(|node| Splice { range: node.range(), text: String::new() }).collect();
        if let Some(medium) = medium {
            let (kind, attribute) = if medium.is_block { ("block", "dev") } else { ("file", "file") };
            let path = medium.path.display().to_string();
            edits.extend(
                disk.attribute_node("type").map(|node| Splice { range: node.range_value(), text: kind.to_owned() }),
            );
            let at = target.range().start;
            edits.push(Splice { range: at..at, text: format!("<source {attribute}='{}'/>", Escaped(&path)) });
        }
        apply(&self.xml, edits)
    }

    /// A `<disk>` that names only the file that the disk is copied into.
    pub fn copy_into(&self, file: &Path) -> String {
        format!(
            "<disk type='file'><source file='{}'/><driver type='{}'/></disk>",
            Escaped(&file.display().to_string()),
            Escaped(&self.format)
        )
    }
}

/// What a drive can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Medium {
    /// An image, or a device that has it.
    pub path: PathBuf,
    /// Whether it is a block device.
    pub is_block: bool,
}

/// OpenNebula's element of a domain with another directory of the VM.
///
/// # Errors
/// The text is no XML, or has no `<system_datastore>`.
pub fn with_system_datastore(element: &str, dir: &Path) -> Result<String, XmlError> {
    let document = parse(element)?;
    let top = document.root_element();
    let node = top
        .descendants()
        .find(|node| node.is_element() && node.tag_name().name() == "system_datastore")
        .ok_or_else(|| XmlError::at(top, "expected <system_datastore> in it, found none"))?;
    let (Some(first), Some(last)) = (node.first_child(), node.last_child()) else {
        return Err(XmlError::at(node, "expected a directory in <system_datastore>, found none"));
    };
    let range = first.range().start..last.range().end;
    apply(element, vec![Splice { range, text: Escaped(&dir.display().to_string()).to_string() }])
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = "<domain><devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
        <source file='/ds/0/42/disk.0' index='1'/><target dev='vda' bus='virtio'/></disk>\
        <disk type='file' device='cdrom'><source file=\"/ds/0/42/disk.1\"/><target dev='hda'/><readonly/></disk>\
        <disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='x'/><target dev='vdb'/></disk>\
        <disk type='file' device='cdrom'><target dev='hdb'/><readonly/></disk></devices></domain>";

    #[test]
    fn disks_are_read_and_their_files_replaced() {
        let disks = Disk::all(DOMAIN).unwrap();
        let read: Vec<_> = disks
            .iter()
            .map(|d| (d.target.as_str(), d.file.as_deref().and_then(Path::to_str), d.format.as_str(), d.is_readonly))
            .collect();
        assert_eq!(
            read,
            [
                ("vda", Some("/ds/0/42/disk.0"), "qcow2", false),
                ("hda", Some("/ds/0/42/disk.1"), "raw", true),
                ("vdb", None, "raw", false),
                ("hdb", None, "raw", true),
            ]
        );
        let moved = disks[1].with_file(Path::new("/ds/'1'/42/disk.1")).unwrap();
        assert_eq!(
            moved,
            "<disk type='file' device='cdrom'><source file=\"/ds/&apos;1&apos;/42/disk.1\"/><target dev='hda'/>\
             <readonly/></disk>"
        );
        assert!(disks[3].with_file(Path::new("/x")).is_err());
        let more: Vec<_> = disks.iter().map(|d| (d.source.as_deref(), d.is_cdrom)).collect();
        let expected =
            [(Some("/ds/0/42/disk.0"), false), (Some("/ds/0/42/disk.1"), true), (Some("x"), false), (None, true)];
        assert_eq!(more, expected);
        assert_eq!(
            disks[0].copy_into(Path::new("/a&b")),
            "<disk type='file'><source file='/a&amp;b'/><driver type='qcow2'/></disk>"
        );
    }

    #[test]
    fn only_the_medium_of_a_drive_changes() {
        let disks = Disk::all(DOMAIN).unwrap();
        let (full, empty) = (&disks[1], &disks[3]);
        let without = "<disk type='file' device='cdrom'><target dev='hda'/><readonly/></disk>";
        assert_eq!(full.with_medium(None).unwrap(), without);
        let file = Medium { path: "/a'b".into(), is_block: false };
        assert_eq!(
            empty.with_medium(Some(&file)).unwrap(),
            "<disk type='file' device='cdrom'><source file='/a&apos;b'/><target dev='hdb'/><readonly/></disk>"
        );
        let device = Medium { path: "/dev/sr0".into(), is_block: true };
        assert_eq!(
            full.with_medium(Some(&device)).unwrap(),
            "<disk type='block' device='cdrom'><source dev='/dev/sr0'/><target dev='hda'/><readonly/></disk>"
        );
    }

    #[test]
    fn the_vms_directory_is_replaced() {
        let element = "<vm><system_datastore><![CDATA[/ds/0/42]]></system_datastore><name>x</name></vm>";
        let moved = with_system_datastore(element, Path::new("/ds/104/42")).unwrap();
        assert_eq!(moved, "<vm><system_datastore>/ds/104/42</system_datastore><name>x</name></vm>");
        assert!(with_system_datastore("<vm/>", Path::new("/x")).is_err());
    }
}
