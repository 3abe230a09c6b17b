//! A disk as OpenNebula describes it, and the `<disk>` to plug for it.

mod limits;
mod source;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use roxmltree::Node;

use crate::xml::XmlError;
use crate::xml::parse::parse;
use crate::xml::read::{child, children, content, decimal, root};
use crate::xml::write::Escaped;
use limits::limits;
pub use source::DiskPlace;

/// A disk of a VM, as OpenNebula describes it. The texts are not checked: libvirt decides whether they are valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDisk {
    values: BTreeMap<String, String>,
    vm: String,
    vcpus: u32,
    /// The queues of those disks of the VM that name none.
    queues: Option<String>,
}

impl VmDisk {
    /// Finds the disk that an action is about: the one with this `DISK_ID`, or without `id` the one with `ATTACH=YES`.
    /// `None` if there is none.
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

    /// The `<disk>` that OpenNebula's stock driver plugs.
    ///
    /// * `iothreads` - the ids of the I/O threads of the running domain. OpenNebula's message may not name them, or
    ///   name those of the next start
    /// * `default` - the value of `DEFAULT_ATTACH_<name>` in kvmrc
    ///
    /// # Source
    /// OpenNebula's stock `attach_disk`; `LibVirtDriverKVM.cc` for what that file leaves out.
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

    /// The number of queues: the disk's own, that of all disks of the VM, or kvmrc's. A value that is not a number is
    /// ignored, as at the start of a VM.
    fn queues(&self, default: Option<&str>) -> Option<String> {
        match self.get("VIRTIO_BLK_QUEUES").or(self.queues.as_deref()).or(default)? {
            text if text.eq_ignore_ascii_case("auto") => Some(self.vcpus.to_string()),
            text => decimal::<u32>(text).ok().map(|number| number.to_string()),
        }
    }

    /// The I/O thread of the disk. OpenNebula numbers threads from 1; a number beyond the last thread means the last
    /// one. Disks that name none take turns.
    fn iothread(&self, default: Option<&str>, threads: &[u32]) -> Option<u32> {
        let chosen: Option<usize> = self.get("IOTHREAD").or(default).and_then(|text| decimal(text).ok());
        let turn = || decimal::<usize>(self.id()).unwrap_or(0).checked_rem(threads.len());
        let place = chosen.and_then(|number| number.checked_sub(1)).or_else(turn)?;
        threads.get(place).or(threads.last()).copied()
    }
}

/// The number on the SCSI bus of a target such as `sda`: the letters count as in the columns of a spreadsheet, from 0.
/// `None` for other targets, and for a number that the bus does not have.
fn scsi_target(target: &str) -> Option<u32> {
    let letters = target.strip_prefix("sd").filter(|letters| !letters.is_empty())?;
    let mut number = 0_u32;
    for letter in letters.bytes() {
        let digit = letter.is_ascii_lowercase().then(|| u32::from(letter - b'a' + 1))?;
        number = number.checked_mul(26)?.checked_add(digit)?;
    }
    number.checked_sub(1).filter(|number| *number < 256)
}
