//! in-toto Statements (in-toto attestation framework, Statement v1): what is said of which artifacts.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value, json};

use crate::canonical;
use crate::digest::Digest;
use crate::json::{self, JsonError};

/// The payloadType of a Statement in a DSSE envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// `_type` of the version that is written.
pub const TYPE_V1: &str = "https://in-toto.io/Statement/v1";
/// `_type` of the older version, which is read too.
pub const TYPE_V0_1: &str = "https://in-toto.io/Statement/v0.1";

/// CycloneDX SBOM.
pub const CYCLONEDX: &str = "https://cyclonedx.org/bom";
/// SPDX SBOM.
pub const SPDX: &str = "https://spdx.dev/Document";
/// OpenVEX document.
pub const OPENVEX: &str = "https://openvex.dev/ns";
/// Scan report as cosign writes it.
pub const VULN_COSIGN: &str = "https://cosign.sigstore.dev/attestation/vuln/v1";
/// Scan report as in-toto defines it.
pub const VULN_IN_TOTO: &str = "https://in-toto.io/attestation/vulns/v0.1";
/// SLSA build provenance v1.
pub const SLSA_PROVENANCE: &str = "https://slsa.dev/provenance/v1";
/// Promotion of an image.
pub const PROMOTION: &str = "stella.ops/promotion@v1";

/// PredicateTypes that have a method of their own and that `Sign` refuses.
pub const RESERVED: [&str; 5] = [
    PROMOTION,
    "stella.ops/receipt@v1",
    "stella.ops/backfill-report@v1",
    "stella.ops/key-history@v1",
    "stella.ops/slice@v1",
];

/// True if only a method of its own may sign this predicateType, in whatever version.
pub fn is_reserved(predicate_type: &str) -> bool {
    let family = |name: &str| name.split('@').next().map(str::to_ascii_lowercase);
    RESERVED
        .iter()
        .any(|reserved| family(reserved) == family(predicate_type))
}

/// Most subjects that a statement may have.
const MAX_SUBJECTS: usize = 10_000;

/// One artifact of which a statement speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its digests by algorithm, in lower-case hex.
    pub digests: BTreeMap<String, String>,
}

/// A parsed Statement.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// What it speaks of; at least one.
    pub subjects: Vec<Subject>,
    /// What kind of thing it says.
    pub predicate_type: String,
    /// What it says.
    pub predicate: Value,
}

/// Why a payload is not a Statement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// It is not strict JSON.
    #[error("the statement: {0}")]
    Json(JsonError),
    /// `_type` is not a Statement's.
    #[error("`_type` is not `{TYPE_V1}`")]
    UnknownType,
    /// A member is missing or of the wrong form.
    #[error("`{field}` of the statement is missing or malformed")]
    Malformed {
        /// The member.
        field: &'static str,
    },
    /// It has no subject.
    #[error("the statement has no subject")]
    NoSubject,
    /// More subjects than are read.
    #[error("the statement has more than {MAX_SUBJECTS} subjects")]
    TooManySubjects,
    /// A subject has no digest.
    #[error("a subject of the statement has no digest")]
    NoDigest,
    /// A SHA-256 digest is not 64 lower-case hex digits.
    #[error("a subject's sha256 is not 64 lower-case hex digits")]
    BadDigest,
}

impl StatementError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Json(error) => error.reason(),
            Self::UnknownType => "STATEMENT_TYPE_UNKNOWN",
            Self::Malformed { .. } | Self::TooManySubjects => "STATEMENT_MALFORMED",
            Self::NoSubject | Self::NoDigest => "NO_SUBJECT",
            Self::BadDigest => "BAD_DIGEST",
        }
    }

    /// Path of the member at fault.
    pub fn field(&self) -> &str {
        match self {
            Self::Json(error) => error.path().unwrap_or_default(),
            Self::UnknownType => "_type",
            Self::Malformed { field } => field,
            Self::NoSubject | Self::TooManySubjects => "subject",
            Self::NoDigest | Self::BadDigest => "subject.digest",
        }
    }
}

impl Statement {
    /// Reads a Statement v1, or v0.1 as others still write it.
    ///
    /// # Errors
    /// [`StatementError`] names the member at fault.
    pub fn parse(payload: &[u8]) -> Result<Self, StatementError> {
        let mut document = json::parse(payload, &json::Limits::default()).map_err(StatementError::Json)?;
        if ![TYPE_V1, TYPE_V0_1].contains(&document["_type"].as_str().unwrap_or_default()) {
            return Err(StatementError::UnknownType);
        }
        let listed = document["subject"].as_array().ok_or(StatementError::NoSubject)?;
        if listed.is_empty() {
            return Err(StatementError::NoSubject);
        }
        if listed.len() > MAX_SUBJECTS {
            return Err(StatementError::TooManySubjects);
        }
        let subjects = listed.iter().map(read_subject).collect::<Result<_, _>>()?;
        let predicate_type = document["predicateType"].as_str().filter(|text| !text.is_empty());
        let predicate_type = predicate_type
            .ok_or(StatementError::Malformed {
                field: "predicateType",
            })?
            .to_owned();
        let predicate = document["predicate"].take();
        if !matches!(predicate, Value::Object(_) | Value::Null) {
            return Err(StatementError::Malformed { field: "predicate" });
        }
        Ok(Self {
            subjects,
            predicate_type,
            predicate,
        })
    }

    /// The canonical bytes (RFC 8785) of the Statement v1, to be signed.
    pub fn to_canonical(&self) -> Vec<u8> {
        let subjects = self.subjects.iter().map(|subject| {
            let mut members = Map::new();
            members.insert("digest".into(), json!(subject.digests));
            if let Some(name) = &subject.name {
                members.insert("name".into(), name.clone().into());
            }
            Value::Object(members)
        });
        let mut members = Map::new();
        members.insert("_type".into(), TYPE_V1.into());
        members.insert("predicate".into(), self.predicate.clone());
        members.insert("predicateType".into(), self.predicate_type.clone().into());
        members.insert("subject".into(), subjects.collect());
        canonical::to_vec(&Value::Object(members))
    }

    /// True if `digest` is the SHA-256 of a subject.
    pub fn has_subject(&self, digest: &Digest) -> bool {
        let hex = digest.hex();
        self.subjects
            .iter()
            .any(|subject| subject.digests.get("sha256") == Some(&hex))
    }

    /// The SHA-256 digests of the subjects, in their order.
    pub fn sha256_subjects(&self) -> Vec<Digest> {
        let digests = self
            .subjects
            .iter()
            .filter_map(|subject| subject.digests.get("sha256"));
        digests.filter_map(|hex| Digest::from_hex(hex).ok()).collect()
    }
}

fn read_subject(value: &Value) -> Result<Subject, StatementError> {
    let name = match &value["name"] {
        Value::Null => None,
        Value::String(name) => Some(name.clone()),
        _ => {
            return Err(StatementError::Malformed {
                field: "subject.name",
            });
        }
    };
    let listed = value["digest"].as_object().filter(|listed| !listed.is_empty());
    let mut digests = BTreeMap::new();
    for (algorithm, digest) in listed.ok_or(StatementError::NoDigest)? {
        let digest = digest.as_str().ok_or(StatementError::Malformed {
            field: "subject.digest",
        })?;
        if algorithm == "sha256" {
            Digest::from_hex(digest).map_err(|_| StatementError::BadDigest)?;
        }
        digests.insert(algorithm.clone(), digest.to_owned());
    }
    Ok(Subject { name, digests })
}

/// The canonical bytes of a Statement v1 of one named subject.
pub fn build(name: &str, digest: &Digest, predicate_type: &str, predicate: Value) -> Vec<u8> {
    let digests = BTreeMap::from([("sha256".to_owned(), digest.hex())]);
    let subjects = vec![Subject {
        name: Some(name.to_owned()),
        digests,
    }];
    Statement {
        subjects,
        predicate_type: predicate_type.to_owned(),
        predicate,
    }
    .to_canonical()
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A software bill of materials.
    Sbom,
    /// A statement on exploitability.
    Vex,
    /// A scan report.
    Scan,
    /// Something taken in from elsewhere.
    Ingest,
    /// Something made from other things: a build, a promotion.
    Derived,
}

/// A text is not a kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a kind is SBOM, VEX, SCAN, INGEST or DERIVED")]
pub struct KindError;

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Sbom, Self::Vex, Self::Scan, Self::Ingest, Self::Derived];

    /// The kind as it stands in events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sbom => "SBOM",
            Self::Vex => "VEX",
            Self::Scan => "SCAN",
            Self::Ingest => "INGEST",
            Self::Derived => "DERIVED",
        }
    }

    /// True if an attestation of `predicate_type` can prove an event of this kind; for INGEST those of `ingest`.
    ///
    /// A version suffix `/v…` is allowed.
    pub fn accepts(self, predicate_type: &str, ingest: &[String]) -> bool {
        match self {
            Self::Sbom => is_any(predicate_type, &[CYCLONEDX, SPDX]),
            Self::Vex => is_any(predicate_type, &[OPENVEX]),
            Self::Scan => is_any(predicate_type, &[VULN_COSIGN, VULN_IN_TOTO]),
            Self::Derived => is_any(predicate_type, &[SLSA_PROVENANCE, PROMOTION]),
            Self::Ingest => ingest.iter().any(|listed| is_type(predicate_type, listed)),
        }
    }
}

impl FromStr for Kind {
    type Err = KindError;

    fn from_str(text: &str) -> Result<Self, KindError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or(KindError)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The type that a chain link to an attestation of this predicateType has: `build`, `sbom`, `scan` or `vex`.
pub fn link_type(predicate_type: &str) -> Option<&'static str> {
    let types = [
        ("build", Kind::Derived),
        ("sbom", Kind::Sbom),
        ("scan", Kind::Scan),
        ("vex", Kind::Vex),
    ];
    types
        .into_iter()
        .find(|(_, kind)| kind.accepts(predicate_type, &[]))
        .map(|(name, _)| name)
}

fn is_any(predicate_type: &str, listed: &[&str]) -> bool {
    listed.iter().any(|listed| is_type(predicate_type, listed))
}

/// True for `listed` itself and for `listed` with a version behind it, such as `/v1.5` or `/v0.2.0`.
fn is_type(predicate_type: &str, listed: &str) -> bool {
    let Some(rest) = predicate_type.strip_prefix(listed) else {
        return false;
    };
    rest.is_empty()
        || rest.strip_prefix("/v").is_some_and(|version| {
            version.starts_with(|c: char| c.is_ascii_digit())
                && version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_read_back_as_it_was_built() {
        let digest = Digest::of(b"artifact");
        let payload = build("app", &digest, CYCLONEDX, json!({"bomFormat": "CycloneDX"}));
        let statement = Statement::parse(&payload).expect("a statement");
        assert_eq!(statement.sha256_subjects(), vec![digest]);
        assert!(statement.has_subject(&digest) && !statement.has_subject(&Digest::of(b"other")));
        assert_eq!(statement.to_canonical(), payload);
    }

    #[test]
    fn a_malformed_statement_is_refused_by_name() {
        let with = |member: &str, value: Value| {
            let mut statement: Value =
                serde_json::from_slice(&build("a", &Digest::of(b"a"), "t", json!({}))).expect("JSON");
            statement[member] = value;
            canonical::to_vec(&statement)
        };
        for (case, payload, want) in [
            ("no JSON", b"hello".to_vec(), ("BAD_JSON", "")),
            (
                "duplicate key",
                br#"{"_type":1,"_type":1}"#.to_vec(),
                ("DUPLICATE_KEY", "/_type"),
            ),
            (
                "another type",
                with("_type", json!("https://in-toto.io/Statement/v2")),
                ("STATEMENT_TYPE_UNKNOWN", "_type"),
            ),
            (
                "no subject",
                with("subject", json!([])),
                ("NO_SUBJECT", "subject"),
            ),
            (
                "null subject",
                with("subject", Value::Null),
                ("NO_SUBJECT", "subject"),
            ),
            (
                "no digest",
                with("subject", json!([{"digest": {}}])),
                ("NO_SUBJECT", "subject.digest"),
            ),
            (
                "short digest",
                with("subject", json!([{"digest": {"sha256": "ab"}}])),
                ("BAD_DIGEST", "subject.digest"),
            ),
            (
                "a number",
                with("subject", json!([{"digest": {"sha256": 1}}])),
                ("STATEMENT_MALFORMED", "subject.digest"),
            ),
            (
                "no predicateType",
                with("predicateType", json!("")),
                ("STATEMENT_MALFORMED", "predicateType"),
            ),
            (
                "predicate a list",
                with("predicate", json!([])),
                ("STATEMENT_MALFORMED", "predicate"),
            ),
        ] {
            let refused =
                Statement::parse(&payload).map_err(|error| (error.reason(), error.field().to_owned()));
            assert_eq!(refused.map(|_| ()), Err((want.0, want.1.to_owned())), "{case}");
        }
    }

    #[test]
    fn a_kind_is_proven_by_its_own_predicate_types_only() {
        let configured = vec!["https://example.com/ingest".to_owned()];
        for (kind, predicate_type, want) in [
            (Kind::Sbom, "https://cyclonedx.org/bom", true),
            (Kind::Sbom, "https://cyclonedx.org/bom/v1.6", true),
            (Kind::Sbom, "https://spdx.dev/Document/v2.3", true),
            (Kind::Sbom, "https://cyclonedx.org/bomb", false),
            (Kind::Sbom, "https://cyclonedx.org/bom/v", false),
            (Kind::Sbom, "https://cyclonedx.org/bom/v1/x", false),
            (Kind::Sbom, "https://openvex.dev/ns", false),
            (Kind::Vex, "https://openvex.dev/ns/v0.2.0", true),
            (
                Kind::Scan,
                "https://cosign.sigstore.dev/attestation/vuln/v1",
                true,
            ),
            (Kind::Derived, "stella.ops/promotion@v1", true),
            (Kind::Derived, "https://slsa.dev/provenance/v0.2", false),
            (Kind::Ingest, "https://example.com/ingest/v2", true),
            (Kind::Ingest, "https://cyclonedx.org/bom", false),
        ] {
            assert_eq!(
                kind.accepts(predicate_type, &configured),
                want,
                "{kind} by {predicate_type}"
            );
        }
    }

    #[test]
    fn reserved_types_are_reserved_in_every_version_and_spelling() {
        for (predicate_type, want) in [
            ("stella.ops/receipt@v1", true),
            ("stella.ops/receipt@v2", true),
            ("stella.ops/Receipt@v1", true),
            ("stella.ops/receipt", true),
            ("stella.ops/receipts@v1", false),
            ("https://cyclonedx.org/bom", false),
        ] {
            assert_eq!(is_reserved(predicate_type), want, "{predicate_type}");
        }
    }
}
