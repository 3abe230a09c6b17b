//! The dummies of a VM: interfaces that carry the IP addresses of its SR-IOV NICs into the guest.

use super::Vm;
use crate::base::{MacAddress, Position};
use crate::error::Cause;
use crate::host::Host;
use crate::xml::{LiveInterface, NicDefaults, VmNic, WantedNic, dummy_interface_of};

/// The defaults for a NIC whose description does not say.
pub(crate) fn nic_defaults(host: &Host, vcpus: Option<u32>) -> NicDefaults<'_> {
    NicDefaults { model: &host.settings().nic_model, filter: host.settings().nic_filter.as_deref(), vcpus }
}

/// The dummy of a NIC before it is plugged.
pub(crate) struct Dummy {
    mac: MacAddress,
    /// The XML of the interface.
    pub(crate) xml: String,
}

impl Dummy {
    /// The dummy of a NIC as OpenNebula describes it.
    ///
    /// # Errors
    /// DUMMY_BRIDGE or DUMMY_MAC_PREFIX is not set, the bridge does not exist, or the prefix is that of the NIC's own
    /// MAC.
    pub(crate) fn of(host: &Host, nic: &VmNic, position: Position, vcpus: Option<u32>) -> Result<Self, Cause> {
        let mac = host.dummy_mac(nic.mac, position)?;
        let xml = dummy_interface_of(nic, nic_defaults(host, vcpus), position, mac, host.dummy_bridge()?);
        Ok(Self { mac, xml })
    }
}

impl Vm<'_> {
    /// The dummy of a NIC; `None` when the domain has none.
    pub(crate) fn dummy_of(&self, nic: &WantedNic) -> Option<&LiveInterface> {
        self.live.dummy_of(nic)
    }

    /// Whether two descriptions mean one NIC: the dummy of `known` has the interface name on the host that OpenNebula
    /// gives `nic`.
    pub(crate) fn has_device_of(&self, known: &WantedNic, nic: &VmNic) -> bool {
        let target = self.dummy_of(known).and_then(|dummy| dummy.target.as_deref());
        known.mac == nic.mac && target.is_some() && target == nic.target.as_deref()
    }

    /// The NICs without a dummy.
    pub(crate) fn missing_dummies(&self) -> Vec<WantedNic> {
        let lacks = |nic: &&WantedNic| nic.has_dummy() && self.dummy_of(nic).is_none();
        self.wanted.nics.iter().filter(lacks).cloned().collect()
    }

    /// Plugs every missing dummy.
    ///
    /// # Errors
    /// Not every NIC has its dummy. The NICs of lower positions have theirs.
    pub(crate) fn plug_dummies(&mut self) -> Result<(), Cause> {
        for nic in self.missing_dummies() {
            self.plug_dummy_back(&nic)?;
        }
        Ok(())
    }

    /// Plugs the dummy of a NIC as it was when the guest was asked to release it. When that is unknown, the dummy lacks
    /// what only OpenNebula's description says: interface name on the host, filter and bandwidth.
    ///
    /// # Errors
    /// As [`Vm::plug_dummy`].
    pub(crate) fn plug_dummy_back(&mut self, nic: &WantedNic) -> Result<(), Cause> {
        self.host.dummy_bridge()?;
        let dummy = match (&nic.dummy, nic.adopted.dummy) {
            // The dummy of an adopted domain keeps its MAC.
            (Some(xml), Some(mac)) => Dummy { mac, xml: xml.clone() },
            (Some(xml), None) => Dummy { mac: self.host.dummy_mac(nic.mac, nic.position)?, xml: xml.clone() },
            (None, _) => {
                log::warn!(
                    "the dummy of NIC {} is plugged in without its interface name on the host, filter and bandwidth",
                    nic.mac
                );
                Dummy::of(self.host, &VmNic::new(nic.mac, None), nic.position, None)?
            }
        };
        self.plug_dummy(nic, &dummy)
    }

    /// Plugs the dummy of a NIC.
    ///
    /// # Errors
    /// The dummy is missing. When libvirt did not answer, it is unknown whether the dummy is missing.
    pub(crate) fn plug_dummy(&mut self, nic: &WantedNic, dummy: &Dummy) -> Result<(), Cause> {
        let Dummy { mac, xml } = dummy;
        let attached = self.host.hypervisor().attach(&self.domain, xml, self.host.call_limit(0));
        // Only the live XML tells whether the dummy is plugged.
        self.live = self.host.patiently(|| super::read(self.host, &self.domain))?;
        if self.dummy_of(nic).is_some_and(|found| found.mac == *mac) {
            return Ok(());
        }
        let name = self.domain.name.clone();
        attached.map_err(|source| Cause::Call {
            what: format!("plug dummy interface {mac} of NIC {} into {name}", nic.mac),
            source,
        })?;
        Err(Cause::NotAsAsked {
            name,
            what: format!("the dummy interface {mac} is missing although it was plugged in"),
        })
    }
}
