//! The history of the attestation keys: which key was valid when, and for whom.
//!
//! Each version lists every key that ever was, names the digest of the version before it, and is a DSSE envelope of
//! `stella.ops/key-history@v1` signed by the key-history key. So a version cannot be altered, left out or taken back:
//! [`KeyHistory::extend`] takes only the direct successor of what is known, and a key's end is never undone.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Map, Value, json};

use crate::canonical;
use crate::digest::Digest;
use crate::dsse::{Envelope, EnvelopeError};
use crate::key::{KeyError, KeyId, SigningKey, VerifyingKey};
use crate::statement::{self, Statement, StatementError};
use crate::timestamp::Timestamp;

/// The predicateType of a version.
pub const PREDICATE_TYPE: &str = "stella.ops/key-history@v1";

/// Most keys that one version may list.
const MAX_KEYS: usize = 10_000;

/// Where a key stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Known, not yet used; verifies nothing.
    Prepared,
    /// Signs and verifies.
    Active,
    /// Signs no more; verifies what was logged until `retired_at`.
    Retired,
    /// Must not be trusted from `revoked_at` on.
    Revoked,
}

impl KeyState {
    /// The state as it stands in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Prepared, Self::Active, Self::Retired, Self::Revoked]
            .into_iter()
            .find(|s| s.as_str() == text)
    }
}

/// One key, as one version of the history sees it.
#[derive(Clone, Debug)]
pub struct HistoryKey {
    /// The public half.
    pub key: VerifyingKey,
    /// Name of the slot it signs for.
    pub slot: String,
    /// Who stands behind it.
    pub issuer: String,
    /// Tenants it may sign for; `*` is any.
    pub tenants: Vec<String>,
    /// Patterns of predicateTypes it may sign; `*` stands for any run of characters.
    pub predicate_types: Vec<String>,
    /// Where it stands.
    pub state: KeyState,
    /// When it was activated: information, not a lower bound.
    pub activated_at: Option<Timestamp>,
    /// Entries with a later trusted time are refused.
    pub retired_at: Option<Timestamp>,
    /// Entries with this or a later trusted time are refused.
    pub revoked_at: Option<Timestamp>,
    /// Why it was revoked.
    pub revocation_reason: Option<String>,
}

impl HistoryKey {
    fn to_value(&self) -> Value {
        let mut key = Map::new();
        key.insert("keyId".into(), self.key.key_id().to_string().into());
        key.insert("spki".into(), BASE64_STANDARD.encode(self.key.spki()).into());
        key.insert("slot".into(), self.slot.clone().into());
        key.insert("issuer".into(), self.issuer.clone().into());
        key.insert("tenants".into(), json!(self.tenants));
        key.insert("predicateTypes".into(), json!(self.predicate_types));
        key.insert("state".into(), self.state.as_str().into());
        for (name, time) in [
            ("activatedAt", self.activated_at),
            ("retiredAt", self.retired_at),
            ("revokedAt", self.revoked_at),
        ] {
            if let Some(time) = time {
                key.insert(name.into(), time.to_string().into());
            }
        }
        if let Some(reason) = &self.revocation_reason {
            key.insert("reason".into(), reason.clone().into());
        }
        Value::Object(key)
    }

    fn from_value(value: &Value) -> Result<Self, HistoryError> {
        let text = |name: &'static str| value.get(name).and_then(Value::as_str);
        let needed = |name: &'static str| text(name).ok_or(HistoryError::Malformed { field: name });
        let time = |name: &'static str| match text(name) {
            None => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| HistoryError::Malformed { field: name }),
        };
        let spki = BASE64_STANDARD
            .decode(needed("spki")?)
            .map_err(|_| HistoryError::Malformed { field: "spki" })?;
        let key = VerifyingKey::from_spki_der(&spki)?;
        if key.key_id().to_string() != needed("keyId")? {
            return Err(HistoryError::Malformed { field: "keyId" });
        }
        let state = KeyState::parse(needed("state")?).ok_or(HistoryError::Malformed { field: "state" })?;
        let read = Self {
            key,
            slot: needed("slot")?.to_owned(),
            issuer: needed("issuer")?.to_owned(),
            tenants: strings(value, "tenants")?,
            predicate_types: strings(value, "predicateTypes")?,
            state,
            activated_at: time("activatedAt")?,
            retired_at: time("retiredAt")?,
            revoked_at: time("revokedAt")?,
            revocation_reason: text("reason").map(str::to_owned),
        };
        match state {
            KeyState::Retired if read.retired_at.is_none() => {
                Err(HistoryError::Malformed { field: "retiredAt" })
            }
            KeyState::Revoked if read.revoked_at.is_none() => {
                Err(HistoryError::Malformed { field: "revokedAt" })
            }
            _ => Ok(read),
        }
    }

    /// True if `later` does not take back what this version said of the key.
    fn may_become(&self, later: &Self) -> bool {
        let keeps = |old: Option<Timestamp>, new: Option<Timestamp>| old.is_none_or(|old| new == Some(old));
        let order = |state: KeyState| match state {
            KeyState::Prepared => 0,
            KeyState::Active => 1,
            KeyState::Retired => 2,
            KeyState::Revoked => 3,
        };
        order(later.state) >= order(self.state)
            && keeps(self.retired_at, later.retired_at)
            && keeps(self.revoked_at, later.revoked_at)
    }
}

fn strings(value: &Value, name: &'static str) -> Result<Vec<String>, HistoryError> {
    let list = value
        .get(name)
        .and_then(Value::as_array)
        .ok_or(HistoryError::Malformed { field: name })?;
    let texts = list.iter().map(|item| item.as_str().map(str::to_owned));
    texts
        .collect::<Option<_>>()
        .ok_or(HistoryError::Malformed { field: name })
}

/// Why a history, or a version of it, is refused.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// There is no version at all.
    #[error("the key history has no version")]
    Empty,
    /// A version is not an envelope.
    #[error("a version is not a DSSE envelope")]
    Envelope(#[from] EnvelopeError),
    /// A version is not a Statement.
    #[error("a version is not a Statement")]
    Statement(#[from] StatementError),
    /// A version is of another predicateType.
    #[error("a version is of another predicateType")]
    WrongType,
    /// A field is missing or of the wrong form.
    #[error("`{field}` of a key is missing or malformed")]
    Malformed {
        /// The field's name.
        field: &'static str,
    },
    /// A key does not parse.
    #[error("a key of the history does not parse")]
    Key(#[from] KeyError),
    /// The key-history key did not sign it.
    #[error("version {version} is not signed by the key-history key")]
    Signature {
        /// The version's number.
        version: u64,
    },
    /// The subject is not the digest of the key list.
    #[error("version {version} has a subject that is not its key list")]
    Subject {
        /// The version's number.
        version: u64,
    },
    /// It is not the direct successor of what is known: older, forked, or with a gap.
    #[error("version {version} does not follow version {known}")]
    Rollback {
        /// The number that the refused version bears.
        version: u64,
        /// The number of the last known version.
        known: u64,
    },
    /// It leaves out a key or takes back a retirement or revocation.
    #[error("version {version} takes back what was said of key `{key}`")]
    TakenBack {
        /// The version's number.
        version: u64,
        /// The key at fault.
        key: KeyId,
    },
}

impl HistoryError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "KEY_HISTORY_EMPTY",
            Self::Envelope(_)
            | Self::Statement(_)
            | Self::WrongType
            | Self::Malformed { .. }
            | Self::Key(_) => "KEY_HISTORY_MALFORMED",
            Self::Signature { .. } => "KEY_HISTORY_SIGNATURE",
            Self::Subject { .. } => "KEY_HISTORY_SUBJECT",
            Self::Rollback { .. } | Self::TakenBack { .. } => "KEY_HISTORY_ROLLBACK",
        }
    }
}

/// One signed version.
#[derive(Clone, Debug)]
struct Version {
    number: u64,
    previous: Option<Digest>,
    digest: Digest,
    envelope: Vec<u8>,
    keys: Vec<HistoryKey>,
}

impl Version {
    fn parse(bytes: &[u8], history_keys: &[&VerifyingKey]) -> Result<Self, HistoryError> {
        let envelope = Envelope::parse(bytes)?;
        let statement = Statement::parse(&envelope.payload)?;
        if envelope.payload_type != statement::PAYLOAD_TYPE || statement.predicate_type != PREDICATE_TYPE {
            return Err(HistoryError::WrongType);
        }
        let predicate = &statement.predicate;
        let number = predicate["version"]
            .as_u64()
            .ok_or(HistoryError::Malformed { field: "version" })?;
        envelope
            .verify(history_keys, 1)
            .map_err(|_| HistoryError::Signature { version: number })?;
        let previous = match predicate["previous"].as_str() {
            Some("") => None,
            Some(text) => Some(
                text.parse()
                    .map_err(|_| HistoryError::Malformed { field: "previous" })?,
            ),
            None => return Err(HistoryError::Malformed { field: "previous" }),
        };
        let list = predicate["keys"].as_array().filter(|keys| keys.len() <= MAX_KEYS);
        let list = list.ok_or(HistoryError::Malformed { field: "keys" })?;
        if !statement.has_subject(&Digest::of(&canonical::to_vec(&predicate["keys"]))) {
            return Err(HistoryError::Subject { version: number });
        }
        let keys = list
            .iter()
            .map(HistoryKey::from_value)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            number,
            previous,
            digest: envelope.digest(),
            envelope: envelope.canonical_bytes(),
            keys,
        })
    }
}

/// All versions, oldest first; at least one.
#[derive(Clone, Debug)]
pub struct KeyHistory {
    versions: Vec<Version>,
}

impl KeyHistory {
    /// Reads all versions in order, each signed by one of `history_keys`.
    ///
    /// # Errors
    /// [`HistoryError`] names the first version that does not fit.
    pub fn parse(envelopes: &[Vec<u8>], history_keys: &[&VerifyingKey]) -> Result<Self, HistoryError> {
        let (first, rest) = envelopes.split_first().ok_or(HistoryError::Empty)?;
        let first = Version::parse(first, history_keys)?;
        if first.number != 1 || first.previous.is_some() {
            return Err(HistoryError::Rollback {
                version: first.number,
                known: 0,
            });
        }
        let mut history = Self {
            versions: vec![first],
        };
        for envelope in rest {
            history.extend(envelope, history_keys)?;
        }
        Ok(history)
    }

    /// Takes the direct successor of the last version.
    ///
    /// # Errors
    /// An older, forked or skipping version is [`HistoryError::Rollback`]; nothing is changed.
    pub fn extend(&mut self, envelope: &[u8], history_keys: &[&VerifyingKey]) -> Result<(), HistoryError> {
        let next = Version::parse(envelope, history_keys)?;
        let last = self.last();
        if next.number != last.number + 1 || next.previous != Some(last.digest) {
            return Err(HistoryError::Rollback {
                version: next.number,
                known: last.number,
            });
        }
        for old in &last.keys {
            let new = next.keys.iter().find(|key| key.key.key_id() == old.key.key_id());
            if !new.is_some_and(|new| old.may_become(new)) {
                return Err(HistoryError::TakenBack {
                    version: next.number,
                    key: old.key.key_id().clone(),
                });
            }
        }
        self.versions.push(next);
        Ok(())
    }

    /// True if `envelope` is, byte for byte in canonical form, the version that is known under its number.
    pub fn knows(&self, envelope: &[u8]) -> bool {
        Envelope::parse(envelope).is_ok_and(|e| self.versions.iter().any(|v| v.digest == e.digest()))
    }

    fn last(&self) -> &Version {
        self.versions.last().expect("a history has at least one version")
    }

    /// Number of the last version, from 1.
    pub fn version(&self) -> u64 {
        self.last().number
    }

    /// The keys as the last version sees them.
    pub fn keys(&self) -> &[HistoryKey] {
        &self.last().keys
    }

    /// The canonical envelopes of all versions, oldest first.
    pub fn envelopes(&self) -> impl Iterator<Item = &[u8]> {
        self.versions.iter().map(|version| version.envelope.as_slice())
    }

    /// Signs the version that follows `previous` (the first one if there is none) and lists `keys`.
    ///
    /// # Errors
    /// [`KeyError`] if the key-history key cannot sign.
    pub fn sign_next(
        previous: Option<&Self>,
        keys: &[HistoryKey],
        history_key: &SigningKey,
    ) -> Result<Vec<u8>, KeyError> {
        let list = Value::Array(keys.iter().map(HistoryKey::to_value).collect());
        let predicate = json!({
            "previous": previous.map(|history| history.last().digest.to_string()).unwrap_or_default(),
            "version": previous.map_or(1, |history| history.version() + 1),
            "keys": list,
        });
        let digest = Digest::of(&canonical::to_vec(&predicate["keys"]));
        let payload = statement::build("key-history", &digest, PREDICATE_TYPE, predicate);
        Ok(Envelope::sign(statement::PAYLOAD_TYPE, &payload, history_key)?.canonical_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Algorithm;

    fn key(state: KeyState, retired_at: Option<&str>) -> (SigningKey, HistoryKey) {
        let signing = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let entry = HistoryKey {
            key: signing.verifying_key().clone(),
            slot: "default".into(),
            issuer: "stella".into(),
            tenants: vec!["dev".into()],
            predicate_types: vec!["*".into()],
            state,
            activated_at: None,
            retired_at: retired_at.map(|text| text.parse().expect("a time")),
            revoked_at: None,
            revocation_reason: None,
        };
        (signing, entry)
    }

    #[test]
    fn a_history_takes_only_its_direct_successor() {
        let history_key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
        let other = SigningKey::generate(Algorithm::Ed25519).expect("a key");
        let trusted = [history_key.verifying_key()];
        let (_, active) = key(KeyState::Active, None);
        let (_, second) = key(KeyState::Active, None);
        let retired = HistoryKey {
            state: KeyState::Retired,
            retired_at: "2026-01-01T00:00:00Z".parse().ok(),
            ..active.clone()
        };

        let v1 = KeyHistory::sign_next(None, std::slice::from_ref(&active), &history_key).expect("signs");
        let one = KeyHistory::parse(std::slice::from_ref(&v1), &trusted).expect("version 1");
        let v2 = KeyHistory::sign_next(Some(&one), &[retired.clone(), second.clone()], &history_key)
            .expect("signs");
        let mut two = one.clone();
        two.extend(&v2, &trusted).expect("version 2");
        assert_eq!(
            (two.version(), two.keys().len(), two.keys()[0].state),
            (2, 2, KeyState::Retired)
        );

        let fork = KeyHistory::sign_next(Some(&one), &[active.clone(), second.clone()], &history_key)
            .expect("signs");
        let dropped =
            KeyHistory::sign_next(Some(&two), std::slice::from_ref(&second), &history_key).expect("signs");
        let revived =
            KeyHistory::sign_next(Some(&two), &[active, second.clone()], &history_key).expect("signs");
        let forged = KeyHistory::sign_next(Some(&two), &[retired, second], &other).expect("signs");
        for (case, envelope, want) in [
            ("the first version again", &v1, "KEY_HISTORY_ROLLBACK"),
            ("another second version", &fork, "KEY_HISTORY_ROLLBACK"),
            ("a key left out", &dropped, "KEY_HISTORY_ROLLBACK"),
            ("a retired key made active", &revived, "KEY_HISTORY_ROLLBACK"),
            ("signed by another key", &forged, "KEY_HISTORY_SIGNATURE"),
            ("not an envelope", &b"{}".to_vec(), "KEY_HISTORY_MALFORMED"),
        ] {
            let refused = two
                .clone()
                .extend(envelope, &trusted)
                .map_err(|error| error.reason());
            assert_eq!(refused, Err(want), "{case}");
        }
        assert_eq!(
            KeyHistory::parse(&[v2], &trusted)
                .map(|_| ())
                .map_err(|e| e.reason()),
            Err("KEY_HISTORY_ROLLBACK")
        );
        assert_eq!(
            KeyHistory::parse(&[], &trusted)
                .map(|_| ())
                .map_err(|e| e.reason()),
            Err("KEY_HISTORY_EMPTY")
        );
    }
}
