//! Texts in the form that libvirt takes.

use std::ffi::CString;
use std::path::Path;

use super::LibvirtError;

/// `virt` panics on a NUL byte in some of its arguments, so every text is checked before it is passed.
pub(super) fn without_nul(text: &str) -> Result<(), LibvirtError> {
    if text.contains('\0') { Err(LibvirtError::other("a text for libvirt has a NUL byte in it")) } else { Ok(()) }
}

/// The text, for a call that `virt` lacks.
pub(super) fn c_text(text: &str) -> Result<CString, LibvirtError> {
    without_nul(text)?;
    CString::new(text).map_err(|error| LibvirtError::other(error.to_string()))
}

/// The path as a text. libvirt writes paths into XML, which has room for text only.
pub(super) fn path_text(path: &Path) -> Result<&str, LibvirtError> {
    let text = path.to_str().ok_or_else(|| {
        LibvirtError::other(format!("the path {} is not UTF-8, libvirt can't take it", path.display()))
    })?;
    without_nul(text)?;
    Ok(text)
}
