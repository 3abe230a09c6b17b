//! What OpenNebula writes to an action's standard input.

use std::io::{self, Read};
use std::path::Path;

use super::{Call, Hook, Message};
use crate::base::base64;
use crate::error::{ActionError, Cause};
use crate::xml::VmData;

/// The longest standard input that is read, in bytes. OpenNebula's largest messages are below 100 KiB.
const STDIN_LIMIT: u64 = 8 * 1024 * 1024;

/// Standard input of an action: the XML document about its VM.
#[derive(Debug, Clone)]
pub struct Input {
    /// OpenNebula's description of the VM; `None` from versions that send none to this action, see
    /// [`OneVersion::reads_stdin`](crate::config::OneVersion::reads_stdin).
    pub vm: Option<VmData>,
    /// The whole document; empty when there is none.
    pub message: Message,
    hook: Option<Hook>,
}

impl Input {
    /// Runs the hook of the action for the VM's transfer driver, if there is one. A failure is only logged.
    pub fn run_hook(&self) {
        if let Some(hook) = &self.hook {
            hook.run();
        }
    }

    /// Runs the hook if the checkpoint is missing or empty: the hook brings it. A failure is only logged.
    pub fn fetch(&self, checkpoint: &Path) {
        if checkpoint.metadata().map_or(true, |metadata| metadata.len() == 0) {
            self.run_hook();
        }
    }
}

impl Call {
    /// Standard input as text.
    ///
    /// # Errors
    /// Nothing was touched; it could not be read, is longer than 8 MiB, or is not UTF-8.
    pub fn stdin(&self) -> Result<String, ActionError> {
        let mut bytes = Vec::new();
        let failed = |why: String| self.untouched(Cause::Stdin { why });
        io::stdin().lock().take(STDIN_LIMIT + 1).read_to_end(&mut bytes).map_err(|e| failed(e.to_string()))?;
        if bytes.len() as u64 > STDIN_LIMIT {
            return Err(failed(format!("it is longer than {STDIN_LIMIT} bytes")));
        }
        String::from_utf8(bytes).map_err(|e| failed(format!("it is not UTF-8 ({e})")))
    }

    /// Standard input of an action on a host.
    ///
    /// # Errors
    /// Nothing was touched; it could not be read, or describes no VM (because it was cut short, for example).
    pub fn input(&self) -> Result<Input, ActionError> {
        let text = if self.caller().reads_stdin(self.action()) { self.stdin()? } else { String::new() };
        let message = Message::of_stdin(self.action(), text);
        if message.text().trim().is_empty() {
            return Ok(Input { vm: None, message, hook: None });
        }
        let vm = VmData::parse(message.text()).map_err(|source| message.wrong(source))?;
        let hook = Hook::find(self.driver_dir(), self.action(), self.args(), message.text(), vm.tm_mad());
        Ok(Input { vm: Some(vm), message, hook })
    }

    /// As [`Call::input`], for an action that can do nothing without a description of the VM.
    ///
    /// # Errors
    /// Nothing was touched; as [`Call::input`], or there is none.
    pub fn needed_input(&self) -> Result<Input, ActionError> {
        let input = self.input()?;
        if input.vm.is_some() { Ok(input) } else { Err(self.untouched(Cause::Stdin { why: "there is none".into() })) }
    }

    /// Standard input of an action that runs on the front-end, decoded from base64; `None` from versions before 5.0,
    /// which send none.
    ///
    /// # Errors
    /// Nothing was touched; it could not be read, or is not base64 of UTF-8.
    pub fn front_end_input(&self) -> Result<Option<String>, ActionError> {
        if !self.caller().reads_local_stdin() {
            return Ok(None);
        }
        let failed = |why: &str| self.untouched(Cause::Stdin { why: why.into() });
        let bytes = base64(&self.stdin()?).ok_or_else(|| failed("it is not base64"))?;
        let text = String::from_utf8(bytes).map_err(|_| failed("what it encodes is not UTF-8"))?;
        Ok(Some(text).filter(|text| !text.trim().is_empty()))
    }

    /// The VM of a step of a network driver, in base64: on standard input or, up to 5.8, in the first argument.
    ///
    /// # Errors
    /// Nothing was touched; there is none, or it is not base64 of a VM's description.
    pub fn network_input(&self) -> Result<VmData, ActionError> {
        let text = if self.caller().has_networks_on_stdin() {
            let text = base64(&self.stdin()?).and_then(|bytes| String::from_utf8(bytes).ok());
            text.ok_or_else(|| self.untouched(Cause::Stdin { why: "it is not base64 of UTF-8".into() }))?
        } else {
            self.encoded_arg(0, "VM")?
        };
        VmData::parse(&text).map_err(|source| self.untouched(Cause::Xml { what: "the XML of the VM".into(), source }))
    }
}
