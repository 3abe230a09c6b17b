//! Guest PCI addresses: which ones are free, and which one a VF gets. The addresses of a domain's VFs ascend with the
//! positions of their NICs, so that the guest finds the VFs in the order of the NICs.

use std::ops::RangeInclusive;

use roxmltree::Node;

use super::WantedNic;
use super::elements::{c_number, devices, guest_address};
use crate::base::ascending;
use crate::base::{PciAddress, Position};
use crate::xml::read::{attribute, child, child_attribute};

/// The free guest addresses of a running domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FreeAddresses {
    /// The addresses to try first for a VF, ascending.
    preferred: Vec<PciAddress>,
    /// Other addresses that accept a device, ascending.
    others: Vec<PciAddress>,
    /// Whether the driver knows the addresses of this type of machine.
    known: bool,
}

/// The position and the guest address of a new NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NicPlace {
    /// The position among the SR-IOV NICs of the VM.
    pub position: Position,
    /// The guest address of the VF; `None` lets libvirt choose.
    pub guest: Option<PciAddress>,
    /// Whether the address is between those of the NICs before and after this one.
    pub in_order: bool,
}

impl FreeAddresses {
    /// Reads the free addresses from a live domain.
    pub(super) fn of(domain: Node<'_, '_>) -> Self {
        match Machine::of(domain) {
            // Slots 0 to 2 belong to the chip set and the graphics adapter, whether the XML lists them or not.
            Machine::I440fx => {
                Self { preferred: slots(domain, 0x10..=0x1f), others: slots(domain, 3..=0xf), known: true }
            }
            Machine::Q35 => {
                let mut others = free_ports(domain);
                let preferred = others.split_off(others.len() / 2);
                Self { preferred, others, known: true }
            }
            Machine::Other => Self::default(),
        }
    }

    /// Chooses the place of a new NIC: the lowest position with a free address between those of its neighbours. If
    /// there is none, the next position after the highest, at any free address.
    ///
    /// * `nics` - the SR-IOV NICs of the VM. NICs whose VF is not plugged keep their addresses
    /// * `taken` - positions that no NIC has, but that a device of the domain still uses
    /// * returns `None` when all 16 positions are in use
    pub fn place(&self, nics: &[WantedNic], taken: &[Position]) -> Option<NicPlace> {
        let is_free =
            |position: &Position| nics.iter().all(|nic| nic.position != *position) && !taken.contains(position);
        let positions: Vec<_> = (0..16).filter_map(|number| Position::new(number).ok()).filter(is_free).collect();
        if self.known {
            let ordered = positions.iter().find_map(|position| {
                let guest = self.between(nics, *position)?;
                Some(NicPlace { position: *position, guest: Some(guest), in_order: true })
            });
            if ordered.is_some() {
                return ordered;
            }
        }
        let highest = nics.iter().map(|nic| nic.position).max();
        let next = positions.iter().find(|position| Some(**position) > highest).or(positions.first());
        let guest = || self.candidates(nics).next();
        next.map(|position| NicPlace { position: *position, guest: guest(), in_order: nics.is_empty() || !self.known })
    }

    /// Chooses another address for a NIC whose own address was lost to another device: one between those of its
    /// neighbours if possible, otherwise any. `None` lets libvirt choose.
    pub fn address_for(&self, nics: &[WantedNic], position: Position) -> Option<PciAddress> {
        self.between(nics, position).or_else(|| self.candidates(nics).next())
    }

    fn between(&self, nics: &[WantedNic], position: Position) -> Option<PciAddress> {
        // A NIC whose address is unknown may be anywhere.
        if nics.iter().any(|nic| nic.guest.is_none()) {
            return None;
        }
        let below = nics.iter().filter(|nic| nic.position < position).filter_map(|nic| nic.guest).max();
        let above = nics.iter().filter(|nic| nic.position > position).min_by_key(|nic| nic.position);
        let is_above = |address: &PciAddress| below.is_none_or(|low| low < *address);
        let Some(above) = above else { return self.candidates(nics).find(is_above) };
        // As close to the next NIC as the positions between them allow: the lower addresses are left to other devices.
        let is_between = |address: &PciAddress| is_above(address) && Some(*address) < above.guest;
        let between = ascending(self.candidates(nics).filter(is_between).collect(), PciAddress::cmp);
        let room = usize::from(above.position.number().saturating_sub(position.number()));
        between.get(between.len().saturating_sub(room)).copied()
    }

    /// The free addresses, preferred ones first, without those of NICs whose VF is not plugged.
    fn candidates(&self, nics: &[WantedNic]) -> impl Iterator<Item = PciAddress> {
        let kept = |address: &PciAddress| nics.iter().any(|nic| nic.guest == Some(*address));
        self.preferred.iter().chain(&self.others).copied().filter(move |address| !kept(address))
    }
}

/// Chooses guest addresses for the NICs of a domain before its start, in the order of their positions. A NIC that asks
/// for an address itself keeps it. If one NIC can't be put in order, the others get no address.
pub(in crate::xml) fn choose_guest_addresses<'a>(
    domain: Node<'_, '_>,
    nics: impl Iterator<Item = &'a mut Option<PciAddress>>,
) {
    let mut nics: Vec<_> = nics.collect();
    let missing = nics.iter().filter(|address| address.is_none()).count();
    let free = match Machine::of(domain) {
        Machine::I440fx => free_slots(domain),
        Machine::Q35 => spare_ports(domain, missing),
        Machine::Other => Vec::new(),
    };
    let mut free = free.into_iter().peekable();
    let mut last = None;
    let mut chosen = Vec::new();
    for address in &nics {
        let next = address.or_else(|| free.find(|candidate| last.is_none_or(|last| last < *candidate)));
        if next.is_none() || next <= last {
            // libvirt then chooses for all of them, from the lowest address up. A partial order would be worse than
            // none.
            return;
        }
        last = next;
        chosen.push(next);
    }
    for (address, chosen) in nics.iter_mut().zip(chosen) {
        **address = chosen;
    }
}

enum Machine {
    I440fx,
    Q35,
    Other,
}

impl Machine {
    fn of(domain: Node<'_, '_>) -> Self {
        let kind = child(domain, "os").and_then(|os| child(os, "type"));
        let arch = kind.and_then(|kind| kind.attribute("arch")).unwrap_or("x86_64");
        match kind.and_then(|kind| kind.attribute("machine")) {
            Some(machine) if machine.contains("q35") => Self::Q35,
            Some(machine) if machine == "pc" || machine.starts_with("pc-") || machine.contains("i440fx") => {
                Self::I440fx
            }
            // libvirt's default machine type for PCs.
            None if matches!(arch, "x86_64" | "i686") => Self::I440fx,
            Some(_) | None => Self::Other,
        }
    }
}

/// The free slots in the upper half of the only bus. libvirt fills the bus from below, also with devices that are
/// plugged later. So the upper half stays free for VFs that come back to their addresses.
fn free_slots(domain: Node<'_, '_>) -> Vec<PciAddress> {
    slots(domain, 0x10..=0x1f)
}

/// The free slots in this range of the root bus.
fn slots(domain: Node<'_, '_>, range: RangeInclusive<u8>) -> Vec<PciAddress> {
    let used: Vec<_> = used_addresses(domain).filter(|used| (used.domain(), used.bus()) == (0, 0)).collect();
    let free = range.filter(|slot| used.iter().all(|used| used.slot() != *slot));
    free.filter_map(|slot| PciAddress::new(0, 0, slot, 0).ok()).collect()
}

/// Free root ports for `wanted` VFs, if enough ports are left below them: libvirt gives the other devices free ports
/// from the lowest up. Of the surplus ports, half are left below for devices that are plugged later, and half above for
/// VFs that are plugged later.
fn spare_ports(domain: Node<'_, '_>, wanted: usize) -> Vec<PciAddress> {
    let ports = free_ports(domain);
    let spare = ports.len().checked_sub(wanted).and_then(|rest| rest.checked_sub(other_devices(domain)));
    match spare {
        Some(spare) => ports.into_iter().skip(other_devices(domain).saturating_add(spare.div_ceil(2))).collect(),
        None => Vec::new(),
    }
}

/// The free addresses behind root ports that accept devices of a running guest, ascending.
fn free_ports(domain: Node<'_, '_>) -> Vec<PciAddress> {
    let used: Vec<_> = used_addresses(domain).map(|used| used.bus()).collect();
    let mut ports = root_ports(domain);
    ports.retain(|port| !used.contains(port));
    ascending(ports, u8::cmp).into_iter().filter_map(|bus| PciAddress::new(0, bus, 0, 0).ok()).collect()
}

/// The buses behind the listed root ports: the index of a port is the number of its bus. A port without an index gets
/// the lowest free one, as in libvirt.
fn root_ports(domain: Node<'_, '_>) -> Vec<u8> {
    let controllers = || {
        devices(domain)
            .filter(|device| device.has_tag_name("controller") && device.attribute("type") == Some("pci"))
            .map(|controller| (controller, attribute(controller, "index", c_number).ok().flatten()))
    };
    // Bus 0 is the root, whether the XML lists it or not.
    let mut taken: Vec<u32> = controllers().filter_map(|(_, index)| index).chain([0]).collect();
    let mut ports = Vec::new();
    for (controller, index) in controllers() {
        let model = controller.attribute("model");
        if index.is_none() && model == Some("pcie-root") {
            continue;
        }
        let index = index.or_else(|| (1..=0xff).find(|free| !taken.contains(free)));
        taken.extend(index);
        let is_hot_plug = child_attribute(controller, "target", "hotplug").as_deref() != Some("off");
        if model == Some("pcie-root-port") && is_hot_plug {
            ports.extend(index.and_then(|index| u8::try_from(index).ok()));
        }
    }
    ports
}

/// The guest addresses that the devices name. Unreadable ones are ignored: libvirt refuses them.
fn used_addresses<'a, 'i>(domain: Node<'a, 'i>) -> impl Iterator<Item = PciAddress> {
    devices(domain).filter_map(|device| guest_address(device).ok().flatten())
}

/// How many devices may need a root port and name no address. The count is rather too high than too low: the start
/// fails if a device finds no port. An SR-IOV NIC is counted once, for its dummy.
fn other_devices(domain: Node<'_, '_>) -> usize {
    let all = |name: &'static str| devices(domain).filter(move |device| device.has_tag_name(name));
    let is_free = |device: &Node<'_, '_>| matches!(guest_address(device.to_owned()), Ok(None));
    let needs_port = |device: &Node<'_, '_>| match device.tag_name().name() {
        // Without a bus, libvirt derives the bus from the name of the target.
        "disk" => child_attribute(*device, "target", "bus").is_none_or(|bus| bus == "virtio"),
        "controller" => !matches!(
            (device.attribute("type"), device.attribute("model")),
            (Some("pci"), Some("pcie-root" | "pcie-root-port" | "pcie-expander-bus"))
                | (Some("ccid" | "fdc" | "ide"), _)
        ),
        "input" => device.attribute("bus") == Some("virtio"),
        "memballoon" => device.attribute("model") != Some("none"),
        "memory" => device.attribute("model").is_some_and(|model| model.starts_with("virtio")),
        "interface" => true,
        "hostdev" => device.attribute("type") != Some("usb"),
        "filesystem" | "rng" | "vsock" | "sound" | "video" | "shmem" | "watchdog" | "crypto" | "panic" => true,
        _ => false,
    };
    // libvirt itself adds these three devices.
    let is_controller = |kind: &'static str| all("controller").any(|node| node.attribute("type") == Some(kind));
    let added = [
        all("memballoon").next().is_none(),
        !is_controller("usb"),
        !is_controller("virtio-serial") && (all("channel").next().is_some() || all("console").next().is_some()),
    ];
    let asking = |device: &Node<'_, '_>| {
        // An SR-IOV NIC with an address still needs a port for its dummy, which has none.
        device.has_tag_name("interface") || is_free(device)
    };
    let listed = devices(domain).filter(|device| needs_port(device) && asking(device)).count();
    listed.saturating_add(added.into_iter().filter(|added| *added).count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::LiveDomain;
    use crate::xml::fixtures::{LIVE, RICH, domain, guests, nic};

    #[test]
    fn sixteen_nics_fit_a_pc() {
        let devices = domain(&format!("<devices>{}</devices>", nic("sriov_a", "").repeat(16)));
        let addresses = guests(&devices);
        assert_eq!((addresses[0].as_str(), addresses[15].as_str()), ("0000:00:10.0", "0000:00:1f.0"));
        assert!(addresses.is_sorted());
        let taken = devices.replace("<devices>", "<devices><rng><address type='pci' slot='0x12'/></rng>");
        assert!(guests(&taken).iter().all(|address| address == "-"));
        let fewer = taken.replacen(&nic("sriov_a", ""), "", 13);
        assert_eq!(guests(&fewer), ["0000:00:10.0", "0000:00:11.0", "0000:00:13.0"]);
    }

    #[test]
    fn libvirt_chooses_addresses_on_other_machines() {
        for (os, expected) in [
            ("<os><type arch='aarch64' machine='virt'/></os>", "-"),
            ("<os><type arch='aarch64'/></os>", "-"),
            ("<os><type arch='s390x' machine='s390-ccw-virtio'/></os>", "-"),
            ("<os><type machine='isapc'/></os>", "-"),
            ("<os><type machine='pc-q35-9.0'/></os>", "-"),
            ("<os><type machine='pc-i440fx-9.0'/></os>", "0000:00:10.0"),
            ("", "0000:00:10.0"),
        ] {
            let text = domain(&format!("{os}<devices>{}</devices>", nic("sriov_a", "")));
            assert_eq!(guests(&text), [expected], "{os}");
        }
    }

    fn q35(ports: usize, devices: &str) -> String {
        let ports = "<controller type='pci' model='pcie-root-port'/>".repeat(ports);
        domain(&format!("<os><type machine='q35'/></os><devices>{devices}</devices><devices>{ports}</devices>"))
    }

    #[test]
    fn vfs_get_high_ports_of_q35_if_enough_ports_are_left() {
        // Two of the 16 ports are left above for VFs that are plugged later.
        assert_eq!(guests(RICH), ["0000:0d:00.0", "0000:0e:00.0"]);
        let two = nic("sriov_a", "").repeat(2);
        // The two dummies, the balloon and the USB controller take four ports.
        assert_eq!(guests(&q35(6, &two)), ["0000:05:00.0", "0000:06:00.0"]);
        assert_eq!(guests(&q35(5, &two)), ["-", "-"]);
        // The first surplus port is left below, the second one above.
        assert_eq!(guests(&q35(7, &two)), ["0000:06:00.0", "0000:07:00.0"]);
        assert_eq!(guests(&q35(8, &two)), ["0000:06:00.0", "0000:07:00.0"]);
        let disk = "<disk type='file' device='disk'><target dev='vda' bus='virtio'/></disk>";
        assert_eq!(guests(&q35(6, &format!("{two}{disk}"))), ["-", "-"]);
        let taken = format!("{two}<rng><address type='pci' bus='7'/></rng>");
        assert_eq!(guests(&q35(7, &taken)), ["0000:05:00.0", "0000:06:00.0"]);
        // A port without an index gets the lowest free one.
        let with_index = format!("{two}<controller type='pci' index='2' model='pcie-to-pci-bridge'/>");
        assert_eq!(guests(&q35(7, &with_index)), ["0000:07:00.0", "0000:08:00.0"]);
    }

    #[test]
    fn a_port_without_hot_plug_is_not_used() {
        let port = "<controller type='pci' index='9' model='pcie-root-port'><target hotplug='off'/></controller>";
        let two = nic("sriov_a", "").repeat(2);
        assert_eq!(guests(&q35(6, &format!("{two}{port}"))), ["0000:05:00.0", "0000:06:00.0"]);
    }

    fn position(number: usize) -> Position {
        Position::new(number).unwrap()
    }

    /// NICs by position and guest address.
    fn nics(places: &[(usize, &str)]) -> Vec<WantedNic> {
        let mac = "02:00:00:00:00:01".parse().unwrap();
        let nic = |(number, guest): &(usize, &str)| WantedNic {
            guest: guest.parse().ok(),
            ..WantedNic::new(mac, "a".parse().unwrap(), position(*number))
        };
        places.iter().map(nic).collect()
    }

    /// A running domain whose devices have these addresses.
    fn live(machine: &str, devices: &str) -> FreeAddresses {
        let text = format!(
            "<domain><name>one-1</name><uuid>0d0f6f0e-9a54-4d38-8c83-6f0f3a1d2b77</uuid>\
             <os><type arch='x86_64' machine='{machine}'>hvm</type></os><devices>{devices}</devices></domain>"
        );
        LiveDomain::parse(&text).unwrap().free
    }

    fn pc(slots: impl IntoIterator<Item = u8>) -> FreeAddresses {
        let device =
            |slot: u8| format!("<rng><address type='pci' domain='0' bus='0' slot='{slot:#x}' function='0'/></rng>");
        live("pc-i440fx-9.0", &slots.into_iter().map(device).collect::<String>())
    }

    /// Root ports 1 to `ports`, with devices on these buses.
    fn running_q35(ports: u8, buses: &[u8]) -> FreeAddresses {
        let port = |bus: u8| {
            format!(
                "<controller type='pci' index='{bus}' model='pcie-root-port'><alias name='pci.{bus}'/>\
                 <address type='pci' bus='0' slot='0x2' function='{:#x}'/></controller>",
                bus % 8
            )
        };
        let device = |bus: &u8| format!("<rng><address type='pci' bus='{bus:#x}' slot='0' function='0'/></rng>");
        let ports: String = (1..=ports).map(port).collect();
        live("pc-q35-9.0", &(ports + &buses.iter().map(device).collect::<String>()))
    }

    fn place(free: &FreeAddresses, nics: &[WantedNic], taken: &[usize]) -> String {
        let taken: Vec<_> = taken.iter().map(|number| position(*number)).collect();
        let Some(place) = free.place(nics, &taken) else { return "none".into() };
        let guest = place.guest.map_or("-".into(), |guest| guest.to_string());
        format!("{} {guest}{}", place.position, if place.in_order { "" } else { " out of order" })
    }

    #[test]
    fn the_first_vf_of_a_running_pc_gets_the_address_that_deploy_would_choose() {
        assert_eq!(place(&pc([3, 4]), &[], &[]), "0 0000:00:10.0");
        assert_eq!(place(&pc([3, 4, 0x10, 0x11]), &[], &[]), "0 0000:00:12.0");
        // A device that a killed action left keeps its position.
        assert_eq!(place(&pc([3, 0x10]), &[], &[0]), "1 0000:00:11.0");
    }

    #[test]
    fn the_next_vf_is_above_the_last_one() {
        let two = nics(&[(0, "0000:00:10.0"), (1, "0000:00:11.0")]);
        assert_eq!(place(&pc([0x10, 0x11]), &two, &[]), "2 0000:00:12.0");
        assert_eq!(place(&pc([0x10, 0x11, 0x12]), &two, &[]), "2 0000:00:13.0");
    }

    #[test]
    fn a_removed_nic_in_the_middle_gets_its_place_back() {
        let (low, high) = ((0, "0000:00:10.0"), (2, "0000:00:12.0"));
        let rest = nics(&[low, high]);
        assert_eq!(place(&pc([0x10, 0x12]), &rest, &[]), "1 0000:00:11.0");
        // Its address is taken: the position after the highest, at the next free address.
        assert_eq!(place(&pc([0x10, 0x11, 0x12]), &rest, &[]), "3 0000:00:13.0");
        assert_eq!(
            place(&running_q35(9, &[5, 7]), &nics(&[(0, "0000:05:00.0"), (2, "0000:07:00.0")]), &[]),
            "1 0000:06:00.0"
        );
        // The same for the lowest position.
        assert_eq!(place(&pc([0x11]), &nics(&[(1, "0000:00:11.0")]), &[]), "0 0000:00:10.0");
        assert_eq!(place(&pc([0x10]), &nics(&[(1, "0000:00:10.0")]), &[]), "0 0000:00:0f.0");
        // Of two missing NICs, the first leaves an address for the second.
        assert_eq!(place(&pc([0x12]), &nics(&[(2, "0000:00:12.0")]), &[]), "0 0000:00:10.0");
        assert_eq!(place(&pc([0x10, 0x13]), &nics(&[(0, "0000:00:10.0"), (3, "0000:00:13.0")]), &[]), "1 0000:00:11.0");
    }

    #[test]
    fn the_address_of_an_unplugged_vf_is_kept() {
        let two = nics(&[(0, "0000:00:10.0"), (1, "0000:00:11.0")]);
        assert_eq!(place(&pc([0x10]), &two, &[]), "2 0000:00:12.0");
    }

    #[test]
    fn any_address_is_used_and_reported_if_no_order_is_possible() {
        let last = nics(&[(0, "0000:00:1f.0")]);
        assert_eq!(place(&pc([0x1f]), &last, &[]), "1 0000:00:10.0 out of order");
        assert_eq!(place(&pc(3..=0x1f), &last, &[]), "1 - out of order");
        let unknown = nics(&[(0, "-")]);
        assert_eq!(place(&pc([0x10]), &unknown, &[]), "1 0000:00:11.0 out of order");
        let highest = nics(&[(15, "0000:00:10.0"), (3, "0000:00:11.0")]);
        assert_eq!(place(&pc([0x10, 0x11]), &highest, &[]), "0 0000:00:0d.0");
    }

    #[test]
    fn a_vm_has_at_most_sixteen_positions() {
        let slots: Vec<String> = (0..16).map(|number| format!("0000:00:{:02x}.0", 0x10 + number)).collect();
        let places: Vec<(usize, &str)> = slots.iter().map(String::as_str).enumerate().collect();
        assert_eq!(place(&pc(0x10..=0x1f), &nics(&places), &[]), "none");
        assert_eq!(place(&pc(0x10..=0x1e), &nics(&places[..15]), &[]), "15 0000:00:1f.0");
        assert_eq!(place(&pc(0x10..=0x1f), &nics(&places[..15]), &[]), "15 0000:00:03.0 out of order");
    }

    #[test]
    fn q35_uses_the_upper_half_of_its_free_ports() {
        assert_eq!(place(&running_q35(8, &[1, 2]), &[], &[]), "0 0000:06:00.0");
        assert_eq!(place(&running_q35(8, &[1, 2, 6]), &nics(&[(0, "0000:06:00.0")]), &[]), "1 0000:07:00.0");
        assert_eq!(place(&running_q35(3, &[1, 2, 3]), &[], &[]), "0 -");
        // LIVE lists no root ports.
        assert_eq!(LiveDomain::parse(LIVE).unwrap().free.place(&[], &[]).unwrap().guest, None);
    }

    #[test]
    fn libvirt_chooses_addresses_on_other_running_machines() {
        let free = live("virt-9.0", "");
        assert_eq!(place(&free, &[], &[]), "0 -");
        assert_eq!(place(&free, &nics(&[(0, "0000:05:00.0")]), &[]), "1 -");
    }
}
