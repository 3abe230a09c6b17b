//! A VM with VFs in the hands of one action: locked, read, and changed in steps that can be undone.
//!
//! * `open` - `Found`: an action finds its VM and takes the VM's lock
//! * `state` - `Vm`: what the VM has, and what it should have
//! * `operation` - VFs leave the domain and come back; the domain records that
//! * `domain` - a domain as libvirt shows it: read, waited for, resumed; `job` - a call that lasts
//! * `release` - a guest releases devices; `unplug` - the engine that asks it
//! * `plug` - free VFs are claimed and plugged in, in order
//! * `refusal` - whether a VF, or its domain or host, is the reason why libvirt refused to plug it
//! * `dummy` - the interfaces that carry the IP addresses of VFs into the guest
//! * `mode` - what a NIC may ask for, by the mode of its root
//! * `take_out` - devices that leave a VM for good
//! * `gone` - a domain that ends, and its VFs, which are free then
//! * `adopt` - a domain of OpenNebula's stock driver, or of the driver of 2013, becomes one of this driver's
//! * `checkpoint` - save images; `dir` - the VM's directory; `storage` - the files of a VM that moves
//! * `block_job` - copies of disks; `clock` - the clock of a guest that was stopped

mod adopt;
pub(crate) mod block_job;
pub(crate) mod checkpoint;
pub(crate) mod clock;
pub(crate) mod dir;
mod domain;
mod dummy;
pub(crate) mod gone;
mod job;
mod mode;
mod open;
mod operation;
mod plug;
mod refusal;
mod release;
mod state;
pub(crate) mod storage;
mod take_out;
mod unplug;

pub use clock::sync_clock;
pub use plug::PluggedVf;
pub use unplug::unplug;

pub(crate) use domain::{abort_save, check_answers, read, read_text, resume, wait_for_job};
pub(crate) use dummy::{Dummy, nic_defaults};
pub(crate) use job::watched;
pub(crate) use mode::{check_mode, check_vlan_is_known};
pub(crate) use open::Found;
pub(crate) use operation::pending_text;
pub(crate) use refusal::{PlugFailure, VfCall, with_refusals};
pub(crate) use state::{Plugged, Vm, wanted};
pub(crate) use take_out::{NicDevice, NicDeviceKind, aliases};
pub(crate) use unplug::{Ends, for_action};
