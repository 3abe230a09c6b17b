//! The lines of a kvmrc and their assignments.

use std::iter::Peekable;
use std::str::Chars;

/// What the driver can read, for messages about lines that hold more than assignments.
const ASSIGNMENT: &str = "NAME=value, export NAME=value or a comment";

/// A logical line: one line of the file, or several that backslashes at their ends join.
pub(super) struct LogicalLine {
    /// The number of its first line, from 1.
    pub(super) number: usize,
    /// Its assignments, in order.
    pub(super) content: Result<Vec<(String, String)>, Unreadable>,
}

/// A line that holds more than assignments.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) expected: &'static str,
    /// The line, control characters escaped.
    pub(super) found: String,
    /// The variable that the line sets, if it does nothing else.
    pub(super) only_sets: Option<String>,
}

/// The logical lines of a text, without blank lines and comments.
pub(super) fn lines(text: &str) -> Vec<LogicalLine> {
    let mut found = Vec::new();
    let mut physical = text.split('\n').enumerate();
    while let Some((index, first)) = physical.next() {
        let mut line = first.to_owned();
        // A comment ends at the end of its line, even if the line ends with a backslash.
        while ends_in_continuation(&line) && !line.trim_start().starts_with('#') {
            line.pop();
            match physical.next() {
                Some((_, next)) => line.push_str(next),
                None => {
                    line.push('\\');
                    break;
                }
            }
        }
        match assignments(&line) {
            Ok(content) if content.is_empty() => {}
            content => found.push(LogicalLine { number: index + 1, content }),
        }
    }
    found
}

/// With an odd number of backslashes at the end, the last one joins the next line.
fn ends_in_continuation(line: &str) -> bool {
    line.chars().rev().take_while(|c| *c == '\\').count() % 2 == 1
}

fn assignments(line: &str) -> Result<Vec<(String, String)>, Unreadable> {
    let mut found = Vec::new();
    let mut exported = false;
    let mut rest = line.chars().peekable();
    let unreadable = |expected, name: Option<&String>, alone: bool| Unreadable {
        expected,
        found: line.escape_debug().to_string(),
        // Text before or after the assignment may be a command.
        only_sets: name.filter(|_| alone && !has_command(line)).cloned(),
    };
    loop {
        while rest.next_if(|c| *c == ' ' || *c == '\t').is_some() {}
        match rest.peek() {
            None | Some('#') => return Ok(found),
            // `a=1; b=2` is two assignments.
            Some(';') if !found.is_empty() => {
                rest.next();
                exported = false;
                continue;
            }
            Some(_) => {}
        }
        let name = name(&mut rest);
        if name == "export" && !exported && matches!(rest.peek(), Some(' ' | '\t')) {
            exported = true;
            continue;
        }
        if name.is_empty() {
            return Err(unreadable(ASSIGNMENT, None, false));
        }
        if rest.next_if_eq(&'=').is_none() {
            // `export NAME` alone sets nothing.
            if exported && matches!(rest.peek(), None | Some(' ' | '\t' | ';')) {
                continue;
            }
            return Err(unreadable(ASSIGNMENT, None, false));
        }
        let value = value(&mut rest).map_err(|expected| unreadable(expected, Some(&name), found.is_empty()))?;
        found.push((name, value));
    }
}

/// Whether a line that can't be read may do more than set one variable. Bash runs what follows `;`, `&` or `|`, and an
/// assignment before another word applies only to that command.
fn has_command(line: &str) -> bool {
    let outside: String = line.split(['"', '\'']).step_by(2).collect();
    let mut depth = 0_i32;
    outside.trim_end().chars().any(|c| {
        match c {
            '(' | '{' => depth += 1,
            ')' | '}' => depth -= 1,
            _ => {}
        }
        depth <= 0 && matches!(c, ';' | '&' | '|' | '<' | '>')
    })
}

fn name(rest: &mut Peekable<Chars<'_>>) -> String {
    let mut name = String::new();
    while let Some(c) =
        rest.next_if(|c| c.is_ascii_alphabetic() || *c == '_' || (!name.is_empty() && c.is_ascii_digit()))
    {
        name.push(c);
    }
    name
}

/// Reads a value up to a blank, `;` or the end of the line: bare words, quotes and backslashes, joined.
fn value(rest: &mut Peekable<Chars<'_>>) -> Result<String, &'static str> {
    const PLAIN: &str = "a plain value (quotes are fine; nothing is expanded or run)";
    let mut value = String::new();
    while let Some(c) = rest.peek().copied() {
        if c == ' ' || c == '\t' || c == ';' {
            break;
        }
        rest.next();
        match c {
            '\'' => loop {
                match rest.next() {
                    Some('\'') => break,
                    Some(c) => value.push(c),
                    None => return Err("a closing ' on the same line"),
                }
            },
            '"' => double_quoted(rest, &mut value)?,
            '\\' => value.push(rest.next().ok_or("a character after the \\")?),
            '\r' => return Err("lines that end in \\n alone, not in \\r\\n"),
            '$' | '`' | '(' | ')' | '&' | '|' | '<' | '>' | '{' | '}' => return Err(PLAIN),
            // Bash would expand this to the home directory.
            '~' if value.is_empty() || value.ends_with(':') => return Err(PLAIN),
            c => value.push(c),
        }
    }
    Ok(value)
}

fn double_quoted(rest: &mut Peekable<Chars<'_>>, value: &mut String) -> Result<(), &'static str> {
    loop {
        match rest.next() {
            Some('"') => return Ok(()),
            Some('\\') => match rest.next() {
                // Inside double quotes a backslash quotes only these characters.
                Some(c @ ('"' | '\\' | '$' | '`')) => value.push(c),
                Some(c) => value.extend(['\\', c]),
                None => return Err("a closing \" on the same line"),
            },
            Some('$' | '`') => return Err("a plain value (quotes are fine; nothing is expanded or run)"),
            Some(c) => value.push(c),
            None => return Err("a closing \" on the same line"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    /// The variables that the lexer reads, as `NAME=value` sorted by name; `None` if a line can't be read.
    fn ours(text: &str) -> Option<Vec<String>> {
        let mut values = std::collections::BTreeMap::new();
        for line in lines(text) {
            values.extend(line.content.ok()?);
        }
        Some(values.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    /// The values that bash gives the variables A, B and C.
    fn bash(text: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kvmrc");
        std::fs::write(&file, text).unwrap();
        let print = r#"for v in A B C; do [ -z "${!v+x}" ] || printf '%s=%s\0' "$v" "${!v}"; done"#;
        let script = format!(". '{}'; {print}", file.display());
        let out = Command::new("env").args(["-i", "PATH=/usr/bin:/bin", "bash", "-c", &script]).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        text.split_terminator('\0').map(str::to_owned).collect()
    }

    #[test]
    fn values_are_those_of_bash() {
        for text in [
            "",
            "A=1\n",
            "export A=1 B=2\n",
            "export A\nB=2",
            "A=1 # comment\nB=x#y\n",
            "# A=1\n  # B=2 \\\nC=3\n",
            "A='one two' B=\"three four\"\n",
            "A='a'\"b\"c\\ d\n",
            "A=\"a\\\"b\\\\c\\d\\$e\"\n",
            "A=\n",
            "A=1; B=2;\n",
            "A=a\\\nb\nB=2\n",
            "A='it'\\''s'\n",
            "A=http://x/y?z\nexport B=/bin/* C=[a]!\n",
            "A=a=b\n",
            "\tA=1\n",
            "A=ü\n",
        ] {
            assert_eq!(ours(text).as_ref(), Some(&bash(text)), "{text:?}");
        }
    }

    #[test]
    fn commands_and_expansions_are_refused() {
        for text in [
            "A=$B",
            "A=\"$B\"",
            "A=`id`",
            "A=$(id)",
            "A=(1 2)",
            "A+=1",
            "if true; then A=1; fi",
            "source x",
            ". x",
            "A=~/x",
            "A='open",
            "A=\"open",
            "A=1 touch x",
            "A=1\r",
            "export -f x",
            "A=1 && B=2",
            "A=$((1+1))",
            "1A=2",
            "A={a,b}",
        ] {
            assert_eq!(ours(text), None, "{text:?} was read");
        }
    }

    #[test]
    fn only_a_lone_assignment_may_be_ignored() {
        let name = |text: &str| lines(text).remove(0).content.unwrap_err().only_sets;
        assert_eq!(name("X=$Y").as_deref(), Some("X"));
        assert_eq!(name("export X=\"$(cat /y; date)\"").as_deref(), Some("X"));
        for text in ["X=$Y; DUMMY_BRIDGE=a", "DUMMY_BRIDGE=a X=$Y", "X=$Y && rm z", "fi", "X=$Y | tee z"] {
            assert_eq!(name(text), None, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn generated_quoting_gives_the_values_of_bash(parts in proptest::collection::vec(
            prop_oneof!["[a-z0-9/:.,=@%+*?!-]{1,4}", "'[ -&(-~]{0,5}'", "\"[ !#%-\\[\\]-_a-~]{0,5}\"", "\\\\[ -~]"], 1..6))
        {
            let text = format!("A={}\n", parts.concat());
            if let Some(read) = ours(&text) {
                prop_assert_eq!(read, bash(&text), "{:?}", text);
            }
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "[A=\"'\\\\$`#;x \n\t]{0,40}") {
            ours(&text);
        }
    }
}
