//! The XML of a domain that comes from another host or datastore, adapted to this host.

use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use roxmltree::Node;

use super::Wanted;
use super::hostdev::DUMMY_ALIAS;
use crate::xml::XmlError;
use crate::xml::parse::parse;
use crate::xml::read::{child, child_attribute, children, root};
use crate::xml::splice::{Splice, apply};
use crate::xml::write::Escaped;

/// The VM's directory: `<datastores>/<number>/<vm>`, the path of a checkpoint without its name.
struct VmDirectory {
    /// The directory of the datastores in two forms: as OpenNebula wrote it, and with each "//" reduced to "/".
    datastores: [String; 2],
    datastore: String,
    vm: String,
}

impl VmDirectory {
    fn of(checkpoint: &Path) -> Option<Self> {
        let dir = checkpoint.parent()?;
        let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
        let above = dir.parent()?;
        let plain: PathBuf = above.parent()?.components().filter(|part| *part != Component::CurDir).collect();
        // `Path::parent` keeps doubled slashes that OpenNebula wrote inside the path.
        let written = above.parent()?.as_os_str().to_str()?.to_owned();
        let datastores = [written, plain.to_str()?.to_owned()];
        let datastore = name(above).filter(|datastore| is_number(datastore))?;
        Some(Self { datastores, datastore, vm: name(dir)? })
    }

    /// Moves a path to this datastore, if it lies in the VM's directory of another datastore.
    fn relocate(&self, path: &str) -> Option<String> {
        let below = |datastores: &String| {
            let rest = path.strip_prefix(datastores.as_str())?.strip_prefix('/')?;
            let (datastore, rest) = rest.split_once('/')?;
            let rest = rest.strip_prefix(self.vm.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
            (is_number(datastore) && datastore != self.datastore)
                .then(|| format!("{datastores}/{}/{}{rest}", self.datastore, self.vm))
        };
        self.datastores.iter().find_map(below)
    }
}

fn is_number(datastore: &str) -> bool {
    !datastore.is_empty() && datastore.bytes().all(|b| b.is_ascii_digit())
}

/// Adapts the XML of a saved or migrated domain to this host. Paths in the VM's directory of another datastore move to
/// the datastore of `checkpoint`, the driver's metadata become `wanted`, and the dummies are connected to
/// `dummy_bridge`. Everything else stays byte for byte.
///
/// # Errors
/// The text is not the XML of a domain.
///
/// # Source
/// OpenNebula's stock `restore`, which replaces the number of the datastore in paths below the VM's directory.
pub fn adapted_to_host(
    text: &str,
    checkpoint: &Path,
    wanted: Option<&Wanted>,
    dummy_bridge: Option<&str>,
) -> Result<String, XmlError> {
    let document = parse(text)?;
    let domain = root(&document, "domain")?;
    let mut splices = Vec::new();
    if let Some(bridge) = dummy_bridge {
        splices.extend(dummy_bridges(domain).map(|range| Splice { range, text: Escaped(bridge).to_string() }));
    }
    if let Some(dir) = VmDirectory::of(checkpoint) {
        for node in domain.descendants() {
            for attribute in node.attributes() {
                splices.extend(relocated(text, attribute.range_value(), &dir));
            }
            if node.is_text() && node.parent_element().is_some_and(|parent| parent.children().count() == 1) {
                splices.extend(relocated(text, node.range(), &dir));
            }
        }
    }
    if let Some(wanted) = wanted {
        let elements = Wanted::elements(domain);
        splices.extend(elements.map(|node| Splice { range: node.range(), text: wanted.to_xml() }));
    }
    apply(text, splices)
}

/// The places of the bridges of the dummies in the text.
fn dummy_bridges<'a, 'i: 'a>(domain: Node<'a, 'i>) -> impl Iterator<Item = Range<usize>> + 'a {
    let interfaces = children(domain, "devices").flat_map(|block| children(block, "interface"));
    interfaces
        .filter(|interface| {
            child_attribute(*interface, "alias", "name").is_some_and(|name| name.starts_with(DUMMY_ALIAS))
        })
        .filter_map(|interface| Some(child(interface, "source")?.attribute_node("bridge")?.range_value()))
}

/// The edit for a path in this range, if the path must move. Blanks and a CDATA section around it stay, and what is
/// in front of it in an option of QEMU: `file=<path>`. In `a/b` no path begins.
fn relocated(text: &str, range: Range<usize>, dir: &VmDirectory) -> Option<Splice> {
    let raw = text.get(range.clone())?;
    let (before, _) = raw.split_once('/')?;
    if before.ends_with(|last: char| last.is_alphanumeric() || matches!(last, '.' | '_' | '-')) {
        return None;
    }
    let begin = range.start.checked_add(before.len())?;
    let end = raw.find("]]>").map_or(range.end, |at| range.start.saturating_add(at));
    let path = text.get(begin..end)?.trim_end();
    let text = dir.relocate(path)?;
    Some(Splice { range: begin..begin.checked_add(path.len())?, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::LiveDomain;
    use crate::xml::fixtures::LIVE;

    #[test]
    fn a_path_begins_where_no_name_precedes_it() {
        let adapted = |value: &str, checkpoint: &str| {
            let text = format!("<domain><a b='{value}'/></domain>");
            let adapted = adapted_to_host(&text, Path::new(checkpoint), None, None).unwrap();
            (adapted != text).then(|| adapted.replace("<domain><a b='", "").replace("'/></domain>", ""))
        };
        let there = "/ds/104/77/checkpoint";
        assert_eq!(adapted("file=/ds/0/77/x,if=none", there).as_deref(), Some("file=/ds/104/77/x,if=none"));
        for stays in ["x/ds/0/77/y", "./ds/0/77/y", "é/ds/0/77", "/x/ds/0/77"] {
            assert_eq!(adapted(stays, there), None, "{stays}");
        }
        assert_eq!(adapted("/ds/0/77/x", "/ds/it's/77/checkpoint"), None, "no number of a datastore");
    }

    #[test]
    fn only_paths_in_the_directory_of_the_vm_move() {
        let wanted = LiveDomain::parse(LIVE).unwrap().wanted.unwrap().unwrap();
        let same = adapted_to_host(LIVE, Path::new("/var/lib/one//datastores/0/77/checkpoint"), None, None).unwrap();
        assert_eq!(same, LIVE);
        let other = adapted_to_host(LIVE, Path::new("checkpoint"), None, Some("br&1")).unwrap();
        assert_eq!(other, LIVE.replace("'dummybr'", "'br&amp;1'"));
        let text = "<domain><os><nvram>/var/lib/one//datastores/0/77/x_VARS.fd</nvram></os><devices><disk>\
                    <source file='/var/lib/one/datastores/0/77/disk.0'/><b f='/var/lib/one/datastores/0/778/disk.0'/>\
                    <c f=\"/var/lib/one/datastores/1/abc\"/></disk></devices><metadata>\
                    <d><![CDATA[/var/lib/one//datastores/0/77]]></d><sriov:domain \
                    xmlns:sriov='urn:kvm-sriov:domain:1' version='1.0'/></metadata></domain>";
        let moved = adapted_to_host(text, Path::new("/var/lib/one//datastores/104/77/checkpoint"), Some(&wanted), None)
            .unwrap();
        for (from, to) in [
            ("<nvram>/var/lib/one//datastores/0/", "<nvram>/var/lib/one//datastores/104/"),
            ("'/var/lib/one/datastores/0/77/disk.0'", "'/var/lib/one/datastores/104/77/disk.0'"),
            ("CDATA[/var/lib/one//datastores/0/77]", "CDATA[/var/lib/one//datastores/104/77]"),
        ] {
            assert!(text.contains(from) && moved.contains(to) && !moved.contains(from), "{moved}");
        }
        assert!(moved.contains("/var/lib/one/datastores/0/778/disk.0") && moved.contains("datastores/1/abc"));
        assert!(moved.contains(&wanted.to_xml()));
    }
}
