//! The arguments of one call of a driver program.

use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{Message, NicArgs};
use crate::base::base64;
use crate::base::{Action, DomainName};
use crate::config::OneVersion;
use crate::error::{ActionError, Cause};
use crate::host::Host;
use crate::libvirt::DomainRef;
use crate::xml::{VmData, VmNic};

/// One call of a driver program: its arguments, and where the program is.
#[derive(Debug, Clone)]
pub struct Call {
    action: Action,
    args: Vec<String>,
    driver_dir: PathBuf,
    caller: OneVersion,
}

impl Call {
    pub(super) fn new(action: Action, args: Vec<OsString>, driver_dir: PathBuf) -> Result<Self, ActionError> {
        let args = args.into_iter().map(OsString::into_string).collect::<Result<_, _>>().map_err(|arg| {
            let problem = format!("expected UTF-8, found \"{}\"", arg.to_string_lossy().escape_debug());
            ActionError::untouched(action, Cause::Argument { name: "argument", problem })
        })?;
        let caller = OneVersion::detect(&driver_dir);
        Ok(Self { action, args, driver_dir, caller })
    }

    /// The action that is called.
    pub fn action(&self) -> Action {
        self.action
    }

    /// The directory of the driver's programs.
    pub fn driver_dir(&self) -> &Path {
        &self.driver_dir
    }

    /// The version of OpenNebula that calls.
    pub fn caller(&self) -> &OneVersion {
        &self.caller
    }

    pub(super) fn args(&self) -> &[String] {
        &self.args
    }

    /// A failure before anything was touched.
    pub(super) fn untouched(&self, cause: Cause) -> ActionError {
        ActionError::untouched(self.action, cause)
    }

    fn wrong(&self, name: &'static str, problem: String) -> ActionError {
        self.untouched(Cause::Argument { name, problem })
    }

    /// The argument with this number (from 0), parsed.
    ///
    /// * `name` - what a message calls the argument
    ///
    /// # Errors
    /// Nothing was touched; the argument is missing or can't be parsed.
    pub fn arg<T>(&self, number: usize, name: &'static str) -> Result<T, ActionError>
    where
        T: FromStr,
        T::Err: Display,
    {
        let text = self.args.get(number).map_or("", String::as_str);
        if text.is_empty() {
            return Err(self.wrong(name, "expected a value, found none".into()));
        }
        text.parse().map_err(|error: T::Err| self.wrong(name, error.to_string()))
    }

    /// The argument with this number, parsed; `None` when it is empty or `-`, or when this version of OpenNebula has no
    /// such argument.
    ///
    /// # Errors
    /// Nothing was touched; the argument can't be parsed.
    pub fn optional_arg<T>(&self, number: usize, name: &'static str) -> Result<Option<T>, ActionError>
    where
        T: FromStr,
        T::Err: Display,
    {
        let given =
            self.caller.action_arguments(&self.args).get(number).filter(|text| !matches!(text.as_str(), "" | "-"));
        given.map(|_| self.arg(number, name)).transpose()
    }

    /// The argument with this number as it is; `None` when it is not given. For an action to which OpenNebula appends
    /// nothing.
    pub fn text(&self, number: usize) -> Option<&str> {
        self.args.get(number).map(String::as_str)
    }

    /// The argument with this number, decoded from base64.
    ///
    /// # Errors
    /// Nothing was touched; the argument is missing, or is not base64 of UTF-8.
    pub fn encoded_arg(&self, number: usize, name: &'static str) -> Result<String, ActionError> {
        let encoded: String = self.arg(number, name)?;
        let text = base64(&encoded).and_then(|bytes| String::from_utf8(bytes).ok());
        text.ok_or_else(|| self.wrong(name, "expected base64 of UTF-8, found something else".into()))
    }

    /// The XML document in the argument with this number, in base64.
    ///
    /// # Errors
    /// As [`Call::encoded_arg`].
    pub fn message(&self, number: usize) -> Result<Message, ActionError> {
        Ok(Message::new(self.action, self.encoded_arg(number, "message")?))
    }

    /// The name of the VM whose number in OpenNebula is the argument with this number.
    ///
    /// # Errors
    /// Nothing was touched; the argument is missing, or is no number.
    pub fn vm_name(&self, number: usize) -> Result<DomainName, ActionError> {
        Ok(DomainName::of_vm(self.arg(number, "VM id")?))
    }

    /// The name of the VM whose number OpenNebula appends as the last argument but one; `None` when a person left it
    /// out.
    pub fn vm(&self) -> Option<DomainName> {
        self.args.iter().rev().nth(1).and_then(|id| id.parse().ok()).map(DomainName::of_vm)
    }

    /// The NIC of `attach_nic`: as the VM's description has it or, without one, as the arguments have it.
    ///
    /// # Errors
    /// Nothing was touched; the MAC is missing or can't be parsed.
    pub fn nic(&self, data: Option<&VmData>) -> Result<VmNic, ActionError> {
        let args = NicArgs {
            mac: self.arg(1, "MAC")?,
            bridge: self.optional_arg(2, "bridge")?,
            model: self.optional_arg(3, "model")?,
            vn_mad: self.optional_arg(4, "network driver")?,
            target: self.optional_arg(5, "target")?,
        };
        Ok(args.described(data))
    }

    /// The host that this program runs on, for an action that starts or plugs something.
    ///
    /// # Errors
    /// Nothing was touched; kvmrc can't be read, or libvirtd does not answer.
    pub fn host(&self) -> Result<Host, ActionError> {
        Host::open(&self.driver_dir).map_err(|cause| self.untouched(cause))
    }

    /// The host that this program runs on, for an action that ends or frees something. An error in kvmrc does not stop
    /// it.
    ///
    /// # Errors
    /// Nothing was touched; libvirtd does not answer.
    pub fn host_lenient(&self) -> Result<Host, ActionError> {
        Host::open_lenient(&self.driver_dir).map_err(|cause| self.untouched(cause))
    }

    /// What `deploy` answers with: the UUID of the domain or, before 6.0, its name.
    pub fn deploy_id(&self, domain: &DomainRef) -> String {
        if self.caller.deploys_by_uuid() { domain.uuid.to_string() } else { domain.name.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_version_does_not_give_is_not_taken_from_its_own_arguments() {
        let call = |args: &[&str]| {
            let args = args.iter().map(OsString::from).collect();
            Call::new(Action::AttachNic, args, PathBuf::new()).unwrap()
        };
        let old = call(&["one-42", "02:00:0a:00:2a:01", "br0", "-", "42", "node1"]);
        let text = |call: &Call, number| call.optional_arg::<String>(number, "x").unwrap();
        assert_eq!((text(&old, 2), text(&old, 3), text(&old, 4)), (Some("br0".into()), None, None));
        let new = call(&["one-42", "02:00:0a:00:2a:01", "", "e1000", "bridge", "one-42-1", "42", "node1"]);
        assert_eq!(
            (text(&new, 2), text(&new, 3), text(&new, 5)),
            (None, Some("e1000".into()), Some("one-42-1".into()))
        );
        assert!(new.optional_arg::<u32>(3, "x").is_err());
    }
}
