//! The XML of interfaces and PCI devices to plug into a running domain, from OpenNebula's description.

use super::{Bandwidth, VmNic, VmPci};
use crate::base::{MacAddress, PciAddress, Position};
use crate::xml::write::Escaped;
use crate::xml::{PciDevice, dummy_alias_of};

/// The directory of OpenNebula's sockets for interfaces on a bridge that runs in user space (7.2 and later).
const VHOST_SOCKETS: &str = "/var/run/one/vhost-socks";

/// Values for a NIC whose description does not have them.
#[derive(Debug, Clone, Copy)]
pub struct NicDefaults<'a> {
    /// DEFAULT_ATTACH_NIC_MODEL of kvmrc.
    pub model: &'a str,
    /// DEFAULT_ATTACH_NIC_FILTER of kvmrc.
    pub filter: Option<&'a str>,
    /// The number of virtual CPUs of the VM, which is the number of queues of a NIC whose queues are `auto`.
    pub vcpus: Option<u32>,
}

/// The alias of the interface of a NIC without a VF: made of NIC_ID and MAC, or of the MAC alone if the NIC_ID is not
/// known.
///
/// # Source
/// OpenNebula reuses the NIC_ID of a removed NIC, so it does not identify a NIC alone. libvirt keeps an alias from
/// outside only with the prefix `ua-`.
pub fn nic_alias(nic: &VmNic) -> String {
    let mac = nic.mac.to_string().replace(':', "");
    nic.id.map_or_else(|| format!("ua-nic-{mac}"), |id| format!("ua-nic-{id}-{mac}"))
}

/// The `<interface>` that OpenNebula's stock driver plugs for a NIC, with an alias.
///
/// # Source
/// OpenNebula's `opennebula_vm.rb` (`interface_xml`); `LibVirtDriverKVM.cc` for what that file leaves out.
pub fn interface_of(nic: &VmNic, defaults: NicDefaults<'_>, alias: &str) -> String {
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
    parts.push(format!("<alias name='{}'/>", Escaped(alias)));
    format!("<interface type='{kind}'>{}</interface>", parts.concat())
}

/// The `<interface>` of the dummy of an SR-IOV NIC: on the bridge of the dummies, with the NIC's model, target, filter
/// and bandwidth. The NIC's boot order is for the host device. The NIC's script is left out, because it was written for
/// another bridge. `Deployment::rewrite` makes the same interface from the text of a deployment file.
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

/// The elements for model, queues, filter and bandwidth.
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

/// The device that OpenNebula's stock driver plugs for a PCI device. A VF becomes an interface of type hostdev, because
/// libvirt then waits for the permissions of its vfio device. Other functions become host devices.
///
/// * `is_vf` - whether the function is a VF
/// * `guest` - the guest address; `None` lets libvirt choose
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

#[cfg(test)]
mod tests {
    use super::super::VmData;
    use super::*;

    const DEFAULTS: NicDefaults<'_> = NicDefaults { model: "virtio", filter: None, vcpus: Some(4) };

    fn described(nic: &str) -> VmNic {
        let text = format!("<VM><TEMPLATE><NIC><MAC>02:00:c0:a8:01:05</MAC>{nic}</NIC></TEMPLATE></VM>");
        VmData::parse(&text).unwrap().nics()[0].clone()
    }

    fn recorded(text: &str) -> VmData {
        VmData::parse(text).unwrap()
    }

    #[test]
    fn a_recorded_nic_gives_this_interface() {
        let first = recorded(include_str!("../../../../../tests/fixtures/wire/02-attach_nic-on-hostA/stdin"));
        let nic = first.nic_of_action("02:00:c0:00:02:0b".parse().unwrap()).unwrap();
        assert!(nic.attach);
        assert_eq!(
            interface_of(nic, DEFAULTS, &nic_alias(nic)),
            "<interface type='bridge'><source bridge='onebr0'/><mac address='02:00:c0:00:02:0b'/>\
             <target dev='one-0-1'/><model type='virtio'/><alias name='ua-nic-1-0200c000020b'/></interface>"
        );
        let limited = recorded(include_str!("../../../../../tests/fixtures/wire/46-attach_nic-on-hostA/stdin"));
        let nic = limited.nic_of_action("02:00:c0:00:02:0e".parse().unwrap()).unwrap();
        assert_eq!(
            interface_of(nic, DEFAULTS, &nic_alias(nic)),
            "<interface type='bridge'><source bridge='onebr0'/><mac address='02:00:c0:00:02:0e'/>\
             <target dev='one-1-1'/><model type='virtio'/><bandwidth><inbound average='1000'/></bandwidth><alias name='ua-nic-1-0200c000020e'/></interface>"
        );
    }

    #[test]
    fn a_recorded_pci_nic_gives_this_device() {
        let data = recorded(include_str!("../../../../../tests/fixtures/wire/12-attach_nic-on-hostA/stdin"));
        let pci = data.attached_pci().unwrap();
        assert_eq!(pci.mac, Some("02:00:c6:33:64:0a".parse().unwrap()));
        assert_eq!(
            pci_of(pci, true, None),
            "<interface type='hostdev' managed='yes'><source>\
             <address type='pci' domain='0x0000' bus='0xaf' slot='0x01' function='0x0'/></source></interface>"
        );
        assert_eq!(
            pci_of(pci, false, pci.guest),
            "<hostdev mode='subsystem' type='pci' managed='yes'><source>\
             <address domain='0x0000' bus='0xaf' slot='0x01' function='0x0'/></source>\
             <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></hostdev>"
        );
    }

    #[test]
    fn a_mediated_device_is_identified_by_its_uuid() {
        let data = "<VM><TEMPLATE><PCI><ATTACH>YES</ATTACH><UUID>a'b</UUID></PCI></TEMPLATE></VM>";
        assert_eq!(
            pci_of(recorded(data).attached_pci().unwrap(), false, None),
            "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address uuid='a&apos;b'/></source></hostdev>"
        );
        let nothing = "<VM><TEMPLATE><PCI><ATTACH>YES</ATTACH></PCI></TEMPLATE></VM>";
        assert!(VmData::parse(nothing).unwrap_err().to_string().contains("expected DOMAIN, BUS, SLOT and FUNCTION"));
        assert!(recorded(&nothing.replace("YES", "NO")).attached_pci().is_none());
    }

    #[test]
    fn every_kind_of_bridge_has_its_interface() {
        for (nic, expected) in [
            ("", "<interface type='ethernet'><mac address='02:00:c0:a8:01:05'/>"),
            (
                "<BRIDGE>br0</BRIDGE><NETWORK_MODE>dummy</NETWORK_MODE>",
                "<interface type='ethernet'><mac address='02:00:c0:a8:01:05'/>",
            ),
            (
                "<BRIDGE>br0</BRIDGE><BRIDGE_TYPE>openvswitch</BRIDGE_TYPE>",
                "<interface type='bridge'><virtualport type='openvswitch'/><source bridge='br0'/><mac ",
            ),
            (
                "<BRIDGE>br0</BRIDGE><BRIDGE_TYPE>openvswitch_dpdk</BRIDGE_TYPE><TARGET>one-7-1</TARGET>",
                "<interface type='vhostuser'>\
                 <source type='unix' mode='server' path='/var/run/one/vhost-socks/one-7-1'/><mac ",
            ),
            ("<BRIDGE>a'&lt;b</BRIDGE>", "<interface type='bridge'><source bridge='a&apos;&lt;b'/><mac "),
        ] {
            let xml = interface_of(&described(nic), DEFAULTS, "ua-x");
            assert!(xml.starts_with(expected), "{nic}: {xml}");
        }
    }

    const EVERYTHING: &str = "<BRIDGE>br0</BRIDGE><SCRIPT>/etc/up</SCRIPT><TARGET>one-7-1</TARGET><ORDER>2</ORDER>\
        <MODEL>virtio</MODEL><VIRTIO_QUEUES>auto</VIRTIO_QUEUES><FILTER>clean-traffic</FILTER><IP>192.168.1.5</IP>\
        <VROUTER_IP>192.168.1.1</VROUTER_IP><INBOUND_AVG_BW>1</INBOUND_AVG_BW><INBOUND_PEAK_BW>2</INBOUND_PEAK_BW>\
        <INBOUND_PEAK_KB>3</INBOUND_PEAK_KB><OUTBOUND_PEAK_KB>4</OUTBOUND_PEAK_KB>";

    #[test]
    fn all_parts_of_a_nic_are_written_in_libvirts_order() {
        let rest = "<model type='virtio'/><driver name='vhost' queues='4'/><filterref filter='clean-traffic'>\
            <parameter name='IP' value='192.168.1.5'/><parameter name='IP' value='192.168.1.1'/></filterref>\
            <bandwidth><inbound average='1' peak='2' burst='3'/><outbound burst='4'/></bandwidth>";
        let nic = described(EVERYTHING);
        assert_eq!(
            interface_of(&nic, DEFAULTS, &nic_alias(&nic)),
            format!(
                "<interface type='bridge'><source bridge='br0'/><mac address='02:00:c0:a8:01:05'/>\
                 <script path='/etc/up'/><target dev='one-7-1'/><boot order='2'/>{rest}<alias name='ua-nic-0200c0a80105'/></interface>"
            )
        );
        let mac = "aa:02:c0:a8:01:05".parse().unwrap();
        assert_eq!(
            dummy_interface_of(&nic, DEFAULTS, Position::new(2).unwrap(), mac, "dummybr"),
            format!(
                "<interface type='bridge'><source bridge='dummybr'/><mac address='{mac}'/><target dev='one-7-1'/>\
                 {rest}<alias name='ua-sriov-dummy-2'/></interface>"
            )
        );
    }

    #[test]
    fn only_virtio_has_queues_and_they_are_numbers() {
        for (nic, queues) in [
            ("<VIRTIO_QUEUES>auto</VIRTIO_QUEUES>", Some("queues='4'")),
            ("<VIRTIO_QUEUES>2</VIRTIO_QUEUES>", Some("queues='2'")),
            ("<VIRTIO_QUEUES>many</VIRTIO_QUEUES>", None),
            ("<VIRTIO_QUEUES>2</VIRTIO_QUEUES><MODEL>e1000</MODEL>", None),
            ("", None),
        ] {
            let xml = interface_of(&described(nic), DEFAULTS, "ua-x");
            assert_eq!(xml.contains("<driver"), queues.is_some(), "{nic}: {xml}");
            assert!(queues.is_none_or(|queues| xml.contains(queues)), "{nic}: {xml}");
        }
        let unknown = NicDefaults { vcpus: None, ..DEFAULTS };
        assert!(!interface_of(&described("<VIRTIO_QUEUES>auto</VIRTIO_QUEUES>"), unknown, "ua-x").contains("<driver"));
    }

    #[test]
    fn kvmrc_has_the_defaults_of_a_nic() {
        let defaults = NicDefaults { model: "e1000", filter: Some("clean-traffic"), vcpus: None };
        let with_ip = interface_of(&described("<IP>192.168.1.5</IP>"), defaults, "ua-x");
        assert!(with_ip.contains("<model type='e1000'/><filterref filter='clean-traffic'>"), "{with_ip}");
        // A filter without an address would block everything.
        assert!(!interface_of(&described(""), defaults, "ua-x").contains("filterref"));
        assert!(!interface_of(&described(""), NicDefaults { model: "", ..defaults }, "ua-x").contains("<model"));
    }
}
