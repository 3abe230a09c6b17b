//! Decodes the base64 that OpenNebula writes.

/// Decodes base64. White space is ignored. `None` if the text is not base64.
///
/// # Source
/// RFC 4648, section 4. OpenNebula up to 5.10 wraps the lines.
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let padding = digits.iter().rev().take_while(|byte| **byte == b'=').count();
    if digits.len() % 4 != 0 || padding > 2 {
        return None;
    }
    let value = |digit: u8| match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut bytes, mut bits, mut held) = (Vec::with_capacity(digits.len() / 4 * 3), 0_u32, 0_u32);
    for digit in digits.iter().take(digits.len() - padding) {
        held = (held << 6) | u32::from(value(*digit)?);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from((held >> bits) & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_may_be_wrapped() {
        for (text, bytes) in [
            ("", Some("")),
            ("Zg==", Some("f")),
            ("Zm8=", Some("fo")),
            ("Zm9v", Some("foo")),
            ("PFZN\nPsO8\r\nPC9WTT4=\n", Some("<VM>ü</VM>")),
            ("Zg", None),
            ("Zg=a", None),
            ("Z===", None),
            ("Zm9\0", None),
            ("Zm9é", None),
        ] {
            assert_eq!(base64(text).as_deref(), bytes.map(str::as_bytes), "{text:?}");
        }
    }
}
