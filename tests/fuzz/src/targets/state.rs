//! The files in the state directory.

use kvm_sriov::claims::fuzz::{claim, holder};

use super::{Described, check_message, text};

pub(super) fn targets() -> Vec<Described> {
    vec![("claim", 1, claim_file), ("holder", 1, lock_file)]
}

fn claim_file(input: &[u8]) {
    match claim(input) {
        // An empty file is a claim, and its form has no content.
        Ok(text) if text.is_empty() => assert!(input.is_empty()),
        Ok(text) => assert_eq!(claim(text.as_bytes()), Ok(text.clone()), "{text:?}"),
        Err(why) => check_message(&why),
    }
}

fn lock_file(input: &[u8]) {
    let Some(text) = holder(&text(input)) else { return };
    assert_eq!(holder(&text), Some(text.clone()), "{text:?}");
}
