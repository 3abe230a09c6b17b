//! `exec`: starts a command in a guest, through the guest's agent.

use super::shared::guest_command::{self, CommandRecord};
use crate::base::{Action, DomainId, DomainName};
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::libvirt::DomainRef;

const ACTION: Action = Action::Exec;

/// Starts a command in the guest of a VM, and records its process id for OpenNebula's monitoring, which reports its
/// result.
///
/// * `command` - the command's words, with quotes and backslashes as in a shell; no shell runs it
/// * `input` - its standard input, in base64
///
/// # Errors
/// No command runs, or the error's state says that this is not known.
///
/// # Source
/// OpenNebula's stock `exec` and `kvm_qemu_ga.rb` (7.2 and later).
pub fn exec(host: &Host, vm: &DomainName, command: &str, input: Option<&str>) -> Result<(), ActionError> {
    let failed = |cause: Cause| ActionError::untouched(ACTION, cause);
    let words = words(command).map_err(|problem| failed(Cause::Argument { name: "command", problem }))?;
    let record = CommandRecord::lock(host, vm.clone()).map_err(failed)?;
    let domain = host.find(&DomainId::Name(vm.clone())).map_err(failed)?;
    let started = guest_command::start(host, &domain, &words, input.filter(|input| !input.is_empty()));
    let number = started.map_err(|cause| {
        if guest_command::leaves_doubt(&cause) {
            let text = "whether the guest runs the command is not known, and nobody waits for its result";
            ActionError::new(ACTION, cause, HostState::InDoubt(text.into()))
        } else {
            failed(cause)
        }
    })?;
    record.write(number).map_err(|cause| end(host, &domain, number, cause))
}

/// Ends a command whose process id could not be recorded, because nobody would report its result.
fn end(host: &Host, domain: &DomainRef, number: u64, cause: Cause) -> ActionError {
    match guest_command::kill(host, domain, number) {
        Ok(()) => ActionError::untouched(ACTION, cause),
        Err(undo) => {
            let cause = cause.and_undo(undo);
            ActionError::new(ACTION, cause, HostState::Left(format!("process {number} runs in the guest")))
        }
    }
}

/// Splits a command into words as a shell does: at blanks that no quote or backslash protects.
///
/// # Source
/// POSIX Shell Command Language, 2.2 (quoting).
fn words(command: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err("expected a closing ', found the end".into()),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some('\n') => {}
                            Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                            Some(c) => word.extend(['\\', c]),
                            None => return Err("expected a closing \", found the end".into()),
                        },
                        Some(c) => word.push(c),
                        None => return Err("expected a closing \", found the end".into()),
                    }
                }
            }
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err("expected a character after \\, found the end".into()),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if words.is_empty() { Err("expected a command, found none".into()) } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_a_shell() {
        for (command, expected) in [
            ("ls -l /tmp", vec!["ls", "-l", "/tmp"]),
            ("  a\t'' b ", vec!["a", "", "b"]),
            ("sh -c 'echo \"a b\"; $X'", vec!["sh", "-c", "echo \"a b\"; $X"]),
            (r#"a"b c"'d e'\ f"#, vec!["ab cd e f"]),
            (r#""\$x\q\"""#, vec![r#"$x\q""#]),
        ] {
            assert_eq!(words(command).unwrap(), expected, "{command}");
        }
        for wrong in ["", " ", "'a", "\"a", "\"a\\", "a\\"] {
            assert!(words(wrong).is_err(), "{wrong}");
        }
    }
}
