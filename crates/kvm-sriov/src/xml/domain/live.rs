//! A running domain, as libvirt shows it.

use std::fmt;
use std::path::PathBuf;

use roxmltree::Node;

use super::elements::{devices, guest_address, hard_limit, kibibytes, mac_of, pci_address, uuid_of};
use super::hostdev::{ALIAS, is_alias_of_vf};
use super::{Disk, FreeAddresses, Wanted, WantedNic, alias_of, dummy_alias_of};
use crate::base::ascending;
use crate::base::{DomainName, DomainUuid, MacAddress, NicMode, PciAddress, Position};
use crate::xml::XmlError;
use crate::xml::parse::parse;
use crate::xml::read::{child, child_attribute, children, content, decimal, root};

/// OpenNebula's element in a domain's metadata (since 5.8).
pub(crate) const ONE_NAMESPACE: &str = "http://opennebula.org/xmlns/libvirt/1.0";

/// A running domain, from libvirt's live XML.
#[derive(Debug, Clone)]
pub struct LiveDomain {
    /// Its name.
    pub name: DomainName,
    /// Its UUID.
    pub uuid: DomainUuid,
    /// Its PCI host devices, also those that the driver did not plug, and the driver's interfaces of type hostdev.
    pub hostdevs: Vec<LiveHostdev>,
    /// Its other interfaces, also those that the driver did not plug.
    pub interfaces: Vec<LiveInterface>,
    /// Its disks and drives.
    pub disks: Vec<Disk>,
    /// The UUID and the alias of each mediated device.
    pub mediated: Vec<(String, Option<String>)>,
    /// The free guest addresses.
    pub free: FreeAddresses,
    /// The driver's metadata; `Ok(None)` for a domain without them. An error here does not fail [`LiveDomain::parse`]:
    /// it must not hide which VFs the domain uses.
    pub wanted: Result<Option<Wanted>, XmlError>,
    /// The ids of its I/O threads, ascending.
    pub iothreads: Vec<u32>,
    /// The guest's memory in KiB; 0 if it can't be read.
    pub memory_kib: u64,
    /// The memory limit of its QEMU on the host, in KiB, if there is one.
    pub limit_kib: Option<u64>,
    /// Whether it has the feature ACPI. Without ACPI no guest answers a request for shutdown or unplug.
    pub has_acpi: bool,
    /// Whether "acpi" occurs anywhere in the XML. The stock driver's cancel checks this.
    pub mentions_acpi: bool,
    /// Whether it has an emulated TPM. libvirt deletes the state of one together with the domain.
    pub has_emulated_tpm: bool,
    /// The machine type, such as `pc-q35-9.0`.
    pub machine: Option<String>,
    /// The VM's directory on this host; OpenNebula before 5.8 does not name it.
    pub vm_dir: Option<PathBuf>,
    /// The aliases of all its devices.
    aliases: Vec<String>,
    /// The guest address and the alias of each device with a guest address.
    used: Vec<(PciAddress, Option<String>)>,
}

/// A PCI host device of a running domain, or an interface of type hostdev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveHostdev {
    /// libvirt's name of the device.
    pub alias: Option<String>,
    /// Its PCI address on the host.
    pub vf: PciAddress,
    /// Its PCI address in the guest.
    pub guest: Option<PciAddress>,
    /// The MAC that libvirt gives it; `None` for a host device.
    pub mac: Option<MacAddress>,
    /// The VLAN that libvirt puts it into, if it does.
    pub vlan: Option<u16>,
    /// Whether QEMU itself unplugs the device for a migration or a save.
    pub is_transient: bool,
}

/// A network interface of a running domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveInterface {
    /// libvirt's name of the device.
    pub alias: Option<String>,
    /// Its MAC.
    pub mac: MacAddress,
    /// The bridge it is on.
    pub bridge: Option<String>,
    /// The device on the host.
    pub target: Option<String>,
    /// Its PCI address in the guest.
    pub guest: Option<PciAddress>,
    /// The PCI address on the host of an interface of type hostdev.
    pub vf: Option<PciAddress>,
    /// Whether QEMU itself unplugs the device for a migration or a save.
    pub is_transient: bool,
    /// The whole element, to plug the same interface again.
    pub xml: String,
}

/// A PCI device of a VM on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PciDevice {
    /// A function of a PCI device.
    Function(PciAddress),
    /// A mediated device, by its UUID.
    Mediated(String),
}

impl fmt::Display for PciDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(address) => address.fmt(f),
            Self::Mediated(uuid) => uuid.fmt(f),
        }
    }
}

impl LiveDomain {
    /// Reads libvirt's live XML.
    ///
    /// # Errors
    /// The text is not a domain with a name and a UUID, or an address or a MAC in it can't be read. Unreadable metadata
    /// of the driver are not an error here: see [`LiveDomain::wanted`].
    pub fn parse(text: &str) -> Result<Self, XmlError> {
        let document = parse(text)?;
        let domain = root(&document, "domain")?;
        let missing = |what: &str| XmlError::at(domain, format_args!("expected <{what}> in <domain>, found none"));
        let name = child(domain, "name").ok_or_else(|| missing("name"))?;
        let all = |name: &'static str| devices(domain).filter(move |device| device.has_tag_name(name));
        Ok(Self {
            name: content(name).parse().map_err(|error| XmlError::at(name, error))?,
            uuid: uuid_of(domain)?.ok_or_else(|| missing("uuid"))?,
            hostdevs: devices(domain)
                .filter(|device| is_vf(*device) || is_pci(*device))
                .map(LiveHostdev::read)
                .collect::<Result<_, _>>()?,
            interfaces: all("interface")
                .filter(|interface| !is_vf(*interface))
                .map(LiveInterface::read)
                .collect::<Result<_, _>>()?,
            disks: all("disk").filter_map(Disk::read).collect(),
            mediated: all("hostdev").filter_map(mediated).collect(),
            free: FreeAddresses::of(domain),
            wanted: Wanted::of(domain),
            iothreads: iothreads(domain),
            memory_kib: child(domain, "memory").and_then(kibibytes).unwrap_or(0),
            limit_kib: hard_limit(domain),
            has_acpi: child(domain, "features").is_some_and(|features| child(features, "acpi").is_some()),
            mentions_acpi: text.contains("acpi"),
            has_emulated_tpm: all("tpm")
                .any(|tpm| child_attribute(tpm, "backend", "type").as_deref() == Some("emulator")),
            machine: child(domain, "os").and_then(|os| child_attribute(os, "type", "machine")),
            vm_dir: child(domain, "metadata").and_then(|metadata| {
                let node =
                    metadata.descendants().find(|node| node.has_tag_name((ONE_NAMESPACE, "system_datastore")))?;
                Some(content(node).trim().to_owned()).filter(|dir| !dir.is_empty()).map(PathBuf::from)
            }),
            used: devices(domain)
                .filter_map(|device| Some((guest_address(device).ok()??, child_attribute(device, "alias", "name"))))
                .collect(),
            aliases: devices(domain).filter_map(|device| child_attribute(device, "alias", "name")).collect(),
        })
    }

    /// The host device of a NIC: the one with the driver's alias for its position or, in an adopted domain, the one
    /// with the VF that the metadata name.
    pub fn device_of(&self, nic: &WantedNic) -> Option<&LiveHostdev> {
        let adopted = || {
            let vf = nic.adopted.vf?;
            self.hostdevs.iter().find(|device| device.vf == vf && !device.is_ours())
        };
        self.device_at(nic.position).or_else(adopted)
    }

    /// The dummy of a NIC: the interface with the driver's alias for its position or, in an adopted domain, the one
    /// with the MAC that the metadata name.
    pub fn dummy_of(&self, nic: &WantedNic) -> Option<&LiveInterface> {
        let adopted = || {
            let mac = nic.adopted.dummy?;
            self.interfaces.iter().find(|interface| interface.mac == mac && !interface.is_ours())
        };
        self.dummy_at(nic.position).or_else(adopted)
    }

    /// The host device with the driver's alias for this position.
    pub fn device_at(&self, position: Position) -> Option<&LiveHostdev> {
        let alias = alias_of(position);
        self.hostdevs.iter().find(|device| device.alias.as_deref() == Some(alias.as_str()))
    }

    /// The interface with the driver's dummy alias for this position.
    pub fn dummy_at(&self, position: Position) -> Option<&LiveInterface> {
        let alias = dummy_alias_of(position);
        self.interfaces.iter().find(|interface| interface.alias.as_deref() == Some(alias.as_str()))
    }

    /// Removes the devices with these aliases, which were unplugged after the XML was read.
    pub(crate) fn forget(&mut self, aliases: &[String]) {
        let stays = |alias: Option<&String>| alias.is_none_or(|alias| !aliases.contains(alias));
        self.hostdevs.retain(|device| stays(device.alias.as_ref()));
        self.interfaces.retain(|interface| stays(interface.alias.as_ref()));
        self.aliases.retain(|alias| stays(Some(alias)));
        self.used.retain(|(_, alias)| stays(alias.as_ref()));
    }

    /// The disk or drive with this target, such as `vda`.
    pub fn disk(&self, target: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.target == target)
    }

    /// Whether a device has this alias.
    pub fn has_alias(&self, alias: &str) -> bool {
        self.aliases.iter().any(|name| name == alias)
    }

    /// The alias of a PCI or mediated device that the domain has, unless the driver plugged it.
    pub fn pci_alias(&self, device: &PciDevice) -> Option<&str> {
        match device {
            PciDevice::Function(address) => {
                let hostdevs = self.hostdevs.iter().filter(|hostdev| hostdev.vf == *address && !hostdev.is_ours());
                let interfaces = self.interfaces.iter().filter(|interface| interface.vf == Some(*address));
                let aliases =
                    hostdevs.map(|hostdev| &hostdev.alias).chain(interfaces.map(|interface| &interface.alias));
                aliases.flatten().map(String::as_str).next()
            }
            PciDevice::Mediated(uuid) => {
                let with = self.mediated.iter().filter(|(mediated, _)| mediated.eq_ignore_ascii_case(uuid));
                with.filter_map(|(_, alias)| alias.as_deref()).next()
            }
        }
    }

    /// A PCI or mediated device of the host that prevents a save or a migration; `None` if there is none. libvirt
    /// migrates USB devices. Whether it migrates a SCSI device depends on its version, so libvirt decides.
    ///
    /// * `ours` - the host devices that will be unplugged first
    ///
    /// # Source
    /// libvirt's `qemuMigrationSrcIsAllowedHostdev` (`src/qemu/qemu_migration.c`), which save, migration and snapshots
    /// ask.
    pub(crate) fn immovable_device(&self, ours: &[LiveHostdev]) -> Option<String> {
        let hostdevs = self.hostdevs.iter().filter(|device| !device.is_transient && !ours.contains(device));
        let interfaces = self.interfaces.iter().filter(|interface| !interface.is_transient);
        let pci = hostdevs.map(|device| device.vf).chain(interfaces.filter_map(|interface| interface.vf));
        let mediated = self.mediated.iter().map(|(uuid, _)| format!("mdev {uuid}"));
        pci.map(|address| address.to_string()).chain(mediated).next()
    }

    /// Whether a device has this guest address, or another function in the same slot.
    pub fn uses_guest_address(&self, guest: PciAddress) -> bool {
        let slot = |address: PciAddress| (address.domain(), address.bus(), address.slot());
        self.used.iter().any(|(used, _)| slot(*used) == slot(guest))
    }

    /// The positions in the driver's aliases of its devices: of VFs and of dummies.
    pub fn positions(&self) -> Vec<Position> {
        let all = (0..16).filter_map(|number| Position::new(number).ok());
        all.filter(|position| self.has_alias(&alias_of(*position)) || self.has_alias(&dummy_alias_of(*position)))
            .collect()
    }

    /// The NICs that should have a VF and have none.
    pub fn missing(&self) -> impl Iterator<Item = &WantedNic> {
        let wanted = self.wanted.as_ref().ok().and_then(Option::as_ref);
        wanted.into_iter().flat_map(|wanted| &wanted.nics).filter(|nic| self.device_of(nic).is_none())
    }

    /// The host addresses of all PCI host devices and of all interfaces of type hostdev.
    pub fn vfs(&self) -> impl Iterator<Item = PciAddress> {
        let hostdevs = self.hostdevs.iter().map(|hostdev| hostdev.vf);
        hostdevs.chain(self.interfaces.iter().filter_map(|interface| interface.vf))
    }
}

/// The ids of a domain's I/O threads: the listed ones. If there are more threads than listed ids, the others have the
/// lowest free ids.
///
/// # Source
/// libvirt `src/conf/domain_conf.c`: virDomainDefIOThreadsParse, virDomainIOThreadIDDefArrayInit.
fn iothreads(domain: Node<'_, '_>) -> Vec<u32> {
    // More than any domain has. A wrong number must not cost memory.
    const MOST: usize = 4096;
    let number = child(domain, "iothreads").and_then(|node| decimal::<usize>(content(node).trim()).ok());
    let listed = child(domain, "iothreadids").into_iter().flat_map(|ids| children(ids, "iothread"));
    let listed: Vec<u32> = listed.filter_map(|thread| decimal(thread.attribute("id")?).ok()).collect();
    let missing = number.unwrap_or(0).min(MOST).saturating_sub(listed.len());
    let free: Vec<u32> = (1..).filter(|id| !listed.contains(id)).take(missing).collect();
    ascending(listed.into_iter().chain(free).collect(), Ord::cmp)
}

impl LiveHostdev {
    /// How its MAC or VLAN differs from what the NIC should have: "MAC 02:... instead of 02:...".
    pub(crate) fn differs_from_network_of(&self, nic: &WantedNic) -> Option<String> {
        let shown = |vlan: Option<u16>| vlan.map_or_else(|| "no VLAN".to_owned(), |vlan| format!("VLAN {vlan}"));
        match (nic.mode, self.mac) {
            (NicMode::Ethernet, Some(mac)) if mac != nic.mac => Some(format!("MAC {mac} instead of {}", nic.mac)),
            (NicMode::Ethernet, None) => Some(format!("no MAC instead of {}", nic.mac)),
            (NicMode::Ethernet, _) if self.vlan != nic.port_vlan() => {
                Some(format!("{} instead of {}", shown(self.vlan), shown(nic.port_vlan())))
            }
            _ => None,
        }
    }

    /// Whether the driver plugged it: whether it has an alias of the driver.
    pub fn is_ours(&self) -> bool {
        self.alias.as_deref().is_some_and(|alias| alias.starts_with(ALIAS))
    }

    fn read(hostdev: Node<'_, '_>) -> Result<Self, XmlError> {
        Ok(Self {
            alias: child_attribute(hostdev, "alias", "name"),
            vf: host_address(hostdev)?,
            guest: guest_address(hostdev)?,
            mac: child(hostdev, "mac").map(|_| mac_of(hostdev)).transpose()?,
            vlan: child(hostdev, "vlan").and_then(|vlan| decimal(&child_attribute(vlan, "tag", "id")?).ok()),
            is_transient: is_transient(hostdev),
        })
    }
}

impl LiveInterface {
    /// Whether the driver plugged it: whether it has an alias of the driver.
    pub fn is_ours(&self) -> bool {
        self.alias.as_deref().is_some_and(|alias| alias.starts_with(ALIAS))
    }

    fn read(interface: Node<'_, '_>) -> Result<Self, XmlError> {
        let is_hostdev = interface.attribute("type") == Some("hostdev");
        Ok(Self {
            alias: child_attribute(interface, "alias", "name"),
            mac: mac_of(interface)?,
            bridge: child_attribute(interface, "source", "bridge"),
            target: child_attribute(interface, "target", "dev"),
            guest: guest_address(interface)?,
            vf: is_hostdev.then(|| host_address(interface)).transpose()?,
            is_transient: is_transient(interface),
            xml: interface.document().input_text().get(interface.range()).unwrap_or_default().to_owned(),
        })
    }
}

/// Whether this is a PCI host device.
fn is_pci(device: Node<'_, '_>) -> bool {
    device.has_tag_name("hostdev") && device.attribute("type") == Some("pci")
}

/// Whether this is the driver's interface with a VF.
fn is_vf(device: Node<'_, '_>) -> bool {
    device.has_tag_name("interface")
        && device.attribute("type") == Some("hostdev")
        && child_attribute(device, "alias", "name").is_some_and(|alias| is_alias_of_vf(&alias))
}

/// Whether this device is the half of a failover pair that QEMU unplugs.
///
/// # Source
/// libvirt's formatdomain, `<teaming type='transient'>` (6.1 and later).
fn is_transient(device: Node<'_, '_>) -> bool {
    child(device, "teaming").is_some_and(|teaming| teaming.attribute("type") == Some("transient"))
}

/// The UUID and the alias of a mediated device.
fn mediated(hostdev: Node<'_, '_>) -> Option<(String, Option<String>)> {
    let source = child(hostdev, "source").filter(|_| hostdev.attribute("type") == Some("mdev"))?;
    Some((child_attribute(source, "address", "uuid")?, child_attribute(hostdev, "alias", "name")))
}

fn host_address(device: Node<'_, '_>) -> Result<PciAddress, XmlError> {
    let address = child(device, "source").and_then(|source| child(source, "address"));
    let problem = || format!("expected <source><address .../></source> in <{}>, found none", device.tag_name().name());
    pci_address(address.ok_or_else(|| XmlError::at(device, problem()))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::fixtures::LIVE;

    #[test]
    fn iothreads_have_libvirts_ids() {
        for (inside, expected) in [
            ("", &[][..]),
            ("<iothreads>2</iothreads>", &[1, 2]),
            ("<iothreads>3</iothreads><iothreadids><iothread id='2'/><iothread id='7'/></iothreadids>", &[1, 2, 7]),
            ("<iothreadids><iothread id='5'/></iothreadids>", &[5]),
            ("<iothreads>many</iothreads>", &[]),
        ] {
            let text = LIVE.replacen("<devices>", &format!("{inside}<devices>"), 1);
            assert_eq!(LiveDomain::parse(&text).unwrap().iothreads, expected, "{inside}");
        }
    }

    #[test]
    fn a_running_domain_is_read() {
        let domain = LiveDomain::parse(LIVE).unwrap();
        assert_eq!(domain.name.as_str(), "one-77");
        assert_eq!(domain.uuid.as_str(), "0d0f6f0e-9a54-4d38-8c83-6f0f3a1d2b77");
        let vfs: Vec<_> = domain.vfs().map(|vf| vf.to_string()).collect();
        assert_eq!(vfs, ["0000:81:02.3", "0000:07:00.1", "0000:07:00.2"]);
        assert_eq!(domain.hostdevs[1].alias.as_deref(), Some("ua-sriov-0"));
        assert_eq!(domain.hostdevs[1].guest.unwrap().to_string(), "0000:0f:00.0");
        let dummy = domain.interfaces.last().unwrap();
        assert_eq!(dummy.alias.as_deref(), Some("ua-sriov-dummy-0"));
        assert_eq!((dummy.bridge.as_deref(), dummy.target.as_deref()), (Some("dummybr"), Some("one-77-2")));
        assert_eq!(dummy.mac.to_string(), "aa:00:0a:02:00:4d");
        assert_eq!(dummy.guest.unwrap().to_string(), "0000:03:00.0");
        assert_eq!(domain.wanted.as_ref().unwrap().as_ref().unwrap().nics[0].vlan, Some(100));
        assert!(domain.has_acpi && domain.mentions_acpi);
        assert_eq!(domain.machine.as_deref(), Some("pc-q35-9.0"));
        assert_eq!(domain.vm_dir, Some(PathBuf::from("/var/lib/one//datastores/0/77")));
    }

    #[test]
    fn unreadable_metadata_do_not_hide_the_vfs() {
        let newer = LIVE.replacen("version='1.0'", "version='2.0'", 1);
        let domain = LiveDomain::parse(&newer).unwrap();
        assert!(domain.wanted.as_ref().unwrap_err().to_string().contains("newer kvm-sriov"));
        assert_eq!(domain.vfs().count(), 3);
    }

    #[test]
    fn a_domain_without_metadata_of_the_driver_is_read() {
        let text = "<domain><name>x</name><uuid>0d0f6f0e-9a54-4d38-8c83-6f0f3a1d2b77</uuid></domain>";
        let domain = LiveDomain::parse(text).unwrap();
        assert_eq!(domain.wanted, Ok(None));
        assert!(!domain.has_acpi && !domain.mentions_acpi && domain.vm_dir.is_none());
        for wrong in ["<domain/>", "<domain><name>x</name></domain>", "<network/>"] {
            assert!(LiveDomain::parse(wrong).is_err());
        }
    }

    #[test]
    fn the_directory_is_found_without_a_namespace_prefix() {
        let bare = LIVE.replace("one:", "").replacen("<vm xmlns:one=", "<vm xmlns=", 1);
        assert!(bare.contains("<vm xmlns="));
        assert!(LiveDomain::parse(&bare).unwrap().vm_dir.is_some());
    }

    #[test]
    fn an_interface_with_our_alias_is_a_vf_with_mac_and_vlan() {
        let interface = |alias: &str, vlan: &str| {
            format!(
                "<interface type='hostdev'><mac address='02:00:c0:a8:01:05'/><driver name='vfio'/><source>\
                 <address type='pci' domain='0x0000' bus='0x81' slot='0x00' function='0x1'/></source>{vlan}\
                 <alias name='{alias}'/><address type='pci' domain='0' bus='0' slot='0x19' function='0'/></interface>"
            )
        };
        let vlan = "<vlan><tag id='100'/></vlan>";
        let with = |interfaces: &[String]| {
            let text = LIVE.replacen("<devices>", &format!("<devices>{}", interfaces.concat()), 1);
            LiveDomain::parse(&text).unwrap()
        };
        let before = LiveDomain::parse(LIVE).unwrap();
        let live = with(&[interface("ua-sriov-9", vlan), interface("hostdev7", vlan), interface("ua-sriov-8", "")]);
        // The one without our alias is somebody else's interface.
        assert_eq!(live.interfaces.len(), before.interfaces.len() + 1);
        assert_eq!(live.vfs().count(), before.vfs().count() + 3);
        let at = |position: usize| live.device_at(Position::new(position).unwrap()).unwrap();
        let nic = |mac: &str, mode, vlan| WantedNic {
            mode,
            vlan,
            ..WantedNic::new(mac.parse().unwrap(), "eth0".parse().unwrap(), Position::new(9).unwrap())
        };
        let own = "02:00:c0:a8:01:05";
        for (position, nic, differs) in [
            (9, nic(own, NicMode::Ethernet, Some(100)), None),
            (9, nic(own, NicMode::Ethernet, Some(200)), Some("VLAN 100 instead of VLAN 200")),
            (9, nic(own, NicMode::Ethernet, None), Some("VLAN 100 instead of no VLAN")),
            (8, nic(own, NicMode::Ethernet, Some(0)), None),
            (8, nic(own, NicMode::Ethernet, Some(7)), Some("no VLAN instead of VLAN 7")),
            (
                9,
                nic("02:00:00:00:00:01", NicMode::Ethernet, Some(100)),
                Some("MAC 02:00:c0:a8:01:05 instead of 02:00:00:00:00:01"),
            ),
            (9, nic("02:00:00:00:00:01", NicMode::Hostdev, None), None),
        ] {
            assert_eq!(at(position).differs_from_network_of(&nic).as_deref(), differs, "{nic:?}");
        }
        let hostdev = before.hostdevs.first().unwrap();
        let differs = hostdev.differs_from_network_of(&nic(own, NicMode::Ethernet, None));
        assert_eq!(differs.as_deref(), Some("no MAC instead of 02:00:c0:a8:01:05"));
    }
}
