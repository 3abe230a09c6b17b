//! OpenNebula as a caller: how each version runs a program of the driver, and what a user sees of the result.
//!
//! A step is run in one of three ways. Most steps are a line in the stream of a shell that OpenNebula keeps open on the
//! host (`bash -s` behind ssh), with standard input as a here-document. Some steps are an ssh command of their own.
//! Steps that `-l` names run on the front-end, with their input in base64.
//!
//! # Source
//! OpenNebula's `one_vmm_exec.rb`, `ssh_stream.rb`, `CommandManager.rb` and `DriverExecHelper.rb` of 4.0 to 7.4;
//! docs/reference/versions.md.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

/// A version of OpenNebula: major and minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// The oldest supported version: nothing is quoted, no VM on standard input.
    pub const V4_0: Self = Self(4, 0);
    /// The last version without a VM on standard input.
    pub const V4_14: Self = Self(4, 14);
    /// The last version that calls `poll`.
    pub const V5_10: Self = Self(5, 10);
    /// The last version that names a VM by its domain's name.
    pub const V5_12: Self = Self(5, 12);
    /// The last version that looks for a message between two marker lines.
    pub const V6_0: Self = Self(6, 0);
    /// The last version whose messages contain log lines.
    pub const V6_10: Self = Self(6, 10);
    /// The newest version.
    pub const V7: Self = Self(7, 4);
    /// One version of each form.
    pub const FORMS: [Self; 7] = [Self::V4_0, Self::V4_14, Self::V5_10, Self::V5_12, Self::V6_0, Self::V6_10, Self::V7];

    /// The lines around the user's message up to 6.0. The shell helpers of these versions print them.
    pub const ERROR_BLOCK: [&str; 2] = ["ERROR MESSAGE --8<------", "ERROR MESSAGE ------>8--"];

    /// Whether a failure is printed between the two lines of [`Self::ERROR_BLOCK`].
    pub fn has_error_block(self) -> bool {
        self <= Self::V6_0
    }

    /// Whether this version describes the VM on the standard input of an action on a host.
    pub fn sends_data(self, action: &str) -> bool {
        match action {
            "deploy" => true,
            "poll" => false,
            "reboot" | "reset" | "snapshot_revert" | "snapshot_delete" => self >= Self(5, 10),
            "snapshot_create" => self >= Self(5, 4),
            _ => self >= Self(5, 0),
        }
    }

    /// How many of an action's arguments this version gives. Newer versions added the others.
    fn arguments(self, action: &str) -> usize {
        match action {
            "restore" if self < Self(4, 4) => 2,
            "attach_nic" if self < Self(4, 4) => 4,
            "attach_nic" if self < Self(5, 0) => 5,
            _ => usize::MAX,
        }
    }

    /// The message that a user sees of a failure with this standard error.
    pub fn message(self, stderr: &str) -> String {
        if self.has_error_block() {
            let [begin, end] = Self::ERROR_BLOCK;
            let mut lines = stderr.lines().skip_while(|line| *line != begin).skip(1);
            let block: Vec<_> = lines.by_ref().take_while(|line| *line != end).collect();
            return if block.is_empty() { "-".into() } else { block.join("\n") };
        }
        if self <= Self::V6_10 {
            return stderr.trim_end().replace('\n', " ");
        }
        let is_log = |line: &&str| ["ERROR: ", "INFO: ", "WARN: ", "DEBUG: "].iter().any(|log| line.starts_with(log));
        stderr.lines().map(str::trim).filter(|line| !is_log(line)).collect()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// How a command reaches the host.
#[derive(Debug, Clone)]
enum Reach {
    /// A shell of this machine, started by these words (such as `ip netns exec <name>`).
    Shell(Vec<String>),
    /// These words, then the command as one argument, as for ssh.
    Ssh(Vec<String>),
}

/// A version of OpenNebula that runs programs on one host, for one VM.
#[derive(Debug, Clone)]
pub struct Caller {
    version: Version,
    remotes: PathBuf,
    driver: String,
    vm: u32,
    host: String,
    reach: Reach,
    env: Vec<(String, String)>,
}

/// The result of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The message that a user sees of a failure. Empty when the step succeeded.
    pub message: String,
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error as OpenNebula reads it, in the stream's form with the last line `ExitCode: n`.
    pub stderr: String,
}

impl Answer {
    /// Fails the test unless the step succeeded. Returns its standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == 0, "exit code {}\n{}{}", self.code, self.stdout, self.stderr);
        self.stdout
    }
}

/// The stream prints this when a program read more than its own input.
const NEXT: &str = "the next command of the stream";

impl Caller {
    /// This version with this remotes directory on the host, for VM 42 on `node1`, which is this machine.
    pub fn new(version: Version, remotes: impl Into<PathBuf>) -> Self {
        Self {
            version,
            remotes: remotes.into(),
            driver: "kvm-sriov".into(),
            vm: 42,
            host: "node1".into(),
            reach: Reach::Shell(Vec::new()),
            env: Vec::new(),
        }
    }

    /// For the VM with this number.
    #[must_use]
    pub fn vm(mut self, number: u32) -> Self {
        self.vm = number;
        self
    }

    /// With the driver in another directory than `kvm-sriov`.
    #[must_use]
    pub fn driver(mut self, name: &str) -> Self {
        name.clone_into(&mut self.driver);
        self
    }

    /// On a host of this name.
    #[must_use]
    pub fn host(mut self, name: &str) -> Self {
        name.clone_into(&mut self.host);
        self
    }

    /// Starts the host's shell with these words before its own, for example `ip netns exec <name>`.
    #[must_use]
    pub fn within(mut self, words: &[&str]) -> Self {
        self.reach = Reach::Shell(words.iter().map(|&word| word.to_owned()).collect());
        self
    }

    /// Reaches the host by these words with the command as one more, for example `ssh -F <file> <host>`.
    #[must_use]
    pub fn over(mut self, words: &[&str]) -> Self {
        self.reach = Reach::Ssh(words.iter().map(|&word| word.to_owned()).collect());
        self
    }

    /// With this variable in the host's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Runs an action.
    ///
    /// * `args` - the arguments of the newest version, without the two that OpenNebula appends; an older version omits
    ///   newer ones
    /// * `stdin` - the input of the newest version; an older version may omit it
    ///
    /// # Panics
    /// The program is missing, or it read more than its own input.
    #[track_caller]
    pub fn run(&self, action: &str, args: &[&str], stdin: &str) -> Answer {
        let args = args.get(..self.version.arguments(action)).unwrap_or(args);
        let stdin = self.version.sends_data(action).then_some(stdin);
        let tail = format!("{} {}", self.vm, self.host);
        let script = self.program(action);
        match action {
            "snapshot_create" | "snapshot_delete" | "resize" | "exec_cancel" | "poll" => {
                self.one_shot(&script, &format!("{} {tail}", args.join(" ")), stdin)
            }
            "exec" => {
                let [vm, host, command, rest @ ..] = args else { panic!("exec: expected 3 arguments, found {args:?}") };
                self.one_shot(&script, &format!("{vm} {host} {} {}", escaped(command), rest.join(" ")), stdin)
            }
            _ => self.stream(&script, &format!("{} {tail}", self.quoted(args)), stdin),
        }
    }

    /// Runs an action on the front-end, as with `-l`. The remotes are those of the front-end.
    #[track_caller]
    pub fn run_local(&self, action: &str, args: &[&str], stdin: &str) -> Answer {
        let script = self.program(action);
        let line = format!("{} {} {} {}", script.display(), self.quoted(args), self.vm, self.host);
        let input = match self.version {
            version if version < Version(5, 0) => String::new(),
            version if version < Version(5, 12) => encoded(&stdin.replace('\n', ""), 60),
            _ => encoded(stdin, 0),
        };
        let mut shell = Command::new("sh");
        self.answer(&feed(shell.args(["-c", &line]).envs(self.env.clone()), &input))
    }

    /// Runs a step of a network driver.
    ///
    /// * `args` - the arguments without the VM, which is the first argument up to 5.8
    #[track_caller]
    pub fn run_network(&self, network: &str, step: &str, args: &[&str], vm: &str) -> Answer {
        let script = self.remotes.join("vnm").join(network).join(step);
        let vm = encoded(vm, 0);
        if self.version >= Version(5, 10) {
            return self.stream(&script, &self.quoted(args), Some(&vm));
        }
        self.stream(&script, &self.quoted(&[&[vm.trim_end()], args].concat()), None)
    }

    /// Runs a step that creates or removes a network (6.4 and later) on the front-end. The remotes are those of the
    /// front-end.
    #[track_caller]
    pub fn run_vnet(&self, network: &str, step: &str, vnet: u32, xml: &str) -> Answer {
        let script = self.remotes.join("vnm").join(network).join(step);
        let line = format!("{} {vnet}", script.display());
        self.answer(&feed(Command::new("sh").args(["-c", &line]).envs(self.env.clone()), &encoded(xml, 0)))
    }

    /// The text of an action for the stream, with `then` after it: for a caller that does not wait for the end.
    pub fn lines(&self, action: &str, args: &[&str], stdin: &str, then: &str) -> String {
        let script = self.program(action);
        let args = format!("{} {} {}", self.quoted(args), self.vm, self.host);
        self.step(&script, &args, self.version.sends_data(action).then_some(stdin), then)
    }

    /// The program of an action.
    fn program(&self, action: &str) -> PathBuf {
        self.remotes.join("vmm").join(&self.driver).join(action)
    }

    /// A line of the stream and its input.
    fn step(&self, script: &Path, args: &str, stdin: Option<&str>, then: &str) -> String {
        let script = script.display();
        let quote = if self.version <= Version(6, 4) { "" } else { "'" };
        match stdin {
            Some(text) => format!("(cat << {quote}EOT{quote} | {script} {args}); {then}\n{text}\nEOT\n"),
            None => format!("{script} {args}; {then}\n"),
        }
    }

    /// Arguments as OpenNebula writes them into the line: nothing is escaped.
    fn quoted(&self, args: &[&str]) -> String {
        let quote = if self.version < Version(4, 2) { "" } else { "'" };
        args.iter().map(|arg| format!("{quote}{arg}{quote}")).collect::<Vec<_>>().join(" ")
    }

    /// Runs a line in the stream. The next command is in the stream already: a program that reads too much takes it.
    #[track_caller]
    fn stream(&self, script: &Path, args: &str, stdin: Option<&str>) -> Answer {
        let step = self.step(script, args, stdin, "echo \"ExitCode: $? EOF_ERR\" 1>&2; echo \"EOF_OUT\"");
        let script = script.display();
        let line = format!("[ -x {script} ] || exit 42\n{step}echo '{NEXT}'\n");
        let output = feed(&mut self.shell(&["bash", "-s"], "bash -s"), &line);
        assert_ne!(output.status.code(), Some(42), "{script} is no program");
        let (stdout, stderr) = texts(&output);
        let Some((stdout, rest)) = stdout.split_once("EOF_OUT\n") else {
            panic!("{script} took what comes after its input: {stdout}{stderr}")
        };
        // The shell runs the rest of a truncated input as commands, which may end the shell.
        let is_cut = stdin.is_some_and(|text| text.lines().any(|line| line == "EOT"));
        assert!(is_cut || rest == format!("{NEXT}\n"), "{script} took the stream's next command: {rest:?} {stderr}");
        let (stderr, _) = stderr.split_once(" EOF_ERR\n").unwrap();
        let (_, code) = stderr.rsplit_once("ExitCode: ").unwrap();
        self.seen(code.parse().unwrap(), stdout.to_owned(), format!("{stderr}\n"))
    }

    /// Runs an ssh command of its own.
    #[track_caller]
    fn one_shot(&self, script: &Path, args: &str, stdin: Option<&str>) -> Answer {
        let script = script.display();
        let command = format!("if [ -x \"{script}\" ]; then {script} {args}; else exit 42; fi");
        let answer = self.answer(&feed(&mut self.shell(&["sh", "-c", &command], &command), stdin.unwrap_or_default()));
        assert_ne!(answer.code, 42, "{script} is no program, or asks for the remotes to be copied again");
        answer
    }

    /// The command on the host: several words for a shell of this machine, one word for ssh.
    fn shell(&self, words: &[&str], one: &str) -> Command {
        let (before, after) = match &self.reach {
            Reach::Shell(prefix) => (prefix, words),
            Reach::Ssh(ssh) => (ssh, &[one][..]),
        };
        let mut all = before.iter().map(String::as_str).chain(after.iter().copied());
        let mut command = Command::new(all.next().unwrap());
        command.args(all).envs(self.env.clone());
        // The shell runs the rest of a truncated here-document as commands, which may write files in the working
        // directory.
        if self.remotes.is_dir() {
            command.current_dir(&self.remotes);
        }
        command
    }

    fn answer(&self, output: &Output) -> Answer {
        let (stdout, stderr) = texts(output);
        // A shell reports 128 + n for a program that signal n ended.
        self.seen(output.status.code().unwrap_or(255), stdout, stderr)
    }

    fn seen(&self, code: i32, stdout: String, stderr: String) -> Answer {
        let message = if code == 0 { String::new() } else { self.version.message(&stderr) };
        Answer { message, code, stdout, stderr }
    }
}

fn texts(output: &Output) -> (String, String) {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).into()
}

fn feed(command: &mut Command, stdin: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let stdin = stdin.to_owned();
    // On a thread, because the output may be more than a pipe holds. A program that does not read its input is no
    // failure.
    let writer = thread::spawn(move || drop(input.write_all(stdin.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// A text in base64, in lines of this many digits or, with 0, in one line.
pub fn encoded(text: &str, width: usize) -> String {
    let output = feed(Command::new("base64").arg(format!("-w{width}")), text);
    String::from_utf8(output.stdout).unwrap()
}

/// A text as one word of a shell, as Ruby's Shellwords does it.
fn escaped(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.,:+/@\n".contains(c);
    text.chars().flat_map(|c| (!plain(c)).then_some('\\').into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Remotes with this script as every action, as the migration of the front-end and as the first step of a network
    /// driver.
    fn remotes(script: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for program in ["vmm/kvm-sriov/save", "vmm/kvm-sriov/resize", "vmm/kvm-sriov/exec", "vnm/sriov/pre"] {
            let path = dir.path().join(program);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        dir
    }

    const ECHO: &str = "for arg; do printf '<%s>' \"$arg\"; done; cat; exit 0";

    #[test]
    fn arguments_and_input_have_the_form_of_the_version() {
        let remotes = remotes(ECHO);
        let said =
            |version, args: &[&str], stdin: &str| Caller::new(version, remotes.path()).run("save", args, stdin).ok();
        let args = ["one-42", "", "a  b"];
        assert_eq!(
            said(Version::V7, &args, "<VM>$HOME `id` \\\\</VM>"),
            "<one-42><><a  b><42><node1><VM>$HOME `id` \\\\</VM>\n"
        );
        assert_eq!(said(Version(6, 4), &args[..1], "<VM>$(echo x) \\\\</VM>"), "<one-42><42><node1><VM>x \\</VM>\n");
        let silent = self::remotes("for arg; do printf '<%s>' \"$arg\"; done");
        let said = |version| Caller::new(version, silent.path()).run("save", &args, "<VM/>").ok();
        assert_eq!(said(Version::V4_14), "<one-42><><a  b><42><node1>");
        assert_eq!(said(Version::V4_0), "<one-42><a><b><42><node1>");
    }

    #[test]
    #[should_panic(expected = "took")]
    fn a_program_that_reads_the_callers_own_stream_is_found() {
        Caller::new(Version::V4_14, remotes(ECHO).path()).run("save", &["one-42"], "");
    }

    #[test]
    fn commands_of_their_own_and_steps_of_the_front_end_and_of_networks() {
        let remotes = remotes(ECHO);
        let caller = |version| Caller::new(version, remotes.path()).vm(7).host("hostA").within(&["env", "X=1"]);
        assert_eq!(caller(Version::V7).run("resize", &["one-7"], "<VM/>").ok(), "<one-7><7><hostA><VM/>");
        let exec = caller(Version::V7).run("exec", &["7", "hostA", "ls -l '/tmp'; id"], "");
        assert_eq!(exec.ok(), "<7><hostA><ls -l '/tmp'; id>");
        let long = "<VM>\n0123456789012345678901234567890123456789</VM>\n";
        for (version, lines) in [(Version::V4_14, 0), (Version::V5_10, 2), (Version::V5_12, 1)] {
            let said = caller(version).run_local("save", &["one-7"], long).ok();
            let (args, input) = said.rsplit_once('>').unwrap();
            assert_eq!((args, input.lines().count()), ("<one-7><7><hostA", lines), "{version}");
        }
        let said = caller(Version::V7).run_network("sriov", "pre", &["hostA"], "<VM/>").ok();
        assert_eq!(said, "<hostA>PFZNLz4=\n");
        assert_eq!(caller(Version::V7).run_vnet("sriov", "pre", 3, "<VNET/>").ok(), "<3>PFZORVQvPg==");
    }

    #[test]
    fn a_user_sees_what_the_version_leaves_of_standard_error() {
        let remotes = remotes(
            "cat >/dev/null; echo 'INFO: save: a' >&2; echo 'ERROR MESSAGE --8<------' >&2; echo 'it broke.' >&2
             echo 'ERROR MESSAGE ------>8--' >&2; echo ' badly.' >&2; exit 3",
        );
        for (version, message) in [
            (Version::V6_0, "it broke."),
            (
                Version::V6_10,
                "INFO: save: a ERROR MESSAGE --8<------ it broke. ERROR MESSAGE ------>8--  badly. ExitCode: 3",
            ),
            (Version::V7, "ERROR MESSAGE --8<------it broke.ERROR MESSAGE ------>8--badly.ExitCode: 3"),
        ] {
            let answer = Caller::new(version, remotes.path()).run("save", &["one-42"], "");
            assert_eq!((answer.code, answer.message.as_str()), (3, message), "{version}");
        }
        assert_eq!(Version::V6_0.message("ERROR: save: x\nExitCode: 1\n"), "-");
    }
}
