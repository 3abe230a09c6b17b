//! The companion network driver `vnm/sriov`. OpenNebula runs its steps on a host before a VM starts there and after it
//! is gone. The actions of the VM claim and free the VFs themselves.

use crate::base::{Action, NicMode, Position, RootName};
use crate::config::{Supply, mode_of};
use crate::error::{ActionError, Cause};
use crate::host::Host;
use crate::vm;
use crate::xml::{VmData, VmNic};

/// The VN_MAD of this driver's networks.
const VN_MAD: &str = "sriov";

/// Checks that this host can give a VM its networks. OpenNebula runs this step before a VM starts or gets a NIC, and on
/// the destination of a migration. Each root must have as many VFs on this host as the VM has NICs of that root.
/// Whether those VFs are free is not checked, because only a claim can tell.
///
/// # Errors
/// The bridge of a network names no root, a root has no map here or too few VFs, the dummies' bridge or MAC prefix is
/// not set, a NIC of the VM has that prefix, or a NIC asks for what the VF of its root can't have. Nothing was changed, and OpenNebula does not go on.
///
/// # Source
/// OpenNebula's `vnm/<driver>/pre`.
pub fn pre(host: &Host, vm: &VmData) -> Result<(), ActionError> {
    check(host, vm).map_err(|cause| ActionError::untouched(Action::NetworkPre, cause))
}

fn check(host: &Host, vm_data: &VmData) -> Result<(), Cause> {
    let mut nics = Vec::new();
    for nic in vm_data.nics() {
        nics.extend(root(nic)?.map(|root| (nic, root)));
    }
    let maps = host.maps_of(nics.iter().map(|(_, root)| root))?;
    let mut has_dummies = false;
    for (number, (nic, root)) in nics.iter().enumerate() {
        let position = Position::new(number).map_err(|source| Cause::Value { what: "the VM".into(), source })?;
        let mode = mode_of(&maps, root).unwrap_or_default();
        vm::check_mode(nic, mode)?;
        if mode == NicMode::Hostdev {
            host.dummy_mac(nic.mac, position)?;
            has_dummies = true;
        }
    }
    if has_dummies {
        host.dummy_bridge()?;
        host.check_macs(vm_data.macs())?;
    }
    for map in maps {
        let needed = nics.iter().filter(|(_, root)| root == map.root()).count();
        let Supply { vfs, no_vfs } = map.supply(host.sysfs());
        if vfs.len() < needed {
            return Err(Cause::FewVfs { root: map.root().clone(), vfs: vfs.len(), needed, no_vfs });
        }
    }
    Ok(())
}

/// The root of a NIC; `None` for a NIC of another network driver.
fn root(nic: &VmNic) -> Result<Option<RootName>, Cause> {
    let wrong = |source| Cause::Value { what: format!("the bridge of NIC {}", nic.mac), source };
    match (nic.root(), nic.vn_mad.as_deref()) {
        (Some(root), Some(VN_MAD) | None) => root.map(Some).map_err(wrong),
        (None, Some(VN_MAD)) => Err(Cause::NotSriov { mac: nic.mac, bridge: nic.bridge.clone().unwrap_or_default() }),
        _ => Ok(None),
    }
}
