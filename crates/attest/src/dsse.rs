//! DSSE: envelopes of signed payloads (secure-systems-lab, DSSE v1.0).

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE, Engine as _};
use serde_json::{Map, Value};

use crate::canonical;
use crate::digest::Digest;
use crate::json::{self, JsonError};
use crate::key::{KeyError, KeyId, SigningKey, VerifyingKey};

/// Most signatures that an envelope may bear.
const MAX_SIGNATURES: usize = 32;

/// The pre-authentication encoding: the bytes that are signed.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    let mut bytes = Vec::with_capacity(head.len() + payload.len());
    bytes.extend_from_slice(head.as_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// One signature of an envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// A hint which key signed; never trusted, may be empty.
    pub keyid: String,
    /// The signature's bytes.
    pub sig: Vec<u8>,
}

/// A signed payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// What the payload is.
    pub payload_type: String,
    /// The payload's bytes.
    pub payload: Vec<u8>,
    /// At least one signature, none of them empty.
    pub signatures: Vec<Signature>,
}

/// Why a document is not an envelope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It is not strict JSON.
    #[error("the envelope is not valid JSON")]
    Json(#[from] JsonError),
    /// A member is missing or of the wrong type.
    #[error("`{field}` of the envelope is missing or of the wrong type")]
    Malformed {
        /// The member.
        field: &'static str,
    },
    /// A member is not base64.
    #[error("`{field}` of the envelope is not base64")]
    Base64 {
        /// The member.
        field: &'static str,
    },
    /// It bears no signature.
    #[error("the envelope bears no signature")]
    NoSignatures,
    /// A signature is empty.
    #[error("a signature of the envelope is empty")]
    EmptySignature,
    /// More signatures than are read.
    #[error("the envelope bears more than {MAX_SIGNATURES} signatures")]
    TooManySignatures,
}

impl EnvelopeError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Json(error) => error.reason(),
            Self::Malformed { .. } | Self::Base64 { .. } => "ENVELOPE_MALFORMED",
            Self::NoSignatures => "NO_SIGNATURES",
            Self::EmptySignature => "EMPTY_SIGNATURE",
            Self::TooManySignatures => "TOO_MANY_SIGNATURES",
        }
    }
}

/// Why the signatures of an envelope do not suffice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DsseError {
    /// A threshold of nought would pass anything.
    #[error("a threshold is at least one")]
    ZeroThreshold,
    /// Fewer distinct known keys signed than are needed.
    #[error("{valid} of the {needed} signatures needed are valid")]
    ThresholdNotMet {
        /// Distinct keys that signed.
        valid: usize,
        /// Distinct keys that must sign.
        needed: usize,
    },
}

impl DsseError {
    /// The reason code.
    pub const fn reason(&self) -> &'static str {
        "THRESHOLD_NOT_MET"
    }
}

impl Envelope {
    /// Reads an envelope's JSON; members that the specification does not name are ignored, as it asks.
    ///
    /// # Errors
    /// [`EnvelopeError`] names the member at fault.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        Self::from_value(&json::parse(bytes, &json::Limits::default())?)
    }

    /// Reads an envelope that stands within another document.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn from_value(value: &Value) -> Result<Self, EnvelopeError> {
        let text = |field: &'static str| value[field].as_str().ok_or(EnvelopeError::Malformed { field });
        let payload_type = text("payloadType")?.to_owned();
        let payload = decode(text("payload")?, "payload")?;
        let listed = match &value["signatures"] {
            Value::Array(listed) => listed.as_slice(),
            Value::Null => &[],
            _ => return Err(EnvelopeError::Malformed { field: "signatures" }),
        };
        if listed.is_empty() {
            return Err(EnvelopeError::NoSignatures);
        }
        if listed.len() > MAX_SIGNATURES {
            return Err(EnvelopeError::TooManySignatures);
        }
        let signatures = listed.iter().map(read_signature).collect::<Result<_, _>>()?;
        Ok(Self {
            payload_type,
            payload,
            signatures,
        })
    }

    /// The envelope as JSON: `keyid` only where it is not empty, padded standard base64.
    pub fn to_value(&self) -> Value {
        let signatures = self.signatures.iter().map(|signature| {
            let mut members = Map::new();
            if !signature.keyid.is_empty() {
                members.insert("keyid".into(), signature.keyid.clone().into());
            }
            members.insert("sig".into(), BASE64_STANDARD.encode(&signature.sig).into());
            Value::Object(members)
        });
        let mut members = Map::new();
        members.insert("payload".into(), BASE64_STANDARD.encode(&self.payload).into());
        members.insert("payloadType".into(), self.payload_type.clone().into());
        members.insert("signatures".into(), signatures.collect());
        Value::Object(members)
    }

    /// The envelope's canonical bytes (RFC 8785), as cosign uploads them.
    pub fn canonical_bytes(&self) -> Vec<u8> {
        canonical_bytes(&self.payload_type, &self.payload, &self.signatures)
    }

    /// SHA-256 of the canonical bytes.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.canonical_bytes())
    }

    /// The bytes that were signed.
    pub fn pae(&self) -> Vec<u8> {
        pae(&self.payload_type, &self.payload)
    }

    /// Signs `payload` with one key; `keyid` stays empty, since it is optional and cosign refuses foreign ones.
    ///
    /// # Errors
    /// [`KeyError`] if the key cannot sign.
    pub fn sign(payload_type: &str, payload: &[u8], key: &SigningKey) -> Result<Self, KeyError> {
        let sig = key.sign(&pae(payload_type, payload))?;
        let signatures = vec![Signature {
            keyid: String::new(),
            sig,
        }];
        Ok(Self {
            payload_type: payload_type.to_owned(),
            payload: payload.to_vec(),
            signatures,
        })
    }

    /// Returns the distinct keys of `keys` that signed, if they are at least `threshold`.
    ///
    /// `keyid` is a hint and is not read; one key counts once, however often it signed or stands in `keys`.
    ///
    /// # Errors
    /// [`DsseError`] if fewer signed, or if `threshold` is nought.
    pub fn verify(&self, keys: &[&VerifyingKey], threshold: usize) -> Result<Vec<KeyId>, DsseError> {
        if threshold == 0 {
            return Err(DsseError::ZeroThreshold);
        }
        let pae = self.pae();
        let mut signers: Vec<KeyId> = Vec::new();
        for key in keys {
            let counted = signers.contains(key.key_id());
            if !counted
                && self
                    .signatures
                    .iter()
                    .any(|signature| key.verify(&pae, &signature.sig))
            {
                signers.push(key.key_id().clone());
            }
        }
        if signers.len() < threshold {
            return Err(DsseError::ThresholdNotMet {
                valid: signers.len(),
                needed: threshold,
            });
        }
        Ok(signers)
    }
}

/// The canonical bytes of the envelope that has these parts.
pub fn canonical_bytes(payload_type: &str, payload: &[u8], signatures: &[Signature]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() * 4 / 3 + 256);
    out.extend_from_slice(b"{\"payload\":\"");
    push_base64(payload, &mut out);
    out.extend_from_slice(b"\",\"payloadType\":");
    canonical::write_string(payload_type, &mut out);
    out.extend_from_slice(b",\"signatures\":[");
    for (index, signature) in signatures.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"{" } else { b",{" });
        if !signature.keyid.is_empty() {
            out.extend_from_slice(b"\"keyid\":");
            canonical::write_string(&signature.keyid, &mut out);
            out.push(b',');
        }
        out.extend_from_slice(b"\"sig\":\"");
        push_base64(&signature.sig, &mut out);
        out.extend_from_slice(b"\"}");
    }
    out.extend_from_slice(b"]}");
    out
}

fn push_base64(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    BASE64_STANDARD
        .encode_slice(bytes, &mut out[start..])
        .expect("the space is exactly what base64 needs");
}

fn read_signature(value: &Value) -> Result<Signature, EnvelopeError> {
    let keyid = match &value["keyid"] {
        Value::Null => String::new(),
        Value::String(keyid) => keyid.clone(),
        _ => {
            return Err(EnvelopeError::Malformed {
                field: "signatures.keyid",
            });
        }
    };
    let text = value["sig"].as_str().ok_or(EnvelopeError::Malformed {
        field: "signatures.sig",
    })?;
    let sig = decode(text, "signatures.sig")?;
    if sig.is_empty() {
        Err(EnvelopeError::EmptySignature)
    } else {
        Ok(Signature { keyid, sig })
    }
}

/// Base64 as the specification allows it: standard or URL-safe, padded.
fn decode(text: &str, field: &'static str) -> Result<Vec<u8>, EnvelopeError> {
    BASE64_STANDARD
        .decode(text)
        .or_else(|_| BASE64_URL_SAFE.decode(text))
        .map_err(|_| EnvelopeError::Base64 { field })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Algorithm;

    #[test]
    fn the_canonical_bytes_are_those_of_the_canonical_writer() {
        let envelope = Envelope {
            payload_type: "a\"b".into(),
            payload: b"payload".to_vec(),
            signatures: vec![
                Signature {
                    keyid: String::new(),
                    sig: vec![1, 2, 3],
                },
                Signature {
                    keyid: "k\n".into(),
                    sig: vec![255],
                },
            ],
        };
        assert_eq!(
            envelope.canonical_bytes(),
            canonical::to_vec(&envelope.to_value())
        );
        assert_eq!(Envelope::parse(&envelope.canonical_bytes()), Ok(envelope));
    }

    #[test]
    fn only_distinct_known_keys_count() {
        let keys: Vec<SigningKey> = (0..3)
            .map(|_| SigningKey::generate(Algorithm::EcdsaP256).expect("a key"))
            .collect();
        let mut envelope = Envelope::sign("t", b"p", &keys[0]).expect("signs");
        envelope.signatures.push(envelope.signatures[0].clone());
        envelope
            .signatures
            .extend(Envelope::sign("t", b"p", &keys[1]).expect("signs").signatures);
        let [a, b, c] = [
            keys[0].verifying_key(),
            keys[1].verifying_key(),
            keys[2].verifying_key(),
        ];
        let not_met = |valid, needed| Err(DsseError::ThresholdNotMet { valid, needed });
        for (case, known, threshold, want) in [
            ("one of one", vec![a], 1, Ok(vec![a.key_id().clone()])),
            (
                "two of two",
                vec![a, b],
                2,
                Ok(vec![a.key_id().clone(), b.key_id().clone()]),
            ),
            ("one key twice", vec![a, a], 2, not_met(1, 2)),
            ("unknown key", vec![c], 1, not_met(0, 1)),
            ("no key", vec![], 1, not_met(0, 1)),
            ("no threshold", vec![a], 0, Err(DsseError::ZeroThreshold)),
        ] {
            assert_eq!(envelope.verify(&known, threshold), want, "{case}");
        }
        envelope.payload.push(b'!');
        assert_eq!(envelope.verify(&[a, b], 1), not_met(0, 1));
    }

    #[test]
    fn a_malformed_envelope_is_refused_by_name() {
        for (text, want) in [
            (
                r#"{"payload":"cA==","payloadType":"t","signatures":[]}"#,
                "NO_SIGNATURES",
            ),
            (r#"{"payload":"cA==","payloadType":"t"}"#, "NO_SIGNATURES"),
            (
                r#"{"payload":"cA==","payloadType":"t","signatures":null}"#,
                "NO_SIGNATURES",
            ),
            (
                r#"{"payload":"cA==","payloadType":"t","signatures":[{"sig":""}]}"#,
                "EMPTY_SIGNATURE",
            ),
            (
                r#"{"payload":"cA==","payloadType":"t","signatures":[{}]}"#,
                "ENVELOPE_MALFORMED",
            ),
            (
                r#"{"payload":"c*==","payloadType":"t","signatures":[{"sig":"AA=="}]}"#,
                "ENVELOPE_MALFORMED",
            ),
            (
                r#"{"payload":"cA==","signatures":[{"sig":"AA=="}]}"#,
                "ENVELOPE_MALFORMED",
            ),
            (
                r#"{"payloadType":"t","signatures":[{"sig":"AA=="}]}"#,
                "ENVELOPE_MALFORMED",
            ),
            (
                r#"{"payload":"cA==","payload":"cA==","payloadType":"t","signatures":[]}"#,
                "DUPLICATE_KEY",
            ),
            ("[]", "ENVELOPE_MALFORMED"),
            ("nonsense", "BAD_JSON"),
        ] {
            assert_eq!(
                Envelope::parse(text.as_bytes()).map_err(|error| error.reason()),
                Err(want),
                "{text}"
            );
        }
    }
}
