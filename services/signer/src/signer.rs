//! Signs, in this order: policy, intent, signature, outcome (durable), log and witness, log record (durable), answer.
//!
//! Nothing leaves the process before the outcome is durable, so a crash loses no signature and a retry makes no second
//! one: it takes up the recorded signature and the entry it already has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
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
use stella_tlog::{LogError, Submission, TransparencyLog};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::audit::record::{CallId, Draft, Intent, Phase, RecordedKey, Rotation};
use crate::audit::{Audit, AuditError, Location, Written};
use crate::config::SlotConfig;
use crate::error::Error;
use crate::idempotency::{Begin, Done, Idempotency, Resume, Scope, Ticket};
use crate::keys::{BackendKey, KeyBackend};
use crate::ledger::Ledger;
use crate::order::{ManifestOrder, RotateOrder, SignOrder, Transparency};
use crate::policy::{Refusal, SigningPolicy};

/// Signatures of an earlier run that are logged at the same time.
const UNFINISHED_AT_A_TIME: usize = 512;
/// Pauses before those are tried again that could not be logged.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Who asks, for which tenant.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The caller's identity.
    pub caller: String,
    /// The tenant.
    pub tenant: String,
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
    /// Where it is logged.
    pub entry: Option<LogEntry>,
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
    /// The log.
    pub log: Arc<dyn TransparencyLog>,
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
            self.parts.log.accepts(&key.key)?;
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

    /// Signs one order.
    ///
    /// # Errors
    /// [`Error`]; after a failure to log, the retry with the same idempotency key takes up the recorded signature.
    pub async fn sign(self: &Arc<Self>, asker: Asker, order: SignOrder) -> Result<Signed, Error> {
        self.allow(&asker, &order)?;
        if order.transparency == Transparency::None && order.idempotency.is_none() {
            return self.sign_now(&asker, &order, "Sign").await;
        }
        // The call goes on if its caller leaves: what is signed must be recorded, and what is recorded logged.
        let signer = Arc::clone(self);
        let task = tokio::spawn(async move { signer.sign_with_key(&asker, &order, "Sign").await });
        task.await.map_err(|_| Error::CutOff)?
    }

    async fn sign_with_key(&self, asker: &Asker, order: &SignOrder, method: &str) -> Result<Signed, Error> {
        let Some(key) = &order.idempotency else {
            return self.sign_now(asker, order, method).await;
        };
        let scope = Scope::new(&asker.caller, &asker.tenant, method, key.as_str());
        let (ticket, done) = match self.idempotency.begin(scope, order.digest(), self.now())? {
            Begin::Fresh(ticket) => {
                let (active, _gate) = self.enter(&order.slot).await?;
                Self::in_scope(&active, asker, order)?;
                let recorded = self.record(asker, order, method, &active.key).await?;
                let outcome = recorded.outcome;
                if order.transparency == Transparency::None {
                    ticket.finish(Done::Signed { outcome });
                    return Ok(answer(recorded, None));
                }
                ticket.reached(Done::Unlogged { outcome });
                return self.log(recorded, Some(ticket)).await;
            }
            Begin::Resume(ticket, done) => (Some(ticket), done),
            Begin::Repeat(done) => (None, done),
        };
        self.again(order, ticket, done).await
    }

    /// Answers from what is recorded; logs first what is not logged yet.
    async fn again(&self, order: &SignOrder, ticket: Option<Ticket>, done: Done) -> Result<Signed, Error> {
        let (Done::Signed { outcome } | Done::Unlogged { outcome } | Done::Logged { outcome, .. }) = done
        else {
            return Err(Error::CutOff);
        };
        let (call, key, signature) = self.audit.read(outcome, |fields| {
            Some((
                fields.call()?,
                fields.key.as_deref()?.to_owned(),
                fields.signature()?,
            ))
        })?;
        let history = self.parts.ledger.current();
        let known = history
            .keys()
            .iter()
            .find(|known| known.key.key_id().as_str() == key);
        let key = known.map(|known| known.key.clone()).ok_or(Error::NoKey(key))?;
        let pae = Digest::of(&dsse::pae(PAYLOAD_TYPE, &order.payload));
        let recorded = recorded(&order.payload, pae, signature, key, call, outcome);
        match done {
            Done::Signed { .. } => Ok(answer(recorded, None)),
            Done::Logged { .. } => {
                let entry = self.parts.log.submit(submission(&recorded)).await?;
                Ok(answer(recorded, Some(entry)))
            }
            Done::Unlogged { .. } | Done::Rotated { .. } => self.log(recorded, ticket).await,
        }
    }

    /// Signs an order that has no idempotency key.
    async fn sign_now(&self, asker: &Asker, order: &SignOrder, method: &str) -> Result<Signed, Error> {
        let (active, _gate) = self.enter(&order.slot).await?;
        Self::in_scope(&active, asker, order)?;
        let recorded = self.record(asker, order, method, &active.key).await?;
        match order.transparency {
            Transparency::None => Ok(answer(recorded, None)),
            Transparency::Required => self.log(recorded, None).await,
        }
    }

    /// Intent, signature and outcome; durable when this returns. The key lives in this process, so one write holds both.
    async fn record(
        &self,
        asker: &Asker,
        order: &SignOrder,
        method: &str,
        key: &VerifyingKey,
    ) -> Result<Recorded, Error> {
        let call = self.audit.next_call();
        let pae = dsse::pae(PAYLOAD_TYPE, &order.payload);
        let digest = Digest::of(&pae);
        let intent = self.intent(asker, order, method, key, call, &digest);
        let signature = self.parts.backend.sign(key.key_id(), &pae).await?;
        let outcome = Draft::outcome(self.now(), call, key.key_id().as_str(), &signature);
        let written = self.audit.append(vec![intent, outcome]).await?;
        let outcome = written.last().map(|written| written.at).ok_or(Error::CutOff)?;
        Ok(recorded(
            &order.payload,
            digest,
            signature,
            key.clone(),
            call,
            outcome,
        ))
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

    /// Logs a recorded signature and records where it stands.
    async fn log(&self, recorded: Recorded, ticket: Option<Ticket>) -> Result<Signed, Error> {
        let entry = self.parts.log.submit(submission(&recorded)).await?;
        let written = self.audit.append(vec![self.logged(&recorded, &entry)]).await?;
        if let (Some(ticket), Some(written)) = (ticket, written.first()) {
            ticket.finish(logged(recorded.outcome, written));
        }
        Ok(answer(recorded, Some(entry)))
    }

    fn logged(&self, recorded: &Recorded, entry: &LogEntry) -> Draft {
        let proof = entry.proof.as_ref();
        let checkpoint = proof.map(|proof| proof.checkpoint.clone()).unwrap_or_default();
        let trusted_at = self.trusted_time(&checkpoint);
        if let Some(at) = trusted_at {
            self.note_latest(recorded.key.key_id(), at);
        }
        let size = proof.map_or(0, |proof| proof.tree_size);
        Draft::logged(
            self.now(),
            recorded.call,
            entry.log_index,
            size,
            trusted_at,
            checkpoint,
        )
    }

    /// The earliest time at which a configured witness cosigned.
    fn trusted_time(&self, checkpoint: &str) -> Option<Timestamp> {
        let note = Note::parse(checkpoint.as_bytes()).ok()?;
        self.parts
            .witnesses
            .iter()
            .filter_map(|witness| cosignature::verify(&note, witness).ok()?)
            .min()
    }

    fn note_latest(&self, key: &KeyId, at: Timestamp) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        match latest.get_mut(key) {
            Some(known) => *known = at.max(*known),
            None => drop(latest.insert(key.clone(), at)),
        }
    }

    /// Signs the orders of one message: on every core, with one write to the audit log, as one batch of the log.
    ///
    /// Each order has its own result, in order; orders with an idempotency key go their own way.
    pub async fn sign_batch(
        self: &Arc<Self>,
        asker: &Asker,
        orders: Vec<Result<SignOrder, Error>>,
    ) -> Vec<Result<Signed, Error>> {
        let mut results: Vec<Option<Result<Signed, Error>>> = Vec::new();
        let (mut plain, mut keyed) = (Vec::new(), Vec::new());
        for (place, order) in orders.into_iter().enumerate() {
            results.push(None);
            match order.and_then(|order| self.allow(asker, &order).map(|()| order)) {
                Err(error) => results[place] = Some(Err(error)),
                Ok(order) if order.idempotency.is_some() => keyed.push((place, order)),
                Ok(order) => plain.push((place, order)),
            }
        }
        let keyed = keyed.into_iter().map(|(place, order)| {
            let (signer, asker) = (Arc::clone(self), asker.clone());
            let task = tokio::spawn(async move { signer.sign_with_key(&asker, &order, "SignBatch").await });
            async move { (place, task.await.unwrap_or(Err(Error::CutOff))) }
        });
        let (signer, asker) = (Arc::clone(self), asker.clone());
        let plain = tokio::spawn(async move { signer.sign_plain(asker, plain).await });
        let (keyed, plain) = tokio::join!(join_all(keyed), plain);
        for (place, result) in keyed.into_iter().chain(plain.unwrap_or_default()) {
            results[place] = Some(result);
        }
        results
            .into_iter()
            .map(|result| result.unwrap_or(Err(Error::CutOff)))
            .collect()
    }

    async fn sign_plain(
        self: Arc<Self>,
        asker: Asker,
        orders: Vec<(usize, SignOrder)>,
    ) -> Vec<(usize, Result<Signed, Error>)> {
        let mut results = Vec::with_capacity(orders.len());
        let mut entered = Vec::with_capacity(orders.len());
        let mut gates: HashMap<String, (Arc<Active>, OwnedRwLockReadGuard<()>)> = HashMap::new();
        for (place, order) in orders {
            if !gates.contains_key(&order.slot) {
                match self.enter(&order.slot).await {
                    Ok(active) => drop(gates.insert(order.slot.clone(), active)),
                    Err(error) => {
                        results.push((place, Err(error)));
                        continue;
                    }
                }
            }
            let active = Arc::clone(&gates[&order.slot].0);
            match Self::in_scope(&active, &asker, &order) {
                Ok(()) => entered.push((place, order, active)),
                Err(error) => results.push((place, Err(error))),
            }
        }
        let mut recorded = Vec::with_capacity(entered.len());
        let mut drafts = Vec::with_capacity(entered.len() * 2);
        for part in self.sign_on_every_core(&asker, entered).await {
            match part {
                Ok((place, transparency, signed, both)) => {
                    recorded.push((place, transparency, signed));
                    drafts.extend(both);
                }
                Err((place, error)) => results.push((place, Err(error))),
            }
        }
        let written = match self.audit.append(drafts).await {
            Ok(written) => written,
            Err(error) => {
                results.extend(
                    recorded
                        .into_iter()
                        .map(|(place, ..)| (place, Err(Error::Audit(error.clone())))),
                );
                return results;
            }
        };
        // Each order wrote intent and outcome, in this order.
        for ((_, _, signed), pair) in recorded.iter_mut().zip(written.chunks(2)) {
            if let Some(outcome) = pair.last() {
                signed.outcome = outcome.at;
            }
        }
        let (unlogged, wanted): (Vec<_>, Vec<_>) = recorded
            .into_iter()
            .partition(|(_, transparency, _)| *transparency == Transparency::None);
        results.extend(
            unlogged
                .into_iter()
                .map(|(place, _, signed)| (place, Ok(answer(signed, None)))),
        );
        results.extend(
            self.log_all(
                wanted
                    .into_iter()
                    .map(|(place, _, signed)| (place, signed))
                    .collect(),
            )
            .await,
        );
        results
    }

    async fn sign_on_every_core(
        self: &Arc<Self>,
        asker: &Asker,
        orders: Vec<(usize, SignOrder, Arc<Active>)>,
    ) -> Vec<Result<(usize, Transparency, Recorded, [Draft; 2]), (usize, Error)>> {
        let share = orders.len().div_ceil(self.cores).max(1);
        let mut orders = orders.into_iter();
        let mut tasks = Vec::new();
        loop {
            let part: Vec<_> = orders.by_ref().take(share).collect();
            if part.is_empty() {
                break;
            }
            let (signer, asker) = (Arc::clone(self), asker.clone());
            let places: Vec<usize> = part.iter().map(|(place, ..)| *place).collect();
            let work = move || {
                part.into_iter()
                    .map(|order| signer.sign_one(&asker, order))
                    .collect::<Vec<_>>()
            };
            tasks.push((places, tokio::task::spawn_blocking(work)));
        }
        let mut signed = Vec::new();
        for (places, task) in tasks {
            match task.await {
                Ok(part) => signed.extend(part),
                Err(_) => signed.extend(places.into_iter().map(|place| Err((place, Error::CutOff)))),
            }
        }
        signed
    }

    #[allow(
        clippy::type_complexity,
        reason = "the parts of one order travel together through one function"
    )]
    fn sign_one(
        &self,
        asker: &Asker,
        (place, order, active): (usize, SignOrder, Arc<Active>),
    ) -> Result<(usize, Transparency, Recorded, [Draft; 2]), (usize, Error)> {
        let call = self.audit.next_call();
        let pae = dsse::pae(PAYLOAD_TYPE, &order.payload);
        let digest = Digest::of(&pae);
        let intent = self.intent(asker, &order, "SignBatch", &active.key, call, &digest);
        let id = active.key.key_id();
        let signature = self
            .parts
            .backend
            .sign_blocking(id, &pae)
            .map_err(|error| (place, error.into()))?;
        let outcome = Draft::outcome(self.now(), call, id.as_str(), &signature);
        let key = active.key.clone();
        let signed = recorded(&order.payload, digest, signature, key, call, Location::default());
        Ok((place, order.transparency, signed, [intent, outcome]))
    }

    async fn log_all(&self, signed: Vec<(usize, Recorded)>) -> Vec<(usize, Result<Signed, Error>)> {
        let submissions = signed
            .iter()
            .map(|(_, recorded)| self.parts.log.submit(submission(recorded)));
        let entries = join_all(submissions).await;
        let drafts = signed
            .iter()
            .zip(&entries)
            .filter_map(|((_, recorded), entry)| Some(self.logged(recorded, entry.as_ref().ok()?)));
        let drafts: Vec<Draft> = drafts.collect();
        let written = if drafts.is_empty() {
            Ok(Vec::new())
        } else {
            self.audit.append(drafts).await
        };
        let results = signed.into_iter().zip(entries).map(|((place, recorded), entry)| {
            let result = match (entry, &written) {
                (Err(error), _) => Err(Error::Log(error)),
                (Ok(_), Err(error)) => Err(Error::Audit(error.clone())),
                (Ok(entry), Ok(_)) => Ok(answer(recorded, Some(entry))),
            };
            (place, result)
        });
        results.collect()
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

    /// Activates a prepared key of `slot`, lets the calls of the old one finish, and retires it.
    ///
    /// # Errors
    /// [`Error`] if the policy lets the caller sign nothing with the slot, if there is nothing to rotate to, or if the
    /// history cannot be kept.
    pub async fn rotate(self: &Arc<Self>, asker: Asker, order: RotateOrder) -> Result<Rotated, Error> {
        let policy = &self.parts.policy;
        if !policy.may_use(&asker.caller, &asker.tenant, &order.slot) {
            return Err(Error::KeyNotAllowed {
                caller: asker.caller,
                slot: order.slot,
            });
        }
        let signer = Arc::clone(self);
        let task = tokio::spawn(async move { signer.rotate_with_key(&asker, &order).await });
        task.await.map_err(|_| Error::CutOff)?
    }

    async fn rotate_with_key(&self, asker: &Asker, order: &RotateOrder) -> Result<Rotated, Error> {
        let Some(key) = &order.idempotency else {
            return Ok(self.rotate_now(asker, order).await?.0);
        };
        let scope = Scope::new(&asker.caller, &asker.tenant, "RotateKey", key.as_str());
        match self.idempotency.begin(scope, order.digest(), self.now())? {
            Begin::Fresh(ticket) => {
                let (rotated, rotation) = self.rotate_now(asker, order).await?;
                ticket.finish(Done::Rotated { rotation });
                Ok(rotated)
            }
            Begin::Resume(_, done) | Begin::Repeat(done) => self.rotated_before(done),
        }
    }

    /// The answer of a rotation that is recorded.
    fn rotated_before(&self, done: Done) -> Result<Rotated, Error> {
        let Done::Rotated { rotation } = done else {
            return Err(Error::CutOff);
        };
        let (new, old, version) = self.audit.read(rotation, |fields| {
            let old = fields.old_key.as_deref().unwrap_or_default().to_owned();
            Some((fields.new_key.as_deref()?.to_owned(), old, fields.version?))
        })?;
        let history = self.parts.ledger.current();
        let find = |id: &str| {
            history
                .keys()
                .iter()
                .find(|key| key.key.key_id().as_str() == id)
                .cloned()
        };
        Ok(Rotated {
            active: find(&new).ok_or(Error::NoKey(new))?,
            retired: find(&old),
            version,
        })
    }

    async fn rotate_now(&self, asker: &Asker, order: &RotateOrder) -> Result<(Rotated, Location), Error> {
        let (slot, to) = (order.slot.as_str(), order.to.clone());
        let request = order.digest();
        let idempotency = order.idempotency.as_ref();
        let idempotency = idempotency.map(|key| RecordedKey {
            key: key.as_str(),
            request: &request,
        });
        let _one = self.rotating.lock().await;
        let mut keys = self.keys()?;
        let new = choose(&keys, slot, to)?;
        self.parts.log.accepts(&new)?;
        let old = self
            .active
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(slot)
            .cloned();
        let call = self.audit.next_call();
        let record = |phase: Phase, version: u64| {
            let old_key = old
                .as_ref()
                .map(|old| old.key.key_id().as_str())
                .unwrap_or_default();
            Draft::rotation(
                self.now(),
                &Rotation {
                    call,
                    caller: &asker.caller,
                    idempotency,
                    new_key: new.key_id().as_str(),
                    old_key,
                    phase,
                    slot,
                    tenant: &asker.tenant,
                    version,
                },
            )
        };
        // Verifiers learn of the new key before it signs anything.
        for key in keys.iter_mut().filter(|key| key.key == new) {
            key.state = KeyState::Active;
            key.activated_at = Some(self.now());
        }
        let version = self.publish(&keys).await?;
        self.audit.append(vec![record(Phase::Begun, version)]).await?;
        self.read_active()?;
        let Some(old) = &old else {
            let rotation = self.append_one(record(Phase::Done, version)).await?;
            return Ok((
                Rotated {
                    active: find(&keys, &new)?,
                    retired: None,
                    version,
                },
                rotation,
            ));
        };
        drop(old.gate.write().await);
        let latest = self
            .latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(old.key.key_id())
            .copied();
        // The clock is in whole seconds, rounded down: the next second is the rounded-up now.
        let clock = Timestamp::from_unix(self.now().unix() + 1);
        for key in keys.iter_mut().filter(|key| key.key == old.key) {
            key.state = KeyState::Retired;
            key.retired_at = Some(latest.map_or(clock, |latest| latest.max(clock)));
        }
        let version = self.publish(&keys).await?;
        let rotation = self.append_one(record(Phase::Done, version)).await?;
        Ok((
            Rotated {
                active: find(&keys, &new)?,
                retired: Some(find(&keys, &old.key)?),
                version,
            },
            rotation,
        ))
    }

    async fn append_one(&self, draft: Draft) -> Result<Location, Error> {
        let written = self.audit.append(vec![draft]).await?;
        written.last().map(|written| written.at).ok_or(Error::CutOff)
    }

    async fn publish(&self, keys: &[HistoryKey]) -> Result<u64, Error> {
        tokio::task::block_in_place(|| self.parts.ledger.publish(keys)).map_err(Error::History)
    }

    /// Logs what was signed before the process ended and is not known to be logged; returns when all of it is.
    ///
    /// A witness that is away, or a log that is busy, is waited for: nobody else may ever ask for these signatures.
    pub(crate) async fn log_unfinished(&self, mut unfinished: Vec<Unfinished>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let round = stream::iter(unfinished).map(|left| self.log_left(left));
            let again = round.buffer_unordered(UNFINISHED_AT_A_TIME);
            unfinished = again.filter_map(|left| async { left }).collect().await;
            if unfinished.is_empty() {
                return;
            }
            tracing::warn!(
                count = unfinished.len(),
                "signatures of an earlier run are not logged yet"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Logs one; gives it back if that must be tried again.
    async fn log_left(&self, mut left: Unfinished) -> Option<Unfinished> {
        let ticket = match (left.ticket.take(), left.scope) {
            (None, Some(scope)) => match self.idempotency.resume(scope) {
                Resume::Taken(ticket) => Some(ticket),
                Resume::Running => return Some(left),
                Resume::Finished => return None,
                Resume::Forgotten => None,
            },
            (ticket, _) => ticket,
        };
        let history = self.parts.ledger.current();
        let known = history
            .keys()
            .iter()
            .find(|known| known.key.key_id().as_str() == left.key)?;
        let signed = Recorded {
            canonical: Vec::new(),
            pae: left.pae,
            signature: signature(left.signature.clone()),
            key: known.key.clone(),
            call: left.call,
            outcome: left.outcome,
        };
        match self.log(signed, ticket).await {
            Ok(_) => None,
            Err(Error::Log(LogError::WitnessUnavailable(_) | LogError::Busy)) => Some(left),
            Err(Error::Audit(AuditError::Unavailable(_))) => Some(left),
            Err(error) => {
                tracing::warn!(%error, "a signature of an earlier run is not logged before the next start");
                None
            }
        }
    }
}

/// A signature of an earlier run that must be logged.
#[derive(Debug)]
pub(crate) struct Unfinished {
    pub(crate) call: CallId,
    pub(crate) key: String,
    pub(crate) pae: Digest,
    pub(crate) signature: Vec<u8>,
    pub(crate) outcome: Location,
    pub(crate) scope: Option<Scope>,
    /// Taken before the doors open, so that no retry logs it at the same time.
    pub(crate) ticket: Option<Ticket>,
}

/// What a rotation came to.
#[derive(Debug)]
pub struct Rotated {
    /// The key that signs now.
    pub active: HistoryKey,
    /// The key that signs no more, if the slot had one.
    pub retired: Option<HistoryKey>,
    /// The version of the history that says so.
    pub version: u64,
}

fn find(keys: &[HistoryKey], key: &VerifyingKey) -> Result<HistoryKey, Error> {
    let found = keys.iter().find(|known| known.key == *key).cloned();
    found.ok_or_else(|| Error::NoKey(key.key_id().to_string()))
}

fn choose(keys: &[HistoryKey], slot: &str, to: Option<KeyId>) -> Result<VerifyingKey, Error> {
    let prepared = |key: &&HistoryKey| key.slot == slot && key.state == KeyState::Prepared;
    if let Some(to) = to {
        let named = keys.iter().find(|key| *key.key.key_id() == to);
        let named = named.ok_or_else(|| Error::NoKey(to.to_string()))?;
        return if prepared(&named) {
            Ok(named.key.clone())
        } else {
            Err(Error::NotPrepared(to))
        };
    }
    let mut candidates = keys.iter().filter(prepared);
    match (candidates.next(), candidates.next()) {
        (None, _) => Err(Error::NoPreparedKey(slot.to_owned())),
        (Some(only), None) => Ok(only.key.clone()),
        (Some(_), Some(_)) => Err(Error::SeveralPreparedKeys(slot.to_owned())),
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

fn logged(outcome: Location, written: &Written) -> Done {
    Done::Logged {
        outcome,
        logged: written.at,
        checkpoint: written.checkpoint.unwrap_or(written.at),
    }
}

fn answer(recorded: Recorded, entry: Option<LogEntry>) -> Signed {
    let key_id = recorded.key.key_id().clone();
    let bundle = Evidence::bundle_of(&recorded.canonical, &key_id, entry.as_slice());
    Signed {
        envelope: recorded.canonical,
        bundle,
        key_id,
        entry,
    }
}
