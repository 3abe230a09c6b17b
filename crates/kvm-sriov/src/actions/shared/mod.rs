//! What several actions need: devices, commands in a guest, a pool of Ceph, the hosts of a migration, failed undos.

pub(crate) mod ceph;
pub(crate) mod device;
pub(crate) mod guest_command;
pub(crate) mod route;
pub(crate) mod undo;
