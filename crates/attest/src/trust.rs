//! The trust roots: everything that a verdict is allowed to believe.
//!
//! One canonical JSON document (RFC 8785) names the configured keys with their purpose, the signed key history, the
//! logs, the witnesses and the receipt keys. Its digest stands in every report, so a verdict says by which set it was
//! reached. Nothing else is ever trusted: no key from a bundle, a hint or a log entry.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Map, Value, json};

use crate::canonical;
use crate::checkpoint::LogKey;
use crate::digest::Digest;
use crate::history::{HistoryError, HistoryKey, KeyHistory, KeyState};
use crate::json::{self, JsonError};
use crate::key::{KeyError, KeyId, VerifyingKey};
use crate::note::{NoteError, NoteKey};
use crate::timestamp::Timestamp;
use crate::tsa::Authority;

mod sigstore;

pub use sigstore::SigstoreRoots;

/// The format's version that is written and read.
const VERSION: u64 = 1;

/// Most entries of one list.
const MAX_ENTRIES: usize = 10_000;

/// What a configured key is for; a key has exactly one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Signs statements.
    Attestation,
    /// Signs the versions of the key history.
    KeyHistory,
    /// Signs slices, reports and kits.
    Manifest,
    /// Signs checkpoints of the audit log.
    Audit,
}

impl Purpose {
    /// The purpose as it stands in the document.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attestation => "attestation",
            Self::KeyHistory => "key-history",
            Self::Manifest => "manifest",
            Self::Audit => "audit",
        }
    }
}

/// A key that the trust roots configure.
#[derive(Clone, Debug)]
pub struct ConfiguredKey {
    /// The public half.
    pub key: VerifyingKey,
    /// What it is for.
    pub purpose: Purpose,
    /// Who stands behind it.
    pub issuer: String,
    /// Tenants it may sign for; `*` is any.
    pub tenants: Vec<String>,
    /// Patterns of predicateTypes it may sign.
    pub predicate_types: Vec<String>,
}

/// When a key was in use; without an end it still is. Both ends belong to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub from: Option<Timestamp>,
    /// The last second.
    pub until: Option<Timestamp>,
}

impl Validity {
    /// What lies within both; nothing does if they do not meet.
    #[must_use]
    fn and(self, other: Self) -> Self {
        Self {
            from: self.from.max(other.from),
            until: [self.until, other.until].into_iter().flatten().min(),
        }
    }

    /// True if it ends before it begins.
    fn is_reversed(&self) -> bool {
        self.from
            .zip(self.until)
            .is_some_and(|(from, until)| until < from)
    }

    /// True if `time` lies within.
    pub fn contains(&self, time: Timestamp) -> bool {
        self.from.is_none_or(|from| from <= time) && self.until.is_none_or(|until| time <= until)
    }
}

/// A log whose checkpoints count.
#[derive(Clone, Debug)]
pub struct TrustedLog {
    /// Origin, key and log id.
    pub key: LogKey,
    /// Where Sigstore clients find it.
    pub base_url: String,
    /// Set when the log was seen to be forked: its checkpoints count no more.
    pub distrusted: bool,
    /// When its key was in use. A Rekor v1's promise of another time does not count; nor does what another log holds of a
    /// signature that is trusted to be of another time.
    pub validity: Validity,
}

impl TrustedLog {
    /// What reports call it: its origin, or where it is found if it is known by its key alone.
    pub fn name(&self) -> &str {
        if self.key.origin.is_empty() {
            &self.base_url
        } else {
            &self.key.origin
        }
    }
}

/// A key that may verify an attestation, with what is known of its validity.
#[derive(Clone, Copy, Debug)]
pub struct AttestationKey<'a> {
    /// The public half.
    pub key: &'a VerifyingKey,
    /// Who stands behind it.
    pub issuer: &'a str,
    /// Tenants it may sign for.
    pub tenants: &'a [String],
    /// Patterns of predicateTypes it may sign.
    pub predicate_types: &'a [String],
    /// Its place in the key history; configured keys are active.
    pub state: KeyState,
    /// Entries with a later trusted time are refused.
    pub retired_at: Option<Timestamp>,
    /// Entries with this or a later trusted time are refused.
    pub revoked_at: Option<Timestamp>,
}

impl AttestationKey<'_> {
    /// Whether a signature that existed by `time` counts.
    ///
    /// # Errors
    /// The reason code: `KEY_PREPARED`, `KEY_RETIRED` or `KEY_REVOKED`. Without a time only active keys count.
    pub fn valid_at(&self, time: Option<Timestamp>) -> Result<(), &'static str> {
        match (self.state, time) {
            (KeyState::Active, _) => Ok(()),
            (KeyState::Prepared, _) => Err("KEY_PREPARED"),
            (KeyState::Retired, Some(time)) if self.retired_at.is_some_and(|end| time <= end) => Ok(()),
            (KeyState::Retired, _) => Err("KEY_RETIRED"),
            (KeyState::Revoked, Some(time))
                if self.revoked_at.is_some_and(|end| time < end)
                    && self.retired_at.is_none_or(|end| time <= end) =>
            {
                Ok(())
            }
            (KeyState::Revoked, _) => Err("KEY_REVOKED"),
        }
    }
}

/// Why a trust-root document is refused.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It is not strict JSON.
    #[error("trust roots are not valid JSON")]
    Json(#[from] JsonError),
    /// A member is missing, unknown or of the wrong form.
    #[error("`{path}` of the trust roots is missing, unknown or malformed")]
    Malformed {
        /// Path of the member.
        path: String,
    },
    /// A key does not parse.
    #[error("the key at `{path}` does not parse")]
    Key {
        /// Path of the member.
        path: String,
        /// Why.
        source: KeyError,
    },
    /// A log's or a witness's key does not parse.
    #[error("the note key at `{path}` does not parse")]
    Note {
        /// Path of the member.
        path: String,
        /// Why.
        source: NoteError,
    },
    /// The key history does not hold.
    #[error("the key history does not hold")]
    History(#[from] HistoryError),
    /// A Sigstore `trusted_root.json` of a media type that is not known.
    #[error("not a Sigstore trusted root of version 0.1 or 0.2")]
    MediaType,
}

impl TrustError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Json(_)
            | Self::Malformed { .. }
            | Self::Key { .. }
            | Self::Note { .. }
            | Self::MediaType => "TRUST_ROOTS_MALFORMED",
            Self::History(error) => error.reason(),
        }
    }
}

/// The whole set, parsed; see the module's text.
#[derive(Clone, Debug)]
pub struct TrustRoots {
    keys: Vec<ConfiguredKey>,
    history: Option<KeyHistory>,
    logs: Vec<TrustedLog>,
    witnesses: Vec<NoteKey>,
    receipt_keys: Vec<VerifyingKey>,
    timestamp_authorities: Vec<Authority>,
    canonical: Vec<u8>,
    digest: Digest,
}

impl TrustRoots {
    /// Puts a set together from its parts.
    pub fn new(
        keys: Vec<ConfiguredKey>,
        history: Option<KeyHistory>,
        logs: Vec<TrustedLog>,
        witnesses: Vec<NoteKey>,
        receipt_keys: Vec<VerifyingKey>,
    ) -> Self {
        let mut roots = Self {
            keys,
            history,
            logs,
            witnesses,
            receipt_keys,
            timestamp_authorities: Vec::new(),
            canonical: Vec::new(),
            digest: Digest::of(b""),
        };
        roots.seal();
        roots
    }

    fn seal(&mut self) {
        self.canonical = canonical::to_vec(&self.to_value());
        self.digest = Digest::of(&self.canonical);
    }

    /// Reads the format `stella`. The digest is that of its canonical form.
    ///
    /// # Errors
    /// [`TrustError`] names the member at fault; an unknown member is one.
    pub fn parse(bytes: &[u8]) -> Result<Self, TrustError> {
        let document = json::parse(bytes, &json::Limits::default())?;
        let root = Reader {
            value: &document,
            path: String::new(),
        };
        root.only(&[
            "version",
            "keys",
            "keyHistory",
            "logs",
            "witnesses",
            "receiptKeys",
            "timestampAuthorities",
        ])?;
        if root.value["version"].as_u64() != Some(VERSION) {
            return Err(root.malformed("version"));
        }
        let keys = root.list("keys", configured_key)?;
        let envelopes = root.list("keyHistory", |entry| Ok(canonical::to_vec(entry.value)))?;
        let history = if envelopes.is_empty() {
            None
        } else {
            Some(KeyHistory::parse(
                &envelopes,
                &purpose_keys(&keys, Purpose::KeyHistory),
            )?)
        };
        let logs = root.list("logs", trusted_log)?;
        for (index, log) in logs.iter().enumerate() {
            let is_named_before = |known: &TrustedLog| known.key.log_id == log.key.log_id;
            if logs[..index].iter().any(is_named_before) {
                return Err(TrustError::Malformed {
                    path: format!("/logs/{index}/publicKey"),
                });
            }
        }
        let witnesses = root.list("witnesses", |entry| {
            NoteKey::parse(entry.as_text()?).map_err(|source| TrustError::Note {
                path: entry.path.clone(),
                source,
            })
        })?;
        let receipt_keys = root.list("receiptKeys", |entry| entry.as_key())?;
        let authorities = root.list("timestampAuthorities", timestamp_authority)?;
        Ok(Self::new(keys, history, logs, witnesses, receipt_keys).with_timestamp_authorities(authorities))
    }

    fn to_value(&self) -> Value {
        let keys: Vec<Value> = self
            .keys
            .iter()
            .map(|key| {
                json!({
                    "issuer": key.issuer, "keyId": key.key.key_id().to_string(), "predicateTypes": key.predicate_types,
                    "purpose": key.purpose.as_str(), "spki": BASE64_STANDARD.encode(key.key.spki()),
                    "tenants": key.tenants,
                })
            })
            .collect();
        let history: Vec<Value> = self
            .history
            .iter()
            .flat_map(KeyHistory::envelopes)
            .map(|bytes| serde_json::from_slice(bytes).expect("a canonical envelope is JSON"))
            .collect();
        let logs: Vec<Value> = self
            .logs
            .iter()
            .map(|log| {
                let mut value = Map::new();
                value.insert("baseUrl".into(), log.base_url.clone().into());
                if !log.key.origin.is_empty() {
                    value.insert("origin".into(), log.key.origin.clone().into());
                }
                value.insert(
                    "publicKey".into(),
                    BASE64_STANDARD.encode(log.key.key.spki()).into(),
                );
                if log.distrusted {
                    value.insert("distrusted".into(), true.into());
                }
                let Validity { from, until } = log.validity;
                for (member, time) in [("validFrom", from), ("validUntil", until)] {
                    if let Some(time) = time {
                        value.insert(member.into(), time.to_string().into());
                    }
                }
                Value::Object(value)
            })
            .collect();
        let receipt_keys: Vec<String> = self
            .receipt_keys
            .iter()
            .map(|key| BASE64_STANDARD.encode(key.spki()))
            .collect();
        json!({
            "keyHistory": history,
            "keys": keys,
            "logs": logs,
            "receiptKeys": receipt_keys,
            "timestampAuthorities": self.timestamp_authorities.iter().map(Authority::to_value).collect::<Vec<_>>(),
            "version": VERSION,
            "witnesses": self.witnesses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    }

    /// The document's bytes: RFC 8785 JSON.
    pub fn to_canonical(&self) -> &[u8] {
        &self.canonical
    }

    /// SHA-256 of [`to_canonical`](Self::to_canonical).
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The set with another key history.
    #[must_use]
    pub fn with_history(mut self, history: KeyHistory) -> Self {
        self.history = Some(history);
        self.seal();
        self
    }

    /// The set with these keys besides its own.
    #[must_use]
    pub fn with_keys(mut self, keys: Vec<ConfiguredKey>) -> Self {
        if !keys.is_empty() {
            self.keys.extend(keys);
            self.seal();
        }
        self
    }

    /// The set with these timestamp authorities.
    #[must_use]
    pub fn with_timestamp_authorities(mut self, authorities: Vec<Authority>) -> Self {
        self.timestamp_authorities = authorities;
        self.seal();
        self
    }

    /// The set with the logs and timestamp authorities of a Sigstore trusted root besides its own. A log that is in both
    /// is one, whose key was in use when both say so.
    #[must_use]
    pub fn with_sigstore(mut self, other: SigstoreRoots) -> Self {
        for log in other.logs {
            match self
                .logs
                .iter_mut()
                .find(|known| known.key.log_id == log.key.log_id)
            {
                Some(known) => known.validity = known.validity.and(log.validity),
                None => self.logs.push(log),
            }
        }
        self.timestamp_authorities.extend(other.timestamp_authorities);
        self.seal();
        self
    }

    /// The set with the log `log_id` distrusted.
    #[must_use]
    pub fn with_distrusted(mut self, log_id: &[u8; 32]) -> Self {
        for log in self.logs.iter_mut().filter(|log| log.key.log_id == *log_id) {
            log.distrusted = true;
        }
        self.seal();
        self
    }

    /// The key history, if there is one.
    pub fn history(&self) -> Option<&KeyHistory> {
        self.history.as_ref()
    }

    /// The configured keys of one purpose.
    pub fn keys_for(&self, purpose: Purpose) -> Vec<&VerifyingKey> {
        purpose_keys(&self.keys, purpose)
    }

    /// Every key that may have signed an attestation: the configured ones and those of the history.
    pub fn attestation_keys(&self) -> impl Iterator<Item = AttestationKey<'_>> {
        let configured = self
            .keys
            .iter()
            .filter(|key| key.purpose == Purpose::Attestation)
            .map(|key| AttestationKey {
                key: &key.key,
                issuer: &key.issuer,
                tenants: &key.tenants,
                predicate_types: &key.predicate_types,
                state: KeyState::Active,
                retired_at: None,
                revoked_at: None,
            });
        let of_history = self
            .history
            .iter()
            .flat_map(|history| history.keys())
            .map(history_key);
        configured.chain(of_history)
    }

    /// The trusted log of this id.
    pub fn log(&self, log_id: &[u8; 32]) -> Option<&TrustedLog> {
        self.logs.iter().find(|log| log.key.log_id == *log_id)
    }

    /// Every trusted log.
    pub fn logs(&self) -> &[TrustedLog] {
        &self.logs
    }

    /// The witnesses whose cosignatures count.
    pub fn witnesses(&self) -> &[NoteKey] {
        &self.witnesses
    }

    /// The authorities whose timestamps count.
    pub fn timestamp_authorities(&self) -> &[Authority] {
        &self.timestamp_authorities
    }

    /// The keys whose receipts count.
    pub fn receipt_keys(&self) -> &[VerifyingKey] {
        &self.receipt_keys
    }
}

fn history_key(key: &HistoryKey) -> AttestationKey<'_> {
    AttestationKey {
        key: &key.key,
        issuer: &key.issuer,
        tenants: &key.tenants,
        predicate_types: &key.predicate_types,
        state: key.state,
        retired_at: key.retired_at,
        revoked_at: key.revoked_at,
    }
}

fn purpose_keys(keys: &[ConfiguredKey], purpose: Purpose) -> Vec<&VerifyingKey> {
    keys.iter()
        .filter(|key| key.purpose == purpose)
        .map(|key| &key.key)
        .collect()
}

fn configured_key(entry: &Reader<'_>) -> Result<ConfiguredKey, TrustError> {
    entry.only(&["keyId", "purpose", "issuer", "spki", "tenants", "predicateTypes"])?;
    let key = entry.at("spki")?.as_key()?;
    if entry.text("keyId")?.parse::<KeyId>().ok().as_ref() != Some(key.key_id()) {
        return Err(entry.malformed("keyId"));
    }
    let purpose = match entry.text("purpose")? {
        "attestation" => Purpose::Attestation,
        "key-history" => Purpose::KeyHistory,
        "manifest" => Purpose::Manifest,
        "audit" => Purpose::Audit,
        _ => return Err(entry.malformed("purpose")),
    };
    Ok(ConfiguredKey {
        key,
        purpose,
        issuer: entry.text("issuer")?.to_owned(),
        tenants: entry.list("tenants", |item| Ok(item.as_text()?.to_owned()))?,
        predicate_types: entry.list("predicateTypes", |item| Ok(item.as_text()?.to_owned()))?,
    })
}

fn timestamp_authority(entry: &Reader<'_>) -> Result<Authority, TrustError> {
    entry.only(&["name", "certificates", "validFrom", "validUntil"])?;
    let validity = entry.validity()?;
    let authority = Authority {
        name: entry.text("name")?.to_owned(),
        certificates: entry.list("certificates", |item| {
            BASE64_STANDARD.decode(item.as_text()?).map_err(|_| item.here())
        })?,
        valid_from: validity.from,
        valid_until: validity.until,
    };
    if !authority.is_well_formed() {
        return Err(entry.malformed("certificates"));
    }
    Ok(authority)
}

/// A log; without `origin` it is a Rekor v1 that is known by its key alone.
fn trusted_log(entry: &Reader<'_>) -> Result<TrustedLog, TrustError> {
    entry.only(&[
        "origin",
        "baseUrl",
        "publicKey",
        "distrusted",
        "validFrom",
        "validUntil",
    ])?;
    let key = entry.at("publicKey")?.as_key()?;
    let key = match entry.value.get("origin") {
        None => LogKey::any_origin(key),
        Some(_) => LogKey::new(entry.text("origin")?, key),
    };
    let key = key.map_err(|source| TrustError::Note {
        path: format!("{}/origin", entry.path),
        source,
    })?;
    let distrusted = match &entry.value["distrusted"] {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        _ => return Err(entry.malformed("distrusted")),
    };
    Ok(TrustedLog {
        key,
        base_url: entry.text("baseUrl")?.to_owned(),
        distrusted,
        validity: entry.validity()?,
    })
}

/// A place in the document, so that a refusal can name it.
struct Reader<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> Reader<'a> {
    fn malformed(&self, member: &str) -> TrustError {
        TrustError::Malformed {
            path: format!("{}/{member}", self.path),
        }
    }

    fn here(&self) -> TrustError {
        TrustError::Malformed {
            path: self.path.clone(),
        }
    }

    fn validity(&self) -> Result<Validity, TrustError> {
        let time = |member: &str| match self.value.get(member) {
            None => Ok(None),
            Some(value) => match value.as_str().and_then(|text| text.parse().ok()) {
                Some(time) => Ok(Some(time)),
                None => Err(self.malformed(member)),
            },
        };
        let validity = Validity {
            from: time("validFrom")?,
            until: time("validUntil")?,
        };
        if validity.is_reversed() {
            return Err(self.malformed("validUntil"));
        }
        Ok(validity)
    }

    fn only(&self, known: &[&str]) -> Result<(), TrustError> {
        let object = self.value.as_object().ok_or_else(|| self.here())?;
        match object.keys().find(|key| !known.contains(&key.as_str())) {
            Some(unknown) => Err(self.malformed(unknown)),
            None => Ok(()),
        }
    }

    fn at(&self, member: &str) -> Result<Reader<'a>, TrustError> {
        let value = self.value.get(member).ok_or_else(|| self.malformed(member))?;
        Ok(Reader {
            value,
            path: format!("{}/{member}", self.path),
        })
    }

    fn text(&self, member: &str) -> Result<&'a str, TrustError> {
        self.at(member)?.as_text()
    }

    fn as_text(&self) -> Result<&'a str, TrustError> {
        self.value.as_str().ok_or_else(|| self.here())
    }

    fn as_key(&self) -> Result<VerifyingKey, TrustError> {
        let der = BASE64_STANDARD.decode(self.as_text()?).map_err(|_| self.here())?;
        VerifyingKey::from_spki_der(&der).map_err(|source| TrustError::Key {
            path: self.path.clone(),
            source,
        })
    }

    /// A list that may be absent, which is the same as empty.
    fn list<T>(
        &self,
        member: &str,
        read: impl Fn(&Reader<'a>) -> Result<T, TrustError>,
    ) -> Result<Vec<T>, TrustError> {
        let items = match self.value.get(member) {
            None => return Ok(Vec::new()),
            Some(value) => value.as_array().filter(|items| items.len() <= MAX_ENTRIES),
        };
        let items = items.ok_or_else(|| self.malformed(member))?;
        let places = items.iter().enumerate().map(|(index, value)| Reader {
            value,
            path: format!("{}/{member}/{index}", self.path),
        });
        places.map(|place| read(&place)).collect()
    }
}
