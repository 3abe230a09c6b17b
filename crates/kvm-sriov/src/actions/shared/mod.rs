//! What several actions need.

pub(crate) mod ceph;
pub(crate) mod device;
pub(crate) mod guest_command;
pub(crate) mod route;
pub(crate) mod undo;
