//! The actions of OpenNebula's driver, one file each.
//!
//! Each takes the lock of its VM, reads what is true, plans, applies, verifies, and undoes in reverse what it did when
//! it can't finish; what it can't undo it says. Each may be called twice.

mod cancel;
mod deploy;
mod gone;
mod reboot;
mod reset;
mod shutdown;

pub use cancel::cancel;
pub use deploy::deploy;
pub use reboot::reboot;
pub use reset::reset;
pub use shutdown::shutdown;
