//! The parsers of the state directory, for tests/fuzz.

use super::Holder;
use super::process::ThisHost;
use super::record::Content;

/// Reads the file of a claim and writes it again; an empty text for a claim of the driver of 2013.
///
/// # Errors
/// The file is no claim. The text says why.
pub fn claim(bytes: &[u8]) -> Result<String, String> {
    let this = ThisHost { machine: Some("0123456789abcdef0123456789abcdef".into()), boot: "this boot".into() };
    match Content::parse(bytes, &this) {
        Content::Ours(record) | Content::Elsewhere(record) => Ok(record.to_text()),
        Content::Original => Ok(String::new()),
        Content::Unreadable { why } => Err(why),
    }
}

/// Reads the text of a VM's lock and writes it again, as a process of this boot.
pub fn holder(text: &str) -> Option<String> {
    Holder::parse(text).map(|holder| holder.to_text())
}
