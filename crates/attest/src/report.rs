//! The verdict on one piece of evidence, with its reasons.
//!
//! [`verify`](crate::verify) fills a report in; nothing else builds one. A report is a pure function of evidence,
//! subject, policy, trust roots and `at`, so its canonical bytes are the same from a service, the CLI and an
//! air-gapped machine. Every check of the closed list stands in it, in the order of [`CheckName::ALL`].

use serde_json::{Map, Value, json};

use crate::canonical;
use crate::digest::Digest;
use crate::timestamp::Timestamp;

/// What can be checked; the list only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CheckName {
    /// The evidence is a well-formed DSSE envelope or Sigstore bundle.
    Envelope,
    /// Its payload is an in-toto Statement.
    Statement,
    /// A trust-root key made the signature, and was valid at the trusted time.
    Signature,
    /// As many distinct keys signed as trust roots or policy ask for.
    Threshold,
    /// The key may sign this predicateType for this tenant.
    KeyScope,
    /// The wanted digest is one of the statement's subjects.
    Subject,
    /// The predicateType is listed for the event's kind.
    Kind,
    /// The document that the event names is the one that was attested.
    Evidence,
    /// The log entry is of this payload, this signature and this key.
    LogEntry,
    /// The entry is included in the tree of the checkpoint.
    LogInclusion,
    /// The checkpoint is signed by a trusted log.
    Checkpoint,
    /// Every time that the evidence bears is valid.
    Time,
    /// Every predecessor is itself verified, fits its type and comes before.
    Chain,
    /// The policy's gate allows it.
    Policy,
}

impl CheckName {
    /// Every check, in the order of a report.
    pub const ALL: [Self; 14] = [
        Self::Envelope,
        Self::Statement,
        Self::Signature,
        Self::Threshold,
        Self::KeyScope,
        Self::Subject,
        Self::Kind,
        Self::Evidence,
        Self::LogEntry,
        Self::LogInclusion,
        Self::Checkpoint,
        Self::Time,
        Self::Chain,
        Self::Policy,
    ];

    /// The name as it stands in reports and contracts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Envelope => "ENVELOPE",
            Self::Statement => "STATEMENT",
            Self::Signature => "SIGNATURE",
            Self::Threshold => "THRESHOLD",
            Self::KeyScope => "KEY_SCOPE",
            Self::Subject => "SUBJECT",
            Self::Kind => "KIND",
            Self::Evidence => "EVIDENCE",
            Self::LogEntry => "LOG_ENTRY",
            Self::LogInclusion => "LOG_INCLUSION",
            Self::Checkpoint => "CHECKPOINT",
            Self::Time => "TIME",
            Self::Chain => "CHAIN",
            Self::Policy => "POLICY",
        }
    }
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It holds.
    Passed,
    /// It does not hold, for this reason.
    Failed(&'static str),
    /// It was not asked for or cannot be reached, for this reason.
    NotApplicable(&'static str),
}

impl Status {
    /// `passed`, `failed` or `not-applicable`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::NotApplicable(_) => "not-applicable",
        }
    }

    /// The reason code; empty for a check that passed.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Passed => "",
            Self::Failed(reason) | Self::NotApplicable(reason) => reason,
        }
    }
}

/// One check of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub name: CheckName,
    /// How it came out.
    pub status: Status,
    /// What was seen, for people.
    pub detail: String,
}

impl Check {
    pub(crate) fn to_value(&self) -> Value {
        let mut check = Map::new();
        check.insert("name".into(), self.name.as_str().into());
        check.insert("status".into(), self.status.as_str().into());
        if !self.status.reason().is_empty() {
            check.insert("reason".into(), self.status.reason().into());
        }
        Value::Object(check)
    }
}

/// Where a trusted time comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimeSource {
    /// A Rekor v1's signed entry timestamp.
    RekorSet,
    /// A timestamp authority's RFC 3161 token over the signature.
    Rfc3161,
    /// A configured witness's cosignature on a checkpoint that includes the entry.
    Witness,
}

impl TimeSource {
    /// The name as it stands in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RekorSet => "rekor-set",
            Self::Rfc3161 => "rfc3161",
            Self::Witness => "witness",
        }
    }
}

/// A time that somebody other than the signer and the log vouches for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrustedTime {
    /// The evidence existed by then.
    pub time: Timestamp,
    /// Who says so.
    pub source: TimeSource,
    /// The witness's or authority's name.
    pub by: String,
}

impl TrustedTime {
    fn to_value(&self) -> Value {
        json!({"by": self.by, "source": self.source.as_str(), "time": self.time.to_string()})
    }
}

/// The verdict on one piece of evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub(crate) checks: Vec<Check>,
    pub(crate) verified: bool,
    pub(crate) at: Option<Timestamp>,
    pub(crate) envelope_digest: Option<Digest>,
    pub(crate) predicate_type: Option<String>,
    pub(crate) subject: Option<Digest>,
    pub(crate) key_id: Option<String>,
    pub(crate) log: Option<Value>,
    /// Every valid time, earliest first.
    pub(crate) times: Vec<TrustedTime>,
    pub(crate) policy_digest: Option<Digest>,
    pub(crate) policy_reasons: Vec<String>,
    pub(crate) trust_root_digest: Digest,
}

impl Report {
    /// True if every check that a verdict needs passed and none failed.
    pub fn verified(&self) -> bool {
        self.verified
    }

    /// Every check, in the order of [`CheckName::ALL`].
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// How the check `name` came out.
    pub fn status(&self, name: CheckName) -> Status {
        self.checks[name as usize].status
    }

    /// The checks that failed, as `NAME:REASON`.
    pub fn failures(&self) -> Vec<String> {
        let failed = self
            .checks
            .iter()
            .filter(|check| matches!(check.status, Status::Failed(_)));
        failed
            .map(|check| format!("{}:{}", check.name.as_str(), check.status.reason()))
            .collect()
    }

    /// The earliest of the valid times, which is the one that counts.
    pub fn trusted_time(&self) -> Option<&TrustedTime> {
        self.times.first()
    }

    /// Passed checks divided by applicable ones, from 0 to 1 with two decimals.
    pub fn policy_score(&self) -> f64 {
        let applicable = self
            .checks
            .iter()
            .filter(|c| !matches!(c.status, Status::NotApplicable(_)))
            .count();
        let passed = self
            .checks
            .iter()
            .filter(|check| check.status == Status::Passed)
            .count();
        let percent = (passed * 100).checked_div(applicable).unwrap_or(0);
        percent as f64 / 100.0
    }

    /// Digest of the trust-root set that it was judged by.
    pub fn trust_root_digest(&self) -> Digest {
        self.trust_root_digest
    }

    /// Digest of the policy file, if one was applied.
    pub fn policy_digest(&self) -> Option<Digest> {
        self.policy_digest
    }

    /// The report as a JSON object.
    pub fn to_value(&self) -> Value {
        let checks: Vec<Value> = self
            .checks
            .iter()
            .map(|check| {
                json!({
                    "detail": check.detail, "name": check.name.as_str(),
                    "reason": check.status.reason(), "status": check.status.as_str(),
                })
            })
            .collect();
        let text = |digest: &Option<Digest>| digest.map(|digest| digest.to_string());
        json!({
            "at": self.at.map(|at| at.to_string()),
            "checks": checks,
            "envelopeDigest": text(&self.envelope_digest),
            "keyId": self.key_id,
            "log": self.log,
            "policyDigest": text(&self.policy_digest),
            "policyReasons": self.policy_reasons,
            "predicateType": self.predicate_type,
            "subject": text(&self.subject),
            "times": self.times.iter().map(TrustedTime::to_value).collect::<Vec<_>>(),
            "trustRootDigest": self.trust_root_digest.to_string(),
            "trustedTime": self.trusted_time().map(TrustedTime::to_value),
            "verified": self.verified,
            "version": 1,
        })
    }

    /// The report's bytes: RFC 8785 JSON.
    pub fn to_canonical(&self) -> Vec<u8> {
        canonical::to_vec(&self.to_value())
    }
}
