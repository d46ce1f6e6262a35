//! Entries of Rekor v1: bodies of kind `dsse` and `hashedrekord` (both version 0.0.1), and the signed entry timestamp.
//!
//! A `dsse` body binds the payload's SHA-256 and each signature with its key; what it says of the envelope's own bytes
//! is not read, because an envelope may be written in many ways and the signatures bind its type already. The signed
//! entry timestamp (SET) is the log's ECDSA signature over the RFC 8785 form of
//! `{body, integratedTime, logID, logIndex}`, which is what makes the log's word on time count.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;

use crate::canonical;
use crate::digest::Digest;
use crate::entry::{Bound, Entry, EntryError, Signed};
use crate::evidence::{InclusionProof, LogEntry};
use crate::json;
use crate::key::VerifyingKey;
use crate::merkle::Hash;

/// The kind of entries that hold a DSSE envelope's digests.
pub const DSSE: &str = "dsse";
/// The kind of entries that hold a digest and a signature over it.
pub const HASHEDREKORD: &str = "hashedrekord";
/// The version of both.
pub const VERSION: &str = "0.0.1";

/// Largest body that is read, in bytes.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Most nodes of one inclusion proof.
const MAX_HASHES: usize = 64;
/// Most signatures of one entry.
const MAX_SIGNATURES: usize = 64;

/// Reads a `dsse` body.
pub(crate) fn parse_dsse(body: &[u8]) -> Result<Entry, EntryError> {
    let document = parse(body, DSSE)?;
    let spec = &document["spec"];
    let payload = digest(&spec["payloadHash"], "spec.payloadHash")?;
    let listed = spec["signatures"]
        .as_array()
        .filter(|listed| !listed.is_empty() && listed.len() <= MAX_SIGNATURES)
        .ok_or(EntryError::Malformed("spec.signatures"))?;
    let mut signatures = Vec::with_capacity(listed.len());
    for one in listed {
        signatures.push(Bound {
            signature: decode(&one["signature"], "spec.signatures.signature")?,
            spki: public_key(&one["verifier"], "spec.signatures.verifier")?,
        });
    }
    Ok(Entry {
        signed: Signed::Payload(payload),
        signatures,
    })
}

/// Reads a `hashedrekord` body.
pub(crate) fn parse_hashedrekord(body: &[u8]) -> Result<Entry, EntryError> {
    let document = parse(body, HASHEDREKORD)?;
    let spec = &document["spec"];
    let bound = Bound {
        signature: decode(&spec["signature"]["content"], "spec.signature.content")?,
        spki: public_key(
            &spec["signature"]["publicKey"]["content"],
            "spec.signature.publicKey",
        )?,
    };
    Ok(Entry {
        signed: Signed::Message(digest(&spec["data"]["hash"], "spec.data.hash")?),
        signatures: vec![bound],
    })
}

/// Reads an entry as the REST API of Rekor v1 gives it: the value that stands under the entry's id. Nothing in it is
/// believed yet.
///
/// # Errors
/// [`EntryError::Malformed`] names the member at fault.
pub fn read_entry(value: &Value) -> Result<LogEntry, EntryError> {
    let body = decode(&value["body"], "body")?;
    let stated = json::parse(&body, &json::Limits::default()).map_err(|_| EntryError::Malformed("body"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let proof = match &value["verification"]["inclusionProof"] {
        Value::Null => None,
        proof => Some(read_proof(proof)?),
    };
    let promise = match &value["verification"]["signedEntryTimestamp"] {
        Value::Null => None,
        set => Some(decode(set, "verification.signedEntryTimestamp")?),
    };
    Ok(LogEntry {
        log_id: read_hash(&value["logID"], "logID")?,
        kind: text(&stated["kind"]),
        version: text(&stated["apiVersion"]),
        log_index: number(&value["logIndex"], "logIndex")?,
        integrated_time: value["integratedTime"].as_i64(),
        promise,
        proof,
        body,
    })
}

fn read_proof(proof: &Value) -> Result<InclusionProof, EntryError> {
    let listed = proof["hashes"]
        .as_array()
        .filter(|hashes| hashes.len() <= MAX_HASHES)
        .ok_or(EntryError::Malformed("inclusionProof.hashes"))?;
    let mut hashes = Vec::with_capacity(listed.len());
    for hash in listed {
        hashes.push(read_hash(hash, "inclusionProof.hashes")?);
    }
    Ok(InclusionProof {
        log_index: number(&proof["logIndex"], "inclusionProof.logIndex")?,
        tree_size: number(&proof["treeSize"], "inclusionProof.treeSize")?,
        root: read_hash(&proof["rootHash"], "inclusionProof.rootHash")?,
        hashes,
        checkpoint: proof["checkpoint"].as_str().unwrap_or_default().to_owned(),
    })
}

fn number(value: &Value, field: &'static str) -> Result<u64, EntryError> {
    value.as_u64().ok_or(EntryError::Malformed(field))
}

fn read_hash(value: &Value, field: &'static str) -> Result<Hash, EntryError> {
    let mut bytes = [0; 32];
    match hex::decode_to_slice(value.as_str().unwrap_or_default(), &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(EntryError::Malformed(field)),
    }
}

/// True if `promise` is the SET of `entry` by `log`; false without an integrated time.
pub fn is_promised(entry: &LogEntry, promise: &[u8], log: &VerifyingKey) -> bool {
    let Some(time) = entry.integrated_time else {
        return false;
    };
    let signed = format!(
        "{{\"body\":\"{}\",\"integratedTime\":{time},\"logID\":\"{}\",\"logIndex\":{}}}",
        BASE64_STANDARD.encode(&entry.body),
        hex::encode(entry.log_id),
        entry.log_index,
    );
    log.verify(signed.as_bytes(), promise)
}

/// The body that Rekor v1 makes of a `dsse` entry: what a log has to answer for this envelope and key.
pub fn dsse_body(envelope: &Digest, payload: &Digest, signature: &[u8], key: &VerifyingKey) -> Vec<u8> {
    let document = serde_json::json!({
        "apiVersion": VERSION,
        "kind": DSSE,
        "spec": {
            "envelopeHash": {"algorithm": "sha256", "value": envelope.hex()},
            "payloadHash": {"algorithm": "sha256", "value": payload.hex()},
            "signatures": [{
                "signature": BASE64_STANDARD.encode(signature),
                "verifier": BASE64_STANDARD.encode(key.to_pem()),
            }],
        },
    });
    canonical::to_vec(&document)
}

fn parse(body: &[u8], kind: &'static str) -> Result<Value, EntryError> {
    let limits = json::Limits {
        bytes: MAX_BODY_BYTES,
        depth: 8,
        ..json::Limits::default()
    };
    let document = json::parse(body, &limits).map_err(|_| EntryError::Malformed("body"))?;
    if document["kind"] != kind {
        return Err(EntryError::Malformed("kind"));
    }
    if document["apiVersion"] != VERSION {
        return Err(EntryError::Malformed("apiVersion"));
    }
    Ok(document)
}

fn digest(value: &Value, field: &'static str) -> Result<Digest, EntryError> {
    if value["algorithm"] != "sha256" {
        return Err(EntryError::Malformed(field));
    }
    let text = value["value"].as_str().unwrap_or_default();
    format!("sha256:{text}")
        .parse()
        .map_err(|_| EntryError::Malformed(field))
}

fn decode(value: &Value, field: &'static str) -> Result<Vec<u8>, EntryError> {
    let text = value.as_str().ok_or(EntryError::Malformed(field))?;
    BASE64_STANDARD
        .decode(text)
        .map_err(|_| EntryError::Malformed(field))
}

/// The SubjectPublicKeyInfo of a PEM public key in base64; empty for a certificate, which no key of the trust roots is.
fn public_key(value: &Value, field: &'static str) -> Result<Vec<u8>, EntryError> {
    let pem = decode(value, field)?;
    let text = std::str::from_utf8(&pem).map_err(|_| EntryError::Malformed(field))?;
    if text.contains("-----BEGIN CERTIFICATE-----") {
        return Ok(Vec::new());
    }
    match VerifyingKey::from_spki_pem(text) {
        Ok(key) => Ok(key.spki().to_vec()),
        Err(_) => Err(EntryError::Malformed(field)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry;
    use crate::key::{Algorithm, SigningKey};

    fn key() -> SigningKey {
        SigningKey::generate(Algorithm::EcdsaP256).expect("a key")
    }

    #[test]
    fn a_dsse_body_binds_payload_signature_and_key() {
        let key = key();
        let (envelope, payload) = (Digest::of(b"envelope"), Digest::of(b"payload"));
        let body = dsse_body(&envelope, &payload, &[1, 2], key.verifying_key());
        let want = Entry {
            signed: Signed::Payload(payload),
            signatures: vec![Bound {
                signature: vec![1, 2],
                spki: key.verifying_key().spki().to_vec(),
            }],
        };
        assert_eq!(entry::parse(DSSE, VERSION, &body), Ok(want));
    }

    #[test]
    fn a_body_that_says_less_is_refused_by_its_member() {
        let key = key();
        let body = dsse_body(&Digest::of(b"e"), &Digest::of(b"p"), &[1], key.verifying_key());
        let body = String::from_utf8(body).expect("JSON is UTF-8");
        let verifier = BASE64_STANDARD.encode(key.verifying_key().to_pem());
        for (from, to, field) in [
            ("\"kind\":\"dsse\"", "\"kind\":\"intoto\"", "kind"),
            ("0.0.1", "0.0.2", "apiVersion"),
            (
                "\"payloadHash\":{\"algorithm\":\"sha256\"",
                "\"payloadHash\":{\"algorithm\":\"sha512\"",
                "spec.payloadHash",
            ),
            (
                "\"signature\":\"AQ==\"",
                "\"signature\":\"*\"",
                "spec.signatures.signature",
            ),
            (verifier.as_str(), "AAAA", "spec.signatures.verifier"),
            (
                "\"signatures\":[",
                "\"signatures\":7,\"other\":[",
                "spec.signatures",
            ),
            ("{\"apiVersion\"", "{\"kind\":1,\"apiVersion\"", "body"),
        ] {
            let altered = body.replacen(from, to, 1);
            assert_ne!(altered, body, "{from}");
            assert_eq!(
                entry::parse(DSSE, VERSION, altered.as_bytes()),
                Err(EntryError::Malformed(field)),
                "{from}"
            );
        }
    }

    #[test]
    fn a_promise_is_over_time_index_log_and_body() {
        let key = key();
        let entry = LogEntry {
            log_id: [7; 32],
            kind: DSSE.into(),
            version: VERSION.into(),
            log_index: 9,
            integrated_time: Some(1_700_000_000),
            promise: None,
            proof: None,
            body: b"{}".to_vec(),
        };
        let signed = format!(
            r#"{{"body":"e30=","integratedTime":1700000000,"logID":"{}","logIndex":9}}"#,
            "07".repeat(32)
        );
        let set = key.sign(signed.as_bytes()).expect("signs");
        assert!(is_promised(&entry, &set, key.verifying_key()));
        for (case, altered) in [
            (
                "index",
                LogEntry {
                    log_index: 8,
                    ..entry.clone()
                },
            ),
            (
                "time",
                LogEntry {
                    integrated_time: Some(1_700_000_001),
                    ..entry.clone()
                },
            ),
            (
                "no time",
                LogEntry {
                    integrated_time: None,
                    ..entry.clone()
                },
            ),
            (
                "log",
                LogEntry {
                    log_id: [8; 32],
                    ..entry.clone()
                },
            ),
            (
                "body",
                LogEntry {
                    body: b"[]".to_vec(),
                    ..entry.clone()
                },
            ),
        ] {
            assert!(!is_promised(&altered, &set, key.verifying_key()), "{case}");
        }
        assert!(!is_promised(
            &entry,
            &set,
            SigningKey::generate(Algorithm::EcdsaP256)
                .expect("a key")
                .verifying_key()
        ));
    }
}
