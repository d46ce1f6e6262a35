//! Strict JSON: what two parsers could read differently is refused.
//!
//! RFC 8259, and RFC 7493 (I-JSON) where it matters for hashing: no duplicate keys, no integers that a double cannot
//! hold, no lone surrogates, bounded depth. The document is parsed once, into `serde_json::Value`.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

/// The largest integer of I-JSON, 2^53 - 1: a double of this size cannot stand for another integer, too.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;
/// The smallest whole number that the canonical form writes with an exponent; smaller ones stand there as integers.
const FIRST_EXPONENT: f64 = 1e21;

/// How much is read before it is refused.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of the text.
    pub bytes: usize,
    /// Most arrays and objects within each other; beyond 127 it makes no difference.
    pub depth: usize,
    /// Most values; each takes much more memory than the few bytes that it may have in the text.
    pub values: usize,
}

impl Default for Limits {
    /// 64 MiB, 64 levels, a million values.
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            depth: 64,
            values: 1_000_000,
        }
    }
}

/// Why a text is refused; `path` is a JSON Pointer (RFC 6901).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// More bytes than the limit.
    #[error("the document is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// More values than the limit.
    #[error("the document has more than {limit} values")]
    TooManyValues {
        /// The limit.
        limit: usize,
    },
    /// Not JSON, or not UTF-8.
    #[error("not valid JSON: {message}")]
    Syntax {
        /// What and where.
        message: String,
    },
    /// An object names a member twice.
    #[error("duplicate key at `{path}`")]
    DuplicateKey {
        /// The second member.
        path: String,
    },
    /// Arrays and objects within each other beyond the limit.
    #[error("nested too deeply at `{path}`")]
    TooDeep {
        /// Where the limit was passed.
        path: String,
    },
    /// An integer beyond 2^53 - 1, which other readers would round; or a double that the canonical form writes as one.
    #[error("the integer at `{path}` is beyond 2^53 - 1")]
    NumberRange {
        /// The number.
        path: String,
    },
}

impl JsonError {
    /// The reason code.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "DOCUMENT_TOO_LARGE",
            Self::TooManyValues { .. } => "TOO_MANY_VALUES",
            Self::Syntax { .. } => "BAD_JSON",
            Self::DuplicateKey { .. } => "DUPLICATE_KEY",
            Self::TooDeep { .. } => "TOO_DEEP",
            Self::NumberRange { .. } => "NUMBER_RANGE",
        }
    }

    /// The place at fault, where one is known.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::TooLarge { .. } | Self::TooManyValues { .. } | Self::Syntax { .. } => None,
            Self::DuplicateKey { path } | Self::TooDeep { path } | Self::NumberRange { path } => Some(path),
        }
    }
}

/// Parses one whole document.
///
/// # Errors
/// [`JsonError`] names what was found first.
pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Value, JsonError> {
    if bytes.len() > limits.bytes {
        return Err(JsonError::TooLarge { limit: limits.bytes });
    }
    let found = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Strict {
        found: &found,
        numbers: &Numbers::of(bytes),
        values: &Values {
            limit: limits.values,
            left: Cell::new(limits.values),
        },
        depth: limits.depth,
        place: &Place::Root,
    };
    let parsed = seed.deserialize(&mut deserializer).and_then(|value| {
        deserializer.end()?;
        Ok(value)
    });
    parsed.map_err(|error| {
        found.take().unwrap_or_else(|| JsonError::Syntax {
            message: error.to_string(),
        })
    })
}

/// Where the parser stands; on the stack, so that a good document costs no allocation for it.
enum Place<'p> {
    Root,
    Member(&'p Place<'p>, &'p str),
    Item(&'p Place<'p>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Member(parent, key) => write!(f, "{parent}/{}", key.replace('~', "~0").replace('/', "~1")),
            Self::Item(parent, index) => write!(f, "{parent}/{index}"),
        }
    }
}

/// The numbers of the text in their order: `serde_json` hands on the integers beyond 64 bits as doubles, rounded, and
/// only the text says how they were written.
struct Numbers<'t> {
    text: &'t [u8],
    /// Numbers that were parsed.
    parsed: Cell<usize>,
    /// How far the text was looked through, and the numbers up to there.
    looked: Cell<(usize, usize)>,
}

impl<'t> Numbers<'t> {
    fn of(text: &'t [u8]) -> Self {
        Self {
            text,
            parsed: Cell::new(0),
            looked: Cell::new((0, 0)),
        }
    }

    fn count(&self) {
        self.parsed.set(self.parsed.get() + 1);
    }

    /// True if the number that was parsed last has neither fraction nor exponent.
    fn last_is_integer(&self) -> bool {
        let (mut at, mut count) = self.looked.get();
        let mut number: &[u8] = &[];
        while count < self.parsed.get() && at < self.text.len() {
            let rest = &self.text[at..];
            let length = match rest[0] {
                b'"' => string_length(rest),
                b'-' | b'0'..=b'9' => {
                    let is_of_it =
                        |byte: &&u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                    number = &rest[..rest.iter().take_while(is_of_it).count()];
                    count += 1;
                    number.len()
                }
                _ => 1,
            };
            at += length;
        }
        self.looked.set((at, count));
        !number.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E'))
    }
}

/// Bytes of the string at the beginning of `text`, quotes included.
fn string_length(text: &[u8]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// How many values may still come.
struct Values {
    limit: usize,
    left: Cell<usize>,
}

#[derive(Clone, Copy)]
struct Strict<'p> {
    found: &'p RefCell<Option<JsonError>>,
    numbers: &'p Numbers<'p>,
    values: &'p Values,
    depth: usize,
    place: &'p Place<'p>,
}

impl Strict<'_> {
    fn refuse<E: serde::de::Error>(&self, error: JsonError) -> E {
        let refused = E::custom(&error);
        self.found.replace(Some(error));
        refused
    }

    /// The depth that is left inside an array or object here.
    fn inner_depth<E: serde::de::Error>(&self) -> Result<usize, E> {
        self.depth.checked_sub(1).ok_or_else(|| {
            self.refuse(JsonError::TooDeep {
                path: self.place.to_string(),
            })
        })
    }

    fn out_of_range<E: serde::de::Error>(&self) -> E {
        self.refuse(JsonError::NumberRange {
            path: self.place.to_string(),
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let limit = self.values.limit;
        let left = self.values.left.get().checked_sub(1);
        self.values
            .left
            .set(left.ok_or_else(|| self.refuse(JsonError::TooManyValues { limit }))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.numbers.count();
        if value > MAX_SAFE_INTEGER {
            Err(self.out_of_range())
        } else {
            Ok(value.into())
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.numbers.count();
        if value.unsigned_abs() > MAX_SAFE_INTEGER {
            Err(self.out_of_range())
        } else {
            Ok(value.into())
        }
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.numbers.count();
        let is_beyond = value.abs() > MAX_SAFE_INTEGER as f64 && value.fract() == 0.0;
        if is_beyond && (value.abs() < FIRST_EXPONENT || self.numbers.last_is_integer()) {
            return Err(self.out_of_range());
        }
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| self.out_of_range())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let depth = self.inner_depth()?;
        let mut list = Vec::new();
        loop {
            let place = Place::Item(self.place, list.len());
            match items.next_element_seed(Strict {
                depth,
                place: &place,
                found: self.found,
                numbers: self.numbers,
                values: self.values,
            })? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let depth = self.inner_depth()?;
        let mut map = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            let member = match map.entry(key) {
                Entry::Vacant(member) => member,
                Entry::Occupied(member) => {
                    let path = Place::Member(self.place, member.key()).to_string();
                    return Err(self.refuse(JsonError::DuplicateKey { path }));
                }
            };
            let value = members.next_value_seed(Strict {
                depth,
                place: &Place::Member(self.place, member.key()),
                found: self.found,
                numbers: self.numbers,
                values: self.values,
            })?;
            member.insert(value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_readers_could_read_differently_is_refused_with_its_path() {
        let deep = format!("{}1{}", "[".repeat(65), "]".repeat(65));
        let duplicate = |path: &str| JsonError::DuplicateKey { path: path.into() };
        let range = |path: &str| JsonError::NumberRange { path: path.into() };
        for (text, want) in [
            (r#"{"a":1,"a":2}"#, duplicate("/a")),
            (r#"{"x":[{"a":1,"a":1}]}"#, duplicate("/x/0/a")),
            (r#"{"a/b":{"~":1,"~":1}}"#, duplicate("/a~1b/~0")),
            (r#"{"a":1,"\u0061":2}"#, duplicate("/a")),
            ("[9007199254740992]", range("/0")),
            ("[9007199254740993]", range("/0")),
            ("[-9007199254740993]", range("/0")),
            ("18446744073709551615", range("")),
            ("[18446744073709551616]", range("/0")),
            ("[-9223372036854775809]", range("/0")),
            ("[1e17]", range("/0")),
            ("[-9007199254740994.0]", range("/0")),
            (
                r#"[1e30,-2E+21,"\"7",{"\\":1e300},18446744073709551617]"#,
                range("/4"),
            ),
            (
                deep.as_str(),
                JsonError::TooDeep {
                    path: "/0".repeat(64),
                },
            ),
        ] {
            assert_eq!(parse(text.as_bytes(), &Limits::default()), Err(want), "{text}");
        }
        for text in [
            "",
            "{",
            "{} {}",
            "nul",
            "[1,]",
            "\"\\ud800\"",
            "1e400",
            "[NaN]",
            "01",
            "\u{feff}{}",
        ] {
            let refused = parse(text.as_bytes(), &Limits::default()).map_err(|error| error.reason());
            assert_eq!(refused, Err("BAD_JSON"), "{text}");
        }
        let refused = parse(b"\"\xff\"", &Limits::default()).map_err(|error| error.reason());
        assert_eq!(refused, Err("BAD_JSON"));
        let few = Limits {
            values: 3,
            ..Limits::default()
        };
        assert!(parse(b"[1,{\"a\":2}]", &Limits { values: 4, ..few }).is_ok_and(|value| value[1]["a"] == 2));
        assert_eq!(
            parse(b"[1,{\"a\":2}]", &few),
            Err(JsonError::TooManyValues { limit: 3 })
        );
        let small = Limits {
            bytes: 3,
            ..Limits::default()
        };
        assert_eq!(parse(b"1234", &small), Err(JsonError::TooLarge { limit: 3 }));
    }

    #[test]
    fn a_good_document_is_what_serde_json_reads() {
        for text in [
            r#"{"b":[1,-2,2.5,true,null,"é\n"],"a":{"":{}}}"#,
            "9007199254740991",
            "[1E30,9007199254740991.0,1e21,1e-7,-0,3,{\"1\":1e+30}]",
            "\"\\ud83d\\ude00\"",
            " 1 ",
        ] {
            let want: Value = serde_json::from_str(text).expect("valid");
            assert_eq!(parse(text.as_bytes(), &Limits::default()), Ok(want), "{text}");
        }
    }
}
