//! OpenNebula's description of a VM: `vm.xml` beside the deployment file, or the standard input of an action.

use std::path::PathBuf;

use roxmltree::Node;

use super::nic::{VmAlias, VmNic, VmPci};
use super::value::{number, text_of, value};
use crate::base::{MacAddress, PciAddress, RootName};
use crate::xml::parse::parse;
use crate::xml::read::{child, children, root};
use crate::xml::{PciDevice, XmlError};

/// The parts of the description of a VM that the driver needs.
///
/// # Source
/// OpenNebula's `VMM_DRIVER_ACTION_DATA` (since 5.0) and `vm.xml` (since 6.0): values are the text of elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmData {
    nics: Vec<VmNic>,
    pcis: Vec<VmPci>,
    aliases: Vec<VmAlias>,
    vcpus: Option<u32>,
    tm_mad: Option<String>,
    vm_move: VmMove,
}

/// The parts of the description that concern a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmMove {
    /// The VM's directory in its present datastore; unknown before 5.0.
    pub source_dir: Option<PathBuf>,
    /// The VM's directory after the migration.
    pub target_dir: Option<PathBuf>,
    /// Whether both hosts see the same files.
    pub is_shared: bool,
    /// The feature MIGRATE_AUTO_CONVERGE: how much the guest's CPUs are slowed down so that the copy of the memory
    /// ends.
    pub auto_converge: Option<String>,
    /// The feature MIGRATE_COMPRESSED.
    pub is_compressed: bool,
}

impl VmData {
    /// Reads `<VM>`, or `<VMM_DRIVER_ACTION_DATA>` around it. NICs without a MAC are left out.
    ///
    /// # Errors
    /// The text is not XML or has no `<VM>`; a MAC is wrong; the VLAN_ID of an SR-IOV NIC is not a number up to 65535
    /// (it is recorded, not applied); the PCI device of the action has no address.
    pub fn parse(description: &str) -> Result<Self, XmlError> {
        let document = parse(description)?;
        let top = document.root_element();
        let vm = match top.tag_name().name() {
            "VMM_DRIVER_ACTION_DATA" => {
                child(top, "VM").ok_or_else(|| XmlError::at(top, "expected <VM> in it, found none"))?
            }
            _ => root(&document, "VM")?,
        };
        let all = |name| children(vm, "TEMPLATE").flat_map(move |template| children(template, name));
        Ok(Self {
            nics: all("NIC").filter_map(|nic| VmNic::read(nic).transpose()).collect::<Result<_, _>>()?,
            pcis: all("PCI").filter_map(|pci| VmPci::read(pci).transpose()).collect::<Result<_, _>>()?,
            aliases: all("NIC_ALIAS").filter_map(VmAlias::read).collect(),
            vcpus: children(vm, "TEMPLATE").find_map(|template| number(template, "VCPU")),
            tm_mad: child(top, "DATASTORE").and_then(|datastore| text_of(datastore, "TM_MAD")),
            vm_move: VmMove::read(top, vm),
        })
    }

    /// The transfer driver of the VM's system datastore.
    pub fn tm_mad(&self) -> Option<&str> {
        self.tm_mad.as_deref()
    }

    /// The parts that concern a migration.
    pub fn vm_move(&self) -> &VmMove {
        &self.vm_move
    }

    /// The NICs, in OpenNebula's order.
    pub fn nics(&self) -> &[VmNic] {
        &self.nics
    }

    /// The NICs that should have a VF, in OpenNebula's order, each with the root that its bridge names.
    pub fn sriov_nics(&self) -> impl Iterator<Item = (&VmNic, RootName)> {
        self.nics.iter().filter_map(|nic| Some((nic, nic.root()?.ok()?)))
    }

    /// The NIC that an action on this MAC is about: the one marked with ATTACH, otherwise the only one with the MAC.
    /// `None` if there is no such NIC, or if several have the MAC and none is marked.
    pub fn nic_of_action(&self, mac: MacAddress) -> Option<&VmNic> {
        let with: Vec<&VmNic> = self.nics.iter().filter(|nic| nic.mac == mac).collect();
        match (with.iter().find(|nic| nic.attach), &with[..]) {
            (Some(marked), _) => Some(marked),
            (None, [only]) => Some(only),
            (None, _) => None,
        }
    }

    /// The MACs of all NICs, also of those that are PCI devices.
    pub fn macs(&self) -> impl Iterator<Item = MacAddress> {
        self.nics.iter().map(|nic| nic.mac).chain(self.pcis.iter().filter_map(|pci| pci.mac))
    }

    /// The PCI device that the action is about.
    pub fn attached_pci(&self) -> Option<&VmPci> {
        self.pcis.iter().find(|pci| pci.attach)
    }

    /// Whether OpenNebula itself gives the VM this PCI device of the host.
    pub fn has_pci(&self, address: PciAddress) -> bool {
        self.pcis.iter().any(|pci| pci.device == PciDevice::Function(address))
    }

    /// Whether the action is about an alias with this MAC: another address of a NIC, without a device of its own.
    pub fn attaches_alias(&self, mac: MacAddress) -> bool {
        self.aliases.iter().any(|alias| alias.attach && alias.mac == mac)
    }

    /// The number of virtual CPUs.
    pub fn vcpus(&self) -> Option<u32> {
        self.vcpus
    }
}

impl VmMove {
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
            // Versions that do not name it have only shared storage.
            is_shared: shared.is_none_or(is_yes),
            auto_converge: text(features, "MIGRATE_AUTO_CONVERGE"),
            is_compressed: text(features, "MIGRATE_COMPRESSED").is_some_and(is_yes),
        }
    }
}

/// Attributes of the VM's system datastore, from OpenNebula's message; `None` for each one that is missing.
///
/// # Errors
/// The text is not XML, or not of this kind.
pub fn datastore_values<const N: usize>(
    message: &str,
    names: [&'static str; N],
) -> Result<[Option<String>; N], XmlError> {
    let document = parse(message)?;
    let datastore = child(root(&document, "VMM_DRIVER_ACTION_DATA")?, "DATASTORE");
    let template = datastore.and_then(|datastore| child(datastore, "TEMPLATE"));
    Ok(names.map(|name| template.and_then(|template| text_of(template, name))))
}

/// The archive of a TPM's state in the VM's template, as base64; `None` without one.
///
/// # Errors
/// The text is not XML, or not of this kind.
///
/// # Source
/// OpenNebula's `vm.xml`: `USER_TEMPLATE/TPM_STATE` (7.2 and later).
pub fn tpm_state(vm_xml: &str) -> Result<Option<String>, XmlError> {
    let document = parse(vm_xml)?;
    Ok(child(root(&document, "VM")?, "USER_TEMPLATE").and_then(|template| text_of(template, "TPM_STATE")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::fixtures::{ACTION, VM};

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
    fn the_nic_that_the_action_is_about_is_found() {
        let nic = |rest: &str| format!("<NIC><MAC>02:00:00:00:00:01</MAC>{rest}</NIC>");
        let alias = "<NIC_ALIAS><MAC>02:00:00:00:00:02</MAC><ATTACH>YES</ATTACH></NIC_ALIAS>";
        let text = format!(
            "<VM><TEMPLATE><VCPU>2</VCPU>{}{}{alias}</TEMPLATE></VM>",
            nic("<NIC_ID>0</NIC_ID>"),
            nic("<NIC_ID>1</NIC_ID><BRIDGE>sriov_a</BRIDGE><ATTACH>YES</ATTACH>")
        );
        let data = VmData::parse(&text).unwrap();
        let mac = |text: &str| text.parse::<MacAddress>().unwrap();
        assert_eq!(data.nic_of_action(mac("02:00:00:00:00:01")).unwrap().id, Some(1));
        assert!(data.nic_of_action(mac("02:00:00:00:00:02")).is_none());
        assert!(data.attaches_alias(mac("02:00:00:00:00:02")) && !data.attaches_alias(mac("02:00:00:00:00:01")));
        assert_eq!(data.vcpus(), Some(2));
        let roots: Vec<_> = data.sriov_nics().map(|(nic, root)| (nic.id, root.to_string())).collect();
        assert_eq!(roots, [(Some(1), "a".into())]);
    }

    #[test]
    fn unknown_values_are_ignored_but_a_wrong_vlan_of_an_sriov_nic_is_refused() {
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
