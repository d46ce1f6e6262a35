//! Bodies of Rekor v2 log entries: kind `hashedrekord`, version 0.0.2, in canonical JSON.
//!
//! The body binds a digest, a signature over it and the key. The digest is that of the DSSE pre-authentication
//! encoding. The leaf of the tree is the body's RFC 6962 leaf hash.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;

use crate::digest::Digest;
use crate::entry::{Bound, Entry, Signed};
use crate::json;
use crate::key::VerifyingKey;

/// The entry's kind.
pub const KIND: &str = "hashedrekord";
/// The entry's version.
pub const VERSION: &str = "0.0.2";

/// Largest body that is read, in bytes: a log's entry has at most 65,535.
const MAX_BODY_BYTES: usize = 65_535;

/// What a body says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashedRekord {
    /// SHA-256 of what was signed.
    pub digest: Digest,
    /// The signature's bytes.
    pub signature: Vec<u8>,
    /// The key's SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
}

impl From<HashedRekord> for Entry {
    fn from(body: HashedRekord) -> Self {
        Self {
            signed: Signed::Message(body.digest),
            signatures: vec![Bound {
                signature: body.signature,
                spki: body.spki,
            }],
        }
    }
}

/// Why a body is refused; the text says which part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` of the entry's body is missing, unknown or malformed")]
pub struct BodyError {
    /// The member at fault.
    pub field: &'static str,
}

impl BodyError {
    /// The reason code.
    pub const fn reason(self) -> &'static str {
        "ENTRY_MALFORMED"
    }
}

/// The canonical body of an entry.
///
/// # Errors
/// [`BodyError`] if signatures of this key cannot be logged.
pub fn entry_body(digest: &Digest, signature: &[u8], key: &VerifyingKey) -> Result<Vec<u8>, BodyError> {
    let refused = BodyError { field: "keyDetails" };
    let details = key.key_details().filter(|_| key.is_loggable()).ok_or(refused)?;
    let digest = BASE64_STANDARD.encode(digest.as_bytes());
    let (signature, spki) = (
        BASE64_STANDARD.encode(signature),
        BASE64_STANDARD.encode(key.spki()),
    );
    Ok(format!(
        "{{\"apiVersion\":\"{VERSION}\",\"kind\":\"{KIND}\",\"spec\":{{\"hashedRekordV002\":{{\
         \"data\":{{\"algorithm\":\"SHA2_256\",\"digest\":\"{digest}\"}},\
         \"signature\":{{\"content\":\"{signature}\",\"verifier\":{{\"keyDetails\":\"{details}\",\
         \"publicKey\":{{\"rawBytes\":\"{spki}\"}}}}}}}}}}}}"
    )
    .into_bytes())
}

/// Reads a body.
///
/// # Errors
/// [`BodyError`] names the member at fault.
pub fn parse_body(body: &[u8]) -> Result<HashedRekord, BodyError> {
    if let Some(read) = parse_canonical(body) {
        return Ok(read);
    }
    let limits = json::Limits {
        bytes: MAX_BODY_BYTES,
        depth: 8,
        ..json::Limits::default()
    };
    let document = json::parse(body, &limits).map_err(|_| BodyError { field: "body" })?;
    expect(&document["apiVersion"], VERSION, "apiVersion")?;
    expect(&document["kind"], KIND, "kind")?;
    let spec = &document["spec"]["hashedRekordV002"];
    expect(&spec["data"]["algorithm"], "SHA2_256", "data.algorithm")?;
    let digest = decode(&spec["data"]["digest"], "data.digest")?;
    let digest: [u8; 32] = digest
        .try_into()
        .map_err(|_| BodyError { field: "data.digest" })?;
    Ok(HashedRekord {
        digest: Digest::from_bytes(digest),
        signature: decode(&spec["signature"]["content"], "signature.content")?,
        spki: decode(
            &spec["signature"]["verifier"]["publicKey"]["rawBytes"],
            "verifier.publicKey",
        )?,
    })
}

/// Reads a body that stands there exactly as [`entry_body`] writes it, as almost all do: without a JSON parser, of
/// whose values two would be needed for each verdict.
fn parse_canonical(body: &[u8]) -> Option<HashedRekord> {
    let body = std::str::from_utf8(body).ok()?;
    let rest = body.strip_prefix(
        "{\"apiVersion\":\"0.0.2\",\"kind\":\"hashedrekord\",\"spec\":{\"hashedRekordV002\":{\
         \"data\":{\"algorithm\":\"SHA2_256\",\"digest\":\"",
    )?;
    let (digest, rest) = rest.split_once("\"},\"signature\":{\"content\":\"")?;
    let (signature, rest) = rest.split_once("\",\"verifier\":{\"keyDetails\":\"")?;
    let (details, rest) = rest.split_once("\",\"publicKey\":{\"rawBytes\":\"")?;
    let spki = rest.strip_suffix("\"}}}}}}")?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !details.bytes().all(is_name) {
        return None;
    }
    // Base64 has no quotes, so nothing else can hide in these.
    let decode = |text: &str| BASE64_STANDARD.decode(text).ok();
    let digest: [u8; 32] = decode(digest)?.try_into().ok()?;
    Some(HashedRekord {
        digest: Digest::from_bytes(digest),
        signature: decode(signature)?,
        spki: decode(spki)?,
    })
}

fn expect(value: &Value, wanted: &str, field: &'static str) -> Result<(), BodyError> {
    if value.as_str() == Some(wanted) {
        Ok(())
    } else {
        Err(BodyError { field })
    }
}

fn decode(value: &Value, field: &'static str) -> Result<Vec<u8>, BodyError> {
    let text = value.as_str().ok_or(BodyError { field })?;
    BASE64_STANDARD.decode(text).map_err(|_| BodyError { field })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical;
    use crate::key::{Algorithm, SigningKey};

    #[test]
    fn a_body_is_canonical_and_read_back() {
        let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let digest = Digest::of(b"pae");
        let body = entry_body(&digest, &[1, 2, 3], key.verifying_key()).expect("loggable");
        assert!(canonical::is_canonical(&body));
        let spki = key.verifying_key().spki().to_vec();
        assert_eq!(
            parse_body(&body),
            Ok(HashedRekord {
                digest,
                signature: vec![1, 2, 3],
                spki
            })
        );
        let mut spaced = body.clone();
        spaced.insert(1, b' ');
        assert_eq!(
            (parse_canonical(&body).as_ref(), parse_canonical(&spaced)),
            (parse_body(&spaced).as_ref().ok(), None),
            "read either way, it says the same"
        );
    }

    #[test]
    fn another_entry_is_refused_by_its_member() {
        let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let body = entry_body(&Digest::of(b"pae"), &[1], key.verifying_key()).expect("loggable");
        let body = String::from_utf8(body).expect("JSON is UTF-8");
        for (from, to, field) in [
            ("0.0.2", "0.0.1", "apiVersion"),
            ("hashedrekord", "dsse", "kind"),
            ("SHA2_256\"", "SHA2_384\"", "data.algorithm"),
            ("\"digest\":\"", "\"digest\":\"AAAA", "data.digest"),
            ("\"content\":\"", "\"content\":\"*", "signature.content"),
            ("rawBytes", "rawbytes", "verifier.publicKey"),
            ("{\"apiVersion\"", "{\"kind\":1,\"apiVersion\"", "body"),
        ] {
            let altered = body.replacen(from, to, 1);
            assert_eq!(parse_body(altered.as_bytes()), Err(BodyError { field }), "{from}");
        }
        let ed25519 = SigningKey::generate(Algorithm::Ed25519).expect("a key");
        let refused = entry_body(&Digest::of(b"pae"), &[1], ed25519.verifying_key());
        assert_eq!(refused, Err(BodyError { field: "keyDetails" }));
    }
}
