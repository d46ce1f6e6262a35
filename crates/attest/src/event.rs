//! Events of the graph: the document that a caller appends, and the document that is stored.
//!
//! A stored document is the caller's, with `tenant`, `rev`, and, once proven, `provenance` and `trust`. Nothing a caller
//! writes can end up in those four members. The event hash covers everything but `provenance` and `trust`, which the
//! receipt binds on their own.

use serde_json::{Map, Value, json};

use crate::canonical;
use crate::digest::Digest;
use crate::json::{self, JsonError};
use crate::statement::Kind;
use crate::timestamp::Timestamp;

/// Largest document, in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Longest `_id`, in characters.
pub const MAX_ID: usize = 200;
/// The members that only we write.
const RESERVED: [&str; 4] = ["provenance", "trust", "tenant", "rev"];

/// Why a document is not an event; paths are JSON Pointers (RFC 6901).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// It is not strict JSON.
    #[error("{0}")]
    Json(JsonError),
    /// It is not a JSON object.
    #[error("an event is a JSON object")]
    NotAnObject,
    /// It has a member that only the service writes.
    #[error("`{0}` is written by the service alone; attestations come beside the event")]
    Reserved(&'static str),
    /// A key that stores cannot keep: with `.`, with a leading `$`, empty or with a NUL.
    #[error("the key at `{path}` is empty, contains `.` or NUL, or begins with `$`")]
    BadKey {
        /// Where it stands.
        path: String,
    },
    /// `_id` is missing, too long, or not of visible ASCII characters.
    #[error("`_id` is 1 to {MAX_ID} visible ASCII characters")]
    BadId,
    /// `kind` is missing or unknown.
    #[error("`kind` is SBOM, VEX, SCAN, INGEST or DERIVED")]
    BadKind,
    /// `subject.digest.sha256` is missing or not 64 lower-case hex digits.
    #[error("`subject.digest.sha256` is 64 lower-case hex digits")]
    BadSubject,
    /// `ts` is missing or not a time.
    #[error("`ts` is a time as in RFC 3339")]
    BadTime,
    /// `evidence.digest` is there and not a digest.
    #[error("`evidence.digest` is `sha256:` and 64 lower-case hex digits")]
    BadEvidence,
    /// `rev` or `tenant` of a stored document is of the wrong type.
    #[error("`{0}` of the stored event is malformed")]
    BadStored(&'static str),
}

impl EventError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Json(error) => error.reason(),
            Self::NotAnObject => "BAD_JSON",
            Self::Reserved(_) => "RESERVED_FIELD",
            Self::BadKey { .. } => "BAD_KEY",
            Self::BadId => "BAD_ID",
            Self::BadKind => "BAD_KIND",
            Self::BadSubject => "BAD_SUBJECT",
            Self::BadTime => "BAD_TIME",
            Self::BadEvidence => "BAD_EVIDENCE",
            Self::BadStored(_) => "BAD_STORED_EVENT",
        }
    }

    /// Path of the member at fault.
    pub fn field(&self) -> &str {
        match self {
            Self::Json(error) => error.path().unwrap_or_default(),
            Self::NotAnObject => "",
            Self::Reserved(name) | Self::BadStored(name) => name,
            Self::BadKey { path } => path,
            Self::BadId => "_id",
            Self::BadKind => "kind",
            Self::BadSubject => "subject.digest.sha256",
            Self::BadTime => "ts",
            Self::BadEvidence => "evidence.digest",
        }
    }
}

/// An event. Its identifying members are there and well-formed.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Always an object.
    document: Value,
    kind: Kind,
    subject: Digest,
    evidence: Option<Digest>,
    rev: u64,
}

impl Event {
    /// Reads a document that a caller appends.
    ///
    /// # Errors
    /// [`EventError`] names the member at fault; what only we write is refused.
    pub fn parse_new(bytes: &[u8]) -> Result<Self, EventError> {
        let limits = json::Limits {
            bytes: MAX_BYTES,
            ..json::Limits::default()
        };
        let document = json::parse(bytes, &limits).map_err(EventError::Json)?;
        let members = document.as_object().ok_or(EventError::NotAnObject)?;
        if let Some(reserved) = RESERVED.into_iter().find(|name| members.contains_key(*name)) {
            return Err(EventError::Reserved(reserved));
        }
        storable_keys(&document, "")?;
        Self::from_stored(document)
    }

    /// Takes a whole stored document.
    ///
    /// # Errors
    /// [`EventError`] names the member at fault.
    pub fn from_stored(document: Value) -> Result<Self, EventError> {
        if !document.is_object() {
            return Err(EventError::NotAnObject);
        }
        let text = |name: &str| document.get(name).and_then(Value::as_str);
        text("_id").filter(|id| is_id(id)).ok_or(EventError::BadId)?;
        let kind = text("kind")
            .and_then(|kind| kind.parse().ok())
            .ok_or(EventError::BadKind)?;
        text("ts")
            .and_then(|ts| ts.parse::<Timestamp>().ok())
            .ok_or(EventError::BadTime)?;
        let hex = document
            .get("subject")
            .and_then(|subject| subject["digest"]["sha256"].as_str());
        let subject = hex
            .and_then(|hex| Digest::from_hex(hex).ok())
            .ok_or(EventError::BadSubject)?;
        let evidence = match document.get("evidence").map(|evidence| &evidence["digest"]) {
            None | Some(Value::Null) => None,
            Some(digest) => {
                let read = digest.as_str().and_then(|text| text.parse().ok());
                Some(read.ok_or(EventError::BadEvidence)?)
            }
        };
        let rev = match document.get("rev") {
            None => 0,
            Some(rev) => rev.as_u64().ok_or(EventError::BadStored("rev"))?,
        };
        if document.get("tenant").is_some_and(|tenant| !tenant.is_string()) {
            return Err(EventError::BadStored("tenant"));
        }
        Ok(Self {
            document,
            kind,
            subject,
            evidence,
            rev,
        })
    }

    /// The event as `tenant` stores it at revision `rev`, without proof.
    #[must_use]
    pub fn stored_as(mut self, tenant: &str, rev: u64) -> Self {
        self.document["tenant"] = tenant.into();
        self.document["rev"] = rev.into();
        if let Value::Object(members) = &mut self.document {
            members.remove("provenance");
            members.remove("trust");
        }
        self.rev = rev;
        self
    }

    /// The event with the two blocks that the Verifier sealed.
    #[must_use]
    pub fn with_proof(mut self, provenance: Value, trust: Value) -> Self {
        self.document["provenance"] = provenance;
        self.document["trust"] = trust;
        self
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.document.get(name).and_then(Value::as_str)
    }

    /// `_id`.
    pub fn id(&self) -> &str {
        self.text("_id").unwrap_or_default()
    }

    /// `kind`.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// `subject.digest.sha256`.
    pub fn subject_digest(&self) -> Digest {
        self.subject
    }

    /// `ts`, as the caller wrote it.
    pub fn ts(&self) -> &str {
        self.text("ts").unwrap_or_default()
    }

    /// `tenant`; absent in a document that is not stored yet.
    pub fn tenant(&self) -> Option<&str> {
        self.text("tenant")
    }

    /// `rev`; a missing one counts as 0.
    pub fn rev(&self) -> u64 {
        self.rev
    }

    /// `evidence.digest`: the document that the attestation must be of.
    pub fn evidence_digest(&self) -> Option<Digest> {
        self.evidence
    }

    /// The `provenance` block, whatever it is worth.
    pub fn provenance(&self) -> Option<&Value> {
        self.document.get("provenance")
    }

    /// The `trust` block, whatever it is worth.
    pub fn trust(&self) -> Option<&Value> {
        self.document.get("trust")
    }

    /// `provenance.dsse.envelopeDigest`, whatever it is worth.
    pub fn envelope_digest(&self) -> Option<Digest> {
        self.provenance()?["dsse"]["envelopeDigest"]
            .as_str()?
            .parse()
            .ok()
    }

    /// The document without `provenance` and `trust`.
    pub fn without_proof(&self) -> Value {
        let members = self.document.as_object().into_iter().flatten();
        let kept = members.filter(|(name, _)| !matches!(name.as_str(), "provenance" | "trust"));
        Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// The whole document.
    pub fn value(&self) -> &Value {
        &self.document
    }

    /// The whole document, taken out.
    pub fn into_value(self) -> Value {
        self.document
    }

    /// The event hash: SHA-256 of the canonical document without `provenance` and `trust`.
    pub fn hash(&self) -> Digest {
        if self.provenance().is_none() && self.trust().is_none() {
            return Digest::of(&canonical::to_vec(&self.document));
        }
        Digest::of(&canonical::to_vec(&self.without_proof()))
    }
}

fn is_id(id: &str) -> bool {
    (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

fn storable_keys(value: &Value, path: &str) -> Result<(), EventError> {
    match value {
        Value::Object(members) => members.iter().try_for_each(|(key, member)| {
            let path = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
            if key.is_empty() || key.starts_with('$') || key.contains(['.', '\0']) {
                return Err(EventError::BadKey { path });
            }
            storable_keys(member, &path)
        }),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| storable_keys(item, &format!("{path}/{index}"))),
        _ => Ok(()),
    }
}

/// What a CI keeps of a proven event's `provenance` and `trust` (`provenance-meta.json`): the envelope, its key, where it
/// is logged, and who verified it. A member that is not there is left out.
pub fn provenance_meta(provenance: &Value, trust: &Value) -> Value {
    let some = |from: &Value, names: &[&str]| {
        let mut members = Map::new();
        for name in names {
            if let Some(member) = from.get(*name) {
                members.insert((*name).to_owned(), member.clone());
            }
        }
        members
    };
    let from = &provenance["dsse"];
    let mut dsse = some(from, &["envelopeDigest", "payloadType"]);
    dsse.insert(
        "key".into(),
        some(&from["key"], &["algo", "issuer", "keyId"]).into(),
    );
    let rekor = some(&from["rekor"], &["integratedTime", "logIndex", "uuid"]);
    dsse.insert("rekor".into(), rekor.into());
    json!({"dsse": dsse, "trust": some(trust, &["verified", "verifier"])})
}

#[cfg(test)]
mod tests {
    use super::*;
    fn document() -> Value {
        json!({
            "_id": "evt_1", "kind": "VEX", "ts": "2025-11-11T12:00:00Z", "own": {"kept": [1, 2.5, null]},
            "subject": {"purl": "pkg:nuget/example@1.2.3", "digest": {"sha256": "ab".repeat(32)}},
        })
    }

    #[test]
    fn a_caller_cannot_write_what_is_ours_or_cannot_be_kept() {
        for (pointer, member, value, want) in [
            ("", "provenance", json!({}), ("RESERVED_FIELD", "provenance")),
            (
                "",
                "trust",
                json!({"verified": true}),
                ("RESERVED_FIELD", "trust"),
            ),
            ("", "tenant", json!("other"), ("RESERVED_FIELD", "tenant")),
            ("", "rev", json!(7), ("RESERVED_FIELD", "rev")),
            ("/own", "a.b", json!(1), ("BAD_KEY", "/own/a.b")),
            ("/own", "$set", json!(1), ("BAD_KEY", "/own/$set")),
            ("/own", "", json!(1), ("BAD_KEY", "/own/")),
            ("", "_id", json!(""), ("BAD_ID", "_id")),
            ("", "_id", json!("a b"), ("BAD_ID", "_id")),
            ("", "_id", json!(1), ("BAD_ID", "_id")),
            ("", "_id", json!("x".repeat(201)), ("BAD_ID", "_id")),
            ("", "kind", json!("vex"), ("BAD_KIND", "kind")),
            ("", "ts", json!("yesterday"), ("BAD_TIME", "ts")),
            (
                "/subject",
                "digest",
                json!({"sha256": "AB".repeat(32)}),
                ("BAD_SUBJECT", "subject.digest.sha256"),
            ),
            (
                "/subject",
                "digest",
                json!({}),
                ("BAD_SUBJECT", "subject.digest.sha256"),
            ),
            (
                "",
                "evidence",
                json!({"digest": "ab"}),
                ("BAD_EVIDENCE", "evidence.digest"),
            ),
        ] {
            let mut altered = document();
            altered.pointer_mut(pointer).expect("the place is there")[member] = value;
            let refused = Event::parse_new(&canonical::to_vec(&altered));
            let refused = refused.map_err(|error| (error.reason(), error.field().to_owned()));
            assert_eq!(refused.map(|_| ()), Err((want.0, want.1.to_owned())), "{member}");
        }
        for (text, want) in [
            ("[]", "BAD_JSON"),
            ("{", "BAD_JSON"),
            (r#"{"_id":"a","_id":"b"}"#, "DUPLICATE_KEY"),
            (r#"{"n":9007199254740993}"#, "NUMBER_RANGE"),
        ] {
            let refused = Event::parse_new(text.as_bytes())
                .map(|_| ())
                .map_err(|error| error.reason());
            assert_eq!(refused, Err(want), "{text}");
        }
    }

    #[test]
    fn the_hash_covers_all_but_the_proof() {
        let event = Event::parse_new(&canonical::to_vec(&document()))
            .expect("an event")
            .stored_as("dev", 2);
        let proven = event
            .clone()
            .with_proof(json!({"dsse": {}}), json!({"verified": true}));
        assert_eq!(
            (proven.hash(), proven.rev(), proven.tenant()),
            (event.hash(), 2, Some("dev"))
        );
        let mut want = document();
        want["tenant"] = json!("dev");
        want["rev"] = json!(2);
        assert_eq!(event.hash(), Digest::of(&canonical::to_vec(&want)));
        assert_ne!(event.clone().stored_as("dev", 3).hash(), event.hash());
        assert_ne!(event.clone().stored_as("other", 2).hash(), event.hash());
        assert_eq!(proven.without_proof(), want);
    }
}
