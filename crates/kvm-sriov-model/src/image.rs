//! Save images on disk, as far as others read them: libvirt's header and the domain's XML.

use std::fs;
use std::path::Path;

use kvm_sriov::DomainUuid;
use kvm_sriov::libvirt::LibvirtError;

use super::refusal;

/// The first bytes of a complete save image.
///
/// # Source
/// libvirt's `qemu_saveimage.h`.
const COMPLETE: &[u8; 16] = b"LibvirtQemudSave";

/// The first bytes of a save image that is being written.
const PARTIAL: &[u8; 16] = b"LibvirtQemudPart";

/// The header: the magic, five numbers and room for fourteen more, each of four bytes.
const HEADER: usize = 16 + 19 * 4;

/// A domain in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    /// Its XML.
    pub(super) xml: String,
    /// Whether its CPUs ran.
    pub(super) ran: bool,
    /// Its memory.
    pub(super) memory: Memory,
}

/// One state of a VM's memory. Only the newest one may run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Memory {
    /// The VM.
    pub(super) uuid: DomainUuid,
    /// Grows whenever the CPUs start with a memory that was handed over.
    pub(super) number: u64,
}

impl Image {
    /// Writes it into a file that is marked as incomplete.
    pub(super) fn begin(&self, file: &Path) -> Result<(), LibvirtError> {
        self.write(file, PARTIAL)
    }

    /// Marks the file as complete.
    pub(super) fn finish(&self, file: &Path) -> Result<(), LibvirtError> {
        self.write(file, COMPLETE)
    }

    fn write(&self, file: &Path, magic: &[u8; 16]) -> Result<(), LibvirtError> {
        let data_len = u32::try_from(self.xml.len() + 1).unwrap();
        let mut bytes = magic.to_vec();
        for number in [2, data_len, u32::from(self.ran), 0, 0] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes.resize(HEADER, 0);
        bytes.extend(self.xml.as_bytes());
        bytes.push(0);
        bytes.extend(format!("{} {}", self.memory.uuid, self.memory.number).as_bytes());
        fs::write(file, bytes)
            .map_err(|error| refusal::system(format!("Failed to open file '{}': {error}", file.display())))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The file is no save image, or an incomplete one.
    pub(super) fn read(file: &Path) -> Result<Self, LibvirtError> {
        let bytes = fs::read(file)
            .map_err(|error| refusal::system(format!("Failed to open file '{}': {error}", file.display())))?;
        let short = || refusal::failed("failed to read qemu header");
        let header = bytes.get(..HEADER).ok_or_else(short)?;
        if header.starts_with(PARTIAL) {
            return Err(refusal::failed("save image is incomplete"));
        }
        if !header.starts_with(COMPLETE) {
            return Err(refusal::failed("image magic is incorrect"));
        }
        let number = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let end = HEADER + usize::try_from(number(20)).unwrap();
        let xml = text(bytes.get(HEADER..end - 1).ok_or_else(short)?);
        let memory = text(&bytes[end..]);
        let memory = memory
            .split_once(' ')
            .and_then(|(uuid, number)| Some(Memory { uuid: uuid.parse().ok()?, number: number.parse().ok()? }));
        Ok(Self { xml, ran: number(24) != 0, memory: memory.ok_or_else(short)? })
    }
}
