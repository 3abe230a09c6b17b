//! OpenNebula's own description of a VM: `vm.xml` beside the deployment file, or the standard input of an action.

use std::path::PathBuf;

use roxmltree::Node;

use super::{XmlError, child, children, content, decimal, parse, root};
use crate::{MacAddress, RootName};

/// What is read from the description of a VM.
///
/// # Source
/// OpenNebula's `VMM_DRIVER_ACTION_DATA` (since 5.0) and `vm.xml` (since 6.0): values are the text of elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmData {
    nics: Vec<VmNic>,
    tm_mad: Option<String>,
    travel: Travel,
}

/// What the description says of a move of the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Travel {
    /// The VM's directory, as the datastore that it lies in has it; unknown before 5.0.
    pub source_dir: Option<PathBuf>,
    /// The VM's directory after the move.
    pub target_dir: Option<PathBuf>,
    /// Whether both hosts see the same files.
    pub is_shared: bool,
    /// The feature MIGRATE_AUTO_CONVERGE: how much the guest's CPUs are slowed down for the copy to end.
    pub auto_converge: Option<String>,
    /// The feature MIGRATE_COMPRESSED.
    pub is_compressed: bool,
}

/// A network interface of a VM, as OpenNebula describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmNic {
    /// Its MAC.
    pub mac: MacAddress,
    /// OpenNebula's NIC_ID.
    pub id: Option<u32>,
    /// The VLAN. `None` as well for what is none that an SR-IOV NIC can have, such as the number of a VXLAN.
    pub vlan: Option<u16>,
    /// The bridge of its network.
    pub bridge: Option<String>,
}

impl VmData {
    /// Reads `<VM>`, or `<VMM_DRIVER_ACTION_DATA>` around it. NICs without a MAC are left out, and so are aliases of
    /// NICs and PCI devices: none of them is an interface on a bridge.
    ///
    /// # Errors
    /// The text is not XML or has no `<VM>`; a MAC is none; the VLAN_ID of an SR-IOV NIC is no number up to 65535
    /// (without it the NIC would not be isolated).
    pub fn parse(text: &str) -> Result<Self, XmlError> {
        let document = parse(text)?;
        let top = document.root_element();
        let vm = match top.tag_name().name() {
            "VMM_DRIVER_ACTION_DATA" => {
                child(top, "VM").ok_or_else(|| XmlError::at(top, "expected <VM> in it, found none"))?
            }
            _ => root(&document, "VM")?,
        };
        let tm_mad = child(top, "DATASTORE").and_then(|datastore| value(datastore, "TM_MAD")).map(|(name, _)| name);
        let nics = children(vm, "TEMPLATE").flat_map(|template| children(template, "NIC"));
        let nics = nics.filter_map(|nic| VmNic::read(nic).transpose()).collect::<Result<_, _>>()?;
        Ok(Self { nics, tm_mad, travel: Travel::read(top, vm) })
    }

    /// The transfer driver of the system datastore that the VM lies in.
    pub fn tm_mad(&self) -> Option<&str> {
        self.tm_mad.as_deref()
    }

    /// What it says of a move.
    pub fn travel(&self) -> &Travel {
        &self.travel
    }

    /// The NICs, in OpenNebula's order.
    pub fn nics(&self) -> &[VmNic] {
        &self.nics
    }
}

impl Travel {
    fn read(action: Node<'_, '_>, vm: Node<'_, '_>) -> Self {
        let text = |node: Option<Node<'_, '_>>, name| Some(value(node?, name)?.0);
        let datastore = child(action, "DATASTORE");
        let shared = text(datastore.and_then(|datastore| child(datastore, "TEMPLATE")), "SHARED");
        let features = child(vm, "TEMPLATE").and_then(|template| child(template, "FEATURES"));
        let is_yes = |text: String| text.eq_ignore_ascii_case("yes");
        let source_dir = || Some(PathBuf::from(text(datastore, "BASE_PATH")?).join(text(Some(vm), "ID")?));
        Self {
            source_dir: source_dir(),
            target_dir: text(Some(action), "DISK_TARGET_PATH").map(PathBuf::from),
            // A version that says nothing knows only shared storage.
            is_shared: shared.is_none_or(is_yes),
            auto_converge: text(features, "MIGRATE_AUTO_CONVERGE"),
            is_compressed: text(features, "MIGRATE_COMPRESSED").is_some_and(is_yes),
        }
    }
}

impl VmNic {
    fn read(nic: Node<'_, '_>) -> Result<Option<Self>, XmlError> {
        let Some((mac, at)) = value(nic, "MAC") else { return Ok(None) };
        let bridge = value(nic, "BRIDGE").map(|(bridge, _)| bridge);
        let is_sriov = bridge.as_deref().and_then(RootName::from_bridge).is_some();
        let vlan = match value(nic, "VLAN_ID").map(|(vlan, at)| (decimal(&vlan), at)) {
            Some((Ok(vlan), _)) => Some(vlan),
            Some((Err(error), at)) if is_sriov => return Err(XmlError::at(at, format_args!("VLAN_ID: {error}"))),
            Some((Err(_), _)) | None => None,
        };
        Ok(Some(Self {
            mac: mac.parse().map_err(|error| XmlError::at(at, format_args!("MAC: {error}")))?,
            id: value(nic, "NIC_ID").and_then(|(id, _)| decimal(&id).ok()),
            vlan,
            bridge,
        }))
    }
}

/// The text of an element and where it stands; nothing when it is empty, which is how OpenNebula writes "not set".
fn value<'a, 'i>(nic: Node<'a, 'i>, name: &'static str) -> Option<(String, Node<'a, 'i>)> {
    let node = child(nic, name)?;
    let text = content(node).trim().to_owned();
    (!text.is_empty()).then_some((text, node))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ACTION, VM};
    use super::*;

    #[test]
    fn vm_xml_gives_vlan_and_id() {
        let data = VmData::parse(VM).unwrap();
        let [plain, sriov] = data.nics() else { panic!("{data:?}") };
        assert_eq!((plain.id, plain.vlan, plain.bridge.as_deref()), (Some(0), None, Some("br0")));
        assert_eq!(sriov.mac.to_string(), "02:00:0a:02:00:4d");
        assert_eq!((sriov.id, sriov.vlan, sriov.bridge.as_deref()), (Some(2), Some(100), Some("sriov_ib0")));
    }

    #[test]
    fn a_real_action_is_read() {
        let data = VmData::parse(ACTION).unwrap();
        let ids: Vec<_> = data.nics().iter().map(|nic| nic.id).collect();
        assert_eq!(ids, [Some(0), Some(1)]);
        assert_eq!(data.nics()[1].mac.to_string(), "02:00:c0:00:02:0b");
    }

    #[test]
    fn what_is_unknown_is_tolerated_but_isolation_is_never_lost() {
        let vm = |nic: &str| VmData::parse(&format!("<VM><TEMPLATE><NIC>{nic}</NIC></TEMPLATE></VM>"));
        assert!(vm("<BRIDGE>br0</BRIDGE>").unwrap().nics().is_empty());
        let vxlan = vm("<MAC>02:00:00:00:00:01</MAC><BRIDGE>br0</BRIDGE><VLAN_ID>70000</VLAN_ID><NIC_ID>x</NIC_ID>");
        assert_eq!((vxlan.as_ref().unwrap().nics()[0].vlan, vxlan.unwrap().nics()[0].id), (None, None));
        let lost = vm("<MAC>02:00:00:00:00:01</MAC>\n<BRIDGE>sriov_a</BRIDGE><VLAN_ID>70000</VLAN_ID>").unwrap_err();
        assert_eq!(lost.to_string(), "2:25: VLAN_ID: expected a number that fits, found \"70000\"");
        assert!(vm("<MAC>02</MAC>").is_err());
        assert!(VmData::parse("<VMM_DRIVER_ACTION_DATA/>").is_err());
        assert!(VmData::parse("<HOST/>").is_err());
        assert!(VmData::parse("<VM/>").unwrap().nics().is_empty());
    }
}
