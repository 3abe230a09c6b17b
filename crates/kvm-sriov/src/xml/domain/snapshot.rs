//! The XML of a snapshot, which OpenNebula keeps beside the deployment file.

use super::Wanted;
use crate::base::DomainUuid;
use crate::xml::XmlError;
use crate::xml::parse::parse;
use crate::xml::read::{child, content, is_plain, root};
use crate::xml::splice::{Splice, apply};

/// Adapts the XML of a snapshot to a domain with this UUID: replaces every `<uuid>` of a domain in it. A VM that was
/// powered off has a new domain, and libvirt accepts only snapshots of the current domain.
///
/// # Errors
/// The text is not the XML of a snapshot.
pub fn snapshot_of(text: &str, uuid: &DomainUuid) -> Result<String, XmlError> {
    let document = parse(text)?;
    let snapshot = root(&document, "domainsnapshot")?;
    let inside = |node: roxmltree::Node<'_, '_>| {
        let (first, last) = (node.first_child()?, node.last_child()?);
        Some(first.range().start..last.range().end)
    };
    let splices = snapshot
        .descendants()
        .filter(|node| is_plain(*node, "uuid"))
        .filter(|node| {
            node.parent().is_some_and(|parent| is_plain(parent, "domain") || is_plain(parent, "inactiveDomain"))
        })
        .filter(|node| content(*node).parse::<DomainUuid>().is_ok())
        .filter_map(inside)
        .map(|range| Splice { range, text: uuid.to_string() })
        .collect();
    apply(text, splices)
}

/// The VFs that the domain should have had when the snapshot was taken; `None` if the domain had no metadata of the
/// driver.
///
/// # Errors
/// The text is not the XML of a snapshot, or the driver's metadata in it can't be read.
pub fn wanted_in_snapshot(text: &str) -> Result<Option<Wanted>, XmlError> {
    let document = parse(text)?;
    let domain = child(root(&document, "domainsnapshot")?, "domain");
    domain.map_or(Ok(None), Wanted::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_uuid_of_the_domain_changes() {
        let uuid: DomainUuid = "7f1c2a52-64d6-4c0c-9b0e-2f7a4c1d9e10".parse().unwrap();
        let old = "<domainsnapshot><name>snap-0</name><x><uuid>0d0f6f0e-9a54-4d38-8c83-6f0f3a1d2b77</uuid></x>\
                   <domain><uuid>0d0f6f0e-9a54-4d38-8c83-6f0f3a1d2b77</uuid><a b='1'/></domain></domainsnapshot>";
        let new = snapshot_of(old, &uuid).unwrap();
        assert_eq!(new.matches("0d0f6f0e").count(), 1);
        assert!(new.contains("<domain><uuid>7f1c2a52-64d6-4c0c-9b0e-2f7a4c1d9e10</uuid><a b='1'/></domain>"), "{new}");
        assert!(snapshot_of("<domain/>", &uuid).is_err());
    }
}
