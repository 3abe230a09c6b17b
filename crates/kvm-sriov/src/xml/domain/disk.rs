//! The disks of a domain, other elements that name files of the host, and the VM's directory in OpenNebula's element.

use std::path::{Path, PathBuf};

use roxmltree::Node;

use super::elements::devices;
use crate::xml::XmlError;
use crate::xml::parse::parse;
use crate::xml::read::{child, child_attribute, root};
use crate::xml::splice::{Splice, apply};
use crate::xml::write::Escaped;

/// A disk or drive of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its target in the domain, such as `vda`.
    pub target: String,
    /// libvirt's name of the device.
    pub alias: Option<String>,
    /// Whether it is a CD-ROM drive.
    pub is_cdrom: bool,
    /// The kind of device that the guest sees, such as `disk`, `cdrom`, `floppy` or `lun`.
    pub device: String,
    /// The kind of its storage on the host: libvirt's type, such as `file`, `block`, `dir`, `network`, `volume`, `nvme`
    /// or `vhostuser`.
    pub kind: String,
    /// Its file; `None` for another kind of storage and for an empty drive.
    pub file: Option<PathBuf>,
    /// Its path on the host, if it has one: a file, a device, a directory or a socket.
    pub path: Option<PathBuf>,
    /// Other paths on the host that it needs: the images below it, and sockets.
    pub inner: Vec<PathBuf>,
    /// Its image: a file, a device, or the name of an image in a store; `None` for an empty drive.
    pub source: Option<String>,
    /// The file or device that libvirt is copying the disk to.
    pub mirror: Option<PathBuf>,
    /// Whether the image is encrypted.
    pub is_encrypted: bool,
    /// Whether the disk is only a part of the image.
    pub is_slice: bool,
    /// The format of the image, such as `qcow2`. libvirt shows one for every disk with a file.
    pub format: String,
    /// Whether the guest can only read it.
    pub is_readonly: bool,
    /// The whole element.
    xml: String,
}

impl Disk {
    /// All disks of a domain.
    ///
    /// # Errors
    /// The text is not the XML of a domain.
    pub fn all(domain: &str) -> Result<Vec<Self>, XmlError> {
        let document = parse(domain)?;
        let disks = devices(root(&document, "domain")?).filter(|device| device.has_tag_name("disk"));
        Ok(disks.filter_map(Self::read).collect())
    }

    /// Reads libvirt's element; `None` for one without a target.
    pub(super) fn read(disk: Node<'_, '_>) -> Option<Self> {
        let source = child(disk, "source");
        let place = |source: Node<'_, '_>| {
            let named = PLACES.into_iter().find_map(|name| source.attribute(name));
            named.filter(|path| path.starts_with('/')).map(PathBuf::from)
        };
        let mirror = child(disk, "mirror");
        let is_own = |node: &Node<'_, '_>| {
            node.ancestors().all(|above| !matches!(above.tag_name().name(), "backingStore" | "mirror"))
        };
        let own = |name: &str| disk.descendants().any(|node| node.tag_name().name() == name && is_own(&node));
        let inner = disk
            .descendants()
            .filter(|node| Some(*node) != source && node.ancestors().all(|above| Some(above) != mirror));
        Some(Self {
            target: child_attribute(disk, "target", "dev")?,
            alias: child_attribute(disk, "alias", "name"),
            is_cdrom: disk.attribute("device") == Some("cdrom"),
            device: disk.attribute("device").unwrap_or("disk").to_owned(),
            kind: disk.attribute("type").unwrap_or("file").to_owned(),
            file: source.and_then(|source| source.attribute("file")).map(PathBuf::from),
            path: source.and_then(place),
            inner: inner
                .filter(|node| matches!(node.tag_name().name(), "source" | "host"))
                .filter_map(|node| place(node).or_else(|| node.attribute("socket").map(PathBuf::from)))
                .collect(),
            source: source.and_then(|source| {
                ["file", "dev", "name"].into_iter().find_map(|kind| source.attribute(kind)).map(str::to_owned)
            }),
            mirror: mirror.and_then(|mirror| child(mirror, "source")).and_then(place),
            is_encrypted: own("encryption"),
            is_slice: own("slices"),
            format: child_attribute(disk, "driver", "type").unwrap_or_else(|| "raw".into()),
            is_readonly: child(disk, "readonly").is_some(),
            xml: disk.document().input_text().get(disk.range())?.to_owned(),
        })
    }

    /// Whether it is a drive, whose medium can be changed while the domain runs.
    pub fn is_drive(&self) -> bool {
        matches!(self.device.as_str(), "cdrom" | "floppy")
    }

    /// The element with another medium, or without one. Everything else stays: libvirt changes nothing but the medium
    /// of a drive of a running domain.
    ///
    /// # Errors
    /// The element is not one of a disk.
    pub fn with_medium(&self, medium: Option<&Medium>) -> Result<String, XmlError> {
        let document = parse(&self.xml)?;
        let disk = root(&document, "disk")?;
        let target = child(disk, "target").ok_or_else(|| XmlError::at(disk, "expected <target> in it, found none"))?;
        let old = disk.children().filter(|node| node.has_tag_name("source") || node.has_tag_name("backingStore"));
        let mut edits: Vec<Splice> = old.map(|node| Splice { range: node.range(), text: String::new() }).collect();
        if let Some(medium) = medium {
            let (kind, attribute) = medium.kind();
            let path = medium.path.display().to_string();
            edits.extend(
                disk.attribute_node("type").map(|node| Splice { range: node.range_value(), text: kind.to_owned() }),
            );
            let at = target.range().start;
            edits.push(Splice { range: at..at, text: format!("<source {attribute}='{}'/>", Escaped(&path)) });
        }
        apply(&self.xml, edits)
    }

    /// A `<disk>` that names only the image to copy the disk into.
    pub fn copy_into(&self, image: &Medium) -> String {
        let (kind, attribute) = image.kind();
        format!(
            "<disk type='{kind}'><source {attribute}='{}'/><driver type='{}'/></disk>",
            Escaped(&image.path.display().to_string()),
            Escaped(&self.format)
        )
    }
}

/// The attributes of a `<source>` that name a path on the host.
///
/// # Source
/// libvirt `docs/formatdomain.rst`, "Hard drives, floppy disks, CDROMs".
const PLACES: [&str; 4] = ["file", "dev", "dir", "path"];

/// An image: the medium of a drive, or the destination of a copy of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Medium {
    /// The file or the block device.
    pub path: PathBuf,
    /// Whether it is a block device.
    pub is_block: bool,
}

impl Medium {
    /// libvirt's type of a disk with this image, and the attribute that names the image.
    fn kind(&self) -> (&'static str, &'static str) {
        if self.is_block { ("block", "dev") } else { ("file", "file") }
    }
}

/// A value in a domain, outside its disks, that names a directory of the host or something in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mention {
    /// The element with the value: a device such as `filesystem`, `tpm` or `serial`, a part of `<os>` such as `nvram`,
    /// otherwise the innermost element.
    pub element: String,
    /// The whole value.
    pub value: String,
}

/// The values, outside the disks and the metadata of a domain, that name one of these directories or something in it.
///
/// # Errors
/// The text is not the XML of a domain.
pub fn mentions(domain: &str, dirs: &[&str]) -> Result<Vec<Mention>, XmlError> {
    let document = parse(domain)?;
    let names = |value: &str| dirs.iter().any(|dir| names_dir(value, dir));
    let mut found = Vec::new();
    for node in root(&document, "domain")?.descendants().filter(Node::is_element) {
        let above: Vec<_> = node.ancestors().map(|above| above.tag_name().name()).collect();
        if above.iter().any(|name| matches!(*name, "disk" | "metadata")) {
            continue;
        }
        // The outermost node is the document, which has no name; the next one is the domain.
        let mut from_top = above.iter().rev().filter(|name| !name.is_empty()).skip(1);
        let block = from_top.next();
        let part = from_top.next().filter(|_| matches!(block, Some(&"devices" | &"os")));
        let element = part.copied().unwrap_or(node.tag_name().name()).to_owned();
        let text = node.children().filter(Node::is_text).filter_map(|text| text.text()).map(str::trim);
        let values = node.attributes().map(|attribute| attribute.value()).chain(text).filter(|value| names(value));
        found.extend(values.map(|value| Mention { element: element.clone(), value: value.to_owned() }));
    }
    Ok(found)
}

/// Whether the value names the directory or something in it. Doubled slashes do not matter. A directory whose name only
/// begins with the name of this one does not count.
fn names_dir(value: &str, dir: &str) -> bool {
    let squeezed = |text: &str| {
        let mut text: Vec<char> = text.chars().collect();
        text.dedup_by(|next, before| (*next, *before) == ('/', '/'));
        text.into_iter().collect::<String>()
    };
    let (value, dir) = (squeezed(value), squeezed(dir.trim_end_matches('/')));
    let ends =
        |rest: &str| rest.chars().next().is_none_or(|next| !next.is_alphanumeric() && !matches!(next, '.' | '-' | '_'));
    value.match_indices(&dir).any(|(at, _)| value.get(at.saturating_add(dir.len())..).is_some_and(ends))
}

/// Replaces the VM's directory in OpenNebula's element of a domain.
///
/// # Errors
/// The text is not XML, or has no `<system_datastore>`.
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
    fn disks_are_read() {
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
        let more: Vec<_> = disks.iter().map(|d| (d.source.as_deref(), d.is_cdrom)).collect();
        let expected =
            [(Some("/ds/0/42/disk.0"), false), (Some("/ds/0/42/disk.1"), true), (Some("x"), false), (None, true)];
        assert_eq!(more, expected);
        assert_eq!(
            disks[0].copy_into(&Medium { path: "/a&b".into(), is_block: false }),
            "<disk type='file'><source file='/a&amp;b'/><driver type='qcow2'/></disk>"
        );
        assert_eq!(
            disks[0].copy_into(&Medium { path: "/dev/x".into(), is_block: true }),
            "<disk type='block'><source dev='/dev/x'/><driver type='qcow2'/></disk>"
        );
    }

    #[test]
    fn every_path_of_a_disk_on_the_host_is_read() {
        let read = |disk: &str| Disk::all(&format!("<domain><devices>{disk}</devices></domain>")).unwrap().remove(0);
        let target = "<target dev='vda'/>";
        for (disk, path, inner) in [
            (format!("<disk type='block'><source dev='/dev/vg/lv'/>{target}</disk>"), Some("/dev/vg/lv"), &[][..]),
            (format!("<disk type='dir'><source dir='/d'/>{target}</disk>"), Some("/d"), &[]),
            (format!("<disk type='vhostuser'><source type='unix' path='/run/s'/>{target}</disk>"), Some("/run/s"), &[]),
            (
                format!(
                    "<disk type='network'><source protocol='nbd'><host transport='unix' socket='/run/n'/></source>{target}</disk>"
                ),
                None,
                &["/run/n"],
            ),
            (format!("<disk type='volume'><source pool='p' volume='v'/>{target}</disk>"), None, &[]),
            (
                format!(
                    "<disk type='nvme'><source type='pci' managed='yes'><address bus='1'/></source>{target}</disk>"
                ),
                None,
                &[],
            ),
            (
                format!(
                    "<disk type='file'><source file='/top'><dataStore type='file'><source file='/data'/></dataStore></source>\
                     <backingStore type='file'><source file='/mid'/><backingStore type='block'><source dev='/dev/base'/>\
                     </backingStore></backingStore><mirror type='block'><source dev='/dev/m'/></mirror>{target}</disk>"
                ),
                Some("/top"),
                &["/data", "/mid", "/dev/base"],
            ),
        ] {
            let found = read(&disk);
            assert_eq!(found.path.as_deref(), path.map(Path::new), "{disk}");
            assert_eq!(found.inner, inner.iter().map(PathBuf::from).collect::<Vec<_>>(), "{disk}");
        }
        let mirror = format!("<disk type='file'><mirror type='block'><source dev='/dev/m'/></mirror>{target}</disk>");
        assert_eq!(read(&mirror).mirror.as_deref(), Some(Path::new("/dev/m")));
        let luks = format!("<disk><source file='/a'><encryption format='luks'/><slices/></source>{target}</disk>");
        assert_eq!((read(&luks).is_encrypted, read(&luks).is_slice), (true, true));
        let below = format!("<disk><backingStore><source><encryption/></source></backingStore>{target}</disk>");
        assert!(!read(&below).is_encrypted, "only the image below is encrypted");
    }

    #[test]
    fn values_that_name_a_directory_are_found() {
        let domain = "<domain xmlns:q='urn:q'><os><nvram template='/usr/VARS.fd'>/ds//0/42/x_VARS.fd</nvram>\
            <kernel>/ds/0/42/kernel</kernel></os><devices><disk><source file='/ds/0/42/disk.0'/></disk>\
            <filesystem><source dir='/ds/0/42/share'/></filesystem><serial><source path='/ds/0/421/log'/></serial></devices>\
            <metadata><d>/ds/0/42</d></metadata><q:commandline><q:arg value='file=/ds/0/42/x,if=none'/></q:commandline></domain>";
        let found: Vec<_> = mentions(domain, &["/ds/0//42"]).unwrap();
        let found: Vec<_> = found.iter().map(|found| (found.element.as_str(), found.value.as_str())).collect();
        let expected = [
            ("nvram", "/ds//0/42/x_VARS.fd"),
            ("kernel", "/ds/0/42/kernel"),
            ("filesystem", "/ds/0/42/share"),
            ("arg", "file=/ds/0/42/x,if=none"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_changed_medium_leaves_the_rest_of_the_drive() {
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
