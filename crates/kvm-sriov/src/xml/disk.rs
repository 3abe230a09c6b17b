//! The disks of a running domain, and where OpenNebula's element says that the VM's files are.

use std::path::{Path, PathBuf};

use super::splice::{Splice, apply};
use super::{Escaped, XmlError, child, child_attribute, children, parse, root};

/// A disk or CD of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its name in the domain, such as `vda`.
    pub target: String,
    /// Its file; `None` for what is no file, and for an empty drive.
    pub file: Option<PathBuf>,
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
        let devices = children(root(&document, "domain")?, "devices");
        let disks = devices.flat_map(|block| children(block, "disk"));
        Ok(disks
            .filter_map(|disk| {
                let begin = disk.range().start;
                let file = child(disk, "source").and_then(|source| source.attribute_node("file"));
                let within = |at: usize| at.saturating_sub(begin);
                Some(Self {
                    target: child_attribute(disk, "target", "dev")?,
                    file: file.map(|file| file.value().into()),
                    format: child_attribute(disk, "driver", "type").unwrap_or_else(|| "raw".into()),
                    is_readonly: child(disk, "readonly").is_some(),
                    xml: domain.get(disk.range())?.to_owned(),
                    file_range: file.map(|file| within(file.range_value().start)..within(file.range_value().end)),
                })
            })
            .collect())
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

    /// A `<disk>` that names only the file that the disk is copied into.
    pub fn copy_into(&self, file: &Path) -> String {
        format!(
            "<disk type='file'><source file='{}'/><driver type='{}'/></disk>",
            Escaped(&file.display().to_string()),
            Escaped(&self.format)
        )
    }
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
        assert_eq!(
            disks[0].copy_into(Path::new("/a&b")),
            "<disk type='file'><source file='/a&amp;b'/><driver type='qcow2'/></disk>"
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
