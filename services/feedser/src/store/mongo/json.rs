//! JSON into BSON and back, without losing what a receipt was made over.
//!
//! Into BSON: fields keep their order, integers become int32 where they fit and else int64, other numbers double.
//! Back: the same numbers stand as JSON numbers; what JSON lacks stands as canonical extended JSON, so that documents
//! of other writers have one form, too. The canonical JSON of a document that came from JSON is what it was.

use std::fmt;

use bson::raw::RawBsonRef;
use bson::spec::ElementType;
use bson::{Bson, RawDocument, RawDocumentBuf};
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The largest integer that JSON readers agree on, 2^53 - 1.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// Deepest nesting that is followed; JSON that we take ends at half of it.
const MAX_DEPTH: usize = 128;

/// Why a stored document has no form in JSON.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotJson {
    /// Its bytes are not BSON.
    #[error("the document is not BSON")]
    Malformed(#[from] bson::error::Error),
    /// Two readers could read different things.
    #[error("the document has two fields `{0}`")]
    DuplicateField(String),
    /// It is nested deeper than anything we take.
    #[error("the document is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

/// The document of a JSON object that was found valid, with its order of fields.
///
/// It is written straight into the form that goes over the wire: a proof has dozens of fields, and a value in between
/// would cost more than the rest of the way.
pub(super) fn to_document(text: &[u8]) -> Result<RawDocumentBuf, serde_json::Error> {
    let mut bytes = vec![ElementType::Null as u8];
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let root = Element {
        bytes: &mut bytes,
        start: 0,
    };
    root.deserialize(&mut deserializer)?;
    deserializer.end()?;
    if bytes[0] != ElementType::EmbeddedDocument as u8 {
        return Err(serde::de::Error::custom("a document is a JSON object"));
    }
    bytes.remove(0);
    RawDocumentBuf::from_bytes(bytes).map_err(serde::de::Error::custom)
}

/// A number as it is stored: int32 if it fits, else int64.
pub(super) fn integer(number: i64) -> Bson {
    i32::try_from(number).map_or(Bson::Int64(number), Bson::Int32)
}

/// The JSON form of a stored value.
pub(super) fn from_bson(value: RawBsonRef<'_>) -> Result<Value, NotJson> {
    value_of(value, MAX_DEPTH)
}

fn value_of(value: RawBsonRef<'_>, depth: usize) -> Result<Value, NotJson> {
    let inner = depth.checked_sub(1).ok_or(NotJson::TooDeep)?;
    let safe = |number: i64| number.unsigned_abs() <= MAX_SAFE_INTEGER;
    Ok(match value {
        RawBsonRef::Null => Value::Null,
        RawBsonRef::Boolean(value) => Value::Bool(value),
        RawBsonRef::String(text) => Value::String(text.to_owned()),
        RawBsonRef::Int32(number) => number.into(),
        RawBsonRef::Int64(number) if safe(number) => number.into(),
        RawBsonRef::Double(number) if is_readable(number) => Number::from_f64(number).into(),
        RawBsonRef::Array(items) => {
            let mut list = Vec::new();
            for item in items {
                list.push(value_of(item?, inner)?);
            }
            Value::Array(list)
        }
        RawBsonRef::Document(document) => Value::Object(members_of(document, inner)?),
        other => Bson::try_from(other)?.into_canonical_extjson(),
    })
}

fn members_of(document: &RawDocument, depth: usize) -> Result<Map<String, Value>, NotJson> {
    let mut members = Map::new();
    for field in document {
        let (name, value) = field?;
        if members
            .insert(name.as_str().to_owned(), value_of(value, depth)?)
            .is_some()
        {
            return Err(NotJson::DuplicateField(name.as_str().to_owned()));
        }
    }
    Ok(members)
}

/// True if JSON has the double, and all readers take it for the same number.
fn is_readable(number: f64) -> bool {
    number.is_finite()
        && (number.fract() != 0.0 || number.abs() <= MAX_SAFE_INTEGER as f64 || number.abs() >= 1e21)
}

/// An element whose name is written; its value comes next, and then its type is known.
struct Element<'o> {
    bytes: &'o mut Vec<u8>,
    /// Where the byte of its type stands.
    start: usize,
}

impl Element<'_> {
    fn write(self, kind: ElementType, value: &[u8]) {
        self.bytes[self.start] = kind as u8;
        self.bytes.extend_from_slice(value);
    }
}

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.write(ElementType::Null, &[]);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.write(ElementType::Boolean, &[u8::from(value)]);
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.visit_i64(i64::try_from(value).map_err(E::custom)?)
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        match i32::try_from(value) {
            Ok(small) => self.write(ElementType::Int32, &small.to_le_bytes()),
            Err(_) => self.write(ElementType::Int64, &value.to_le_bytes()),
        }
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.write(ElementType::Double, &value.to_le_bytes());
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        let length = i32::try_from(value.len() + 1).map_err(E::custom)?;
        let bytes = &mut *self.bytes;
        bytes[self.start] = ElementType::String as u8;
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let bytes = self.bytes;
        bytes[self.start] = ElementType::Array as u8;
        let length = begin(bytes);
        for number in 0_usize.. {
            let start = bytes.len();
            bytes.push(0);
            bytes.extend_from_slice(number.to_string().as_bytes());
            bytes.push(0);
            if items.next_element_seed(Element { bytes, start })?.is_none() {
                bytes.truncate(start);
                break;
            }
        }
        end(bytes, length)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let bytes = self.bytes;
        bytes[self.start] = ElementType::EmbeddedDocument as u8;
        let length = begin(bytes);
        while let Some(start) = members.next_key_seed(Name { bytes })? {
            members.next_value_seed(Element { bytes, start })?;
        }
        end(bytes, length)
    }
}

/// The name of an element, written after a place for its type; gives back where that is.
struct Name<'o> {
    bytes: &'o mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = usize;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<usize, E> {
        if name.contains('\0') {
            return Err(E::custom("a name has no NUL"));
        }
        let start = self.bytes.len();
        self.bytes.push(0);
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        Ok(start)
    }
}

/// Makes room for the length of a document or array, and says where.
fn begin(bytes: &mut Vec<u8>) -> usize {
    let place = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    place
}

/// Ends the document or array whose length stands at `place`.
fn end<E: serde::de::Error>(bytes: &mut Vec<u8>, place: usize) -> Result<(), E> {
    bytes.push(0);
    let length = i32::try_from(bytes.len() - place).map_err(E::custom)?;
    bytes[place..place + 4].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use bson::{DateTime, Decimal128, Document, RawDocumentBuf, Timestamp, doc, oid::ObjectId};
    use stella_attest::canonical;
    use stella_attest::json::{Limits, parse};

    use super::*;

    fn back(document: &Document) -> String {
        let raw = RawDocumentBuf::try_from(document).unwrap();
        let value = from_bson(RawBsonRef::Document(&raw)).unwrap();
        String::from_utf8(canonical::to_vec(&value)).unwrap()
    }

    #[test]
    fn what_came_from_json_goes_back_as_the_same_bytes() {
        for text in [
            r#"{"z":1,"a":{"y":[1,-2,2.5,true,null,"é\n"],"b":{}}}"#,
            r#"{"n":[2147483647,2147483648,-2147483648,-2147483649,9007199254740991,-9007199254740991]}"#,
            r#"{"n":[1.0,-0,1E30,1e21,1e-7,123456789012.5,5e-324,1.7976931348623157e308]}"#,
            r#"{"\ud83d\ude00":1,"\uffff":2,"":"\u2028"}"#,
        ] {
            let read = parse(text.as_bytes(), &Limits::default()).unwrap();
            let want = String::from_utf8(canonical::to_vec(&read)).unwrap();
            let document = Document::try_from(to_document(text.as_bytes()).unwrap()).unwrap();
            assert_eq!(back(&document), want, "{text}");
        }
    }

    #[test]
    fn fields_keep_their_order_and_numbers_their_kind() {
        let text = br#"{"z":1,"a":2147483648,"m":1.0,"b":{"y":-3,"x":2.5}}"#;
        let want = doc! {"z": 1, "a": 2_147_483_648_i64, "m": 1.0, "b": {"y": -3, "x": 2.5}};
        let got = Document::try_from(to_document(text).unwrap()).unwrap();
        assert_eq!(got, want);
        assert_eq!(got.keys().collect::<Vec<_>>(), ["z", "a", "m", "b"]);
    }

    #[test]
    fn only_an_object_becomes_a_document() {
        for (text, want) in [
            ("[]", "a document is a JSON object"),
            (r#"{"a":1} 2"#, "trailing characters at line 1 column 9"),
            (r#"{"a\u0000b":1}"#, "a name has no NUL at line 1 column 11"),
            (
                r#"{"a":18446744073709551615}"#,
                "out of range integral type conversion attempted at line 1 column 25",
            ),
        ] {
            assert_eq!(
                to_document(text.as_bytes()).unwrap_err().to_string(),
                want,
                "{text}"
            );
        }
    }

    #[test]
    fn what_json_lacks_stands_as_extended_json() {
        let document = doc! {
            "binary": bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: vec![1, 2] },
            "date": DateTime::from_millis(1_762_862_400_000),
            "decimal": Decimal128::from_str("1.50").unwrap(),
            "double": 9_007_199_254_740_992.0,
            "id": ObjectId::from_bytes([7; 12]),
            "long": i64::MAX,
            "nan": f64::NAN,
            "timestamp": Timestamp { time: 1, increment: 2 },
        };
        let want = concat!(
            r#"{"binary":{"$binary":{"base64":"AQI=","subType":"00"}},"#,
            r#""date":{"$date":{"$numberLong":"1762862400000"}},"decimal":{"$numberDecimal":"1.50"},"#,
            r#""double":{"$numberDouble":"9007199254740992.0"},"id":{"$oid":"070707070707070707070707"},"#,
            r#""long":{"$numberLong":"9223372036854775807"},"nan":{"$numberDouble":"NaN"},"#,
            r#""timestamp":{"$timestamp":{"i":2,"t":1}}}"#,
        );
        assert_eq!(back(&document), want);
        assert!(parse(want.as_bytes(), &Limits::default()).is_ok());
    }

    #[test]
    fn a_document_that_can_be_read_in_two_ways_is_refused() {
        let mut twice = RawDocumentBuf::new();
        twice.append(bson::raw::cstr!("a"), 1);
        twice.append(bson::raw::cstr!("a"), 2);
        let refused = from_bson(RawBsonRef::Document(&twice)).unwrap_err();
        assert_eq!(refused.to_string(), "the document has two fields `a`");
    }
}
