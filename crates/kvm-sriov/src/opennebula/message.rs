//! What OpenNebula's XML says besides the description of a VM.

use std::path::Path;

use crate::actions::Ceph;
use crate::base::Action;
use crate::config;
use crate::error::{ActionError, Cause};
use crate::xml::{self, Resize, VmDisk};

/// The XML document `VMM_DRIVER_ACTION_DATA`, for one action.
#[derive(Debug, Clone)]
pub struct Message {
    action: Action,
    text: String,
    /// Where the text comes from, for errors.
    origin: &'static str,
}

impl Message {
    /// The document that an action got as an argument.
    pub fn new(action: Action, text: String) -> Self {
        Self { action, text, origin: "OpenNebula's message" }
    }

    pub(super) fn of_stdin(action: Action, text: String) -> Self {
        Self { action, text, origin: "the XML on standard input" }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn wrong(&self, source: xml::XmlError) -> ActionError {
        ActionError::untouched(self.action, Cause::Xml { what: self.origin.into(), source })
    }

    fn not_named(&self, what: String) -> ActionError {
        ActionError::untouched(self.action, Cause::NotNamed { what })
    }

    /// The disk to attach: the one with `ATTACH=YES`.
    ///
    /// # Errors
    /// Nothing was touched; the document can't be read or has no such disk.
    pub fn attached_disk(&self) -> Result<VmDisk, ActionError> {
        let disk = VmDisk::find(&self.text, None).map_err(|source| self.wrong(source))?;
        disk.ok_or_else(|| self.not_named("disk to attach".into()))
    }

    /// The target of a disk in the domain, such as `vdb`.
    ///
    /// * `disk` - OpenNebula's DISK_ID
    ///
    /// # Errors
    /// Nothing was touched; the document can't be read or names no target of this disk.
    pub fn target_of(&self, disk: u32) -> Result<String, ActionError> {
        let found = VmDisk::find(&self.text, Some(disk)).map_err(|source| self.wrong(source))?;
        let target = found.as_ref().and_then(VmDisk::target).map(str::to_owned);
        target.ok_or_else(|| self.not_named(format!("target of disk {disk}")))
    }

    /// The sizes that a VM should get.
    ///
    /// # Errors
    /// Nothing was touched; the document can't be read.
    pub fn resize(&self) -> Result<Resize, ActionError> {
        Resize::parse(&self.text).map_err(|source| self.wrong(source))
    }

    /// The Ceph pool of the system datastore. What the document does not say comes from `etc/datastore/ceph/ceph.conf`
    /// of OpenNebula's remotes.
    ///
    /// # Errors
    /// Nothing was touched; the document can't be read.
    pub fn ceph(&self, driver_dir: &Path) -> Result<Ceph, ActionError> {
        let names = ["CEPH_USER", "CEPH_CONF", "POOL_NAME", "RBD_FORMAT"];
        let said = xml::datastore_values(&self.text, names).map_err(|source| self.wrong(source))?;
        let defaults = config::variables(&driver_dir.join("../../etc/datastore/ceph/ceph.conf"));
        let [user, conf, pool, format] = said;
        let or_default = |said: Option<String>, name: &str| said.or_else(|| defaults.get(name).cloned());
        Ok(Ceph {
            program: "rbd".into(),
            pool: or_default(pool, "POOL_NAME").unwrap_or_else(|| "one".into()),
            user: or_default(user, "CEPH_USER"),
            conf: or_default(conf, "CEPH_CONF"),
            format: or_default(format, "RBD_FORMAT"),
        })
    }
}
