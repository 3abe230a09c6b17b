//! The XML of devices that are plugged into a running domain, from OpenNebula's description.

use super::vm::{Bandwidth, PciDevice, VmNic, VmPci};
use super::{Escaped, dummy_alias_of};
use crate::{MacAddress, PciAddress, Position};

/// Where OpenNebula keeps the sockets of interfaces on a bridge that runs in user space (7.2 and later).
const VHOST_SOCKETS: &str = "/var/run/one/vhost-socks";

/// What holds for a NIC whose description does not say.
#[derive(Debug, Clone, Copy)]
pub struct NicDefaults<'a> {
    /// DEFAULT_ATTACH_NIC_MODEL of kvmrc.
    pub model: &'a str,
    /// DEFAULT_ATTACH_NIC_FILTER of kvmrc.
    pub filter: Option<&'a str>,
    /// The number of virtual CPUs: as many queues has a NIC whose queues are `auto`.
    pub vcpus: Option<u32>,
}

/// The `<interface>` that OpenNebula's stock driver plugs in for a NIC.
///
/// # Source
/// OpenNebula's `opennebula_vm.rb` (`interface_xml`) and, for what it lacks, `LibVirtDriverKVM.cc`.
pub fn interface_of(nic: &VmNic, defaults: NicDefaults<'_>) -> String {
    let bridge = nic.bridge.as_deref().filter(|_| nic.network_mode.as_deref() != Some("dummy"));
    let is = |kind: &str| nic.bridge_type.as_deref().is_some_and(|bridge_type| bridge_type == kind);
    let mut parts = Vec::new();
    let kind = match bridge {
        Some(_) if is("openvswitch_dpdk") => {
            let path = format!("{VHOST_SOCKETS}/{}", nic.target.as_deref().unwrap_or_default());
            parts.push(format!("<source type='unix' mode='server' path='{}'/>", Escaped(&path)));
            "vhostuser"
        }
        Some(bridge) => {
            if is("openvswitch") {
                parts.push("<virtualport type='openvswitch'/>".into());
            }
            parts.push(format!("<source bridge='{}'/>", Escaped(bridge)));
            "bridge"
        }
        None => "ethernet",
    };
    parts.push(format!("<mac address='{}'/>", nic.mac));
    parts.extend(nic.script.as_ref().map(|script| format!("<script path='{}'/>", Escaped(script))));
    parts.extend(nic.target.as_ref().map(|target| format!("<target dev='{}'/>", Escaped(target))));
    parts.extend(nic.boot_order.map(|order| format!("<boot order='{order}'/>")));
    parts.extend(device_parts(nic, defaults));
    format!("<interface type='{kind}'>{}</interface>", parts.concat())
}

/// The `<interface>` of the dummy that carries the IP address of an SR-IOV NIC into the guest: on the dummies' bridge, with
/// model, target, filter and bandwidth of the NIC. Its boot order is the host device's; its script was written for another
/// bridge.
pub fn dummy_interface_of(
    nic: &VmNic,
    defaults: NicDefaults<'_>,
    position: Position,
    mac: MacAddress,
    bridge: &str,
) -> String {
    let mut parts = vec![format!("<source bridge='{}'/>", Escaped(bridge)), format!("<mac address='{mac}'/>")];
    parts.extend(nic.target.as_ref().map(|target| format!("<target dev='{}'/>", Escaped(target))));
    parts.extend(device_parts(nic, defaults));
    parts.push(format!("<alias name='{}'/>", dummy_alias_of(position)));
    format!("<interface type='bridge'>{}</interface>", parts.concat())
}

/// Model, queues, filter and bandwidth.
fn device_parts(nic: &VmNic, defaults: NicDefaults<'_>) -> Vec<String> {
    let model = nic.model.as_deref().unwrap_or(defaults.model);
    let mut parts = Vec::new();
    if !model.is_empty() {
        parts.push(format!("<model type='{}'/>", Escaped(model)));
    }
    if model == "virtio" {
        let queues = nic.queues.as_deref().and_then(|queues| match queues {
            "auto" => defaults.vcpus,
            number => number.parse().ok(),
        });
        parts.extend(queues.map(|queues| format!("<driver name='vhost' queues='{queues}'/>")));
    }
    if let (Some(filter), Some(ip)) = (nic.filter.as_deref().or(defaults.filter), &nic.ip) {
        let parameters: String = std::iter::once(ip)
            .chain(&nic.vrouter_ip)
            .map(|ip| format!("<parameter name='IP' value='{}'/>", Escaped(ip)))
            .collect();
        parts.push(format!("<filterref filter='{}'>{parameters}</filterref>", Escaped(filter)));
    }
    let limits = [limit("inbound", &nic.inbound), limit("outbound", &nic.outbound)].concat();
    if !limits.is_empty() {
        parts.push(format!("<bandwidth>{limits}</bandwidth>"));
    }
    parts
}

fn limit(direction: &str, bandwidth: &Bandwidth) -> String {
    let Bandwidth { average, peak, burst } = bandwidth;
    let attributes: String = [("average", average), ("peak", peak), ("burst", burst)]
        .into_iter()
        .filter_map(|(name, value)| Some(format!(" {name}='{}'", Escaped(value.as_ref()?))))
        .collect();
    if attributes.is_empty() { String::new() } else { format!("<{direction}{attributes}/>") }
}

/// The device that OpenNebula's stock driver plugs in for a PCI device: an interface of type hostdev for a VF, because libvirt
/// then waits for the permissions of its vfio device, otherwise a host device.
///
/// * `is_vf` - whether the function is a VF
/// * `guest` - its address in the guest; libvirt chooses one without it
///
/// # Source
/// OpenNebula's `opennebula_vm.rb` (`hostdev_xml`).
pub fn pci_of(pci: &VmPci, is_vf: bool, guest: Option<PciAddress>) -> String {
    let guest = guest.map(|guest| format!("<address type='pci' {}/>", guest.to_attributes())).unwrap_or_default();
    match &pci.device {
        PciDevice::Mediated(uuid) => format!(
            "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address uuid='{}'/></source></hostdev>",
            Escaped(uuid)
        ),
        PciDevice::Function(address) if is_vf => format!(
            "<interface type='hostdev' managed='yes'><source><address type='pci' {}/></source>{guest}</interface>",
            address.to_attributes()
        ),
        PciDevice::Function(address) => format!(
            "<hostdev mode='subsystem' type='pci' managed='yes'><source><address {}/></source>{guest}</hostdev>",
            address.to_attributes()
        ),
    }
}
