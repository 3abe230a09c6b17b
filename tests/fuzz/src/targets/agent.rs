//! What two agents say to each other.

use std::io::{self, Cursor, Write};
use std::sync::{Arc, Mutex};

use kvm_sriov::VfState;
use kvm_sriov::agent::fuzz::{answer, arriving, request};
use kvm_sriov::agent::{Ssh, serve};
use kvm_sriov_model::host::ModelHost;

use super::{Described, check_message, text};

pub(super) fn targets() -> Vec<Described> {
    vec![("message", 1, message), ("conversation", 4, conversation), ("agent", 20, agent)]
}

fn message(input: &[u8]) {
    let line = text(input);
    for read in [request, answer] {
        match read(&line) {
            Ok(written) => {
                assert!(written.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{written:?}");
                // What is written has one form.
                assert_eq!(read(&written), Ok(written.clone()));
            }
            Err(error) => check_message(&error),
        }
    }
}

/// A line is what ends with a newline. The begin of one, whose rest was lost, is no line: it may say something else.
fn conversation(input: &[u8]) {
    let (lines, _) = input.split_at(input.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
    let whole = String::from_utf8_lossy(lines).into_owned();
    let expected: Vec<&str> = whole.split_terminator('\n').map(str::trim_end).filter(|line| *line != "alive").collect();
    assert_eq!(arriving(input.to_vec()).unwrap(), expected);
}

/// What an agent said.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A whole agent answers each line with one line. When the VM does not come, it leaves nothing behind.
fn agent(input: &[u8]) {
    let text = text(input);
    // An agent makes the directory that it is told to make, wherever that is.
    let is_harmless = |line: &&str| request(line).is_err() || !line.contains(" dir=");
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(is_harmless).take(20).collect();
    let asked = lines.iter().filter(|line| **line != "alive").count() + 1;
    let model = ModelHost::default();
    let (host, said) = (model.host(), Said::default());
    let all: String = lines.iter().chain(&["abort destroy=true"]).map(|line| format!("{line}\n")).collect();
    serve(|| Ok(host), &Ssh::new("/none".as_ref()).with_program("false".into()), Cursor::new(all), said.clone());
    let said = String::from_utf8(said.0.lock().unwrap().clone()).unwrap();
    let answers: Vec<&str> = said.lines().filter(|line| *line != "alive").collect();
    assert!(answers[0].starts_with("kvm-sriov-agent "), "{said}");
    assert_eq!(answers.len(), asked + 1, "{said}");
    answers[1..].iter().for_each(|line| assert!(answer(line).is_ok(), "{line}"));
    assert!(model.host().vfs().unwrap().iter().all(|vf| vf.state == VfState::Free), "{said}");
}
