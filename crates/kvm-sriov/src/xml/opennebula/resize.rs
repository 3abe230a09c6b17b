//! A resize, as OpenNebula describes it.

use roxmltree::Node;

use crate::xml::XmlError;
use crate::xml::parse::parse;
use crate::xml::read::{child, content, decimal, root};

/// The changes that a resize makes.
///
/// # Source
/// OpenNebula's `VMM_DRIVER_ACTION_DATA`: `VM/TEMPLATE` has the new values, `RESIZE` inside it the old ones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resize {
    /// The new number of virtual CPUs, if it changes.
    pub vcpus: Option<u32>,
    /// The new memory in MiB, if it changes.
    pub memory_mib: Option<u64>,
    /// Whether memory is plugged and unplugged as DIMMs (`MEMORY_RESIZE_MODE=HOTPLUG`); otherwise the guest's balloon
    /// changes its size.
    pub by_dimm: bool,
}

impl Resize {
    /// Reads OpenNebula's message.
    ///
    /// # Errors
    /// The text is not XML, has no `<VM>`, or a value is not a number.
    pub fn parse(text: &str) -> Result<Self, XmlError> {
        let document = parse(text)?;
        let action = root(&document, "VMM_DRIVER_ACTION_DATA")?;
        let vm = child(action, "VM").ok_or_else(|| XmlError::at(action, "expected <VM> in it, found none"))?;
        let Some(template) = child(vm, "TEMPLATE") else { return Ok(Self::default()) };
        let old = child(template, "RESIZE");
        let changed = |name| {
            let before = old.map(|old| number(old, name)).transpose()?.flatten();
            Ok(number(template, name)?.filter(|new| Some(*new) != before))
        };
        let vcpus = changed("VCPU")?.map(u32::try_from).transpose();
        Ok(Self {
            vcpus: vcpus
                .map_err(|_| XmlError::at(template, "expected a number of VCPUs, found one that is too large"))?,
            memory_mib: changed("MEMORY")?,
            by_dimm: child(template, "MEMORY_RESIZE_MODE").is_some_and(|mode| content(mode).trim() == "HOTPLUG"),
        })
    }
}

fn number(node: Node<'_, '_>, name: &'static str) -> Result<Option<u64>, XmlError> {
    let Some(node) = child(node, name) else { return Ok(None) };
    let text = content(node).trim().to_owned();
    let read =
        |text: &str| decimal(text).map(Some).map_err(|error| XmlError::at(node, format_args!("{name}: {error}")));
    if text.is_empty() { Ok(None) } else { read(&text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_resize_is_read() {
        let text = include_str!("../../../../../tests/fixtures/wire/24-resize-on-hostA/stdin");
        let resize = Resize::parse(text).unwrap();
        assert_eq!(resize, Resize { vcpus: Some(4), memory_mib: Some(256), by_dimm: false });
    }

    #[test]
    fn unchanged_values_are_none_and_wrong_numbers_are_refused() {
        let said = |template: &str| {
            Resize::parse(&format!(
                "<VMM_DRIVER_ACTION_DATA><VM><TEMPLATE>{template}</TEMPLATE></VM></VMM_DRIVER_ACTION_DATA>"
            ))
        };
        let both = "<VCPU>2</VCPU><MEMORY>512</MEMORY><MEMORY_RESIZE_MODE>HOTPLUG</MEMORY_RESIZE_MODE>";
        let old = "<RESIZE><VCPU>2</VCPU><MEMORY>256</MEMORY></RESIZE>";
        let resize = said(&format!("{both}{old}")).unwrap();
        assert_eq!(resize, Resize { vcpus: None, memory_mib: Some(512), by_dimm: true });
        assert_eq!(said(both).unwrap().vcpus, Some(2));
        assert_eq!(said("<VCPU/>").unwrap(), Resize::default());
        for (wrong, problem) in [("<VCPU>x</VCPU>", "VCPU: expected a number"), ("<MEMORY>-1</MEMORY>", "MEMORY: ")] {
            assert!(said(wrong).unwrap_err().to_string().contains(problem));
        }
        assert!(said("<VCPU>4294967297</VCPU>").is_err());
        assert!(Resize::parse("<VMM_DRIVER_ACTION_DATA/>").is_err());
    }
}
