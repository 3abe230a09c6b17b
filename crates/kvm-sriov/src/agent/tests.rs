//! Every message can be written and read again, and docs/reference/agent.md describes each.

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::message::Message;
use super::{AgentAnswer, AgentRequest, IncomingVm, MAGIC, MoveOrder, Presence, VERSION};
use crate::base::Position;
use crate::xml::Wanted;

const UUID: &str = "7f1c2a52-64d6-4c0c-9b0e-2f7a4c1d9e10";
const WANTED: &str = "<domain version='1.0'><nic mac='02:00:c0:a8:01:05' root='ib0' mode='hostdev' position='0'/>\
                      </domain>";

fn requests(text: &str, number: u64, flag: bool) -> Vec<AgentRequest> {
    let path = || PathBuf::from(text);
    vec![
        AgentRequest::Prepare(Box::new(IncomingVm {
            name: "one-42".parse().unwrap(),
            uuid: UUID.parse().unwrap(),
            id: text.to_owned(),
            from: (!flag).then(|| "host1".parse().unwrap()),
            wanted: flag.then(|| Wanted::parse(WANTED).unwrap()),
            lacking: if flag { vec![Position::new(0).unwrap(), Position::new(15).unwrap()] } else { Vec::new() },
            dir: (!flag).then(path),
        })),
        AgentRequest::Image { path: path(), format: text.to_owned(), size: number },
        AgentRequest::Symlink { path: path(), target: path() },
        AgentRequest::Snapshot { is_current: flag, xml: text.to_owned() },
        AgentRequest::Go,
        AgentRequest::Finish { uuid: UUID.parse().unwrap(), id: text.to_owned() },
        AgentRequest::Abort { destroy: flag },
        AgentRequest::State(UUID.parse().unwrap()),
        AgentRequest::Migrate(Box::new(MoveOrder {
            id: UUID.parse().unwrap(),
            from: flag.then(|| "host1".parse().unwrap()),
            to: "host2".parse().unwrap(),
            data: (!flag).then(|| text.to_owned()),
        })),
    ]
}

fn answers(text: &str) -> Vec<AgentAnswer> {
    let text = || text.to_owned();
    let states = Presence::ALL.iter().map(|(presence, _)| AgentAnswer::State(*presence));
    vec![
        AgentAnswer::Done,
        AgentAnswer::Ready { bridge: None },
        AgentAnswer::Ready { bridge: Some(text()) },
        AgentAnswer::Left(text()),
        AgentAnswer::Refused(text()),
        AgentAnswer::Failed { cause: text(), state: text() },
    ]
    .into_iter()
    .chain(states)
    .collect()
}

#[test]
fn the_lines_are_those_of_the_document() {
    let document = include_str!("../../../../docs/reference/agent.md");
    let all = requests("", 0, true).iter().map(ToString::to_string).collect::<Vec<_>>();
    for line in all.into_iter().chain(answers("").iter().map(ToString::to_string)) {
        let word = line.split(' ').next().unwrap();
        assert!(document.contains(&format!("`{word}")), "{word} is not in docs/reference/agent.md");
    }
    assert!(document.contains(&format!("{MAGIC} {VERSION} ")));
}

#[test]
fn every_request_but_a_whole_migration_has_a_limit() {
    for request in requests("x", 1, true) {
        let limit = request.limit(Duration::from_secs(300));
        assert_eq!(limit.is_none(), matches!(request, AgentRequest::Migrate(_)), "{request}");
        assert!(limit.is_none_or(|limit| limit >= Duration::from_secs(600)), "{request}");
    }
}

#[test]
fn what_is_missing_or_unknown_is_named() {
    for (line, problem) in [
        ("", "expected a word"),
        ("dance", "expected a request of this version of the agent, found \"dance\""),
        ("abort", "expected destroy, found \"abort\""),
        ("abort destroy=perhaps", "expected destroy, found \"perhaps\""),
        ("state uuid=%zz", "expected a value with %xx"),
        ("state uuid", "expected name=value, found \"uuid\""),
        ("migrate vm=one-1 to=-oProxyCommand", "expected to, found \"-oProxyCommand\""),
    ] {
        let error = line.parse::<AgentRequest>().unwrap_err().to_string();
        assert!(error.starts_with(problem), "{line:?}: {error}");
    }
    let newer = Message::new("prepare").with("vm", "one-42").with("uuid", UUID).with("id", "x");
    let newer = newer.with("wanted", WANTED.replace("1.0", "2.0")).to_string();
    assert!(newer.parse::<AgentRequest>().unwrap_err().to_string().contains("a newer kvm-sriov"), "{newer}");
    assert_eq!("go later=1".parse::<AgentRequest>().unwrap(), AgentRequest::Go, "a value that a later version adds");
}

proptest! {
    #[test]
    fn every_message_is_one_line_and_comes_back(text in any::<String>(), number in any::<u64>(), flag in any::<bool>()) {
        for request in requests(&text, number, flag) {
            let line = request.to_string();
            prop_assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
            prop_assert_eq!(line.parse::<AgentRequest>().unwrap(), request);
        }
        for answer in answers(&text) {
            let line = answer.to_string();
            prop_assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
            prop_assert_eq!(line.parse::<AgentAnswer>().unwrap(), answer);
        }
    }

    #[test]
    fn no_line_is_a_panic(line in any::<String>(), word in "(prepare|image|snapshot|go|abort|state|migrate|failed)( [a-z]{2,6}=[%a-f0-9]{0,8}){0,4}") {
        for line in [line, word] {
            drop(line.parse::<AgentRequest>());
            drop(line.parse::<AgentAnswer>());
        }
    }
}
