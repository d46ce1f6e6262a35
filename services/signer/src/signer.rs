//! Signs, in this order: policy, intent, signature, outcome (durable), log and witness, log record (durable), answer.
//!
//! Nothing leaves the process before the outcome is durable, so a crash loses no signature and a retry makes no second
//! one: it takes up the recorded signature and the entry it already has.
//!
//! Here is what all ways to sign share, and manifests. `one` signs one order, `many` those of a message, `rotation`
//! changes the key, `unfinished` logs what an earlier run left.

mod many;
mod one;
mod rotation;
mod unfinished;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use stella_attest::cosignature;
use stella_attest::digest::Digest;
use stella_attest::dsse::{self, Envelope, Signature};
use stella_attest::evidence::{Evidence, LogEntry};
use stella_attest::history::{HistoryKey, KeyState};
use stella_attest::key::{KeyId, SigningKey, VerifyingKey};
use stella_attest::note::{Note, NoteKey};
use stella_attest::pattern;
use stella_attest::statement::PAYLOAD_TYPE;
use stella_attest::timestamp::Timestamp;
use stella_tlog::{Forks, Submission};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::audit::record::{CallId, Draft, Intent, LoggedAt, RecordedKey};
use crate::audit::{Audit, Location};
use crate::config::SlotConfig;
use crate::error::Error;
use crate::idempotency::Idempotency;
use crate::keys::{BackendKey, KeyBackend};
use crate::ledger::Ledger;
use crate::logs::{Logged, Logs};
use crate::order::{ManifestOrder, SignOrder, Transparency};
use crate::policy::{Refusal, SigningPolicy};
use crate::spool::Spool;

pub use self::rotation::Rotated;
pub(crate) use self::unfinished::Unfinished;

/// Who asks, for which tenant.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The caller's identity.
    pub caller: String,
    /// The tenant.
    pub tenant: String,
    /// When whoever asks is gone.
    pub deadline: Option<Instant>,
}

/// What was signed.
#[derive(Debug)]
pub struct Signed {
    /// The envelope's canonical bytes.
    pub envelope: Vec<u8>,
    /// The Sigstore bundle; without log entries if the signature is not logged.
    pub bundle: Vec<u8>,
    /// The key that signed.
    pub key_id: KeyId,
    /// Where it is logged, one entry of each log; none if that was not asked for.
    pub entries: Vec<LogEntry>,
}

/// The clock, so that tests can set it.
pub type Clock = fn() -> Timestamp;

/// A key that signs for a slot now. Calls hold its gate while they run, so that a rotation can wait for them.
struct Active {
    key: VerifyingKey,
    tenants: Vec<String>,
    predicate_types: Vec<String>,
    gate: Arc<RwLock<()>>,
}

/// Everything that signing needs.
pub struct Parts {
    /// The private keys.
    pub backend: Arc<dyn KeyBackend>,
    /// Signs manifests.
    pub manifest_key: SigningKey,
    /// Who may have manifests signed.
    pub manifest_caller: String,
    /// The history of the keys.
    pub ledger: Ledger,
    /// Who may have what signed.
    pub policy: SigningPolicy,
    /// The scopes of the slots.
    pub slots: Vec<SlotConfig>,
    /// The logs.
    pub logs: Logs,
    /// Envelopes on their way to logs that take them whole; `None` if no log does.
    pub(crate) spool: Option<Spool>,
    /// Whose cosignatures give a trusted time.
    pub witnesses: Vec<NoteKey>,
    /// The time.
    pub clock: Clock,
}

/// The Signer.
pub struct Signer {
    parts: Parts,
    audit: Audit,
    idempotency: Idempotency,
    active: Mutex<HashMap<String, Arc<Active>>>,
    /// The latest trusted time of each key's entries, for retirement.
    latest: Mutex<HashMap<KeyId, Timestamp>>,
    rotating: tokio::sync::Mutex<()>,
    /// Asked for once: the system reads several files to tell.
    cores: usize,
}

/// A signature that is recorded; what is left is to log it, if that was asked for.
struct Recorded {
    /// The envelope's canonical bytes.
    canonical: Vec<u8>,
    pae: Digest,
    signature: Signature,
    key: VerifyingKey,
    call: CallId,
    outcome: Location,
}

impl Signer {
    pub(crate) fn new(
        parts: Parts,
        audit: Audit,
        idempotency: Idempotency,
        latest: HashMap<KeyId, Timestamp>,
    ) -> Result<Self, Error> {
        let signer = Self {
            parts,
            audit,
            idempotency,
            active: Mutex::default(),
            latest: Mutex::new(latest),
            rotating: tokio::sync::Mutex::default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        };
        signer.read_active()?;
        Ok(signer)
    }

    /// Waits until everything is written.
    pub fn close(&self) {
        self.audit.close();
    }

    /// The history of the keys.
    pub fn ledger(&self) -> &Ledger {
        &self.parts.ledger
    }

    /// The logs elsewhere whose history is watched, by their ids.
    pub fn forks(&self) -> Vec<([u8; 32], Forks)> {
        self.parts.logs.forks()
    }

    fn now(&self) -> Timestamp {
        (self.parts.clock)()
    }

    /// Takes the active keys from the history; each must be in the backend and loggable.
    fn read_active(&self) -> Result<(), Error> {
        let history = self.parts.ledger.current();
        let held = self.parts.backend.keys();
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        for key in history.keys().iter().filter(|key| key.state == KeyState::Active) {
            if !held.iter().any(|held| held.key == key.key) {
                tracing::warn!(key = %key.key.key_id(), slot = key.slot, "the active key is not in the backend");
                continue;
            }
            self.parts.logs.accepts(&key.key)?;
            if active.get(&key.slot).is_some_and(|known| known.key == key.key) {
                continue;
            }
            let entry = Active {
                key: key.key.clone(),
                tenants: key.tenants.clone(),
                predicate_types: key.predicate_types.clone(),
                gate: Arc::default(),
            };
            active.insert(key.slot.clone(), Arc::new(entry));
        }
        Ok(())
    }

    /// The active key of a slot, and the gate that keeps it from being retired meanwhile.
    async fn enter(&self, slot: &str) -> Result<(Arc<Active>, OwnedRwLockReadGuard<()>), Error> {
        loop {
            let current = || {
                self.active
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get(slot)
                    .cloned()
            };
            let active = current().ok_or_else(|| Error::NoActiveKey(slot.to_owned()))?;
            let guard = Arc::clone(&active.gate).read_owned().await;
            // A rotation may have come in between; then the new key signs.
            if current().is_some_and(|now| Arc::ptr_eq(&now, &active)) {
                return Ok((active, guard));
            }
        }
    }

    /// Keeps the key from being retired meanwhile, if it still signs. What it signed and is logged later than its
    /// retirement verifies nowhere.
    async fn hold(&self, key: &VerifyingKey) -> Result<OwnedRwLockReadGuard<()>, Error> {
        let current = || {
            let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            active.values().find(|active| active.key == *key).cloned()
        };
        let retired = || Error::Retired(key.key_id().clone());
        let active = current().ok_or_else(retired)?;
        let guard = Arc::clone(&active.gate).read_owned().await;
        current().ok_or_else(retired)?;
        Ok(guard)
    }

    fn allow(&self, asker: &Asker, order: &SignOrder) -> Result<(), Error> {
        let (caller, tenant) = (&asker.caller, &asker.tenant);
        let decided = self
            .parts
            .policy
            .decide(caller, tenant, &order.predicate_type, &order.slot);
        decided.map_err(|refusal| match refusal {
            Refusal::Signing => Error::NotAllowed {
                caller: caller.clone(),
                tenant: tenant.clone(),
                predicate_type: order.predicate_type.clone(),
            },
            Refusal::Key => Error::KeyNotAllowed {
                caller: caller.clone(),
                slot: order.slot.clone(),
            },
        })
    }

    fn in_scope(active: &Active, asker: &Asker, order: &SignOrder) -> Result<(), Error> {
        let tenant = active
            .tenants
            .iter()
            .any(|tenant| tenant == "*" || *tenant == asker.tenant);
        if tenant && pattern::any_matches(&active.predicate_types, &order.predicate_type) {
            return Ok(());
        }
        Err(Error::KeyScope {
            slot: order.slot.clone(),
        })
    }

    fn intent(
        &self,
        asker: &Asker,
        order: &SignOrder,
        method: &str,
        key: &VerifyingKey,
        call: CallId,
        pae: &Digest,
    ) -> Draft {
        let request = order.idempotency.as_ref().map(|_| order.digest());
        let idempotency = order.idempotency.as_ref().zip(request.as_ref());
        Draft::intent(
            self.now(),
            &Intent {
                call,
                caller: &asker.caller,
                key: key.key_id().as_str(),
                method,
                pae,
                policy: self.parts.policy.digest(),
                predicate_type: &order.predicate_type,
                idempotency: idempotency.map(|(key, request)| RecordedKey {
                    key: key.as_str(),
                    request,
                }),
                slot: &order.slot,
                tenant: &asker.tenant,
                transparency: order.transparency,
            },
        )
    }

    /// Keeps the envelopes of these signatures if a log takes them whole; before their outcomes are recorded.
    async fn keep(&self, envelopes: impl Iterator<Item = (CallId, Vec<u8>)>) -> Result<(), Arc<io::Error>> {
        let Some(spool) = self.parts.spool.clone() else {
            return Ok(());
        };
        let envelopes: Vec<_> = envelopes.collect();
        let kept = tokio::task::spawn_blocking(move || spool.keep(&envelopes)).await;
        kept.unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(Arc::new)
    }

    /// Forgets the envelopes of signatures whose log records are durable.
    fn forget(&self, calls: Vec<CallId>) {
        if let Some(spool) = self.parts.spool.clone() {
            tokio::task::spawn_blocking(move || spool.forget(&calls));
        }
    }

    /// The records of where a signature is logged, one for each log; the first has the timestamp.
    fn logged(&self, recorded: &Recorded, logged: &Logged) -> Vec<Draft> {
        let entries = &logged.entries;
        let stamped = logged.stamp.as_ref().map(|stamp| stamp.time);
        let times = entries.iter().filter_map(|entry| self.trusted_time(entry));
        let trusted_at = times.chain(stamped).min();
        if let Some(at) = trusted_at {
            self.note_latest(recorded.key.key_id(), at);
        }
        let (at, mut drafts) = (self.now(), Vec::with_capacity(entries.len()));
        let mut stamp = logged.stamp.as_ref().map(|stamp| &stamp.response[..]);
        for entry in entries {
            let place = LoggedAt {
                log_id: (!self.parts.logs.is_embedded(entry)).then_some(&entry.log_id),
                log_index: entry.log_index,
                timestamp: stamp.take(),
                tree_size: entry.proof.as_ref().map_or(0, |proof| proof.tree_size),
                trusted_at,
            };
            let proof = entry
                .proof
                .as_ref()
                .filter(|_| self.parts.logs.is_embedded(entry));
            let checkpoint = proof.map(|proof| proof.checkpoint.clone());
            drafts.push(Draft::logged(at, recorded.call, &place, checkpoint));
        }
        drafts
    }

    /// The earliest time that somebody vouches for: a configured witness who cosigned, or a Rekor v1, whose signed entry
    /// timestamp its client has checked.
    fn trusted_time(&self, entry: &LogEntry) -> Option<Timestamp> {
        let promised = entry.integrated_time.filter(|_| entry.promise.is_some());
        let proof = entry.proof.as_ref();
        let note = proof.and_then(|proof| Note::parse(proof.checkpoint.as_bytes()).ok());
        let witnesses = self.parts.witnesses.iter();
        witnesses
            .filter_map(|witness| cosignature::verify(note.as_ref()?, witness).ok()?)
            .chain(promised.map(Timestamp::from_unix))
            .min()
    }

    fn note_latest(&self, key: &KeyId, at: Timestamp) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        match latest.get_mut(key) {
            Some(known) => *known = at.max(*known),
            None => drop(latest.insert(key.clone(), at)),
        }
    }

    /// Signs a manifest. It is not logged; the audit log has it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn sign_manifest(
        &self,
        asker: &Asker,
        order: &ManifestOrder,
    ) -> Result<(Envelope, KeyId), Error> {
        if asker.caller != self.parts.manifest_caller {
            return Err(Error::ManifestNotAllowed(asker.caller.clone()));
        }
        let key = &self.parts.manifest_key;
        let call = self.audit.next_call();
        let envelope = Envelope::sign(PAYLOAD_TYPE, &order.payload, key)?;
        let id = key.verifying_key().key_id();
        let pae = Digest::of(&envelope.pae());
        let intent = Draft::intent(
            self.now(),
            &Intent {
                call,
                caller: &asker.caller,
                key: id.as_str(),
                method: "SignManifest",
                pae: &pae,
                policy: self.parts.policy.digest(),
                predicate_type: &order.predicate_type,
                idempotency: None,
                slot: "manifest",
                tenant: &asker.tenant,
                transparency: Transparency::None,
            },
        );
        let outcome = Draft::outcome(self.now(), call, id.as_str(), &envelope.signatures[0].sig);
        self.audit.append(vec![intent, outcome]).await?;
        Ok((envelope, id.clone()))
    }

    /// The keys of the history, and those in the backend that it does not name yet, which are prepared.
    ///
    /// # Errors
    /// The backend cannot be read.
    pub fn keys(&self) -> Result<Vec<HistoryKey>, Error> {
        self.parts.backend.refresh()?;
        let mut keys = self.parts.ledger.current().keys().to_vec();
        for held in self.parts.backend.keys() {
            if !keys.iter().any(|known| known.key == held.key) {
                keys.push(self.prepared(&held));
            }
        }
        Ok(keys)
    }

    fn prepared(&self, held: &BackendKey) -> HistoryKey {
        let named = self
            .parts
            .slots
            .iter()
            .find(|slot| slot.name == held.slot)
            .cloned();
        let slot = named.unwrap_or_else(|| SlotConfig::unnamed(&held.slot));
        HistoryKey {
            key: held.key.clone(),
            slot: held.slot.clone(),
            issuer: slot.issuer,
            tenants: slot.tenants,
            predicate_types: slot.predicate_types,
            state: KeyState::Prepared,
            activated_at: None,
            retired_at: None,
            revoked_at: None,
            revocation_reason: None,
        }
    }
}

fn signature(sig: Vec<u8>) -> Signature {
    Signature {
        keyid: String::new(),
        sig,
    }
}

fn recorded(
    payload: &[u8],
    pae: Digest,
    sig: Vec<u8>,
    key: VerifyingKey,
    call: CallId,
    outcome: Location,
) -> Recorded {
    let signature = signature(sig);
    let canonical = dsse::canonical_bytes(PAYLOAD_TYPE, payload, std::slice::from_ref(&signature));
    Recorded {
        canonical,
        pae,
        signature,
        key,
        call,
        outcome,
    }
}

fn submission(recorded: &Recorded) -> Submission {
    Submission {
        pae_digest: recorded.pae,
        signature: recorded.signature.sig.clone(),
        key: recorded.key.clone(),
        envelope: recorded.canonical.as_slice().into(),
    }
}

/// The answer of a signature that is not logged.
fn unlogged(recorded: Recorded) -> Signed {
    answer(recorded, Vec::new(), None)
}

fn answer(recorded: Recorded, entries: Vec<LogEntry>, timestamp: Option<Vec<u8>>) -> Signed {
    let key_id = recorded.key.key_id().clone();
    let bundle = Evidence::bundle_of(&recorded.canonical, &key_id, &entries, timestamp.as_slice());
    Signed {
        envelope: recorded.canonical,
        bundle,
        key_id,
        entries,
    }
}
