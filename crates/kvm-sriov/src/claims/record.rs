//! The text of a claim's file.

use std::fmt::Write;
use std::path::PathBuf;

use super::process::ThisHost;
use super::{Claim, Process, Token};
use crate::base::{DomainName, DomainUuid, MacAddress, Owner, PciAddress, Position, RootName};

/// The first line of a claim. The number changes when older versions can't read the new form.
const HEADER: &str = "kvm-sriov-claim 1";
const HEADER_NAME: &str = "kvm-sriov-claim ";

/// The content of a claim file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// A claim of this host.
    Ours(Record),
    /// An empty file: a claim of the driver of 2013, which wrote nothing into its claims.
    Original,
    /// A claim that another host wrote: the hosts share the state directory, or it was copied. This host neither frees
    /// nor changes it. Its PCI address is one of the other host and means nothing here. So only its index counts: the
    /// VF on that line of this host's map is given to nobody.
    Elsewhere(Record),
    /// A file with other content. Its VF counts as used, and the file is never removed.
    Unreadable {
        /// What is wrong with it.
        why: String,
    },
}

/// A claim: who has which VF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) vm: DomainName,
    pub(super) uuid: Option<DomainUuid>,
    /// The NIC's place among the SR-IOV NICs of the VM. `None` for a domain that was found with the VF, and in a claim
    /// of an older version.
    pub(super) position: Option<Position>,
    /// The NIC's MAC; `None` for a domain that was found with the VF.
    pub(super) mac: Option<MacAddress>,
    pub(super) vf: PciAddress,
    /// The machine-id of the host that the claim was written on; `None` in a claim of an older version, and when the
    /// host had no machine-id.
    pub(super) host: Option<String>,
    /// The id of the boot in which the claim was written. A holder of another boot is gone.
    pub(super) boot: String,
    /// The action that works on the VF, if there is one.
    pub(super) holder: Option<Token>,
    /// The file that the holder is saving the VM into, if it is.
    pub(super) image: Option<PathBuf>,
    /// Lines that a newer version wrote. They are kept.
    pub(super) unknown: Vec<String>,
}

impl Content {
    /// Reads the file of a claim on this host.
    pub(super) fn parse(bytes: &[u8], this: &ThisHost) -> Self {
        if bytes.is_empty() {
            return Self::Original;
        }
        match std::str::from_utf8(bytes).map_err(|error| error.to_string()).and_then(Record::parse) {
            Ok(record) if this.is_another(record.host.as_deref(), &record.boot) => Self::Elsewhere(record),
            Ok(record) => Self::Ours(record),
            Err(why) => Self::Unreadable { why },
        }
    }
}

impl Record {
    /// A claim that is written on this host now.
    pub(super) fn of(claim: &Claim, holder: Option<Token>) -> Self {
        let ThisHost { machine, boot } = ThisHost::read();
        Self {
            vm: claim.owner.vm.clone(),
            uuid: claim.owner.uuid.clone(),
            position: claim.position,
            mac: claim.mac,
            vf: claim.vf,
            host: machine,
            boot,
            holder,
            image: None,
            unknown: Vec::new(),
        }
    }

    /// The VM that has the VF.
    pub(super) fn owner(&self) -> Owner {
        Owner { vm: self.vm.clone(), uuid: self.uuid.clone() }
    }

    /// The claim in the file with this number.
    pub(super) fn claim(&self, root: &RootName, index: usize) -> Claim {
        let (root, index) = (root.clone(), Some(index));
        Claim { root, vf: self.vf, owner: self.owner(), position: self.position, mac: self.mac, index }
    }
}

impl Record {
    fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        match lines.next() {
            Some(HEADER) => {}
            Some(other) if other.starts_with(HEADER_NAME) => {
                return Err(format!("it was written by a newer version ({})", other.escape_debug()));
            }
            other => {
                return Err(format!("expected \"{HEADER}\", found \"{}\"", other.unwrap_or_default().escape_debug()));
            }
        }
        let (mut vm, mut uuid, mut position, mut mac, mut vf, mut host, mut boot, mut holder, mut image) =
            (None, None, None, None, None, None, None, None, None);
        let (mut action, mut unknown) = (None, vec![]);
        for (index, line) in lines.enumerate() {
            let (key, value) =
                line.split_once('=').ok_or_else(|| format!("line {}: expected key=value", index.saturating_add(2)))?;
            let wrong = |error: crate::base::ParseError| format!("{key}: {error}");
            match key {
                "vm" => vm = Some(value.parse().map_err(wrong)?),
                "uuid" => uuid = Some(value.parse().map_err(wrong)?),
                "position" => {
                    let number = value.parse().ok().and_then(|number| Position::new(number).ok());
                    position = Some(number.ok_or("position: expected a number from 0 to 15")?);
                }
                "mac" => mac = Some(value.parse().map_err(wrong)?),
                "vf" => vf = Some(value.parse().map_err(wrong)?),
                "host" => host = Some(value.to_owned()),
                "boot" => boot = Some(value.to_owned()),
                "holder" => holder = Some(process(value).ok_or("holder: expected a pid and its start")?),
                "action" => action = value.rsplit_once(' ').and_then(|(who, number)| Some((process(who)?, number))),
                "image" => image = Some(value.into()),
                _ => unknown.push(line.to_owned()),
            }
        }
        // An older version keeps the line `action` when it becomes the holder. Then the line names another process.
        let number =
            |of: Process| action.filter(|(process, _)| *process == of).and_then(|(_, number)| number.parse().ok());
        Ok(Self {
            vm: vm.ok_or("vm is missing")?,
            uuid,
            position,
            mac,
            vf: vf.ok_or("vf is missing")?,
            host,
            boot: boot.ok_or("boot is missing")?,
            holder: holder.map(|process| Token::new(process, number(process))),
            image,
            unknown,
        })
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\nvm={}\n", self.vm);
        let mut line = |key: &str, value: Option<String>| {
            // Writing into a String can't fail.
            value.map_or(Ok(()), |value| writeln!(text, "{key}={value}")).unwrap_or_default();
        };
        line("uuid", self.uuid.as_ref().map(ToString::to_string));
        line("position", self.position.map(|position| position.to_string()));
        line("mac", self.mac.map(|mac| mac.to_string()));
        line("vf", Some(self.vf.to_string()));
        line("host", self.host.clone());
        line("boot", Some(self.boot.clone()));
        let holder =
            self.holder.map(|token| (format!("{} {}", token.process().pid(), token.process().started()), token));
        line("holder", holder.as_ref().map(|(process, _)| process.clone()));
        // A line of its own, because an older version reads no third number after `holder`.
        let action = holder.and_then(|(process, token)| Some(format!("{process} {}", token.number()?)));
        line("action", action);
        // A path with a line break can't be written. The image is then only found by its name.
        let image = self.image.as_ref().and_then(|path| path.to_str()).filter(|path| !path.contains('\n'));
        line("image", image.map(str::to_owned));
        for unknown in &self.unknown {
            text.push_str(unknown);
            text.push('\n');
        }
        text
    }
}

/// A process from its number and its start.
fn process(text: &str) -> Option<Process> {
    let (pid, started) = text.split_once(' ')?;
    Some(Process::new(pid.parse().ok()?, started.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(machine: Option<&str>) -> ThisHost {
        ThisHost { machine: machine.map(str::to_owned), boot: "this boot".into() }
    }

    proptest! {
        #[test]
        fn records_survive_printing(
            vm in "[a-zA-Z0-9 ._=-]{1,40}",
            uuid in proptest::option::of("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
            position in proptest::option::of(0_usize..16),
            (bus, slot, function) in (any::<u8>(), 0u8..0x20, 0u8..8),
            machine in proptest::option::of("[0-9a-f]{32}"),
            holder in proptest::option::of((any::<u32>(), any::<u64>(), any::<Option<u64>>())),
            image in proptest::option::of("/[a-z/. ]{0,20}[a-z]"),
            unknown in proptest::collection::vec("x[a-z]{0,5}=[ -~]{0,9}", 0..3),
        ) {
            prop_assume!(vm != "." && vm != "..");
            let record = Record {
                vm: vm.parse().unwrap(),
                uuid: uuid.map(|uuid| uuid.parse().unwrap()),
                position: position.map(|number| Position::new(number).unwrap()),
                mac: None,
                vf: PciAddress::new(0, bus, slot, function).unwrap(),
                host: machine.clone(),
                boot: "b".into(),
                holder: holder.map(|(pid, start, number)| Token::new(Process::new(pid, start), number)),
                image: image.map(PathBuf::from),
                unknown,
            };
            let text = record.to_text();
            prop_assert_eq!(Content::parse(text.as_bytes(), &host(machine.as_deref())), Content::Ours(record.clone()));
            let there = Content::parse(text.as_bytes(), &host(Some("other")));
            prop_assert_eq!(there, if machine.is_some() { Content::Elsewhere(record) } else { Content::Ours(record) });
        }

        #[test]
        fn parsing_never_panics(bytes: Vec<u8>) {
            prop_assert!(!matches!(Content::parse(&bytes, &host(None)), Content::Ours(_)));
        }
    }

    #[test]
    fn what_is_no_claim_of_ours_is_said() {
        assert_eq!(Content::parse(b"", &host(None)), Content::Original);
        for (text, message) in [
            ("hello", "expected \"kvm-sriov-claim 1\", found \"hello\""),
            ("kvm-sriov-claim 2\nx", "newer version"),
            ("kvm-sriov-claim 1\nvm=one-1\n", "vf is missing"),
            ("kvm-sriov-claim 1\nvm\n", "line 2: expected key=value"),
            ("kvm-sriov-claim 1\nvm=one-1\nvf=7\nboot=x\n", "vf: expected a PCI address"),
            ("kvm-sriov-claim 1\nvm=one-1\nvf=07:00.1\nboot=x\nholder=1\n", "holder: "),
            ("kvm-sriov-claim 1\nvm=one-1\nposition=16\n", "position: expected a number from 0 to 15"),
        ] {
            let Content::Unreadable { why } = Content::parse(text.as_bytes(), &host(None)) else {
                panic!("{text:?} was taken")
            };
            assert!(why.contains(message), "{message:?} is not in {why:?}");
        }
    }

    fn ours(text: &str) -> Record {
        match Content::parse(text.as_bytes(), &host(Some("a"))) {
            Content::Ours(record) => record,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_claim_of_this_boot_is_ours_whatever_the_machine_id_is_now() {
        let claim = |boot: &str| format!("kvm-sriov-claim 1\nvm=one-1\nvf=07:00.1\nhost=b\nboot={boot}\n");
        assert_eq!(ours(&claim("this boot")).host.as_deref(), Some("b"));
        let there = Content::parse(claim("x").as_bytes(), &host(Some("a")));
        assert!(matches!(there, Content::Elsewhere(_)), "{there:?}");
        // A kernel that reports no boot id proves nothing.
        let nameless = ThisHost { machine: Some("a".into()), boot: String::new() };
        assert!(matches!(Content::parse(claim("").as_bytes(), &nameless), Content::Elsewhere(_)));
    }

    #[test]
    fn older_versions_know_no_number_of_an_action() {
        let claim = |lines: &str| ours(&format!("kvm-sriov-claim 1\nvm=one-1\nvf=07:00.1\nboot=x\n{lines}")).holder;
        let holder = |number| Some(Token::new(Process::new(4711, 1), number));
        assert_eq!(claim("holder=4711 1\naction=4711 1 7\n"), holder(Some(7)));
        assert_eq!(claim("holder=4711 1\n"), holder(None));
        // An older version has become the holder, or has settled the claim.
        assert_eq!(claim("action=4700 1 7\nholder=4711 1\n"), holder(None));
        assert_eq!(claim("action=4700 1 7\n"), None);
    }
}
