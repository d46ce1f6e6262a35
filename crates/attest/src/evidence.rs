//! Evidence: a Sigstore bundle (v0.1 to v0.3, protobuf JSON) or a bare DSSE envelope, parsed once.
//!
//! Nothing in it is believed here; [`verify`](crate::verify) holds it against the trust roots.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Map, Value, json};

use crate::canonical;
use crate::digest::Digest;
use crate::dsse::{Envelope, EnvelopeError};
use crate::json::{self, JsonError};
use crate::key::KeyId;
use crate::merkle::{self, Hash};

/// The media type of the bundles that are written.
pub const BUNDLE_V0_3: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// Every media type that is read.
const MEDIA_TYPES: [&str; 4] = [
    BUNDLE_V0_3,
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
    "application/vnd.dev.sigstore.bundle+json;version=0.2",
    "application/vnd.dev.sigstore.bundle+json;version=0.1",
];

/// Most log entries of one bundle.
const MAX_ENTRIES: usize = 32;
/// Most nodes of one inclusion proof.
const MAX_HASHES: usize = 64;
/// Most timestamps of one bundle.
const MAX_TIMESTAMPS: usize = 16;

/// A log entry as it stands in a bundle (protobuf-specs `TransparencyLogEntry`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Which log; see [`checkpoint::log_id`](crate::checkpoint::log_id).
    pub log_id: [u8; 32],
    /// The entry's kind, such as `hashedrekord`.
    pub kind: String,
    /// The kind's version.
    pub version: String,
    /// Index in the log.
    pub log_index: u64,
    /// The log's own word on when, in Unix seconds; counts only under a promise.
    pub integrated_time: Option<i64>,
    /// Signed entry timestamp of Rekor v1.
    pub promise: Option<Vec<u8>>,
    /// Proof that the entry is in the tree.
    pub proof: Option<InclusionProof>,
    /// The canonical body, which is the leaf's content.
    pub body: Vec<u8>,
}

/// Proof that an entry is in the tree of a checkpoint (RFC 6962 §2.1.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InclusionProof {
    /// Index in the tree.
    pub log_index: u64,
    /// Size of the tree.
    pub tree_size: u64,
    /// Root of the tree.
    pub root: Hash,
    /// Siblings on the way up, lowest first.
    pub hashes: Vec<Hash>,
    /// The signed note of the checkpoint.
    pub checkpoint: String,
}

/// Why evidence is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// It is not strict JSON.
    #[error("{0}")]
    Json(JsonError),
    /// The envelope is malformed.
    #[error("{0}")]
    Envelope(EnvelopeError),
    /// A bundle of a media type that is not known.
    #[error("bundles of media type `{0}` are not known")]
    MediaType(String),
    /// A bundle that signs a message, not a statement.
    #[error("the bundle holds a message signature, not an attestation")]
    NotAnAttestation,
    /// A member is missing, too long or of the wrong form.
    #[error("`{field}` of the bundle is missing or malformed")]
    Malformed {
        /// Path of the member.
        field: &'static str,
    },
}

impl EvidenceError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Json(error) => error.reason(),
            Self::Envelope(error) => error.reason(),
            Self::MediaType(_) => "BUNDLE_TYPE_UNKNOWN",
            Self::NotAnAttestation => "NOT_AN_ATTESTATION",
            Self::Malformed { .. } => "BUNDLE_MALFORMED",
        }
    }
}

/// What a bundle bears beside what was signed (protobuf-specs `VerificationMaterial`); empty for a bare envelope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Material {
    /// Its log entries.
    pub log_entries: Vec<LogEntry>,
    /// RFC 3161 timestamp responses, DER.
    pub timestamps: Vec<Vec<u8>>,
    /// Hint which key signed; never trusted.
    pub key_hint: Option<String>,
    /// Signing certificate, DER; never trusted by itself.
    pub certificate: Option<Vec<u8>>,
}

/// A bundle that signs the bytes of an artifact, not a statement about it.
#[derive(Clone, Debug)]
pub struct MessageSignature {
    /// SHA-256 of the artifact, as the bundle says.
    pub digest: Digest,
    /// The signature over the artifact.
    pub signature: Vec<u8>,
    /// What the bundle bears beside it.
    pub material: Material,
}

/// Either of the two things that a bundle can sign.
#[derive(Clone, Debug)]
pub enum Parsed {
    /// A statement.
    Attestation(Box<Evidence>),
    /// An artifact.
    Message(Box<MessageSignature>),
}

/// Parsed evidence.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The signed envelope.
    pub envelope: Envelope,
    /// What the bundle bears beside it.
    pub material: Material,
    /// SHA-256 of the envelope's bytes as received; of its canonical form if it came in a bundle.
    ///
    /// It names an envelope, not a statement: no signature covers `keyid` or the other signatures, so whoever changes
    /// them makes another envelope of the same statement. What was signed is told by the digest of the PAE.
    pub envelope_digest: Digest,
    /// SHA-256 of the envelope's canonical form.
    pub canonical_digest: Digest,
    /// True if it came in a bundle.
    pub is_bundle: bool,
}

impl Parsed {
    /// Reads a Sigstore bundle or a bare envelope.
    ///
    /// # Errors
    /// [`EvidenceError`] names the member at fault.
    pub fn parse(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let document = json::parse(bytes, &json::Limits::default()).map_err(EvidenceError::Json)?;
        if document.get("mediaType").is_some() {
            return Self::from_bundle(&document);
        }
        let envelope = Envelope::from_value(&document).map_err(EvidenceError::Envelope)?;
        let canonical_digest = envelope.digest();
        Ok(Self::Attestation(Box::new(Evidence {
            envelope,
            material: Material::default(),
            envelope_digest: Digest::of(bytes),
            canonical_digest,
            is_bundle: false,
        })))
    }

    fn from_bundle(bundle: &Value) -> Result<Self, EvidenceError> {
        let media_type = bundle["mediaType"].as_str().unwrap_or_default();
        if !MEDIA_TYPES.contains(&media_type) {
            return Err(EvidenceError::MediaType(media_type.chars().take(100).collect()));
        }
        let material = Material::from_value(&bundle["verificationMaterial"])?;
        let message = &bundle["messageSignature"];
        if message.is_null() {
            let envelope = Envelope::from_value(&bundle["dsseEnvelope"]).map_err(EvidenceError::Envelope)?;
            let digest = envelope.digest();
            return Ok(Self::Attestation(Box::new(Evidence {
                envelope,
                material,
                envelope_digest: digest,
                canonical_digest: digest,
                is_bundle: true,
            })));
        }
        if bundle.get("dsseEnvelope").is_some() {
            return Err(EvidenceError::Malformed {
                field: "dsseEnvelope",
            });
        }
        if message["messageDigest"]["algorithm"] != "SHA2_256" {
            return Err(EvidenceError::Malformed {
                field: "messageSignature.messageDigest.algorithm",
            });
        }
        let digest = hash(
            &message["messageDigest"]["digest"],
            "messageSignature.messageDigest.digest",
        )?;
        Ok(Self::Message(Box::new(MessageSignature {
            digest: Digest::from_bytes(digest),
            signature: decode(&message["signature"], "messageSignature.signature")?,
            material,
        })))
    }
}

impl Material {
    fn from_value(material: &Value) -> Result<Self, EvidenceError> {
        let entries = list(&material["tlogEntries"], MAX_ENTRIES, "tlogEntries")?;
        let log_entries = entries
            .iter()
            .map(LogEntry::from_value)
            .collect::<Result<_, _>>()?;
        let stamps = &material["timestampVerificationData"]["rfc3161Timestamps"];
        let timestamps = list(stamps, MAX_TIMESTAMPS, "rfc3161Timestamps")?
            .iter()
            .map(|stamp| decode(&stamp["signedTimestamp"], "rfc3161Timestamps.signedTimestamp"))
            .collect::<Result<_, _>>()?;
        // Bundles bear one of them (protobuf-specs VerificationMaterial).
        let names = ["publicKey", "certificate", "x509CertificateChain"];
        if names.iter().filter(|name| !material[**name].is_null()).count() > 1 {
            return Err(EvidenceError::Malformed {
                field: "verificationMaterial",
            });
        }
        let certificate = match (
            &material["certificate"],
            &material["x509CertificateChain"]["certificates"][0],
        ) {
            (Value::Null, Value::Null) => None,
            (Value::Null, leaf) | (leaf, _) => Some(decode(&leaf["rawBytes"], "certificate.rawBytes")?),
        };
        Ok(Self {
            log_entries,
            timestamps,
            key_hint: material["publicKey"]["hint"].as_str().map(str::to_owned),
            certificate,
        })
    }
}

impl Evidence {
    /// Reads an attestation: a Sigstore bundle or a bare envelope.
    ///
    /// # Errors
    /// [`EvidenceError`] names the member at fault.
    pub fn parse(bytes: &[u8]) -> Result<Self, EvidenceError> {
        match Parsed::parse(bytes)? {
            Parsed::Attestation(evidence) => Ok(*evidence),
            Parsed::Message(_) => Err(EvidenceError::NotAnAttestation),
        }
    }

    /// Writes a Sigstore bundle v0.3, canonical and with zero values, which some clients insist on.
    pub fn bundle(envelope: &Envelope, key_id: &KeyId, entries: &[LogEntry]) -> Vec<u8> {
        Self::bundle_of(&envelope.canonical_bytes(), key_id, entries, &[])
    }

    /// The same of an envelope that is in its canonical form already, with RFC 3161 responses (DER) of its signature.
    pub fn bundle_of(
        canonical_envelope: &[u8],
        key_id: &KeyId,
        entries: &[LogEntry],
        timestamps: &[Vec<u8>],
    ) -> Vec<u8> {
        let mut out = Vec::with_capacity(canonical_envelope.len() + 256 + entries.len() * 4096);
        out.extend_from_slice(b"{\"dsseEnvelope\":");
        out.extend_from_slice(canonical_envelope);
        out.extend_from_slice(b",\"mediaType\":");
        canonical::write_string(BUNDLE_V0_3, &mut out);
        out.extend_from_slice(b",\"verificationMaterial\":{\"publicKey\":{\"hint\":");
        canonical::write_string(key_id.as_str(), &mut out);
        out.push(b'}');
        if !timestamps.is_empty() {
            let stamps: Vec<Value> = timestamps
                .iter()
                .map(|stamp| json!({"signedTimestamp": BASE64_STANDARD.encode(stamp)}))
                .collect();
            out.extend_from_slice(b",\"timestampVerificationData\":");
            canonical::write(&json!({"rfc3161Timestamps": stamps}), &mut out);
        }
        out.extend_from_slice(b",\"tlogEntries\":");
        let entries = entries.iter().map(LogEntry::to_value).collect();
        canonical::write(&Value::Array(entries), &mut out);
        out.extend_from_slice(b"}}");
        out
    }
}

impl LogEntry {
    /// The RFC 6962 hash of the entry's leaf.
    pub fn leaf_hash(&self) -> Hash {
        merkle::leaf_hash(&self.body)
    }

    /// The entry as protobuf JSON, 64-bit integers as strings.
    pub fn to_value(&self) -> Value {
        let mut members = Map::new();
        members.insert(
            "canonicalizedBody".into(),
            BASE64_STANDARD.encode(&self.body).into(),
        );
        members.insert(
            "integratedTime".into(),
            self.integrated_time.unwrap_or(0).to_string().into(),
        );
        members.insert(
            "kindVersion".into(),
            json!({"kind": self.kind, "version": self.version}),
        );
        members.insert(
            "logId".into(),
            json!({"keyId": BASE64_STANDARD.encode(self.log_id)}),
        );
        members.insert("logIndex".into(), self.log_index.to_string().into());
        if let Some(promise) = &self.promise {
            let set = BASE64_STANDARD.encode(promise);
            members.insert("inclusionPromise".into(), json!({"signedEntryTimestamp": set}));
        }
        if let Some(proof) = &self.proof {
            let hashes: Vec<String> = proof
                .hashes
                .iter()
                .map(|hash| BASE64_STANDARD.encode(hash))
                .collect();
            let proof = json!({
                "checkpoint": {"envelope": proof.checkpoint},
                "hashes": hashes,
                "logIndex": proof.log_index.to_string(),
                "rootHash": BASE64_STANDARD.encode(proof.root),
                "treeSize": proof.tree_size.to_string(),
            });
            members.insert("inclusionProof".into(), proof);
        }
        Value::Object(members)
    }

    /// Reads an entry; zero values may be absent, integers may be strings or numbers.
    ///
    /// # Errors
    /// [`EvidenceError::Malformed`] names the member.
    pub fn from_value(value: &Value) -> Result<Self, EvidenceError> {
        let kind = |name: &str| value["kindVersion"][name].as_str().unwrap_or_default().to_owned();
        let promise = match &value["inclusionPromise"]["signedEntryTimestamp"] {
            Value::Null => None,
            set => Some(decode(set, "inclusionPromise.signedEntryTimestamp")?),
        };
        let proof = match &value["inclusionProof"] {
            Value::Null => None,
            proof => Some(InclusionProof::from_value(proof)?),
        };
        let seconds = integer(&value["integratedTime"], "integratedTime")?;
        let seconds = i64::try_from(seconds).map_err(|_| EvidenceError::Malformed {
            field: "integratedTime",
        })?;
        Ok(Self {
            log_id: hash(&value["logId"]["keyId"], "logId.keyId")?,
            kind: kind("kind"),
            version: kind("version"),
            log_index: integer(&value["logIndex"], "logIndex")?,
            integrated_time: Some(seconds).filter(|seconds| *seconds != 0),
            promise,
            proof,
            body: decode(&value["canonicalizedBody"], "canonicalizedBody")?,
        })
    }
}

impl InclusionProof {
    fn from_value(value: &Value) -> Result<Self, EvidenceError> {
        let hashes = list(&value["hashes"], MAX_HASHES, "inclusionProof.hashes")?;
        let checkpoint = value["checkpoint"]["envelope"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        Ok(Self {
            log_index: integer(&value["logIndex"], "inclusionProof.logIndex")?,
            tree_size: integer(&value["treeSize"], "inclusionProof.treeSize")?,
            root: hash(&value["rootHash"], "inclusionProof.rootHash")?,
            hashes: hashes
                .iter()
                .map(|node| hash(node, "inclusionProof.hashes"))
                .collect::<Result<_, _>>()?,
            checkpoint,
        })
    }
}

fn list<'v>(value: &'v Value, most: usize, field: &'static str) -> Result<&'v [Value], EvidenceError> {
    match value {
        Value::Null => Ok(&[]),
        Value::Array(items) if items.len() <= most => Ok(items),
        _ => Err(EvidenceError::Malformed { field }),
    }
}

fn integer(value: &Value, field: &'static str) -> Result<u64, EvidenceError> {
    let read = match value {
        Value::Null => Some(0),
        Value::Number(number) => number.as_u64(),
        Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    };
    read.ok_or(EvidenceError::Malformed { field })
}

fn decode(value: &Value, field: &'static str) -> Result<Vec<u8>, EvidenceError> {
    let text = value.as_str().ok_or(EvidenceError::Malformed { field })?;
    BASE64_STANDARD
        .decode(text)
        .map_err(|_| EvidenceError::Malformed { field })
}

fn hash(value: &Value, field: &'static str) -> Result<Hash, EvidenceError> {
    let malformed = EvidenceError::Malformed { field };
    let Some(text) = value.as_str() else {
        return Err(malformed);
    };
    // One byte more than a hash, for the decoder writes whole groups.
    let mut bytes = [0; 33];
    match BASE64_STANDARD.decode_slice(text, &mut bytes) {
        Ok(32) => Ok(bytes[..32].try_into().expect("it has 32 bytes")),
        _ => Err(malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dsse::Signature;

    fn entry() -> LogEntry {
        LogEntry {
            log_id: [7; 32],
            kind: "hashedrekord".into(),
            version: "0.0.2".into(),
            log_index: 0,
            integrated_time: None,
            promise: None,
            proof: Some(InclusionProof {
                log_index: 0,
                tree_size: 2,
                root: [1; 32],
                hashes: vec![[2; 32]],
                checkpoint: "origin\n2\n\n\n".into(),
            }),
            body: b"body".to_vec(),
        }
    }

    fn envelope() -> Envelope {
        let signatures = vec![Signature {
            keyid: String::new(),
            sig: vec![1],
        }];
        Envelope {
            payload_type: "t".into(),
            payload: b"p".to_vec(),
            signatures,
        }
    }

    #[test]
    fn a_bundle_is_read_back_and_named_by_its_envelope() {
        let bundle = Evidence::bundle(&envelope(), &KeyId::of_spki(b"spki"), &[entry()]);
        assert!(canonical::is_canonical(&bundle));
        let read = Evidence::parse(&bundle).expect("a bundle");
        assert_eq!(
            (&read.material.log_entries, &read.envelope),
            (&vec![entry()], &envelope())
        );
        assert_eq!(
            (read.envelope_digest, read.is_bundle),
            (Digest::of(&envelope().canonical_bytes()), true)
        );

        let spaced = format!(
            " {}",
            String::from_utf8(envelope().canonical_bytes()).expect("UTF-8")
        );
        let bare = Evidence::parse(spaced.as_bytes()).expect("an envelope");
        assert_eq!(bare.envelope_digest, Digest::of(spaced.as_bytes()));
        assert_eq!(
            (bare.canonical_digest, bare.is_bundle),
            (envelope().digest(), false)
        );
    }

    #[test]
    fn a_malformed_bundle_is_refused_by_name() {
        let bundle: Value = serde_json::from_slice(&Evidence::bundle(
            &envelope(),
            &KeyId::of_spki(b"spki"),
            &[entry()],
        ))
        .expect("JSON");
        let entry = "/verificationMaterial/tlogEntries/0";
        for (pointer, value, want) in [
            (
                "/mediaType".to_owned(),
                json!("application/json"),
                "BUNDLE_TYPE_UNKNOWN",
            ),
            ("/dsseEnvelope".to_owned(), json!(null), "ENVELOPE_MALFORMED"),
            ("/dsseEnvelope/signatures".to_owned(), json!([]), "NO_SIGNATURES"),
            (format!("{entry}/logId/keyId"), json!("AAAA"), "BUNDLE_MALFORMED"),
            (format!("{entry}/logIndex"), json!("-1"), "BUNDLE_MALFORMED"),
            (format!("{entry}/logIndex"), json!(1.5), "BUNDLE_MALFORMED"),
            (
                format!("{entry}/canonicalizedBody"),
                json!(null),
                "BUNDLE_MALFORMED",
            ),
            (
                format!("{entry}/inclusionProof/rootHash"),
                json!("*"),
                "BUNDLE_MALFORMED",
            ),
            (
                format!("{entry}/inclusionProof/hashes"),
                json!(vec!["AA=="; 65]),
                "BUNDLE_MALFORMED",
            ),
            (
                "/verificationMaterial/tlogEntries".to_owned(),
                json!({}),
                "BUNDLE_MALFORMED",
            ),
        ] {
            let mut altered = bundle.clone();
            *altered.pointer_mut(&pointer).expect("the member is there") = value;
            let refused = Evidence::parse(&canonical::to_vec(&altered)).map(|_| ());
            assert_eq!(refused.map_err(|error| error.reason()), Err(want), "{pointer}");
        }
        let message = json!({
            "mediaType": BUNDLE_V0_3,
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": BASE64_STANDARD.encode([7; 32])},
                "signature": "AQ==",
            },
        });
        for (pointer, value, want) in [
            ("", message.clone(), "NOT_AN_ATTESTATION"),
            ("/messageSignature", json!({}), "BUNDLE_MALFORMED"),
            (
                "/messageSignature/messageDigest/algorithm",
                json!("SHA2_512"),
                "BUNDLE_MALFORMED",
            ),
            (
                "/messageSignature/messageDigest/digest",
                json!("AQ=="),
                "BUNDLE_MALFORMED",
            ),
            ("/messageSignature/signature", json!("*"), "BUNDLE_MALFORMED"),
        ] {
            let mut altered = message.clone();
            *altered.pointer_mut(pointer).expect("the member is there") = value;
            let refused = Evidence::parse(&canonical::to_vec(&altered)).map(|_| ());
            assert_eq!(refused.map_err(|error| error.reason()), Err(want), "{pointer}");
        }
        let mut two_names = bundle.clone();
        two_names["verificationMaterial"]["certificate"] = json!({"rawBytes": "AAAA"});
        let refused = Evidence::parse(&canonical::to_vec(&two_names)).map(|_| ());
        assert_eq!(
            refused.map_err(|error| error.reason()),
            Err("BUNDLE_MALFORMED"),
            "a key and a certificate"
        );
        let mut both = bundle;
        both["messageSignature"] = message["messageSignature"].clone();
        let refused = Evidence::parse(&canonical::to_vec(&both)).map(|_| ());
        assert_eq!(
            refused.map_err(|error| error.reason()),
            Err("BUNDLE_MALFORMED"),
            "both at once"
        );
    }
}
