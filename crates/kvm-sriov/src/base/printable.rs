//! Texts from outside, in the form in which a person may read them: on a terminal, in a log, in OpenNebula's message.

/// A longer text loses its middle. Its begin says what failed, its end says in what state the host is.
const BEGIN: usize = 3000;
const END: usize = 1000;

/// The text as one line, without characters that change what a terminal shows. Such a character is written as `\u{1b}`.
///
/// A guest, another host, or a program may have chosen the text: through the error of libvirt that quotes it, for
/// example.
pub(crate) fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for (number, part) in text.lines().map(str::trim).enumerate() {
        if number > 0 {
            line.push(' ');
        }
        for c in part.chars() {
            match c {
                '\t' => line.push_str("\\t"),
                '\r' => line.push_str("\\r"),
                c if is_hidden(c) => line.extend(c.escape_unicode()),
                c => line.push(c),
            }
        }
    }
    line
}

/// A text from outside as one line for a person, without characters that change what a terminal shows. The middle of a
/// long text is left out.
///
/// ```
/// assert_eq!(kvm_sriov::printable("no\nsuch \u{1b}[2Jfile"), "no such \\u{1b}[2Jfile");
/// assert!(kvm_sriov::printable(&"x".repeat(1 << 20)).len() < 5000);
/// ```
pub fn printable(text: &str) -> String {
    let line = escaped(text);
    let length = line.chars().count();
    let Some(left_out) = length.checked_sub(BEGIN + END).filter(|more| *more > 0) else { return line };
    let mut short: String = line.chars().take(BEGIN).collect();
    short.push_str(&format!(" ... ({left_out} characters) ... "));
    short.extend(line.chars().skip(BEGIN + left_out));
    short
}

/// Whether a terminal takes the character for a command, or shows nothing for it, or shows the text in another order.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_written_out() {
        for (text, line) in [
            ("plain, ü and 世", "plain, ü and 世"),
            ("a\r\nb\n\n  c\n", "a b  c"),
            ("\u{1b}]0;title\u{7}x", "\\u{1b}]0;title\\u{7}x"),
            // The same command in one character of C1, and a carriage return that overwrites the line.
            ("\u{9b}2Jx\ry", "\\u{9b}2Jx\\ry"),
            ("one-\u{202e}24", "one-\\u{202e}24"),
            ("a\tb\u{2028}c\0", "a\\tb\\u{2028}c\\u{0}"),
        ] {
            assert_eq!(escaped(text), line, "{text:?}");
            assert_eq!(printable(&printable(text)), line, "{text:?}");
        }
    }

    #[test]
    fn a_long_text_keeps_its_begin_and_its_end() {
        let text = format!("exec: {}; nothing was changed", "ü".repeat(1_000_000));
        let short = printable(&text);
        assert!(short.starts_with("exec: ü") && short.ends_with("ü; nothing was changed"), "{short}");
        assert!(short.chars().count() < 4100 && short.contains(" ... (996027 characters) ... "), "{short}");
        let fits = "x".repeat(BEGIN + END);
        assert_eq!(printable(&fits), fits);
    }
}
