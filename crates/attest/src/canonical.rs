//! Canonical JSON: RFC 8785 (JCS).
//!
//! Members are sorted by the UTF-16 code units of their names, numbers are written as ECMAScript does, strings with
//! the fewest escapes, nothing stands between tokens. Same value, same bytes: what is hashed and signed is this form.

use serde_json::{Map, Number, Value};

use crate::json::{self, Limits};

/// The canonical bytes of `value`.
pub fn to_vec(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    write(value, &mut out);
    out
}

/// Appends the canonical bytes of `value` to `out`.
pub fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => write_number(number, out),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(item, out);
            }
            out.push(b']');
        }
        Value::Object(members) => write_object(members, out),
    }
}

/// True if `bytes` are exactly the canonical form of the document they hold.
pub fn is_canonical(bytes: &[u8]) -> bool {
    json::parse(bytes, &Limits::default()).is_ok_and(|value| to_vec(&value) == bytes)
}

/// Appends `text` as a canonical JSON string, quotes included.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    loop {
        let plain = plain_length(rest);
        out.extend_from_slice(&rest[..plain]);
        let Some(byte) = rest.get(plain) else { break };
        rest = &rest[plain + 1..];
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\r' => out.extend_from_slice(b"\\r"),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 15)]);
            }
        }
    }
    out.push(b'"');
}

/// How many bytes stand before the first that has to be escaped.
fn plain_length(bytes: &[u8]) -> usize {
    /// Looked at without a branch for each byte, so that the compiler takes them all at once.
    const AT_ONCE: usize = 32;
    let needs_escape = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    let is_plain = |chunk: &&[u8]| !chunk.iter().fold(false, |any, byte| any | needs_escape(*byte));
    let plain = bytes.chunks_exact(AT_ONCE).take_while(is_plain).count() * AT_ONCE;
    plain
        + bytes[plain..]
            .iter()
            .take_while(|byte| !needs_escape(**byte))
            .count()
}

fn write_number(number: &Number, out: &mut Vec<u8>) {
    /// 2^53: from here on a double and an integer of the same text may differ.
    const SAFE: u64 = 1 << 53;
    if let Some(integer) = number.as_i64().filter(|integer| integer.unsigned_abs() <= SAFE) {
        return write_integer(integer, out);
    }
    let double = number
        .as_f64()
        .expect("without arbitrary precision every number is a double");
    out.extend_from_slice(ryu_js::Buffer::new().format_finite(double).as_bytes());
}

fn write_integer(integer: i64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = integer.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if integer < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

fn write_object(members: &Map<String, Value>, out: &mut Vec<u8>) {
    out.push(b'{');
    // The map is sorted by UTF-8 bytes. That is the order of UTF-16 code units too, unless a name holds a character
    // that UTF-16 writes as surrogates, which sort below U+E000: possible only with a lead byte of 0xF0 or more.
    if members.keys().any(|key| key.bytes().any(|byte| byte >= 0xee)) {
        let mut sorted: Vec<(&String, &Value)> = members.iter().collect();
        sorted.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
        write_members(sorted.into_iter(), out);
    } else {
        write_members(members.iter(), out);
    }
    out.push(b'}');
}

fn write_members<'v>(members: impl Iterator<Item = (&'v String, &'v Value)>, out: &mut Vec<u8>) {
    for (index, (key, value)) in members.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(key, out);
        out.push(b':');
        write(value, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn another_writer_of_rfc_8785_writes_the_same_bytes() {
        for value in [
            json!(null),
            json!({"b": 1, "a": [true, false, null, {"": "\u{8}\t\n\u{c}\r\u{1f}\"\\/\u{7f}é€𐀀"}]}),
            json!({"\u{e000}": 1, "𐀀": 2, "é": 3, "z": 4, "Z": 5, "\u{ffff}": 6}),
            json!([
                0,
                -0.0,
                1.0,
                -1,
                0.1,
                1e21,
                1e-7,
                1e20,
                123456789012345680000.0,
                5e-324,
                1.7976931348623157e308
            ]),
            json!([9007199254740992u64, -9007199254740992i64, i64::MIN, u64::MAX]),
        ] {
            let want = serde_json_canonicalizer::to_vec(&value).expect("the other writer takes it");
            assert_eq!(String::from_utf8(to_vec(&value)), String::from_utf8(want));
        }
    }

    #[test]
    fn an_escape_is_written_wherever_it_stands() {
        for place in 0..100 {
            for special in ["\"", "\\", "\n", "\u{0}", "\u{1f}", "é", "\u{7f}"] {
                let text = format!("{}{special}{}", "a".repeat(place), "b".repeat(99 - place));
                let mut written = Vec::new();
                write_string(&text, &mut written);
                // Where no number and no name is at stake, serde_json writes the canonical form.
                let want = serde_json::to_string(&text).expect("a string");
                assert_eq!(String::from_utf8(written), Ok(want), "{special:?} at {place}");
            }
        }
    }

    #[test]
    fn only_the_canonical_bytes_are_canonical() {
        for (text, want) in [
            (r#"{"a":1,"b":[]}"#, true),
            (r#"{"b":[],"a":1}"#, false),
            (r#"{"a": 1}"#, false),
            (r#"{"a":1.0}"#, false),
            (r#"{"a":"\u00e9"}"#, false),
            (r#"{"a":1,"a":1}"#, false),
            ("", false),
        ] {
            assert_eq!(is_canonical(text.as_bytes()), want, "{text}");
        }
    }
}
