//! A NIC as the arguments of `attach_nic` describe it.

use crate::base::MacAddress;
use crate::xml::{VmData, VmNic};

/// The arguments of `attach_nic`. Before OpenNebula 5.0 nothing else describes the NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicArgs {
    /// Its MAC.
    pub mac: MacAddress,
    /// The bridge of its network.
    pub bridge: Option<String>,
    /// The model of the device that the guest sees.
    pub model: Option<String>,
    /// The network driver, such as `ovswitch` (4.4 and later).
    pub vn_mad: Option<String>,
    /// The device on the host (5.0 and later).
    pub target: Option<String>,
}

impl NicArgs {
    /// The NIC with this MAC as the VM's description has it; without a description, as the arguments have it.
    pub fn described(&self, data: Option<&VmData>) -> VmNic {
        let by_arguments = || {
            let is_ovs = self.vn_mad.as_deref().is_some_and(|driver| driver.starts_with("ovswitch"));
            VmNic {
                bridge_type: is_ovs.then(|| "openvswitch".to_owned()),
                model: self.model.clone(),
                target: self.target.clone(),
                ..VmNic::new(self.mac, self.bridge.clone())
            }
        };
        data.and_then(|data| data.nic_of_action(self.mac)).cloned().unwrap_or_else(by_arguments)
    }
}
