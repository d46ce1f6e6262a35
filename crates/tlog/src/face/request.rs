//! Reads `CreateEntryRequest` of Rekor v2 (protobuf JSON).
//!
//! Its one known form is `hashedRekordRequestV002` with a public key. Members have the names that protobuf JSON gives
//! them or those of the contract; base64 is of either alphabet, padded or not. Stricter than Rekor: nothing may stand
//! behind the document, `keyDetails` must be those of the key, and no member may be there twice.

use std::sync::Arc;

use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, Engine as _, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};
use stella_attest::digest::Digest;
use stella_attest::json;
use stella_attest::key::VerifyingKey;

use crate::Submission;

/// Most arrays and objects within each other.
const DEPTH: usize = 16;
/// Most values of one request.
const VALUES: usize = 256;

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT);

/// Why a request is refused, as it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BadRequest {
    /// Not JSON.
    Json(String),
    /// No entry, or of a kind that is not taken.
    Kind,
    /// A member that nobody knows.
    UnknownField(String),
    /// A member of another type or form.
    Value { kind: &'static str, field: &'static str },
    /// A member is absent, or does not fit the others.
    Entry(&'static str),
}

impl BadRequest {
    pub(super) fn message(&self) -> String {
        match self {
            Self::Json(what) => what.clone(),
            Self::Kind => "invalid type, must be hashedrekord".to_owned(),
            Self::UnknownField(name) => format!("unknown field {name:?}"),
            Self::Value { kind, field } => format!("invalid value for {kind} field {field}"),
            Self::Entry(what) => format!("invalid hashedrekord request: {what}"),
        }
    }
}

/// Reads a request. The signature is not looked at; the log does that.
pub(super) fn read(body: &[u8]) -> Result<Submission, BadRequest> {
    let limits = json::Limits {
        bytes: usize::MAX,
        depth: DEPTH,
        values: VALUES,
    };
    if body.is_empty() {
        return Err(BadRequest::Kind);
    }
    let document = json::parse(body, &limits).map_err(|error| BadRequest::Json(error.to_string()))?;
    let Value::Object(document) = document else {
        return Err(BadRequest::Json("the request is not an object".to_owned()));
    };
    let mut hashedrekord = None;
    for (name, value) in &document {
        match name.as_str() {
            "hashedRekordRequestV002" | "hashed_rekord_request_v002" => hashedrekord = Some(value),
            "dsseRequestV002" | "dsse_request_v002" => return Err(BadRequest::Kind),
            _ => return Err(BadRequest::UnknownField(name.clone())),
        }
    }
    let request = hashedrekord.filter(|value| !value.is_null());
    let request = Message::of(
        request.ok_or(BadRequest::Kind)?,
        "hashedRekordRequestV002",
        &["digest", "signature"],
    )?;
    let signature = request.message("signature", &["content", "verifier"], "missing signature")?;
    let verifier = signature.message(
        "verifier",
        &[
            "publicKey",
            "public_key",
            "x509Certificate",
            "x509_certificate",
            "keyDetails",
            "key_details",
        ],
        "missing verifier",
    )?;
    let content = signature.bytes("content")?;
    let digest = request.bytes("digest")?;
    let missing = |what, bytes: &[u8]| match bytes.is_empty() {
        true => Err(BadRequest::Entry(what)),
        false => Ok(()),
    };
    missing("missing signature", &content)?;
    missing("missing digest", &digest)?;
    if verifier.get("x509Certificate", "x509_certificate").is_some() {
        return Err(BadRequest::Entry("this log takes public keys, no certificates"));
    }
    let key = verifier.get("publicKey", "public_key");
    let key = key.ok_or(BadRequest::Entry("missing verifier.publicKey"))?;
    let key = Message::of(key, "publicKey", &["rawBytes", "raw_bytes"])?;
    let spki = key.bytes("rawBytes")?;
    missing("missing verifier.publicKey", &spki)?;
    let details = verifier.text("keyDetails")?;
    let key =
        VerifyingKey::from_spki_der(&spki).map_err(|_| BadRequest::Entry("the public key cannot be read"))?;
    if key.key_details() != Some(details) {
        return Err(BadRequest::Entry("keyDetails are not those of the public key"));
    }
    let digest = <[u8; 32]>::try_from(digest);
    let digest = digest.map_err(|_| BadRequest::Entry("the digest is not a SHA-256"))?;
    Ok(Submission {
        pae_digest: Digest::from_bytes(digest),
        signature: content,
        key,
        envelope: Arc::from([]),
    })
}

/// An object whose members are all known.
struct Message<'v>(&'v Map<String, Value>);

impl<'v> Message<'v> {
    fn of(value: &'v Value, field: &'static str, known: &[&str]) -> Result<Self, BadRequest> {
        let Value::Object(members) = value else {
            return Err(BadRequest::Value {
                kind: "message",
                field,
            });
        };
        for name in members.keys() {
            if !known.contains(&name.as_str()) {
                return Err(BadRequest::UnknownField(name.clone()));
            }
        }
        Ok(Self(members))
    }

    /// A member by either of its names; null is absent.
    fn get(&self, name: &str, other: &str) -> Option<&'v Value> {
        let value = self.0.get(name).or_else(|| self.0.get(other));
        value.filter(|value| !value.is_null())
    }

    fn message(
        &self,
        field: &'static str,
        known: &[&str],
        missing: &'static str,
    ) -> Result<Message<'v>, BadRequest> {
        let value = self.get(field, field).ok_or(BadRequest::Entry(missing))?;
        Message::of(value, field, known)
    }

    /// Bytes; none if the member is absent.
    fn bytes(&self, field: &'static str) -> Result<Vec<u8>, BadRequest> {
        let other = if field == "rawBytes" { "raw_bytes" } else { field };
        let malformed = BadRequest::Value { kind: "bytes", field };
        match self.get(field, other) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => {
                let is_url = text.contains(['-', '_']);
                let base64 = if is_url { &BASE64_URL } else { &BASE64 };
                base64.decode(text).map_err(|_| malformed)
            }
            Some(_) => Err(malformed),
        }
    }

    /// The name of an enum's value; empty if the member is absent.
    fn text(&self, field: &'static str) -> Result<&'v str, BadRequest> {
        match self.get(field, "key_details") {
            None => Ok(""),
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(BadRequest::Value { kind: "enum", field }),
        }
    }
}
